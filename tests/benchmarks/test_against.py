"""One network on several engines: a small one, so that the figures mean nothing and their form does."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import against, networks, subjects
from benchmarks.__main__ import main
from benchmarks.against import Settings, images_of, measure
from benchmarks.against_report import against_markdown
from benchmarks.networks import Subject, from_bundle, from_preset, reference_checkpoint
from benchmarks.report import unpack_samples
from benchmarks.subjects import REFERENCE, Engine, UnavailableError, difference, engines, torch_threads
from benchmarks.trtexec import parse_log
from metro_edge.errors import UserError
from tests.benchmarks.test_trtexec import TENSORRT_10
from tests.engines.conftest import TINY, randomised
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import FitConfig
from training.model.presets import PRESETS

CONFIG = FitConfig.from_dict(dict(TINY))
SMALL = dataclasses.replace(CONFIG.model, vertex_levels=(40, 160), upsampling=("dense",))
PLAIN = ("onnxruntime-plain", "openvino-plain")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", lambda: SMALL)
        return from_preset("tiny", tmp_path_factory.mktemp("cache"), say=lambda text: None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short blocks, and no compiler: compiling takes a minute."""
    monkeypatch.setattr(against, "BLOCK_S", 1e-4)
    monkeypatch.setattr(subjects, "cpp_compiler", lambda: None)


def test_reference_weights_are_the_same_again_and_of_use():
    first, second = reference_checkpoint(SMALL), reference_checkpoint(SMALL)
    assert first.sha256 == second.sha256 != reference_checkpoint(SMALL, seed=1).sha256
    images = torch.from_numpy(networks.noise_images(2, 64, 0))
    with torch.inference_mode():
        found = first.model(images)
    mesh = found.vertices[-1]
    assert mesh.isfinite().all() and 0.01 < mesh.std() < 10
    assert (mesh[0] - mesh[1]).abs().max() > 1e-3  # it looks at the pictures
    assert torch.allclose(found.camera, torch.tensor([0.9, 0.0, 0.0]), atol=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"metro_edge"}))
def test_reference_weights_of_every_released_network(name):
    checkpoint = reference_checkpoint(PRESETS[name]())
    size = checkpoint.config.model.image_size
    with torch.inference_mode():
        found = checkpoint.model(torch.from_numpy(networks.noise_images(2, size, 0)))
    mesh = found.vertices[-1]
    assert mesh.isfinite().all() and 0.01 < mesh.std() < 10 and (mesh[0] - mesh[1]).abs().max() > 1e-4


