"""What is cut past nats-py: with nats-py's own parser behind it, everything comes once and in its order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from natsjobs.jetstream.frames import Frames

OURS, THEIRS = 7, 8


class Reading:
    """nats-py's half of a connection: a stream of asyncio, its parser, and a task that goes from one to the other."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.past = 0
        self.stream = asyncio.StreamReader()
        self.parser = Parser(self)
        self.frames = Frames(asyncio.StreamReaderProtocol(self.stream), self.is_idle, self.deliver)

    def is_idle(self) -> bool:
        """Whether it waits for bytes, in the middle of nothing."""
        waiter: Any = self.stream._waiter
        return waiter is not None and not waiter.done() and not self.parser.buf and self.parser.state == 1

    def deliver(self, number: int, subject: bytes, reply: bytes, body: bytes, headers: bytes) -> bool:
        """The shortcut."""
        if number != OURS:
            return False
        self.past += 1
        self.told.append((number, subject, reply, body, headers))
        return True

    async def _process_msg(self, number: int, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        self.told.append((number, subject, reply, body, headers or b""))

    async def _process_ping(self) -> None:
        await asyncio.sleep(0)  # nats-py answers meanwhile
        self.told.append("PING")

    async def _process_pong(self) -> None:
        self.told.append("PONG")

    async def _process_err(self, text: str) -> None:
        await asyncio.sleep(0)
        self.told.append(text)

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.told.append(info)

    async def read(self) -> None:
        """As nats-py's reading loop."""
        while data := await self.stream.read(32_768):
            await self.parser.parse(data)


def wire(what: Any) -> bytes:
    """As a server sends it."""
    match what:
        case (number, subject, reply, body, b""):
            line = b" ".join(filter(None, (b"MSG", subject, b"%d" % number, reply, b"%d" % len(body))))
            return line + b"\r\n" + body + b"\r\n"
        case (number, subject, reply, body, headers):
            sizes = b"%d %d" % (len(headers), len(headers) + len(body))
            line = b" ".join(filter(None, (b"HMSG", subject, b"%d" % number, reply, sizes)))
            return line + b"\r\n" + headers + body + b"\r\n"
        case "PING" | "PONG":
            return f"{what}\r\n".encode()
        case str():
            return f"-ERR {what}\r\n".encode()
        case _:
            return b'INFO {"server_id":"%s"}\r\n' % what["server_id"].encode()


bodies = st.one_of(st.binary(max_size=40), st.sampled_from([b"PING\r\n", b"MSG a 7 3\r\n", b"\r\n", b"x" * 5_000]))
subjects = st.sampled_from([b"a", b"jobs.s.1", b"MSG", "\N{SNOWMAN}".encode()])
messages = st.tuples(
    st.sampled_from([OURS, OURS, OURS, THEIRS]),
    subjects,
    st.sampled_from([b"", b"_INBOX.1"]),
    bodies,
    st.sampled_from([b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 404 No Messages\r\n\r\n"]),
)
others = st.one_of(
    st.sampled_from(["PING", "PONG", "'permissions violation for \"a\"'"]),
    st.builds(lambda name: {"server_id": name}, st.sampled_from(["x", "y" * 5_000])),
)


@given(st.lists(st.one_of(messages, messages, others), max_size=30), st.data())
def test_however_it_is_cut_everything_comes_once_and_in_order(sent: list[Any], data: st.DataObject) -> None:
    """Ours past nats-py, the rest through it, whatever the pieces are and whether or not it has kept up.

    The first pieces come before the shortcut is there, as when a link is opened on a connection under traffic.
    """
    stream = b"".join(map(wire, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    turns = [data.draw(st.integers(0, 3)) for _ in range(len(cuts) + 1)]
    before = data.draw(st.integers(0, 3))

    async def play() -> Reading:
        reading = Reading()
        task = asyncio.create_task(reading.read())
        for piece, (start, end, wait) in enumerate(zip([0, *cuts], [*cuts, len(stream)], turns, strict=True)):
            for _ in range(wait):
                await asyncio.sleep(0)
            if start < end:
                (reading.frames.below if piece < before else reading.frames).data_received(stream[start:end])
        reading.frames.eof_received()
        await task
        return reading

    assert asyncio.run(play()).told == sent


@pytest.mark.parametrize("at", [5_000, -2, -1])
async def test_a_line_longer_than_any_buffer_is_told_as_soon_as_it_is_whole(at: int) -> None:
    """The INFO of a large cluster, which names all its servers; nothing has to come behind it."""
    reading, info = Reading(), {"server_id": "y" * 70_000}
    task = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    for piece in (wire(info)[:at], wire(info)[at:]):
        reading.frames.data_received(piece)
        await asyncio.sleep(0)
    reading.frames.eof_received()
    await task
    assert reading.told == [info]


async def test_after_something_else_it_goes_past_nats_py_again() -> None:
    """A PING between the halves of messages costs a turn of the loop, not the rest of a long answer."""
    reading = Reading()
    task = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    message = wire((OURS, b"a", b"", b"x" * 100, b""))
    stream = wire("PING") + message * 1_000
    for at in range(0, len(stream), 1_000):  # hardly ever between two messages
        reading.frames.data_received(stream[at : at + 1_000])
        await asyncio.sleep(0)
    reading.frames.eof_received()
    await task
    assert len(reading.told) == 1_001
    assert reading.past > 950


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 7\r\n",
        b"MSG a x 3\r\n",
        b"HMSG a 7 12 3\r\n",
        b"MSG a 7 -9\r\n",
        b"\r\n",
        b"NOISE\r\n",
        b"MSG " + b"a" * 5_000,
    ],
)
async def test_what_is_no_nats_is_left_to_nats_py(line: bytes) -> None:
    """Which says what is wrong with it and closes the connection; nothing behind it is handed over."""
    reading = Reading()
    task = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    reading.frames.data_received(wire((OURS, b"a", b"", b"x", b"")) + line + wire((OURS, b"b", b"", b"y", b"")))
    assert reading.past == 1
    assert bytes(reading.stream._buffer).startswith(line)
    task.cancel()


async def test_in_the_middle_of_a_message_nothing_is_taken_for_the_wire() -> None:
    """A body may quote the protocol: what a line of it announces is not waited for."""
    reading = Reading()
    task = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    theirs = (THEIRS, b"user", b"", b"a trace of the wire:\r\nMSG orders.new 1 900000\r\n", b"")
    reading.frames.below.data_received(wire(theirs)[:20])
    await asyncio.sleep(0)
    reading.frames.data_received(wire(theirs)[20:])
    await asyncio.sleep(0)
    assert reading.told == [theirs]
    reading.frames.data_received(wire("PING"))
    reading.frames.eof_received()
    await task
    assert reading.told == [theirs, "PING"]


async def test_after_the_end_of_the_stream_nothing_is_given_back() -> None:
    """The peer said goodbye in the middle of a message, and the link is closed before nats-py has closed the socket."""
    reading = Reading()
    task = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    reading.frames.data_received(wire((OURS, b"a", b"", b"x" * 100, b""))[:50])
    reading.frames.eof_received()
    reading.frames.give_back()
    await task
    assert reading.told == []


async def test_what_had_begun_is_given_back() -> None:
    """Whoever takes the shortcut out loses nothing: nats-py reads on from where it stood."""
    reading = Reading()
    task = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    message = (OURS, b"a", b"", b"x" * 100, b"")
    reading.frames.data_received(wire(message)[:50])
    reading.frames.give_back()
    reading.frames.below.data_received(wire(message)[50:])
    reading.frames.eof_received()
    await task
    assert (reading.told, reading.past) == ([message], 0)
