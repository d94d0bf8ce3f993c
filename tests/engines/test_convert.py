"""`python -m engines convert` from the outside: what it writes, and what it says to mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engines.__main__ import main
from engines.convert import Settings, convert, tolerances_from_text
from engines.cost import total_macs
from engines.fold import FOLDS, Fold
from engines.fold.network import Affine
from engines.verify import predictions_from_pytorch
from metro_edge.backends import open_session
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


def test_joints_alone(converted, tmp_path, capsys):
    more = ["--precision", "fp32", "int8", "--outputs", "camera", "joints", "mesh_joints", "joints_px"]
    loose = ["--tolerance-mm", "int8=200"]
    assert main(arguments(converted, tmp_path / "joints", *more, *loose)) == 0
    bundle = Bundle.load(tmp_path / "joints")
    assert bundle.spec.outputs == ("camera", "joints", "mesh_joints", "joints_px")
    graph = onnx.load(bundle.onnx_path("fp32")).graph
    assert [value.name for value in graph.output] == list(bundle.spec.outputs)
    assert not any(node.op_type == "Gather" for node in graph.node)  # the full mesh's upsampling
    images = converted.images(3)
    with open_session(bundle, "fp32") as session:
        found = session.infer(images)
    expected = predictions_from_pytorch(converted.model, images, bundle.spec, bundle.template)
    for name, values in found.given.items():
        assert np.abs(values - expected.given[name]).max() <= 1e-5 * np.abs(expected.given[name]).max(), name
    verified = bundle.passport["verification"]
    assert verified["pytorch"].keys() == {"mpjpe_mm", "pa_mpjpe_mm"}
    for values in verified["precisions"].values():
        assert values.keys() >= {"mpjpe_mm", "mpjpe_lost_mm", "mesh_joints_moved_mm", "joints_px_moved"}
        assert "mpvpe_mm" not in values and values["moved_mm"] == values["mesh_joints_moved_mm"]
    assert verified["precisions"]["fp32"]["moved_mm"] < 0.01 < verified["precisions"]["int8"]["joints_px_moved"]
    saved = {entry["name"]: entry["macs_saved"] for entry in bundle.passport["folds"]["folds"]}
    assert saved["mesh_joints"] > 500_000
    assert "upsampling.0" in capsys.readouterr().out


def test_plain_export(converted, tmp_path, capsys):
    assert main(arguments(converted, tmp_path / "plain", "--precision", "fp32", "--no-fold")) == 0
    bundle = Bundle.load(tmp_path / "plain")
    assert bundle.passport["folds"]["folds"] == [] and "nothing is folded" in capsys.readouterr().out
    plain, folded = onnx.load(bundle.onnx_path("fp32")), converted.graph
    assert len(plain.graph.node) > len(folded.graph.node) + 10 and total_macs(plain) > total_macs(folded)


def test_the_passport_and_the_command_tell_of_the_folds(converted, tmp_path, capsys):
    assert main(arguments(converted, tmp_path / "b", "--precision", "fp32")) == 0
    printed = capsys.readouterr().out
    found = Bundle.load(tmp_path / "b").passport["folds"]
    assert [entry["name"] for entry in found["folds"]] == list(FOLDS)
    for entry in found["folds"]:
        assert entry["difference"] < 1e-5 and f"\n{entry['name']} " in printed
    assert 0 < found["difference"] < 1e-5
    assert found["macs_before"] - found["macs_after"] == sum(entry["macs_saved"] for entry in found["folds"])
    assert "warning" not in printed and " nodes, " in printed


def test_a_fold_that_changes_the_network_is_refused(converted, tmp_path, monkeypatch, capsys):
    def wrong(network):
        layer = network.encoders[0].layers[0]
        layer.ffn_output = Affine(1.001 * Affine.of(layer.ffn_output).weight, layer.ffn_output.bias)
        return ""

    monkeypatch.setitem(FOLDS, "qkv", Fold("qkv", "", wrong))
    assert main(arguments(converted, tmp_path / "b", "--precision", "fp32")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    found = re.match(r"error: the fold qkv changed an output by (\S+) of its largest value, 1e-05 is allowed", error)
    assert found and 1e-5 < float(found[1]) < 1e-2 and "--no-fold" in error
    assert os.listdir(tmp_path) == []


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
        (["--calibration", "median"], "unknown calibration method 'median'"),
        (["--rounding", "up"], "unknown rounding of weights 'up'; known: data, nearest"),
        (["--calibration-samples", "15"], "15 calibration samples are too few: at least 16 are needed"),
        (["--verify-samples", "0"], "verification needs at least one sample, got 0"),
        (["--seed", "1"], "seed 1 is the training's"),
        (["--outputs", "camera", "joints", "faces"], "unknown output faces"),
        (["--outputs", "camera", "joints"], "need vertices or mesh_joints"),
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
