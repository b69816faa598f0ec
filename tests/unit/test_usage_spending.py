"""Usage entries are read with care and spent exactly once, whoever shares the list and whoever is cancelled."""

from __future__ import annotations

import asyncio
import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsjobs.errors import InvalidArgumentError, SpendError
from natsjobs.models import UsageMetadata, to_dict
from natsjobs.usage import UsageTotals, spend_collected_usage, usage_from

# -- reading ----------------------------------------------------------------------------------------------------

ANTHROPIC = {
    "input_tokens": 43,
    "output_tokens": 7,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 0,
    "cache_creation": {"ephemeral_5m_input_tokens": 5},
    "service_tier": "standard",
}
LANGCHAIN = {
    "input_tokens": 350,
    "output_tokens": 240,
    "total_tokens": 590,
    "input_token_details": {"audio": 10, "cache_creation": 200, "cache_read": 100},
    "output_token_details": {"reasoning": 200},
}


@pytest.mark.parametrize(
    ("reported", "cache", "extra"),
    [
        (ANTHROPIC, (5, 0), {"cache_creation": {"ephemeral_5m_input_tokens": 5}, "service_tier": "standard"}),
        (LANGCHAIN, (200, 100), {"output_token_details": {"reasoning": 200}}),
        ({"input_tokens": None, "model": None, "agentId": None}, (0, 0), {"agentId": None}),
        ({}, (0, 0), {}),
    ],
)
def test_what_providers_report_is_taken_whole(reported, cache, extra):
    """Known names become fields, the rest ``extra``; the wire form has them flat again and reads as the same entry."""
    entry = usage_from(reported)
    assert (entry.cache_creation, entry.cache_read) == cache
    assert entry.extra == extra
    assert to_dict(entry) == {name: value for name, value in reported.items() if value is not None or name in extra}
    assert usage_from(to_dict(entry)) == entry
    assert usage_from(entry) == entry


def test_the_entry_shares_nothing_with_what_was_given():
    """Later changes of the provider's object do not reach it; any mapping will do."""
    given_ = {"input_tokens": 1, "deep": {"list": [1]}, "input_token_details": {"cache_read": 2, "more": [3]}}
    entry = usage_from(MappingProxyType(given_))
    again = usage_from(entry)
    given_["deep"]["list"].append(2)
    given_["input_token_details"]["more"].append(4)
    to_dict(entry)["deep"]["list"].append(5)
    for one in (entry, again):
        assert one.extra == {"deep": {"list": [1]}}
        assert one.input_token_details == {"cache_read": 2, "more": [3]}


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("text", "usage"),
        (None, "usage"),
        ([], "usage"),
        (7, "usage"),
        ({"input_tokens": "5"}, "usage.input_tokens"),
        ({"input_tokens": -1}, "usage.input_tokens"),
        ({"output_tokens": 1.5}, "usage.output_tokens"),
        ({"output_tokens": float("nan")}, "usage.output_tokens"),
        ({"total_tokens": True}, "usage.total_tokens"),
        ({"total_tokens": 2**60}, "usage.total_tokens"),
        ({"cache_read_input_tokens": []}, "usage.cache_read_input_tokens"),
        ({"model": 5}, "usage.model"),
        ({"provider": {}}, "usage.provider"),
        ({"id": 5}, "usage.id"),
        ({"input_token_details": 5}, "usage.input_token_details"),
        ({"input_token_details": {"cache_read": "5"}}, "usage.input_token_details.cache_read"),
        ({"more": object()}, "usage.more"),
        ({"more": "\ud800"}, "usage.more"),
        ({5: 6}, "usage"),
        (UsageMetadata(input_tokens="5"), "usage.input_tokens"),  # type: ignore[arg-type]
        (UsageMetadata(extra=None), "usage.extra"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_usage_is_refused_by_field(value, field):
    """The error names the field, also under another name for the whole."""
    with pytest.raises(InvalidArgumentError) as refused:
        usage_from(value)
    assert refused.value.field == field
    with pytest.raises(InvalidArgumentError) as refused:
        usage_from(value, "entry")
    assert refused.value.field == field.replace("usage", "entry", 1)


def test_a_value_that_contains_itself_is_refused():
    """By name, and without filling the stack."""
    loop: list = []
    loop.append(loop)
    with pytest.raises(InvalidArgumentError) as refused:
        usage_from({"loop": loop})
    assert refused.value.field == "usage.loop"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = [name for name in UsageMetadata.__struct_fields__ if name != "extra"] + ["agentId", "extra"]


def read_or_refused(value):
    """The entry, or the refusal."""
    try:
        return usage_from(value)
    except InvalidArgumentError as refused:
        return refused


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5))
def test_any_mapping_is_read_or_refused_by_name(value):
    """Never another error; what is read survives JSON."""
    entry = read_or_refused(value)
    if isinstance(entry, InvalidArgumentError):
        assert entry.field.split(".")[1] in NAMES
    else:
        assert usage_from(json.loads(json.dumps(to_dict(entry)))) == entry


