"""`python -m engines convert` from the outside: what it writes, and what it says to mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engines.__main__ import main
from engines.convert import Settings, convert, tolerances_from_text
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError

QUICK = ["--calibration-samples", "16", "--verify-samples", "8"]


def arguments(converted, output: Path, *more: str) -> list[str]:
    return ["convert", str(converted.checkpoint), "-o", str(output), "--data", str(converted.data), *QUICK, *more]


def test_converts_from_the_command_line(converted, tmp_path, capsys):
    assert main(arguments(converted, tmp_path / "new" / "out.zip", "--precision", "fp16")) == 0
    bundle = Bundle.load(tmp_path / "new" / "out.zip")
    assert bundle.precisions == ("fp16",) and bundle.spec == converted.spec
    assert bundle.onnx_bytes("fp16") == converted.bundle.onnx_bytes("fp16")  # the same conversion, the same bytes
    printed = capsys.readouterr().out
    assert "fp16: " in printed and "tolerance 1 mm" in printed and "wrote " in printed
    assert os.listdir(tmp_path) == ["new"] and os.listdir(tmp_path / "new") == ["out.zip"]


def test_help_needs_no_torch():
    code = "import sys; from engines.__main__ import main\ntry: main(['convert', '-h'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "assert not {'torch', 'onnx'} & set(sys.modules)"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--tolerance-mm" in done.stdout


def test_beyond_the_tolerance_nothing_is_written(converted, tmp_path, capsys):
    output = tmp_path / "bundle"
    more = ["--precision", "fp32", "fp16", "--tolerance-mm", "fp16=0.0001"]
    assert main(arguments(converted, output, *more)) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: fp16 was refused, nothing was written")
    assert os.listdir(tmp_path) == []


def damaged(converted, tmp_path: Path, change) -> Path:
    content = torch.load(converted.checkpoint, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "damaged.ckpt")
    return tmp_path / "damaged.ckpt"


def other_architecture(content: dict) -> None:
    content["config"]["model"]["camera_hidden"] = 32


def not_finite(content: dict) -> None:
    next(iter(content["state_dict"].values()))[:] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [(other_architecture, "do not fit the architecture"), (not_finite, "weights that are not finite")],
)
def test_bad_checkpoint(converted, tmp_path, capsys, change, message):
    (tmp_path / "out").mkdir()
    wrong = damaged(converted, tmp_path, change)
    command = arguments(converted, tmp_path / "out" / "bundle")
    command[1] = str(wrong)
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert os.listdir(tmp_path / "out") == []


def test_no_checkpoint(tmp_path, capsys):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert main(["convert", str(tmp_path / "none.ckpt"), "-o", str(tmp_path / "b")]) == 2
    assert main(["convert", str(tmp_path / "text.ckpt"), "-o", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    assert os.listdir(tmp_path) == ["text.ckpt"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--tolerance-mm", "fp8=1"], "unknown precision 'fp8'"),
        (["--tolerance-mm", "fp16"], "must look like int8=5"),
        (["--tolerance-mm", "fp16=-1"], "positive number of mm"),
        (["--calibration", "entropy"], "unknown calibration method 'entropy'"),
        (["--calibration-samples", "0"], "at least one sample"),
        (["--seed", "1"], "seed 1 is the training's"),
    ],
)
def test_bad_settings(converted, tmp_path, capsys, more, message):
    assert main([*arguments(converted, tmp_path / "bundle"), *more]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0]
    assert os.listdir(tmp_path) == []


def test_no_precision():
    with pytest.raises(UserError, match="no precision"):
        Settings(precisions=())
    assert tolerances_from_text(["int8=5", "fp16=0.5"]) == {"int8": 5.0, "fp16": 0.5}


def test_unwritable_output(converted, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(arguments(converted, tmp_path / "file" / "bundle")) == 2
    assert capsys.readouterr().err.startswith("error: cannot write")
    assert (tmp_path / "file").read_text() == "in the way"


def test_foreign_folder_is_not_replaced(converted, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    settings = Settings(precisions=("fp32",), verify_samples=8, data=converted.data)
    with pytest.raises(UserError, match="neither empty nor a bundle"):
        convert(converted.checkpoint, tmp_path / "mine", settings, say=lambda line: None)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"] and os.listdir(tmp_path) == ["mine"]
