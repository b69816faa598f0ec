"""What the server says of a stored message, in raw header bytes."""

from __future__ import annotations

import pytest

from natsjobs.jetstream.headers import marker_of, stored_of

OWN = [b"Nats-Stream: s", b"Nats-Subject: a.b", b"Nats-Sequence: 12", b"Nats-Time-Stamp: 2026-01-01T00:00:00.5Z"]
THEN = 1_767_225_600.5


def block(*lines: bytes) -> bytes:
    """Headers of these lines."""
    return b"\r\n".join([b"NATS/1.0", *lines, b"", b""])


def test_subject_sequence_and_time_are_read() -> None:
    """Whatever comes behind them."""
    assert stored_of(block(*OWN)) == ("a.b", 12, THEN)
    assert stored_of(block(*OWN, b"Nats-Num-Pending: 3", b"Nats-Last-Sequence: 11")) == ("a.b", 12, THEN)


@pytest.mark.parametrize("order", [(1, 3, 2, 0), (3, 2, 1, 0), (2, 0, 1, 3)])
def test_their_order_does_not_matter(order: tuple[int, ...]) -> None:
    """Servers have always written them in one order; nobody promises it."""
    assert stored_of(block(*(OWN[place] for place in order))) == ("a.b", 12, THEN)


def test_what_the_sender_wrote_is_not_believed() -> None:
    """The server's own headers come last."""
    forged = [b"Nats-Subject: x", b"Nats-Sequence: 99", b"Nats-Time-Stamp: 1999-01-01T00:00:00Z"]
    assert stored_of(block(*forged, *OWN)) == ("a.b", 12, THEN)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_without_one_of_them_it_is_no_stored_message(missing: int) -> None:
    """A status line, for instance, or an answer of somebody else."""
    assert stored_of(block(*(line for place, line in enumerate(OWN) if place != missing))) is None


def test_the_version_is_no_subject() -> None:
    """What stands before the first header is none, wherever the others begin."""
    assert stored_of(block(OWN[2], OWN[3], OWN[0])) is None
    assert stored_of(block(OWN[2], OWN[3])) is None


@pytest.mark.parametrize("wrong", [b"Nats-Sequence: 1x", b"Nats-Sequence: ", b"Nats-Sequence: " + b"9" * 19])
def test_a_sequence_is_a_number_of_the_stream(wrong: bytes) -> None:
    """Everything else is somebody's text."""
    assert stored_of(block(OWN[0], OWN[1], wrong, OWN[3])) is None


@pytest.mark.parametrize("wrong", [b"yesterday", b"\xff", b""])
def test_a_time_is_a_time(wrong: bytes) -> None:
    """Everything else is somebody's text."""
    assert stored_of(block(*OWN[:3], b"Nats-Time-Stamp: " + wrong)) is None


def test_markers_are_found_beside_them() -> None:
    """Of a client and of the server."""
    assert marker_of(block(*OWN)) is None
    assert marker_of(block(b"KV-Operation: PURGE", *OWN)) == "PURGE"
    assert marker_of(block(b"Nats-Marker-Reason: MaxAge", *OWN)) == "MaxAge"
