"""Who the command line connects as: options before the command's name, and the variables of the ``nats`` command.

Owns the names ``--user``, ``--password``, ``--token``, ``--nkey``, ``--tlscert``, ``--tlskey``, ``--tlsca`` and
``--inbox-prefix``, and what they mean for a connection. An option stands above its variable.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from natsjobs.errors import ConfigError

User: TypeAlias = Annotated[
    str | None, typer.Option("--user", metavar="NAME", help="User, or a token without --password. [env: NATS_USER]")
]
Password: TypeAlias = Annotated[
    str | None,
    typer.Option("--password", metavar="TEXT", help="Other users of this machine may see it. [env: NATS_PASSWORD]"),
]
Token: TypeAlias = Annotated[str | None, typer.Option("--token", metavar="TEXT", help="Token. [env: NATS_TOKEN]")]
Nkey: TypeAlias = Annotated[
    Path | None, typer.Option("--nkey", metavar="FILE", help="File with an nkey seed. [env: NATS_NKEY]")
]
TlsCert: TypeAlias = Annotated[
    Path | None, typer.Option("--tlscert", metavar="FILE", help="Certificate of this client. [env: NATS_CERT]")
]
TlsKey: TypeAlias = Annotated[Path | None, typer.Option("--tlskey", metavar="FILE", help="Its key. [env: NATS_KEY]")]
TlsCa: TypeAlias = Annotated[
    Path | None, typer.Option("--tlsca", metavar="FILE", help="Authority of the server's certificate. [env: NATS_CA]")
]
InboxPrefix: TypeAlias = Annotated[
    str | None,
    typer.Option("--inbox-prefix", metavar="SUBJECT", help="Where answers go. [env: NATS_INBOX_PREFIX]"),
]

_FIELDS = {
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_TOKEN": "token",
    "NATS_NKEY": "nkey",
    "NATS_INBOX_PREFIX": "inbox_prefix",
    "NATS_CERT": "cert",
    "NATS_KEY": "key",
    "NATS_CA": "ca",
}
VARIABLES = ("NATS_CREDS", *_FIELDS)
"""All that say who connects; ``--creds`` is an option of every command."""


@dataclass(frozen=True, slots=True)
class Login:
    """How to connect besides the servers. What is not given comes from the environment, when it is asked for."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    nkey: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    inbox_prefix: str | None = None

    def options(self, creds: Path | None) -> dict[str, Any]:
        """For the connection.

        Raises:
            ConfigError: Something is missing, or a file cannot be read.
        """
        env = self.environment(creds)
        found: dict[str, Any] = {
            "user_credentials": env.get("NATS_CREDS"),
            "user": env.get("NATS_USER"),
            "password": env.get("NATS_PASSWORD"),
            "token": env.get("NATS_TOKEN"),
            "nkeys_seed": env.get("NATS_NKEY"),
            "inbox_prefix": env.get("NATS_INBOX_PREFIX"),
            "tls": _tls(env.get("NATS_CERT"), env.get("NATS_KEY"), env.get("NATS_CA")),
        }
        if found["password"] and not found["user"]:
            raise ConfigError("password", "belongs to a user; give --user (NATS_USER) as well")
        if found["user"] and not found["password"]:
            found["user"], found["token"] = None, found["token"] or found["user"]
        return {name: value for name, value in found.items() if value is not None}

    def environment(self, creds: Path | None) -> dict[str, str]:
        """All that is given, by variable: for another process that is to connect in the same way."""
        given = {"NATS_CREDS": creds, **{name: getattr(self, one) for name, one in _FIELDS.items()}}
        found = {name: str(one) if one else os.environ.get(name) for name, one in given.items()}
        return {name: value for name, value in found.items() if value}


def _tls(cert: str | None, key: str | None, ca: str | None) -> ssl.SSLContext | None:
    if not (cert or key or ca):
        return None
    if bool(cert) != bool(key):
        raise ConfigError("tlscert", "needs --tlskey (NATS_KEY), and the other way round")
    name, file = "tlsca", ca
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert and key:
            name, file = "tlscert", f"{cert} or {key}"
            context.load_cert_chain(cert, key)
    except OSError as error:  # also every error of ssl
        raise ConfigError(name, f"{file} cannot be used: {error.strerror or error}") from None
    return context
