"""The file listing is the architecture: imports point down, one folder knows nats-py, and files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "natsjobs"

LAYERS = [
    {"telemetry"},
    {"models", "tasks"},
    {"errors"},
    {"config"},
    {"content", "usage"},
    {"interfaces"},
    {"engine"},
    {"jetstream", "memory", "embedded"},
    {"manager"},
    {"connect"},
    {"__init__"},
    {"http"},
    {"cli", "testing"},
    {"pytest_plugin", "__main__"},
]
"""Bottom first. A unit imports from layers below its own, and from itself."""

NEVER = {name: {"engine", "jetstream", "memory"} for name in ("manager", "interfaces", "config", "http")}
"""What would be below, and must not be known all the same: the manager stands on the interfaces alone, the gateway on
what every application has."""

OPTIONAL = {
    "typer",
    "rich",
    "starlette",
    "uvicorn",
    "opentelemetry",
    "prometheus_client",
    "nkeys",
    "nats_server",
    "pytest",
}
"""Libraries of extras: found only when somebody asks for what needs them."""

EXPORTERS = {"natsjobs.telemetry.scrape", "natsjobs.telemetry.tracing"}
"""Modules that stand on such a library, and are themselves imported only where they are used."""


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}


def imported(name: str) -> Iterator[str]:
    """Every module that a module imports, wherever it does: at its top, in a function, under TYPE_CHECKING."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base


OURS = {name: {other for other in imported(name) if other in FILES and other != name} for name in FILES}


def unit_of(name: str) -> str:
    """The entry of the top level that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


LAYER_OF = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}


def test_every_entry_of_the_top_level_has_a_layer():
    """A new one is given its place here, on purpose."""
    assert {unit_of(name) for name in FILES} - LAYER_OF.keys() == set()


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    """From a layer to those below; also under TYPE_CHECKING and inside functions."""
    unit = unit_of(name)
    others = {unit_of(other) for other in OURS[name]} - {unit}
    assert {other for other in others if LAYER_OF[other] >= LAYER_OF[unit]} == set()
    assert others & NEVER.get(unit, set()) == set()


@pytest.mark.parametrize("name", FILES)
def test_only_one_folder_knows_nats_py(name):
    """So no error, type or habit of it can get anywhere else; the benchmark compares with nats-py by itself."""
    if unit_of(name) != "jetstream" and name != "natsjobs.cli.bench.bare":
        assert [other for other in imported(name) if other.split(".")[0] == "nats"] == []


def _is_for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("name", FILES)
def test_optional_libraries_are_imported_where_they_are_used(name):
    """Inside functions, or in a folder of their own that nothing below imports."""
    optional = EXPORTERS if unit_of(name) in {"cli", "http", "testing", "pytest_plugin"} else OPTIONAL | EXPORTERS
    if name in EXPORTERS:
        return
    top = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Import | ast.ImportFrom)]
    inside = {
        id(node)
        for block in ast.walk(TREES[name])
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_checkers(block)
        for node in ast.walk(block)
    }
    outside = [node for node in top if id(node) not in inside]
    modules = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in outside
        for alias in node.names
    }
    assert (modules | {module.split(".")[0] for module in modules}) & optional == set()


def test_there_are_no_import_cycles():
    """Not one, also not for type checkers only."""
    left = {name: set(others) for name, others in OURS.items()}
    while leaves := [name for name, others in left.items() if not others & left.keys()]:
        for name in leaves:
            del left[name]
    assert left == {}, f"in or above a cycle: {sorted(left)}"


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is(name):
    """A docstring that ends its first line like a sentence."""
    words = ast.get_docstring(TREES[name])
    assert words
    assert words.splitlines()[0].endswith((".", ":", "?"))


def test_the_top_level_can_be_read_at_a_glance():
    """At most 22 entries, and none whose name says nothing."""
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(entries) <= 22, sorted(entries)
    names = {part for name in FILES for part in name.split(".")}
    assert names & {"utils", "util", "helpers", "common", "base", "misc"} == set()


def test_the_front_door_is_a_list_of_names():
    """No code lives in ``natsjobs/__init__.py``."""
    body = TREES["natsjobs"].body
    assert [type(node).__name__ for node in body if not isinstance(node, ast.ImportFrom | ast.Assign | ast.Expr)] == []


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_stay_small(name):
    """400 lines a file, 60 a function, 8 parameters."""
    assert len(FILES[name].read_text().splitlines()) <= 400
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, node.name
            count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
            own = node.args.args and node.args.args[0].arg in {"self", "cls"}
            assert unit_of(name) == "cli" or count - bool(own) <= 8, node.name


def test_importing_the_package_changes_nothing_and_needs_no_extra():
    """No warning, no handler on the root logger, no task or thread, and none of the optional libraries."""
    script = (
        "import logging, sys, threading\n"
        "import natsjobs\n"
        f"print(sorted({OPTIONAL!r} & {{name.split('.')[0] for name in sys.modules}}))\n"
        "print(logging.getLogger().handlers, logging.getLogger('natsjobs').handlers, threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[]", "[] [] 1"]