# -- spending ---------------------------------------------------------------------------------------------------


@pytest.mark.scenario(89)
async def test_three_models_in_mixed_forms_are_spent_once():
    """Structs and mappings, cache tokens in either form; the list is empty afterwards, a second spend does nothing."""
    usage = [
        UsageMetadata(model="a", input_tokens=1, output_tokens=2),
        None,
        {"model": "b", "input_tokens": 3, "input_token_details": {"cache_creation": 4, "cache_read": 5}},
        {"model": "c", "input_tokens": 6, "cache_creation_input_tokens": 7, "cache_read_input_tokens": 8},
        {"model": "a", "output_tokens": 9},
        {"input_tokens": 10},
    ]
    shared, spent = usage, []
    totals = await spend_collected_usage(usage, spent.append)
    assert [(entry.model, entry.cache_creation, entry.cache_read) for entry in spent] == [
        ("a", 0, 0),
        ("b", 4, 5),
        ("c", 7, 8),
        ("a", 0, 0),
        (None, 0, 0),
    ]
    assert totals == {
        "a": UsageTotals(calls=2, input_tokens=1, output_tokens=11),
        "b": UsageTotals(calls=1, input_tokens=3, cache_creation=4, cache_read=5),
        "c": UsageTotals(calls=1, input_tokens=6, cache_creation=7, cache_read=8),
        "unknown": UsageTotals(calls=1, input_tokens=10),
    }
    assert shared == []
    assert await spend_collected_usage(shared, spent.append) == {}
    assert len(spent) == 5


class Biller:
    """Bills entries by their input tokens, as the test lets it."""

    def __init__(self, usage=None) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.entered: list[int] = []
        self.spent: list[int] = []
        self.refused: set[int] = set()
        self.usage = usage

    async def spend(self, entry) -> None:
        """Wait for leave, then bill or refuse."""
        self.entered.append(entry.input_tokens)
        self.begun.set()
        await self.go_on.wait()
        if entry.input_tokens in self.refused:
            raise RuntimeError(f"no credit for {entry.input_tokens}")
        self.spent.append(entry.input_tokens)


def entries(*tokens):
    """One entry for each number."""
    return [UsageMetadata(model="m", input_tokens=one) for one in tokens]


async def test_all_are_spent_at_the_same_time_and_waited_for():
    """Every call has begun before one ends."""
    barrier = asyncio.Barrier(20)

    async def spend(_entry) -> None:
        await barrier.wait()

    async with asyncio.timeout(20):
        assert (await spend_collected_usage(entries(*range(20)), spend))["m"].calls == 20


async def test_a_list_that_is_shared_while_spending_is_spent_once():
    """The second call finds nothing; an entry appended meanwhile stays for the next."""
    usage, biller = entries(1, 2), Biller()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        first = group.create_task(spend_collected_usage(usage, biller.spend))
        await biller.begun.wait()
        assert await spend_collected_usage(usage, biller.spend) == {}
        usage.extend(entries(3))
        biller.go_on.set()
        assert (await first)["m"].input_tokens == 3
        assert usage == entries(3)
        assert (await spend_collected_usage(usage, biller.spend))["m"].input_tokens == 3
    assert (biller.spent, usage) == ([1, 2, 3], [])