def test_a_released_network_is_converted_once(tiny, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", lambda: SMALL)
    said: list[str] = []
    again = from_preset("tiny", tiny.plain.parent.parent, say=said.append)
    assert not said and again.bundle.path == tiny.bundle.path and not again.trained
    assert tiny.bundle.precisions == ("fp32", "fp16", "int8")
    with pytest.raises(UserError, match=r"unknown network 'metro-body'.*metro-body-hrnet-w64"):
        from_preset("metro-body")


@pytest.mark.slow
def test_a_bundle_needs_the_checkpoint_that_it_was_made_of(tmp_path):
    for seed, name in enumerate(("right", "wrong")):
        save_checkpoint(tmp_path / name, Checkpoint(randomised(CONFIG, seed), CONFIG))
    networks._convert(lambda: load_checkpoint(tmp_path / "right"), tmp_path / "bundle", "noise")
    subject = from_bundle(tmp_path / "bundle", tmp_path / "right", None, tmp_path / "cache")
    assert subject.trained and subject.calibration == "noise" and subject.plain.is_file()


def test_a_bundle_and_a_checkpoint_of_another_network(tiny, tmp_path):
    save_checkpoint(tmp_path / "wrong", Checkpoint(randomised(CONFIG), CONFIG))
    with pytest.raises(UserError, match=r"made of the checkpoint tiny, .*--checkpoint"):
        from_bundle(tiny.bundle.path, tmp_path / "wrong", None, tmp_path / "cache")


def test_every_engine_answers_what_pytorch_answers(tiny):
    images = networks.noise_images(1, 64, 5)
    with ExitStack() as stack, torch_threads(1):
        found = {}
        for engine in engines(tiny, "cpu", 1):
            if engine.name in (REFERENCE, *PLAIN) or engine.ours:
                found[engine.name] = (engine, engine.start(stack).infer(images))
        for name, (engine, outputs) in found.items():
            changed = difference(outputs, found[REFERENCE][1], trained=True)
            assert changed["relative"] < {"fp32": 1e-4, "fp16": 0.05, "int8": 1.0}[engine.precision], name
            assert set(changed["outputs"]) == {"camera", "joints", "vertices"}
            assert (changed["worst_mm"] > 0) == (name != REFERENCE)
    assert len(found) == 9


def test_threads_of_pytorch_are_put_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_comparison(tiny, quick, monkeypatch, size):
    """A large network is compared in parts, each beside the reference."""
    if size == "large":
        monkeypatch.setattr(against, "LARGE", 1)
        chosen = (REFERENCE, "onnxruntime-fp32", "onnxruntime-int8", "pytorch-compile", "onnxruntime-plain")
        everything = engines
        monkeypatch.setattr(against, "engines", lambda *given: [e for e in everything(*given) if e.name in chosen])
    report = measure(Settings(network="tiny", threads=1, rounds=7), tiny, images_of(tiny))
    entries = report["subjects"]
    assert "C++ compiler" in entries["pytorch-compile"]["skipped"]
    measured = {name: entry for name, entry in entries.items() if entry["skipped"] is None}
    groups = report["latency"]["groups"]
    assert len(groups) == (1 if size == "small" else 2) and all(REFERENCE in group["subjects"] for group in groups)
    for name, entry in measured.items():
        group = groups[entry["group"]]
        calls = unpack_samples(entry["samples_ms"])
        assert name in group["subjects"] and len(calls) == entry["latency"]["calls"] >= 7 * group["block"]
        assert entry["latency"]["p50_ms"] == pytest.approx(np.median(calls), rel=1e-5)
        assert entry["ratio"]["interval"]["low"] <= entry["ratio"]["median"] <= entry["ratio"]["interval"]["high"]
        assert entry["difference"]["worst_mm"] is None  # weights that were not trained
    assert measured[REFERENCE]["ratio"]["median"] == 1.0
    assert report["network"]["weights"] == networks.REFERENCE and report["device"]["threads"] == 1

    markdown = against_markdown(report, "a.png")
    assert "not trained" in markdown and "no millimetres" in markdown and "a.png" in markdown
    assert f"Not measured: {entries['pytorch-compile']['title']}" in markdown
    assert "**metro-edge int8 on onnxruntime**" in markdown
    assert ("few engines at a time" in markdown) == (size == "large")


def test_the_command(tiny, quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PRESETS, "tiny", lambda: SMALL)
    monkeypatch.setattr(networks, "CACHE", tiny.plain.parent.parent)
    monkeypatch.setattr(against, "from_preset", lambda name, say: from_preset(name, tiny.plain.parent.parent, say))
    chosen = (REFERENCE, "onnxruntime-int8")
    monkeypatch.setattr(against, "engines", lambda *given: [e for e in engines(*given) if e.name in chosen])
    assert main(["against", "--network", "tiny", "--threads", "1", "--rounds", "7", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    names = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert names == [".json", ".md", ".png"] and "PyTorch, eager" in printed.out
    saved = next((tmp_path / "out").glob("*.json"))
    report = json.loads(saved.read_text())
    assert main(["table", str(saved)]) == 0 and capsys.readouterr().out == printed.out
    assert report["kind"] == "metro-edge against" and report["schema_version"] == 1
    assert report["command"].endswith("against --network tiny --processor cpu --rounds 7 --threads 1")


@pytest.mark.slow
@pytest.mark.skipif(subjects.cpp_compiler() is None, reason="needs a C++ compiler")
def test_torch_compile(tiny):
    images = networks.noise_images(1, 64, 5)
    with ExitStack() as stack, torch_threads(1):
        known = {engine.name: engine for engine in engines(tiny, "cpu", 1)}
        eager = known[REFERENCE].start(stack).infer(images)
        compiled = known["pytorch-compile"].start(stack).infer(images)
    assert 0 < difference(compiled, eager, trained=False)["relative"] < 1e-4


def test_what_trtexec_did_is_no_interleaved_ratio(tiny, monkeypatch):
    images = networks.noise_images(1, 64, 5)
    with torch.inference_mode():
        found = tiny.model(torch.from_numpy(images))
    given = {"camera": found.camera.numpy(), "joints": found.joints.numpy()}
    half = {name: values + 0.5 * np.abs(values).max() for name, values in given.items()}
    told = {(): given, ("--fp16",): half}
    monkeypatch.setattr(against, "find_trtexec", lambda: "trtexec")
    monkeypatch.setattr(against, "run_trtexec", lambda p, onnx, image, options: (parse_log(TENSORRT_10), told[options]))
    entries = against._trtexec_entries(tiny, given, images, {"latency": {"p50_ms": 14.0}})
    plain = entries["trtexec-plain"]
    assert plain["ratio"]["median"] == pytest.approx(7.16092 / 14.0) and plain["ratio"]["interval"] is None
    assert plain["device"] == "tensorrt 10.2.0 by trtexec" and not plain["interleaved"]
    assert plain["difference"]["relative"] == 0.0
    assert entries["trtexec-plain-fp16"]["difference"]["relative"] == pytest.approx(0.5)

    def refuse(*given):
        raise UserError("trtexec gave no performance summary: no GPU")

    monkeypatch.setattr(against, "run_trtexec", refuse)
    assert "no GPU" in against._trtexec_entries(tiny, given, images, {})["trtexec-plain"]["skipped"]
    monkeypatch.setattr(against, "find_trtexec", lambda: None)
    assert "no trtexec" in against._trtexec_entries(tiny, given, images, {})["trtexec-plain"]["skipped"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_there(tiny):
    with pytest.raises(UserError, match=r"reference.*cannot run: this PyTorch sees no CUDA GPU"):
        measure(Settings(network="tiny", processor="gpu"), tiny, images_of(tiny))


def test_a_difference_is_of_outputs_in_common():
    ones = np.ones((1, 2, 3), np.float32)
    changed = difference(
        {"vertices": ones + np.float32(0.003), "coarse": ones}, {"vertices": 2 * ones, "x": ones}, True
    )
    assert changed["relative"] == pytest.approx(0.997 / 2) and list(changed["outputs"]) == ["vertices"]
    assert changed["worst_mm"] == pytest.approx(997 * np.sqrt(3), rel=1e-6)
    assert difference({"vertices": ones}, {"vertices": ones}, False)["worst_mm"] is None
    for found, words in (
        ({"x": ones}, "no output in common"),
        ({"vertices": ones[:, :1]}, "expected finite numbers"),
        ({"vertices": ones * np.nan}, "expected finite numbers"),
    ):
        with pytest.raises(UserError, match=words):
            difference(found, {"vertices": ones}, True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"network": "tiny", "checkpoint": Path("a")}, "leave out"),
        ({"processor": "tpu"}, "unknown processor 'tpu'"),
        ({"rounds": 6}, "at least 7"),
        ({"threads": 0}, "threads"),
    ],
)
def test_settings_that_make_no_sense(values, words):
    with pytest.raises(UserError, match=words):
        Settings(**values)


def test_an_engine_that_is_not_there_is_skipped_with_its_reason(tiny, quick, monkeypatch):
    def absent(stack: ExitStack):
        raise UnavailableError("no such library")

    first = engines(tiny, "cpu", 1)[0]
    monkeypatch.setattr(against, "engines", lambda *given: [first, Engine("x", "an engine", True, "fp32", absent)])
    report = measure(Settings(network="tiny", threads=1, rounds=7), tiny, images_of(tiny))
    assert report["subjects"]["x"]["skipped"] == "no such library" and report["latency"]["groups"][0]["subjects"] == [
        REFERENCE
    ]
