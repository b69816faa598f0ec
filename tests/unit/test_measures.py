"""The table of measures, the hub between the engine and exporters, and the loggers."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry

from natsjobs import telemetry
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import Hub, hub

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "natsjobs").rglob("*.py"))


class Recorder:
    """A sink that keeps what it gets."""

    def __init__(self):
        self.got = []

    def add(self, measure, value, labels):
        self.got.append((measure.name, value, labels))


class Broken:
    """A sink that cannot."""

    def add(self, measure, value, labels):
        raise RuntimeError("no")


class Two:
    """A source of gauges."""

    def gauges(self):
        yield measures.READERS, (), 2
        yield measures.STREAM_SIZE, ("events",), 10


def test_the_documented_table_is_the_one_in_the_code():
    """Word for word; and the README says where it is."""
    assert measures.table() in telemetry.__doc__
    assert "natsjobs/telemetry/__init__.py" in (ROOT / "README.md").read_text()


def test_every_measure_of_the_table_is_fed_and_no_other():
    """By code outside this package: a measure nobody feeds is a lie on a dashboard."""
    text = "\n".join(path.read_text() for path in FILES if "telemetry" not in path.parts)
    used = set(re.findall(r"measures\.([A-Z_]+)", text))
    named = {name for name, value in vars(measures).items() if isinstance(value, measures.Measure)}
    assert used == named
    assert len({measure.name for measure in telemetry.MEASURES}) == len(telemetry.MEASURES) == len(named)


def test_no_label_can_grow_without_bound():
    """Ids of users, jobs and replicas are none of a time series' business."""
    labels = {label for measure in telemetry.MEASURES for label in measure.labels}
    assert labels == {"status", "reason", "outcome", "type", "stream", "kind"}


def test_prometheus_gets_exactly_the_table():
    """Under the names that the table says, and a second export into the same registry is refused, not mixed."""
    registry = CollectorRegistry()
    with telemetry.prometheus(registry) as export:
        kinds = {family.name: family.type for family in registry.collect()}
        wanted = {m.prometheus_name.removesuffix("_total"): m.kind for m in telemetry.MEASURES}
        assert kinds == wanted
        assert b"natsjobs_append_duration_seconds_bucket" in export.text()[0]
        with pytest.raises(ValueError, match=r"[Dd]uplicate"):
            telemetry.prometheus(registry)
    assert list(registry.collect()) == []
    assert not hub.on


def test_a_refused_export_leaves_nothing_behind():
    """Neither listening nor half of the measures."""
    registry = CollectorRegistry()
    prometheus_client.Gauge(measures.READERS.prometheus_name, "somebody's own", registry=registry)
    before = [family.name for family in registry.collect()]
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):
        telemetry.prometheus(registry)
    assert [family.name for family in registry.collect()] == before
    assert not hub.on


def test_nobody_listening_costs_one_attribute():
    """``on`` is false before the first exporter and after the last, and importing brings no library."""
    made, one, two = Hub(), Recorder(), Recorder()
    assert not made.on
    ends = [made.attach(one), made.attach(two)]
    made.add(measures.GAPS)
    ends[0]()
    assert made.on
    made.add(measures.APPENDS, 2, "stored")
    ends[1]()
    ends[1]()
    assert not made.on
    assert one.got == [("natsjobs.live.gaps", 1, ())]
    assert two.got == [("natsjobs.live.gaps", 1, ()), ("natsjobs.appends", 2, ("stored",))]


def test_an_exporter_that_fails_breaks_nothing_and_is_named_once(caplog):
    """Neither the caller nor the other exporters."""
    made, one = Hub(), Recorder()
    made.attach(Broken())
    made.attach(one)
    made.add(measures.GAPS)
    made.add(measures.GAPS)
    made.tracer = object()
    with made.tracing() as tracer:
        tracer.start_run(("s", "g"), {})
    assert len(one.got) == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]
    assert "Broken" in caplog.text


def test_gauges_are_summed_over_what_lives():
    """Two replicas in one process are one number; one that is gone is forgotten."""
    made, one, two = Hub(), Two(), Two()
    made.watch(one)
    made.watch(two)
    assert made.gauges() == {(measures.READERS, ()): 4, (measures.STREAM_SIZE, ("events",)): 20}
    made.forget(two)
    made.forget(two)
    assert made.gauges()[measures.READERS, ()] == 2
    del one
    assert made.gauges() == {}


@pytest.mark.parametrize("extra", ["prometheus_client", "opentelemetry"])
def test_the_core_works_without_the_exporters_libraries(extra):
    """Only asking for the export itself needs one."""
    name = {"prometheus_client": "prometheus", "opentelemetry": "opentelemetry"}[extra]
    script = (
        "import sys, asyncio\n"
        f"sys.modules[{extra!r}] = None\n"
        "import natsjobs, natsjobs.telemetry\n"
        "async def main():\n"
        "    async with natsjobs.connect('memory://') as jobs, jobs.start('s', user_id='u') as run:\n"
        "        await run.emit(1)\n"
        "asyncio.run(main())\n"
        f"try:\n    natsjobs.telemetry.{name}()\nexcept ModuleNotFoundError as error:\n    print(error.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip().split(".")[0], done.stderr) == (0, extra, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_logs_under_its_own_name_and_touches_no_handler(path):
    """``_log = logging.getLogger(__name__)``; only the command line, a program, sets logging up."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            if call == "logging.getLogger" and path.parts[-2] != "cli":
                assert ast.unparse(node.args[0]) == "__name__"
            if path.parts[-2] != "cli":
                assert call not in {"logging.basicConfig", "logging.StreamHandler", "_log.addHandler", "_log.setLevel"}
                assert not call.startswith("logging.") or call == "logging.getLogger"
