from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

import benchmarks.common
import benchmarks.run
from benchmarks.__main__ import main
from benchmarks.common import chosen_precisions, engine_words, processor_of
from benchmarks.html.boards import BOARDS
from benchmarks.people import Material, check_held_out, load_material
from benchmarks.report import read_report, unpack_samples
from benchmarks.run import Settings, measure, passes, run
from metro_edge.backends import open_session
from metro_edge.backends.gpu import Gpu
from metro_edge.bundle import Bundle, write_bundle
from metro_edge.errors import UserError
from metro_edge.machine import cpu_model
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from tests.metro_edge.conftest import PASSPORT, made_network
from training.bodies import body_template


@pytest.fixture
def settings(bundle: Bundle, tmp_path: Path) -> Settings:
    output = tmp_path / "new" / "results"
    return Settings(bundle.path, samples=21, threads=1, runs=20, output=output, motion=False)


@pytest.fixture
def tiny_material(monkeypatch: pytest.MonkeyPatch, material: Material) -> Material:
    """Puts the tiny people where the rendered ones come from; the rest of a run is real."""
    monkeypatch.setattr(benchmarks.run, "load_material", lambda *arguments: material)
    return material


@pytest.fixture
def anny_bundle(tmp_path: Path) -> Bundle:
    """Tiny networks over the full Anny body, so that real generated people can be measured."""
    template = body_template("anny")
    spec = ModelSpec("tiny_anny", 64, "h36m14", "anny", len(template.vertices))
    files = {}
    for precision in ("fp32", "int8"):
        files[precision] = tmp_path / f"anny.{precision}.onnx"
        onnx.save(made_network(template, precision), files[precision])
    return write_bundle(tmp_path / "anny", spec, template, files, PASSPORT)


def test_a_whole_run(settings: Settings, bundle: Bundle, tiny_material: Material, template: BodyTemplate) -> None:
    opencv_threads = cv2.getNumThreads()
    report, markdown, (json_path, markdown_path) = run(settings)
    assert cv2.getNumThreads() == opencv_threads
    assert json_path.parent == settings.output
    pictures = [settings.output / f"{json_path.stem}-worst-{p}.png" for p in ("fp16", "int8")]
    assert sorted(settings.output.iterdir()) == sorted([json_path, markdown_path, *pictures])
    assert [report["precisions"][p]["worst"]["picture"] for p in ("fp16", "int8")] == [p.name for p in pictures]
    assert all(cv2.imread(str(picture)).shape == (348, 1280, 3) for picture in pictures)
    assert report["precisions"]["fp32"]["worst"] is None
    assert report["motion"] is None and report["crops"] is None
    assert "half of them" not in report["latency"]["protocol"]  # 20 calls are too few to be parted
    assert read_report(json_path) == json.loads(json.dumps(report))
    assert markdown_path.read_text() == f"# Benchmark of tiny\n\n{markdown}"
    assert list(report["precisions"]) == ["fp32", "fp16", "int8"]
    assert report["bundle"]["onnx_sha256"] == {p: bundle.onnx_sha256(p) for p in bundle.precisions}
    assert report["bundle"]["checkpoint"] == PASSPORT["checkpoint"]
    assert (report["accuracy"]["samples"], report["accuracy"]["data"]) == (21, "tiny people")
    device = report["device"]
    assert (device["processor"], device["name"], device["threads"]) == ("CPU", cpu_model(), 1)
    assert device["engine"].endswith("CPUExecutionProvider")
    assert json_path.name.startswith("tiny-onnxruntime-cpu-")
    for precision, entry in report["precisions"].items():
        for stage in ("network", "end_to_end"):
            latency = entry["latency"][stage]
            assert 0 < latency["min_ms"] <= latency["p50_ms"] <= latency["p95_ms"]
            assert latency["calls"] == 20
            assert latency["p99_ms"] is None  # 20 calls do not give one
            if precision == "fp32":
                assert latency["ratio_to_fp32"] is None
            else:
                found = latency["ratio_to_fp32"]
                assert 0 < found["low"] <= found["median"] <= found["high"]
                assert found["interval"] is None  # nor do 2 rounds an interval
        # Cropping and placing come on top of the network.
        assert entry["latency"]["end_to_end"]["min_ms"] > entry["latency"]["network"]["min_ms"]
    extent = np.linalg.norm(template.vertices - template.root("h36m14", template.vertices), axis=1).mean()
    assert report["precisions"]["fp32"]["accuracy"]["mpvpe_mm"] == pytest.approx(100 * extent, rel=1e-5)


