"""Who we are to a server: user and password, token, nkey or creds file, made ready for nats-py; and kept out of texts.

Owns three things that nats-py leaves to its callers. A creds file is read here, at every (re)connect, so that it can be
replaced while we run: nats-py's own reading of a file without a JWT in it never ends. User and password of a URL become
options, because nats-py forgets them for servers that it learns about later. And what is secret is known here, so that
it can be taken out of any text that leaves.
"""

from __future__ import annotations

import base64
import re
from collections import UserString
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from nats.errors import InvalidUserCredentialsError

from natsjobs.errors import ConfigError

_JWT = re.compile(r"BEGIN NATS USER JWT-*\s+([\w.-]+)\s")
_SEED = re.compile(r"BEGIN USER NKEY SEED-*\s+(S[A-Z2-7]+)\s")
_SECRETS = ("password", "token", "nkeys_seed_str")
_FILES = ("user_credentials", "nkeys_seed")
_SHORTEST = 3
"""Anything shorter is no secret, and taking it out would make texts unreadable."""


def split_urls(urls: Sequence[str], options: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The servers without their user part, and the options with it; as they were, when the servers do not all agree.

    An option stands above what the URLs say, as in nats-py.
    """
    parts = [_split(url) for url in urls]
    if any(options.get(name) is not None for name in ("user", "password", "token")):
        return [url for _, url in parts], dict(options)
    found = {user for user, _ in parts if user}
    if len(found) != 1:
        return list(urls), dict(options)
    user, has_password, password = found.pop().partition(":")
    who = {"user": unquote(user), "password": unquote(password)} if has_password else {"token": unquote(user)}
    return [url for _, url in parts], {**options, **who}


def _split(url: str) -> tuple[str, str]:
    scheme, mark, rest = url.rpartition("://")
    user, at, host = rest.rpartition("@")
    return (user, f"{scheme}{mark}{host}") if at else ("", url)


def without_user(url: str) -> str:
    """A URL as it may be shown."""
    return _split(url)[1]


def check_url(url: str) -> None:
    """Refuse what is no address, before nats-py and urllib quote it with all that it holds.

    Raises:
        ConfigError: It is none, or needs what is not installed. ``url`` is shown, so it comes here without its user.
    """
    scheme = ""
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        scheme = parts.scheme
        fine = scheme in {"nats", "tls", "ws", "wss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError("servers", f"{url!r} is no address of a NATS server; give one like nats://localhost:4222")
    if scheme in {"ws", "wss"} and find_spec("aiohttp") is None:
        raise ConfigError("servers", f"{url!r} is a websocket, which nats-py does not open by itself; install aiohttp")


def secrets_of(urls: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Everything that must not be in a text, longest first."""
    found: set[str] = set()
    for url in urls:
        user, _, password = _split(url)[0].partition(":")
        secret = password or user  # a user alone is a token
        found |= {secret, unquote(secret)}
    for name in (*_SECRETS, *_FILES):
        value = options.get(name)
        if isinstance(value, str | UserString) and (name in _SECRETS or _looks_secret(str(value))):
            found |= {str(value), *_JWT.findall(f"{value}\n"), *_SEED.findall(f"{value}\n")}
    return sorted((text for text in found if len(text) >= _SHORTEST), key=len, reverse=True)


def _looks_secret(text: str) -> bool:
    """Where a path is expected, people also give the thing itself."""
    return "BEGIN NATS USER JWT" in text or bool(re.fullmatch(r"\s*SU[A-Z2-7]{50,}\s*", text))


def ready(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as nats-py gets them: credentials that are files become functions that read them.

    Raises:
        ConfigError: They are no credentials, or the nkeys library is missing. The text holds nothing of them.
    """
    found = dict(options)
    creds, seed_file = found.pop("user_credentials", None), found.get("nkeys_seed")
    if creds is not None:
        reader = _reader(creds)
        _checked("user_credentials", reader)

        def sign(nonce: str) -> bytes:
            return _sign(_again(reader)[1], nonce)

        found |= {"user_jwt_cb": lambda: bytearray(_again(reader)[0].encode()), "signature_cb": sign}
    if seed_file is not None:
        if _looks_secret(str(seed_file)):
            raise ConfigError("nkeys_seed", "is the path of a file; give a seed itself as nkeys_seed_str")
        _checked("nkeys_seed", lambda: ("", _read(seed_file).strip()))
    if (seed := found.get("nkeys_seed_str")) is not None:
        _checked("nkeys_seed_str", lambda: ("", str(seed).strip()))
    return found


def _reader(creds: Any) -> Callable[[], tuple[str, str]]:
    """A function that gives JWT and seed as they are now."""
    if isinstance(creds, tuple):
        jwt_file, seed_file = creds  # pyright: ignore[reportUnknownVariableType]
        return lambda: (_read(jwt_file).strip(), _read(seed_file).strip())
    if not isinstance(creds, UserString) and _looks_secret(str(creds)):
        raise ConfigError(
            "user_credentials", "is the path of a file; give its content as nats.aio.client.RawCredentials"
        )

    def read() -> tuple[str, str]:
        text = f"{creds if isinstance(creds, UserString) else _read(creds)}\n"
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            raise ValueError("it holds no user JWT and seed; give a file that `nsc generate creds` has written")
        return jwt[1], seed[1]

    return read


def _read(path: Any) -> str:
    return Path(path).read_text(encoding="utf-8")


def _checked(option: str, reader: Callable[[], tuple[str, str]]) -> None:
    try:
        _sign(reader()[1], "probe")
    except ImportError:
        raise ConfigError(option, "needs the nkeys library: pip install 'natsjobs[nkeys]'") from None
    except OSError as error:
        raise ConfigError(
            option, f"the file cannot be read: {error.strerror}; check its path and permissions"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(option, "the file is no text, so it holds no credentials") from None
    except ValueError as error:
        raise ConfigError(option, str(error)) from None


def _again(reader: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """At a reconnect the file may be half written: then this attempt fails, and the next one reads it anew."""
    try:
        return reader()
    except (OSError, ValueError):
        raise InvalidUserCredentialsError from None


def _sign(seed: str, nonce: str) -> bytes:
    import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

    try:
        library: Any = nkeys
        pair = library.from_seed(bytearray(seed.encode()))
        signed: bytes = pair.sign(nonce.encode())
        pair.wipe()
    except Exception:  # noqa: BLE001 - the library's errors share no base, and one names the bytes that it met
        raise ValueError("the seed is no nkey seed") from None
    return base64.b64encode(signed)
