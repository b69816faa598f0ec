"""The README is true: its program runs, its commands are the ones that CI runs, its tables are complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import natsjobs

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def rows(first: str) -> list[list[str]]:
    """The rows of the table whose header begins with a cell, without back ticks."""
    lines = README.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    table: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return table


def test_the_program_runs_and_prints_the_whole_answer(tmp_path: Path) -> None:
    """As it stands, copied into an empty folder."""
    (program,) = blocks("python")
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", file], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stdout) == (0, "kept in order while everything around it restarts\n"), done.stderr


def test_the_program_is_short() -> None:
    """Twenty lines, imports and blank lines aside."""
    (program,) = blocks("python")
    code = [line for line in program.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(code) <= 20
    ast.parse(program)


def test_the_two_commands_are_one_line_each_and_ci_runs_the_second() -> None:
    """Set-up and demo; set-up and tests. The CI script finds the same line by the same pattern."""
    demo, tests = blocks("sh")[:2]
    assert demo.count("\n") == tests.count("\n") == 1
    assert demo.endswith("natsjobs demo\n")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = re.search(r"grep -m 1 -E '([^']+)' README\.md", script)
    assert found is not None
    assert re.findall(found[1], README, re.MULTILINE) == [tests.strip()]


@pytest.mark.parametrize("interface", [natsjobs.JobStore, natsjobs.EventTransport])
def test_every_method_of_both_interfaces_is_in_the_mapping(interface: type) -> None:
    """No method of ours is missing, and none is there that does not exist."""
    methods = {name for name, value in vars(interface).items() if callable(value) and not name.startswith("_")}
    named = [cells[1].split(", ") for cells in rows(f"LibreChat `I{interface.__name__}`")]
    assert {name for names in named for name in names} == methods


def test_the_table_of_settings_is_complete_and_has_the_real_defaults() -> None:
    """Every setting, every default."""
    settings: dict[str, str] = {}
    config = natsjobs.Config()
    for name in config.__struct_fields__:
        value = getattr(config, name)
        if isinstance(value, msgspec.Struct):
            settings |= {f"{name}.{field}": str(getattr(value, field)) for field in value.__struct_fields__}
        else:
            settings[name] = str(value)
    assert {cells[0]: cells[1] for cells in rows("setting")} == settings


def test_files_that_it_links_to_exist() -> None:
    """Relative links lead somewhere."""
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
