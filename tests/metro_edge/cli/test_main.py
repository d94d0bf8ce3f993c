from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

import metro_edge
from metro_edge import cli
from metro_edge.errors import UserError
from tests.metro_edge.video.clips import write_clip

ROOT = Path(__file__).parents[3]


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
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and line.endswith("--help")
        assert "--box" not in arguments or "'1,2,3' is not x,y,width,height" in line


@pytest.mark.parametrize("program", ["engines", "training", "benchmarks"])
def test_the_other_command_lines_say_a_mistake_in_one_line(program):
    done = subprocess.run([sys.executable, "-m", program, "fly"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: argument")
    assert len(done.stderr.splitlines()) == 1


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


def test_ctrl_c_while_the_commands_are_loaded_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_parser", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def started(*arguments: object, **streams: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metro_edge", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False, **streams)


@pytest.mark.parametrize("arguments", [["--version"], ["info"]])
def test_who_stops_reading_ends_the_command_quietly(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = started(*arguments, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = started("info", stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: cannot write the output: No space left on device\n")


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch, capsys):
    def fail(_args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("metro_edge.cli.run.run", fail)
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["run", "a.jpg"])


def test_closed_streams_are_no_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)  # as with `2>&-`
    assert cli.main(["info", "none"]) == 2
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == ""
    sys.stdout.close(), sys.stderr.close()


def test_a_broken_video_and_a_stream_that_is_refused_are_one_line_each(tmp_path):
    whole = write_clip(tmp_path / "a.mp4", fast_start=False).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for source, message in ((tmp_path / "cut.mp4", "not a video"), ("rtsp://127.0.0.1:9/eye", "cannot open rtsp")):
        done = started("run", source, "-o", tmp_path / "out")
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
