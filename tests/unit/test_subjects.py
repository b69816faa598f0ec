"""Names on the wire: reversible, without collisions, and no id can act as anything but itself."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsjobs.engine.subjects import Subjects, check_id, escape, unescape
from natsjobs.errors import InvalidIdError

IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
TOKEN = re.compile(r"[A-Za-z0-9_=-]+")
S = Subjects("ns-1")
GENERATION = "0123abc"


@given(IDS)
def test_an_id_becomes_one_token_and_comes_back(value):
    """Whatever characters it has, and never longer than three times its UTF-8 form."""
    token = escape(value)
    assert TOKEN.fullmatch(token)
    assert len(token) <= 3 * len(value.encode())
    assert unescape(token) == value


@given(IDS, IDS)
def test_two_ids_never_have_the_same_token(one, two):
    """Equal tokens are equal ids."""
    assert (escape(one) == escape(two)) == (one == two)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("conv-1_A", "conv-1_A"),
        ("alice@example.com", "alice=40example=2Ecom"),
        ("a=40b", "a=3D40b"),
        ("*", "=2A"),
        (">", "=3E"),
        (" ", "=20"),
        ("a\n", "a=0A"),
        (".", "=2E"),
        ("ü", "=C3=BC"),
        ("\0", "=00"),
    ],
)
def test_tokens_are_readable_and_stay_as_they_are(value, token):
    """Stored names depend on them."""
    assert escape(value) == token
    assert unescape(token) == value


@pytest.mark.parametrize(
    "token", ["", "=", "a=", "=4", "=4g", "=41", "=2a", "=C3", "a.b", "*", "a b", "=-1", "=+1", "= 1", "ü"]
)
def test_a_token_that_was_not_written_here_is_refused(token):
    """Also other spellings of a real id: each id has one token."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the token, or the codec's
        unescape(token)


@given(st.text("=0123456789ABCDEFabcXyz-_.*>", max_size=12))
def test_whatever_is_read_was_written_here(token):
    """Any text is refused or is the one token of its id."""
    try:
        value = unescape(token)
    except ValueError:
        return
    assert escape(value) == token


@given(IDS, IDS)
def test_subjects_are_read_back(stream_id, user):
    """Events, live copies, bucket keys and their republished forms."""
    for subject, kind in ((S.log(stream_id, GENERATION), "log"), (S.end(stream_id, GENERATION), "end")):
        assert S.split_event(subject) == (stream_id, GENERATION, kind)
        live = S.live_prefix + subject.removeprefix(S.events_prefix)
        assert S.split_event(live) == (stream_id, GENERATION, kind)
        assert subject.split(".")[:4] == S.scope(stream_id, GENERATION).split(".")[:4]
        assert subject.startswith(S.all_generations(stream_id).removesuffix(">"))
    assert S.log_beside(S.end(stream_id, GENERATION)) == S.log(stream_id, GENERATION)
    key = S.record("active", user, stream_id)
    assert S.split_record(key) == ("active", user, stream_id)
    assert S.split_record(S.changes_prefix + key.removeprefix(S.record_prefix)) == ("active", user, stream_id)
    assert key.startswith(S.records("active", user).removesuffix(">"))
    assert key.startswith(S.records("active").removesuffix(">"))


@given(IDS)
def test_no_id_adds_a_token_or_a_wildcard(value):
    """Every subject of an id has as many tokens as that of a plain one, and the same first ones."""
    for name in (S.abort, S.presence, S.joined, S.wake, S.owner):
        subject, plain = name(value), name("x")
        assert subject.rsplit(".", 1)[0] == plain.rsplit(".", 1)[0]
        assert not set(subject) & set("*> \t\r\n")


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "ns-1",
        "ns-1.events.a.g.log.x",
        "ns-1.events.a.g.other",
        "other.events.a.g.log",
        "ns-1.events.a b.g.log",
        "ns-1.kv",
    ],
)
def test_subjects_of_others_are_not_ours(subject):
    """They read as nothing."""
    assert S.split_event(subject) is None
    assert S.split_record(subject) is None


def test_namespaces_share_no_name():
    """Also when one is the beginning of the other."""
    one, two = Subjects("a"), Subjects("a_jobs")
    names = [
        {s.events_stream, s.bucket, s.records_stream, s.events_prefix, s.live_prefix, s.record_prefix, s.changes_prefix}
        for s in (one, two)
    ]
    assert not names[0] & names[1]
    assert two.split_event(one.log("x", "g")) is None
    assert two.split_record(one.record("job", "x")) is None


@given(IDS)
def test_good_ids_pass_as_they_are(value):
    """Up to the limit in UTF-8."""
    assert check_id(value, "stream_id") is value


@pytest.mark.parametrize("value", [None, 5, b"id", "", [], "\ud800", "a\udfff", "x" * 257, "ü" * 129, object()])
def test_bad_ids_are_refused_by_field(value):
    """No string, empty, without a UTF-8 form, or too long."""
    with pytest.raises(InvalidIdError) as refused:
        check_id(value, "stream_id")
    assert refused.value.field == "stream_id"
    assert str(refused.value).startswith("stream_id: ")


def test_the_limit_counts_bytes_and_can_be_set():
    """256 unless told otherwise."""
    assert check_id("ü" * 128, "user_id")
    assert check_id("abc", "user_id", 3)
    with pytest.raises(InvalidIdError, match="has 4 bytes in UTF-8, the limit is 3"):
        check_id("abcd", "user_id", 3)
