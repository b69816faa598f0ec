"""User JWTs for the tests: an operator, accounts and short-lived users, and a server that demands them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys

OPERATOR, ACCOUNT, USER = nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER


def key(kind: int) -> Any:
    """A new key pair."""
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))


def _public(pair: Any) -> str:
    return bytes(pair.public_key).decode()


def _seed(pair: Any) -> str:
    return bytes(pair.seed).decode()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def jwt(issuer: Any, subject: str, kind: str, *, lives: float | None = None, **nats: Any) -> str:
    """Claims of version 2, signed by ``issuer``; they expire after ``lives`` seconds."""
    now = int(time.time())
    claims: dict[str, Any] = {
        "iat": now,
        "iss": _public(issuer),
        "sub": subject,
        "name": kind,
        "nats": {"type": kind, "version": 2, **nats},
    }
    if lives is not None:
        claims["exp"] = now + max(1, round(lives))
    digest = hashlib.sha256(json.dumps(claims).encode()).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    head = _encode(b'{"typ":"JWT","alg":"ed25519-nkey"}')
    body = _encode(json.dumps(claims).encode())
    return f"{head}.{body}.{_encode(bytes(issuer.sign(f'{head}.{body}'.encode())))}"


class Operator:
    """An operator with one account that has JetStream; it issues users, and the configuration that trusts it."""

    def __init__(self) -> None:
        self._operator, self._account, self._user = key(OPERATOR), key(ACCOUNT), key(USER)
        everything = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True}
        limits = {**everything, "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1}
        limits |= {"consumer": -1, "max_bytes_required": False}
        trusted = jwt(self._operator, _public(self._operator), "operator")
        system = _public(key(ACCOUNT))  # JetStream wants one
        accounts = {
            name: jwt(self._operator, name, "account", limits=given, default_permissions={})
            for name, given in ((_public(self._account), limits), (system, everything | {"conn": -1, "leaf": -1}))
        }
        known = ", ".join(f"{name}: {text}" for name, text in accounts.items())
        self.config = (
            'jetstream: {store_dir: "$STORE"}\n'
            f"operator: {trusted}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{{known}}}\n"
        )

    def user(self, file: Path, *, lives: float | None) -> Path:
        """Write a credentials file, in one step, whose user's time is over after ``lives`` seconds."""
        user = jwt(
            self._account, _public(self._user), "user", lives=lives, subs=-1, data=-1, payload=-1, pub={}, sub={}
        )
        text = (
            f"-----BEGIN NATS USER JWT-----\n{user}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{_seed(self._user)}\n------END USER NKEY SEED------\n"
        )
        new = file.with_suffix(".new")
        new.write_text(text)
        new.replace(file)
        return file
