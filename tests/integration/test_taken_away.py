"""Subscriptions that a server drops because a permission is taken away while connections live."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import nats
import pytest
from jetstream_kit import Server, config, quiet, server
from waiting import eventually

from natsjobs.jetstream import NatsLink, link_for

USER = 'user: u, password: p, permissions: {publish: ">", subscribe: {allow: ">", deny: "nothing"}}'


def deny(running: Server, *subjects: str) -> None:
    """From now on the user may not subscribe to these, whoever has done so already; what was denied before, he may."""
    subjects = subjects or ("nothing",)
    running.rewrite(lambda text: re.sub(r"deny: [^}]*", f"deny: [{', '.join(subjects)}]", text))
    running.signal(signal.SIGHUP)


@pytest.mark.parametrize("whose", ["own", "given"])
async def test_what_the_server_dropped_is_heard_again_when_it_may_be(tmp_path: Path, whose: str) -> None:
    """The connection lives and nobody subscribes again: without its inbox a replica would be deaf for ever."""
    text = f'jetstream: {{store_dir: "$STORE"}}\nauthorization: {{users: [{{{USER}}}]}}\n'
    with server(tmp_path, text) as running:
        url = running.url.replace("//", "//u:p@")
        nc = await nats.connect(url, error_cb=quiet) if whose == "given" else None
        link = link_for(nc, config()) if nc is not None else NatsLink.dial(url, config())
        await link.open()
        heard, told = list[bytes](), list[str]()
        await link.bus.subscribe("Some.where", lambda one: heard.append(one.body))
        link.on_reconnect(lambda: told.append("back"))
        used = link.nc
        deny(running, '"_INBOX.>"', '"Some.*"')
        await eventually(lambda: "violation" in str(used.last_error))
        deny(running)
        await eventually(lambda: told)
        assert (await link.events.state()).last_seq == 0

        async def again() -> bool:
            await link.bus.publish("Some.where", b"again")
            return bool(heard)

        await eventually(again)
        assert link.nc is used
        await link.close()
        if nc is not None:
            await nc.close()
