"""`python -m engines quantize` from bundle to bundle, on a tiny network whose weights mean nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.__main__ import main
from engines.quantize.report import front, markdown
from engines.quantize.settings import Settings
from engines.quantize.store import FILE
from metro_edge.backends import open_session
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError

FEW = ["--samples", "8", "--proof-samples", "8", "--calibration-samples", "16", "--seed", "4", "--method", "mse"]
FEW += ["--evaluations", "10", "--no-smooth"]


def arguments(converted, output: Path, budget: float, *more: str) -> list[str]:
    return [
        "quantize", str(converted.bundle.path), "-o", str(output), "--data", str(converted.data),
        "--max-loss-mm", str(budget), *FEW, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def predicted(converted, tmp_path_factory):
    """A search for a device, whose result does not hang on this machine."""
    folder = tmp_path_factory.mktemp("quantize")
    assert main(arguments(converted, folder / "out", 50.0, "--device", "orin-nano")) == 0
    return folder


def report_of(folder: Path) -> dict:
    return json.loads((folder / "out-report" / "report.json").read_text())


def test_bundle_holds_the_chosen_graph(converted, predicted):
    bundle, report = Bundle.load(predicted / "out"), report_of(predicted)
    layers = report["best"]["layers"]
    (written,) = bundle.passport["quantization"]
    assert written == ("int8" if "int8" in layers.values() else "fp16")
    graph = onnx.load_from_string(bundle.onnx_bytes(written))
    nodes = {node.name: node for node in graph.graph.node}
    makers = {name: node.op_type for node in graph.graph.node for name in node.output}
    for layer, precision in layers.items():
        if layer in nodes:
            assert (makers.get(nodes[layer].input[0]) == "DequantizeLinear") == (precision == "int8")
    for kept in set(bundle.precisions) - {written}:
        assert bundle.onnx_bytes(kept) == converted.bundle.onnx_bytes(kept)
    with open_session(bundle, written) as opened:
        assert np.isfinite(opened.infer(converted.images(2)).mesh).all()


def test_passport_says_how_it_was_chosen_and_what_it_loses(predicted):
    passport, report = Bundle.load(predicted / "out").passport, report_of(predicted)
    ((precision, about),) = passport["quantization"].items()
    assert about["samples"] == report["samples"] and about["samples"]["search"]["seed"] == 4
    assert about["best"] == report["best"] and about["settings"]["max_loss_mm"] == 50.0
    assert about["calibration"]["method"] == "mse" and len(about["calibration"]["images_sha256"]) == 64
    assert about["speed"]["device"] == "orin-nano" and about["speed"]["predicted"]
    proof = about["best"]["proof"]
    assert proof["mpjpe_mm"] <= 50.0 and about["best"]["lost"]["mpjpe_mm"] <= 50.0
    rows = passport["accuracy"]["precisions"]
    assert passport["accuracy"]["samples"] == 16 and rows["fp32"]["moved_mm"] == 0.0
    # Half of the samples are the proof's, half the search's.
    both = (about["best"]["lost"]["moved_mm"] + proof["moved_mm"]) / 2
    assert rows[precision]["moved_mm"] == pytest.approx(both, rel=1e-3)


def test_report(predicted):
    report, folder = report_of(predicted), predicted / "out-report"
    assert sum(report["best"]["counts"].values()) == report["network"]["layers"] == len(report["best"]["layers"])
    assert report["best"]["times_as_fast"] == pytest.approx(report["best"]["fp32_ms"] / report["best"]["ms"])
    origins = [trial["origin"] for trial in report["trials"]]
    assert {"all int8", "all fp16", "all fp32", "default layers"} <= set(origins)
    assert sum(trial["best"] for trial in report["trials"]) == 1
    assert {item["name"] for item in report["sensitivity"]} == set(report["best"]["layers"])
    text = (folder / "report.md").read_text()
    assert text == markdown(report)
    assert "(predicted)" in text and "never seen by the search" in text and "| **chosen** |" in text
    for name in ("front.png", "sensitivity.png"):
        assert (
            name in text
            and (folder / name).read_bytes().startswith(b"\x89PNG")
            and (folder / name).stat().st_size > 9000
        )


def test_front_holds_what_nothing_beats():
    trials = [
        {"ms": 3.0, "estimate_ms": 9, "mpjpe_mm": 1.0},
        {"ms": 2.0, "estimate_ms": 9, "mpjpe_mm": 2.0},
        {"ms": 4.0, "estimate_ms": 9, "mpjpe_mm": 1.5},
        {"ms": None, "estimate_ms": 1, "mpjpe_mm": 0.1},  # was not timed
        {"ms": 5.0, "estimate_ms": 9, "mpjpe_mm": 0.0},
    ]
    assert front(trials, "mpjpe") == [1, 0, 4]
    assert front([t | {"ms": None} for t in trials], "mpjpe")[0] == 3


def test_the_same_again_measures_nothing(converted, predicted, tmp_path, capsys):
    work = predicted / "out-report" / "work"
    shutil.copytree(work, tmp_path / "work")
    command = arguments(converted, tmp_path / "again", 50.0, "--device", "orin-nano", "--work", str(tmp_path / "work"))
    assert main(command) == 0
    assert (tmp_path / "work" / FILE).read_bytes() == (work / FILE).read_bytes()
    assert not (tmp_path / "again-report" / "work").exists()
    assert Bundle.load(tmp_path / "again").onnx_sha256("int8") == Bundle.load(predicted / "out").onnx_sha256("int8")


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(converted, predicted, tmp_path):
    """The process is killed at three moments; the last run ends in the same bundle, and nothing was measured twice."""
    command = [sys.executable, "-m", "engines", *arguments(converted, tmp_path / "out", 50.0, "--device", "orin-nano")]
    results = tmp_path / "out-report" / "work" / FILE
    for wanted in (3, 20, 42):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path.cwd())
        end = time.monotonic() + 300
        while (not results.exists() or results.read_bytes().count(b"\n") < wanted) and time.monotonic() < end:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out").exists()
    subprocess.run(command, check=True, capture_output=True)
    kept = (predicted / "out-report" / "work" / FILE).read_text()
    keys = [json.loads(line)["key"] for line in results.read_text().splitlines()]
    assert len(keys) == len(set(keys))
    assert set(keys) == {json.loads(line)["key"] for line in kept.splitlines()}
    assert Bundle.load(tmp_path / "out").onnx_sha256("int8") == Bundle.load(predicted / "out").onnx_sha256("int8")


def test_coarse_groups_stay_groups(converted, predicted, tmp_path):
    shutil.copytree(predicted / "out-report" / "work", tmp_path / "work")
    command = arguments(converted, tmp_path / "out", 50.0, "--device", "orin-nano", "--work", str(tmp_path / "work"))
    assert main([*command, "--detail", "coarse", "--precisions", "int8"]) == 0
    report = report_of(tmp_path)
    items = report["sensitivity"]
    assert len(items) <= 16 and any(len(item["layers"]) > 1 for item in items)
    assert {name for item in items for name in item["layers"]} == set(report["best"]["layers"])
    for item in items:
        assert len({report["best"]["layers"][name] for name in item["layers"]}) == 1


def test_measured_on_this_machine(converted, tmp_path, capsys):
    """Whatever is faster here: either a bundle with the proof, or the statement that fp32 is."""
    copy = tmp_path / "bundle"
    shutil.copytree(converted.bundle.path, copy)
    command = arguments(converted, copy, 100.0, "--threads", "1", "--report", str(tmp_path / "report"))
    command = [word for word in command if word not in ("-o", str(copy))] + ["--replace"]
    command[1] = str(copy)
    code = main(command)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert not report["speed"]["predicted"] and report["speed"]["backend"] == "onnxruntime"
    timed = [t for t in report["trials"] if t["ms"] is not None]
    assert {"all fp32"} <= {t["origin"] for t in timed} and len(timed) >= 2
    if code == 0:
        assert report["best"]["ms"] < report["best"]["fp32_ms"]
        (about,) = Bundle.load(copy).passport["quantization"].values()
        assert about["best"] == report["best"]
    else:
        assert code == 2 and "nothing is faster than fp32 within 100 mm" in capsys.readouterr().err
        assert "quantization" not in Bundle.load(copy).passport


def test_a_budget_that_nothing_meets(converted, predicted, tmp_path, capsys):
    """The best that was found is named, the report is written, no bundle is; fine-tuning is pointed to."""
    shutil.copytree(predicted / "out-report" / "work", tmp_path / "work")
    command = arguments(
        converted,
        tmp_path / "out",
        1e-7,
        "--metric",
        "moved",
        "--device",
        "orin-nano",
        "--work",
        str(tmp_path / "work"),
    )
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "no mix keeps 1e-07 mm of moved: the best of " in error and "Allow more" in error
    assert "python -m engines finetune" in error
    report = json.loads((tmp_path / "out-report" / "report.json").read_text())
    lost = min(t["moved_mm"] for t in report["trials"] if t["origin"] != "all fp32")
    assert f"loses {lost:.3g} mm" in error
    assert (tmp_path / "out-report" / "front.png").exists() and not (tmp_path / "out").exists()


def test_distance_as_the_metric_without_truth(converted, tmp_path, capsys):
    import cv2

    random, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    for i in range(36):
        cv2.imwrite(str(folder / f"{i:02}.png"), random.integers(0, 255, (70, 60, 3), np.uint8))
    command = arguments(converted, tmp_path / "out", 50.0, "--device", "orin-nano")
    command[command.index("--data") + 1] = str(folder)
    assert main(command) == 0
    assert (
        "mpjpe cannot be measured on these samples: the distance moved from fp32 is the loss" in capsys.readouterr().out
    )
    bundle = Bundle.load(tmp_path / "out")
    assert "accuracy" not in bundle.passport and "moved_mm" in bundle.passport["verification"]["precisions"]["fp32"]
    (about,) = bundle.passport["quantization"].values()
    best = about["best"]
    assert best["lost"]["mpjpe_mm"] is None and 0 < best["proof"]["moved_mm"] <= 50.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_loss_mm": 0.0}, "--max-loss-mm must be a positive number of mm, got 0.0"),
        ({"max_loss_mm": float("nan")}, "--max-loss-mm must be a positive number"),
        ({"metric": "pa"}, "unknown metric 'pa'; known: mpjpe, mpvpe, moved"),
        ({"method": "median"}, "unknown method 'median'; known: mse"),
        ({"backend": "tvm"}, "unknown backend 'tvm'"),
        ({"detail": "fine"}, "unknown detail 'fine'; known: auto, layers, groups"),
        ({"precisions": ()}, "--precisions takes some of fp16, int8, fp8, each once; got"),
        ({"precisions": ("int8", "int8")}, "each once; got int8 int8"),
        ({"precisions": ("int4",)}, "got int4"),
        ({"precisions": ("int8", "fp8"), "device": "l4"}, "takes int8 or fp8, not both"),
        ({"precisions": ("fp8",)}, "no CPU computes in fp8: name a GPU that does by --device"),
        ({"device": "pi"}, "unknown device 'pi'"),
        ({"backend": "tensorrt"}, "no times of layers are known on backend 'tensorrt': take onnxruntime or openvino"),
        ({"precisions": ("fp8",), "device": "orin-nano"}, "Jetson Orin Nano 8 GB does not compute in fp8; it has fp32"),
        ({"threads": 0}, "the number of threads must be 1 to .*; got 0"),
        ({"threads": 999}, "the number of threads must be 1 to .*; got 999"),
        ({"evaluations": 0}, "--evaluations must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(UserError, match=message):
        Settings(**({"max_loss_mm": 1.0} | change))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backend", "tensorrt"], "no times of layers are known on backend 'tensorrt'"),
        (["--threads", "999"], "number of threads must be 1 to"),
        (["--device", "orin-nano", "--precisions", "fp8"], "does not compute in fp8"),
        (["--seed", "1"], "seed 1 is the training's"),
        (["--data", "nowhere"], "--data: nowhere does not exist"),
        (["--samples", "7"], "7 search samples are too few"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(converted, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments(converted, tmp_path / "out", 1.0, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert os.listdir(tmp_path) == []


def test_prediction_and_measurement_exclude_each_other(converted, tmp_path, capsys):
    assert main(arguments(converted, tmp_path / "out", 1.0, "--device", "orin-nano", "--threads", "2")) == 2
    assert "--device predicts; --backend and --threads are for times measured here" in capsys.readouterr().err


def test_a_place_that_is_taken(converted, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert main(arguments(converted, tmp_path / "out", 1.0)) == 2
    assert "neither empty nor a bundle" in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from engines.__main__ import main\ntry: main(['quantize', '-h'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
