"""A bad line: ``rough_wire.py NETNS LINK LINK LOSS_TO LOSS_FROM DELAY JITTER SEED``, two links joined by a program.

Makes a link in its own network namespace and one in ``NETNS``, and carries packets between them: it loses some, and
holds each of the others back for a while of its own, so that they also overtake each other. Says ``ready`` when both
links are there. For kernels without netem, and the same on all.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time
from collections.abc import Callable

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_CLONE_NEWNET = 0x40000000
_LARGEST = 65_536


def _link(name: str) -> int:
    made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(made, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return made


def _enter(space: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(space) as entry:  # noqa: PTH123 - its descriptor is wanted
        if libc.setns(entry.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")


def _carry(ways: dict[int, tuple[int, float]], wait: Callable[[], float], dice: random.Random) -> None:
    """For ever. ``ways``: link -> where its packets go, and the share of them that is lost."""
    due: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        left = max(0.0, due[0][0] - time.monotonic()) if due else None
        for link in select.select(list(ways), [], [], left)[0]:
            target, loss = ways[link]
            try:
                packet = os.read(link, _LARGEST)
            except OSError:
                continue
            number += 1
            if dice.random() >= loss:
                heapq.heappush(due, (time.monotonic() + wait(), number, target, packet))
        while due and due[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(due)
            with contextlib.suppress(OSError):  # the link is not up yet, or full: one more that is lost
                os.write(target, packet)


def main(space: str, near: str, far: str, *numbers: str) -> None:
    """Lay the line and carry until killed."""
    loss_to, loss_from, delay, jitter, seed = map(float, numbers)
    dice = random.Random(seed)
    inner = _link(near)
    _enter(space)
    outer = _link(far)
    print("ready", flush=True)
    ways = {inner: (outer, loss_to), outer: (inner, loss_from)}
    _carry(ways, lambda: delay + jitter * dice.random(), dice)


main(*sys.argv[1:])
