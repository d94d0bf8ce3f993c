from __future__ import annotations

import subprocess
import sys

import pytest
from tqdm import tqdm

import metro_edge
from metro_edge import cli
from metro_edge.errors import UserError


def test_help_names_every_command(capsys):
    assert cli.main([]) == 2
    out = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert command in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert command in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"metro-edge {metro_edge.__version__}\n"


def test_unknown_commands_and_options_exit_with_2(capsys):
    for arguments in (["fly"], ["run", "a.jpg", "--box", "1,2,3"], ["run"]):
        with pytest.raises(SystemExit) as done:
            cli.main(arguments)
        assert done.value.code == 2
    assert "'1,2,3' is not x,y,width,height" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(UserError("two\nlines"), 2, "error: two lines\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_errors_are_one_line(monkeypatch, capsys, error, code, text):
    def fail(_args):
        raise error

    monkeypatch.setattr("metro_edge.cli.run.run", fail)
    assert cli.main(["run", "a.jpg"]) == code
    assert capsys.readouterr().err == text


def test_as_a_module_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "metro_edge", "run", str(tmp_path / "none.jpg")],
        capture_output=True, text=True, cwd=metro_edge.__path__[0] + "/..", check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"error: no picture at {tmp_path / 'none.jpg'}\n"


def test_an_error_under_progress_bars_keeps_its_line(monkeypatch, capsys):
    kept, running = [], []

    def fail(_args):
        kept.extend(tqdm(range(3), desc=name, leave=False) for name in ("outer", "inner"))
        running.extend(map(iter, kept))
        for bar in running:
            next(bar)
        raise UserError("no picture")

    monkeypatch.setattr("metro_edge.cli.run.run", fail)
    assert cli.main(["run", "a.jpg"]) == 2
    assert all(bar.disable for bar in kept)
    assert capsys.readouterr().err.splitlines()[-1] == "error: no picture"
