"""Lines from a file descriptor, as they arrive, without blocking the loop and without reading ahead of need.

Nothing is read while nobody asks, and a cancelled wait has read nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

from natsjobs.errors import EventTooLargeError

STDIN = 0
_CHUNK = 65_536


async def lines(fd: int, limit: int) -> AsyncGenerator[tuple[int, bytes], None]:
    """Numbered lines without their ends, each as soon as it is complete; the last one may lack its end.

    Raises:
        EventTooLargeError: A line is longer than ``limit``; it is not read to its end.
    """
    rest = bytearray()
    number = 0
    searched = 0
    while chunk := await read_some(fd):
        rest += chunk
        while (end := rest.find(b"\n", searched)) >= 0:
            number += 1
            line = bytes(rest[:end]).removesuffix(b"\r")
            del rest[: end + 1]
            searched = 0
            yield number, line
        searched = len(rest)
        if len(rest) > limit:
            raise EventTooLargeError(len(rest), limit, field=f"line {number + 1}")
    if rest:
        yield number + 1, bytes(rest).removesuffix(b"\r")


async def read_some(fd: int) -> bytes:
    """What there is to read, at least one byte; empty at the end. Cancelled while waiting: nothing was read.

    The descriptor stays in blocking mode: it may be shared with other processes (a terminal with the shell).
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(fd, _wake, ready)
    except PermissionError:  # a regular file: always ready, and epoll does not take it
        await asyncio.sleep(0)
    else:
        try:
            await ready
        finally:
            loop.remove_reader(fd)
    return os.read(fd, _CHUNK)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
