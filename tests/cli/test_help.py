"""Help comes at once, teaches by example, and knows every option."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.making import CommandLine

COMMANDS = [
    ["train"],
    ["evaluate"],
    ["inspect"],
    ["report"],
    ["demo"],
    ["stream"],
    ["data", "list"],
    ["data", "fetch"],
]

HEAVY = ("torch", "numpy", "polars", "sklearn", "plotly")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["stream", "--help"], ["data", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from celrec.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example(celrec: CommandLine, command: list[str]) -> None:
    done = celrec(*command, "--help")
    assert done.status == 0
    assert done.stdout.count(f"celrec {' '.join(command)}") >= 2  # usage, and an example
    assert "--json" in done.stdout


def test_every_option_of_train_is_in_a_panel(celrec: CommandLine) -> None:
    shown = celrec("train", "--help").stdout
    for panel in ("Columns", "Task", "Partition", "Model", "Codes", "Training", "Run"):
        assert f"─ {panel} ─" in shown


def test_version(celrec: CommandLine) -> None:
    from importlib.metadata import version

    assert celrec("--version").stdout == f"celrec {version('celrec')}\n"


def test_without_arguments_help_is_shown(celrec: CommandLine) -> None:
    done = celrec()
    assert "Begin with" in done.stdout + done.stderr