def test_further_engines_in_turns(settings: Settings, bundle: Bundle, tiny_material: Material, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    settings = dataclasses.replace(settings, beside=("openvino",), precisions=("fp32", "int8"))
    report, markdown, (json_path, _) = run(settings)
    entries = report["precisions"]
    assert list(entries) == ["fp32", "int8", "fp32 openvino", "int8 openvino"]
    assert list(report["bundle"]["onnx_sha256"]) == ["fp32", "int8"]
    assert report["device"]["engine"].startswith("onnxruntime ")
    (words,) = [report["device"]["beside"]["openvino"]]
    assert words.startswith("openvino ") and f"; openvino: {words}, threads: 1" in markdown
    assert "--beside openvino" in report["command"]
    assert entries["fp32"]["accuracy"]["against_fp32"] is None
    assert entries["fp32 openvino"]["accuracy"]["against_fp32"]["moved_mm"] < 0.01
    assert entries["int8 openvino"]["latency"]["network"]["ratio_to_fp32"]["median"] > 0
    assert (settings.output / entries["int8 openvino"]["worst"]["picture"]).name.endswith("-worst-int8-openvino.png")
    assert (settings.output / entries["int8 openvino"]["worst"]["picture"]).exists()
    assert main(["compare", str(json_path), str(json_path)]) == 0
    assert main(["gate", str(json_path), "--precision", "int8 openvino", "--max-mpjpe-loss-mm", "1000"]) == 0
    assert main(["html", str(json_path), "-o", str(tmp_path / "report.html")]) == 0
    assert "int8 openvino" in (tmp_path / "report.html").read_text()
    rows = [row.cells[3:5] for row in BOARDS[report["kind"]].rows(report)]
    assert rows == [[f"{backend}, 1 threads", p] for backend in ("onnxruntime", "openvino") for p in ("fp32", "int8")]


def test_further_engines_that_cannot_be(
    settings: Settings, tiny_material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="unknown backend 'abacus'"):
        dataclasses.replace(settings, beside=("abacus",))
    for beside in (("onnxruntime",), ("openvino", "openvino")):
        with pytest.raises(UserError, match="name a backend twice"):
            dataclasses.replace(settings, beside=beside)
    monkeypatch.setattr(
        benchmarks.run, "processor_of", lambda engine: ("GPU", "Orin") if "openvino" in engine else ("CPU", "x")
    )
    pytest.importorskip("openvino")
    with pytest.raises(UserError, match="openvino runs on the GPU Orin, onnxruntime on the CPU"):
        run(dataclasses.replace(settings, beside=("openvino",)))


def test_half_of_the_calls_are_timed_minutes_later(
    settings: Settings, tiny_material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [passes(runs) for runs in (20, 39, 40, 45, 50, 100)] == [
        (20, 0), (39, 0), (20, 20), (45, 0), (30, 20), (50, 50)
    ]  # fmt: skip
    order: list[str] = []
    for name in ("measure_latency", "measure_accuracy"):
        real = getattr(benchmarks.run, name)
        monkeypatch.setattr(
            benchmarks.run, name, lambda *a, name=name, real=real, **k: order.append(name) or real(*a, **k)
        )
    report, _, _ = run(dataclasses.replace(settings, runs=50, precisions=("fp32", "int8")))
    assert order == ["measure_latency", "measure_accuracy", "measure_latency"]
    latency = report["precisions"]["int8"]["latency"]["network"]
    assert latency["calls"] == 50 and len(unpack_samples(latency["samples_ms"])) == 50
    assert latency["ratio_to_fp32"]["low"] > 0 and report["latency"]["runs"] == 50
    assert "half of them before and half after" in report["latency"]["protocol"]


def test_the_fp32_reference_is_measured_along(bundle: Bundle) -> None:
    assert chosen_precisions(bundle, ()) == ("fp32", "fp16", "int8")
    assert chosen_precisions(bundle, ("int8",)) == ("fp32", "int8")


def test_a_bundle_without_fp32_has_nothing_to_compare_with(
    settings: Settings, bundle_answering: Callable[..., Bundle], template: BodyTemplate, tiny_material: Material
) -> None:
    bundle = bundle_answering({"int8": template.vertices})
    report, markdown, _ = run(dataclasses.replace(settings, bundle=bundle.path))
    assert report["precisions"]["int8"]["accuracy"]["against_fp32"] is None
    assert report["precisions"]["int8"]["latency"]["network"]["ratio_to_fp32"] is None
    assert "Against FP32" not in markdown


def test_nan_leaves_nothing_behind(
    settings: Settings, bundle_answering: Callable[..., Bundle], template: BodyTemplate, tiny_material: Material
) -> None:
    bundle = bundle_answering({"fp32": template.vertices * np.nan})
    with pytest.raises(UserError, match="fp32: the network's vertices of person 0 has NaN"):
        run(dataclasses.replace(settings, bundle=bundle.path))
    assert not settings.output.parent.exists()


def test_the_label_says_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in ("onnxruntime 1.23 CPUExecutionProvider", "openvino 2026.4.1 CPU", "openvino 2026.4.1 CPU; odd"):
        assert processor_of(engine) == ("CPU", cpu_model())
    monkeypatch.setattr(benchmarks.common, "first_gpu", lambda: None)
    with pytest.raises(UserError, match="cannot tell which processor 'onnxruntime 1.23 CUDAExecutionProvider'"):
        processor_of("onnxruntime 1.23 CUDAExecutionProvider")
    monkeypatch.setattr(benchmarks.common, "first_gpu", lambda: Gpu("Orin", "8.7"))
    assert processor_of("tensorrt 10.3 FP16 plan") == ("GPU", "Orin")
    with pytest.raises(UserError, match="cannot tell which processor"):
        processor_of("abacus")


def test_a_remark_of_one_precision_stays_with_the_engine() -> None:
    same = "openvino 2026.4.1 CPU"
    assert engine_words({"fp32": same, "int8": same}) == same
    assert engine_words({"fp32": same, "int8": f"{same}, int8 in float32, slow"}) == f"{same}; int8 in float32, slow"
    with pytest.raises(UserError, match="different engines: onnxruntime, openvino"):
        engine_words({"fp32": "onnxruntime", "int8": "openvino, odd"})


def test_precisions_on_different_engines_are_not_put_into_one_table(
    settings: Settings, bundle: Bundle, material: Material
) -> None:
    with open_session(bundle, "fp32") as fp32, open_session(bundle, "int8") as int8:
        int8.device = "another engine"
        with pytest.raises(UserError, match="different engines: another engine, onnxruntime"):
            measure(settings, bundle, {"fp32": fp32, "int8": int8}, material)


def test_a_missing_extra_is_named(settings: Settings, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shards", "labelled"):  # already imported, they would not ask for torch again
        monkeypatch.delitem(sys.modules, f"training.data.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"torch is needed to make the people .* 'metro-edge\[train\]'"):
        load_material(bundle, settings.data, 2, settings.seed)


@pytest.mark.parametrize(("part", "key"), [("training", "train_seed"), ("calibration", "seed")])
def test_people_that_the_network_has_seen_are_refused(part: str, key: str, settings: Settings, bundle: Bundle) -> None:
    seen = dataclasses.replace(bundle, passport={**bundle.passport, part: {key: settings.seed}})
    with pytest.raises(UserError, match=f"people of seed 3 served the {part} of this bundle"):
        load_material(seen, settings.data, 2, settings.seed)
    check_held_out(seen, settings.seed + 1)
    check_held_out(bundle, settings.seed)


def test_people_that_the_checkpoint_was_chosen_by_are_refused() -> None:
    with pytest.raises(UserError, match="people of seed 2 served the choice of the checkpoint of this bundle"):
        check_held_out(Bundle.load(None), 2)


@pytest.mark.parametrize("kind", ["search", "proof"])
def test_people_that_a_mix_was_chosen_on_are_refused(kind: str, settings: Settings, bundle: Bundle) -> None:
    about = {"int8": {"samples": {kind: {"seed": settings.seed, "count": 8}}, "calibration": {"seed": 5}}, "fp16": "?"}
    seen = dataclasses.replace(bundle, passport={**bundle.passport, "quantization": about})
    with pytest.raises(UserError, match="people of seed 3 served the search of precisions of this bundle"):
        load_material(seen, settings.data, 2, settings.seed)
    with pytest.raises(UserError, match="people of seed 5 served the calibration of this bundle"):
        check_held_out(seen, 5)
    check_held_out(seen, settings.seed + 1)


def test_the_command_gives_the_run_again(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(tmp_path) not in settings.command
    monkeypatch.chdir(tmp_path)
    changed = dataclasses.replace(settings, precisions=("int8",), data=str(tmp_path / "some shards"))
    words = "python -m benchmarks run bundle --samples 21 --precision int8 --backend onnxruntime --runs 20 --seed 3"
    assert changed.command == f"{words} --threads 1 --data 'some shards' --no-motion"
    changed = dataclasses.replace(changed, rules="3dpw-neutral", smpl=str(tmp_path / "smpl"), motion=True, crops=False)
    assert changed.command.endswith("--data 'some shards' --protocol 3dpw-neutral --smpl smpl --no-crops")


def test_real_generated_people_on_the_command_line(
    anny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "anny", "--samples", "3", "--runs", "20", "--threads", "1", "--no-motion", "-o", "out"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    (result,) = (tmp_path / "out").glob("*.json")
    report = read_report(result)
    assert report["accuracy"]["data"] == "rendered with seed 3, cached as for training"
    assert report["accuracy"]["samples"] == 3
    accuracy = report["precisions"]["fp32"]["accuracy"]
    assert 50 < accuracy["mpvpe_mm"] < 1000
    assert 1 < accuracy["reprojection"]["px"] < 320  # of frames of 320 x 320 px
    crops = report["precisions"]["int8"]["crops"]
    assert [crop["name"] for crop in report["crops"]["crops"]] == list(crops)
    assert next(iter(crops)) == "box_area/true" and list(crops)[-1] == "box_area/whole_frame"
    assert crops["box_area/true"]["mpjpe_mm"] == pytest.approx(
        report["precisions"]["int8"]["accuracy"]["mpjpe_mm"], rel=0.02
    )  # the cached crop is a JPEG
    assert printed.out.strip() == (result.with_suffix(".md").read_text().split("\n\n", 1)[1]).strip()
    assert f"wrote {Path('out') / result.name}" in printed.err

    # The same people from the folder of shards give the same errors.
    (shards,) = (tmp_path / "runs" / "people").iterdir()
    assert main([*arguments[:-1], "again", "--data", str(shards), "--precision", "fp32", "--no-crops"]) == 0
    (again,) = (tmp_path / "again").glob("*.json")
    other = read_report(again)
    assert other["precisions"]["fp32"]["accuracy"] == report["precisions"]["fp32"]["accuracy"]
    assert other["accuracy"]["data"] == f"rendered with seed 3, cached as for training in {shards.name}"
    capsys.readouterr()

    assert main(["table", str(result)]) == 0
    assert capsys.readouterr().out == printed.out
    assert main(["run", "anny", "--samples", "9", "--data", str(shards)]) == 2
    assert capsys.readouterr().err == "error: cannot take the first 9 of 3 samples\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--precision", "fp8"], "unknown precision 'fp8'; known: fp32, fp16, int8"),
        (["--backend", "abacus"], "unknown backend 'abacus'; known: onnxruntime"),
        (["--runs", "19"], "19 runs are too few for a 95th percentile: give at least 20"),
        (["--samples", "0"], "the number of samples must be at least 1, got 0"),
        (["--seed", "-1"], "the seed must be at least 0, got -1"),
        (["--threads", "0"], "the number of threads must be 1 to "),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_settings_are_one_line_and_exit_code_2(
    changes: list[str],
    message: str,
    bundle: Bundle,
    template: BodyTemplate,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results"
    assert main(["run", str(bundle.path), "-o", str(output), *changes]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not output.exists()


def test_missing_bundle_missing_precision_and_unwritable_output(
    bundle_answering: Callable[..., Bundle],
    template: BodyTemplate,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def error_of(*arguments: Any) -> str:
        assert main(["run", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert error_of(tmp_path / "none").startswith(f"error: no bundle at {tmp_path / 'none'}")
    bundle = bundle_answering({"fp32": template.vertices})
    assert "has no int8 network; it has fp32" in error_of(bundle.path, "--precision", "int8")
    (tmp_path / "file").write_text("")
    assert "cannot write into folder" in error_of(bundle.path, "-o", tmp_path / "file" / "results")
    # An altered network is found before anything is measured.
    with open(bundle.path / "model.fp32.onnx", "ab") as file:
        file.write(b"x")
    assert "is not the file that passport.json names" in error_of(bundle.path)


def test_people_of_another_body_are_refused(bundle: Bundle, anny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        load_material(anny_bundle, str(tmp_path / "empty"), 2, 3)
