"""Servers that ask who one is, one per way of saying it, and what a client says: rightly and wrongly.

Owns the making of keys, tokens and certificates, new ones for every test; ``nsc`` and ``openssl`` are not needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nkeys
import trustme

JETSTREAM = 'jetstream: {store_dir: "$STORE"}\n'


@dataclass
class Login:
    """A way to log in: what the server wants, and what clients give."""

    server: str
    right: dict[str, Any]
    """Options of ``nats.connect``."""
    arguments: list[str]
    """The same for the command line, as options before the command."""
    variables: dict[str, str]
    """And as environment."""
    wrong: dict[str, Any]
    wrong_variables: dict[str, str]
    secrets: list[str]
    """Nothing of this may be in any text."""
    scheme: str = "nats"
    user_part: str = ""
    """What a URL holds instead of options."""
    refusal: str = "refused the connection"
    files: list[Path] = field(default_factory=list)


def _secret(name: str) -> str:
    return f"{name}-{os.urandom(9).hex()}"


def password(folder: Path) -> Login:
    """A user and a password, one that a URL has to escape."""
    right, wrong = f"p/w#{_secret('right')}", _secret("wrong")
    return Login(
        f'{JETSTREAM}authorization: {{user: app, password: "{right}"}}\n',
        {"user": "app", "password": right},
        ["--user", "app", "--password", right],
        {"NATS_USER": "app", "NATS_PASSWORD": right},
        {"user": "app", "password": wrong},
        {"NATS_USER": "app", "NATS_PASSWORD": wrong},
        [right, wrong, right.replace("/", "%2F").replace("#", "%23")],
        user_part=f"app:{right.replace('/', '%2F').replace('#', '%23')}@",
    )


def token(folder: Path) -> Login:
    """One token for everybody."""
    right, wrong = _secret("right"), _secret("wrong")
    return Login(
        f'{JETSTREAM}authorization: {{token: "{right}"}}\n',
        {"token": right},
        ["--token", right],
        {"NATS_TOKEN": right},
        {"token": wrong},
        {"NATS_TOKEN": wrong},
        [right, wrong],
        user_part=f"{right}@",
    )


def nkey(folder: Path) -> Login:
    """A key pair: the server knows the public half, the seed is in a file."""
    (right, public), (wrong, _) = new_key("U"), new_key("U")
    files = [_file(folder, "right.nk", right), _file(folder, "wrong.nk", wrong)]
    return Login(
        f"{JETSTREAM}authorization: {{users: [{{nkey: {public}}}]}}\n",
        {"nkeys_seed": str(files[0])},
        ["--nkey", str(files[0])],
        {"NATS_NKEY": str(files[0])},
        {"nkeys_seed_str": wrong},
        {"NATS_NKEY": str(files[1])},
        [right, wrong],
        files=files,
    )


def creds(folder: Path) -> Login:
    """Operator, account and user as signed tokens; the client has a creds file."""
    operator, account, system = new_key("O"), new_key("A"), new_key("A")
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    everything = {**limits, **storage, "wildcards": True}
    accounts = {
        account[1]: jwt(operator, account[1], {"type": "account", "limits": everything}),
        system[1]: jwt(operator, system[1], {"type": "account", "limits": {**limits, "wildcards": True}}),
    }
    preload = "\n".join(f"  {name}: {text}" for name, text in accounts.items())
    right, wrong = new_creds(account), new_creds(new_key("A"))
    files = [_file(folder, "right.creds", right), _file(folder, "wrong.creds", wrong)]
    return Login(
        f"{JETSTREAM}operator: {jwt(operator, operator[1], {'type': 'operator'})}\nsystem_account: {system[1]}\n"
        f"resolver: MEMORY\nresolver_preload: {{\n{preload}\n}}\n",
        {"user_credentials": str(files[0])},
        ["--creds", str(files[0])],
        {"NATS_CREDS": str(files[0])},
        {"user_credentials": files[1]},
        {"NATS_CREDS": str(files[1])},
        [line for text in (right, wrong) for line in text.splitlines() if line and "-" * 5 not in line],
        files=files,
    )


def tls(folder: Path) -> Login:
    """A server with a certificate of its own authority, which wants one of the client too."""
    authority, stranger = trustme.CA(), trustme.CA()
    for name, issued in (("server", authority.issue_cert("127.0.0.1")), ("client", authority.issue_cert("app@x"))):
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    right = {"ca": str(folder / "ca.pem"), "cert": str(folder / "client.crt"), "key": str(folder / "client.key")}
    context = ssl.create_default_context(cafile=right["ca"])
    context.load_cert_chain(right["cert"], right["key"])
    variables = {f"NATS_{name.upper()}": path for name, path in right.items()}
    return Login(
        f'{JETSTREAM}tls: {{cert_file: "{folder}/server.crt", key_file: "{folder}/server.key", '
        f'ca_file: "{folder}/ca.pem", verify: true}}\n',
        {"tls": context},
        [part for name, path in right.items() for part in (f"--tls{name}", path)],
        variables,
        {"tls": ssl.create_default_context(cafile=str(folder / "stranger.pem"))},
        {**variables, "NATS_CA": str(folder / "stranger.pem")},
        [line for line in (folder / "client.key").read_text().splitlines() if "-" * 5 not in line],
        scheme="tls",
        refusal="no TLS connection",
    )


WAYS: dict[str, Callable[[Path], Login]] = {
    "password": password,
    "token": token,
    "nkey": nkey,
    "creds": creds,
    "tls": tls,
}


# -- keys ---------------------------------------------------------------------------------------------------------

_PREFIXES = {"O": nkeys.PREFIX_BYTE_OPERATOR, "A": nkeys.PREFIX_BYTE_ACCOUNT, "U": nkeys.PREFIX_BYTE_USER}


def new_key(kind: str) -> tuple[str, str]:
    """Seed and public key of an operator, account or user."""
    seed = nkeys.encode_seed(os.urandom(32), _PREFIXES[kind])
    return seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode()


def new_creds(account: tuple[str, str], *, expires: float | None = None) -> str:
    """The text of a creds file for a new user of an account."""
    seed, public = new_key("U")
    limits = {"subs": -1, "data": -1, "payload": -1}
    text = jwt(account, public, {"type": "user", "pub": {}, "sub": {}, **limits}, expires=expires)
    return (
        f"-----BEGIN NATS USER JWT-----\n{text}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def jwt(issuer: tuple[str, str], subject: str, nats: dict[str, Any], *, expires: float | None = None) -> str:
    """A token of NATS: claims about ``subject``, signed by ``issuer``."""
    claims: dict[str, Any] = {"iat": int(time.time()), "iss": issuer[1], "sub": subject, "name": subject[:6]}
    claims |= {"nats": {**nats, "version": 2}, **({"exp": int(expires)} if expires else {})}
    claims["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
    text = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(claims)}"
    signature = nkeys.from_seed(bytearray(issuer[0].encode())).sign(text.encode())
    return f"{text}.{_base64(signature)}"


def _part(value: object) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path