@pytest.mark.parametrize("plain", [True, False])
async def test_one_failure_does_not_stop_the_others(plain):
    """SpendError at the end holds the failed entries and the totals of the rest; the list is empty all the same."""
    usage = [*entries(1, 2), {"input_tokens": "unreadable"}, *entries(3), "no entry"]
    given_, biller = list(usage), Biller()
    biller.go_on.set()
    biller.refused = {2}

    def spend_now(entry) -> None:
        if entry.input_tokens == 2:
            raise RuntimeError("no credit for 2")
        biller.spent.append(entry.input_tokens)

    with pytest.raises(SpendError, match="3 usage entries could not be spent") as failed:
        await spend_collected_usage(usage, spend_now if plain else biller.spend)
    assert biller.spent == [1, 3]
    assert usage == []
    assert failed.value.totals == {"m": UsageTotals(calls=2, input_tokens=4)}
    (first, second, third) = failed.value.failures
    assert [first[0], second[0], third[0]] == [given_[1], given_[2], given_[4]]
    assert first[0] is given_[1]
    assert isinstance(first[1], RuntimeError)
    assert isinstance(second[1], InvalidArgumentError)
    assert isinstance(third[1], InvalidArgumentError)


async def test_what_failed_can_be_spent_again():
    """The error's entries are a list for the next try."""
    usage, biller = entries(1, 2, 3), Biller()
    biller.go_on.set()
    biller.refused = {1, 3}
    with pytest.raises(SpendError) as failed:
        await spend_collected_usage(usage, biller.spend)
    biller.refused = set()
    again = [entry for entry, _ in failed.value.failures]
    assert await spend_collected_usage(again, biller.spend) == {"m": UsageTotals(calls=2, input_tokens=4)}
    assert sorted(biller.spent) == [1, 2, 3]


async def test_a_cancelled_spend_leaves_in_the_list_what_was_not_spent():
    """Calls under way are waited for, however often the caller is cancelled; a retry spends the rest and no more."""
    usage, biller = entries(1, 2, 3), Biller()
    biller.refused = {2}
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(spend_collected_usage(usage, biller.spend))
        await biller.begun.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        usage.extend(entries(4))
        biller.go_on.set()
        await asyncio.wait({task})
    assert task.cancelled()
    assert biller.spent == [1, 3]
    assert usage == entries(2, 4)
    biller.refused = set()
    assert (await spend_collected_usage(usage, biller.spend))["m"].calls == 2
    assert (sorted(biller.spent), usage) == ([1, 2, 3, 4], [])


async def test_cancelled_before_the_first_call_nothing_is_half_done():
    """Every entry is spent or in the list, never both and never neither; no task is left behind."""
    usage, biller = entries(1, 2), Biller()
    biller.go_on.set()
    before = asyncio.all_tasks()

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await spend_collected_usage(usage, biller.spend)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(work())
        await asyncio.wait({task})
    assert task.cancelled()
    assert sorted([*biller.spent, *(entry.input_tokens for entry in usage)]) == [1, 2]
    assert asyncio.all_tasks() == before


async def test_a_time_out_reaches_its_owner():
    """The cancellation goes on after the wait, so ``asyncio.timeout`` sees its own."""
    usage, spent = entries(1), []
    limit = asyncio.timeout(0)

    async def spend(entry) -> None:
        while not limit.expired():
            await asyncio.sleep(0)
        spent.append(entry.input_tokens)

    async def work() -> None:
        async with limit:
            await spend_collected_usage(usage, spend)

    with pytest.raises(TimeoutError):
        await work()
    assert (spent, usage) == ([1], [])


def test_the_end_of_the_loop_ends_a_spend_that_hangs():
    """Its tasks are cancelled like all others; what was not spent is back in the list."""
    usage = entries(1, 2)

    async def spend(entry) -> None:
        if entry.input_tokens == 2:
            await asyncio.Event().wait()

    async def main() -> None:
        background.append(asyncio.get_running_loop().create_task(spend_collected_usage(usage, spend)))
        while usage:
            await asyncio.sleep(0)

    background: list[asyncio.Task] = []
    asyncio.run(main())
    assert background[0].cancelled()
    assert usage == entries(2)


@pytest.mark.parametrize("usage", [None, (), {}, "list", UsageMetadata()])
async def test_only_a_list_can_be_emptied(usage):
    """Anything else is refused, and nothing is spent."""
    with pytest.raises(InvalidArgumentError) as refused:
        await spend_collected_usage(usage, print)
    assert refused.value.field == "usage"
