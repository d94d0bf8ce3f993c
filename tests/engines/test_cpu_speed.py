"""How fast the CPU engines are, against PyTorch and against a plain export; figures in docs/backends.md.

Run with -s to see them. Ratios of one interleaved run, batch 1: the bars leave room for a busy machine.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.latency import measure_interleaved, ratio
from engines.export import export_onnx
from engines.fold import fold
from engines.quantize import quantise
from engines.simplify import simplify
from metro_edge.backends import open_session
from metro_edge.backends.onnxruntime import products_saturate
from metro_edge.bundle import Bundle, write_bundle
from tests.reference_weights import reference_images
from tests.released_files import body_with, write_reference
from training.checkpoint import Checkpoint, load_any
from training.model import Metro, preset

pytestmark = pytest.mark.slow
W64 = "metro_body_hrnet_w64"
THREADS = 2
Call = Callable[[], object]
PASSPORT = {"checkpoint": {"name": "made", "sha256": "0" * 64}, "licences": {}, "versions": {}}
needs_vnni = pytest.mark.skipif(products_saturate(), reason="INT8 is for CPUs whose integer products are exact")


def bundle_from(checkpoint: Checkpoint, folder: Path, calibration: list[np.ndarray]) -> Bundle:
    """Fold, export, simplify and quantise a network, as `python -m engines convert` does."""
    spec, template = checkpoint.config.spec, checkpoint.template
    network, _ = fold(checkpoint.model, template)
    folder.mkdir()
    files = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "int8")}
    graph = simplify(export_onnx(network, spec, "0" * 64))
    onnx.save(graph, files["fp32"])
    onnx.save(quantise(graph, calibration), files["int8"])
    return write_bundle(folder / "bundle", spec, template, files, PASSPORT)


def pytorch_call(model: Metro, image: np.ndarray) -> Call:
    tensor = torch.from_numpy(image)

    def call() -> object:
        with torch.inference_mode():
            return model(tensor)

    return call


def plain_call(graph: bytes, image: np.ndarray) -> Call:
    """ONNX Runtime as it comes, on the graph as it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": image})


def measured(calls: dict[str, Call], runs: int, block: int) -> dict[str, float]:
    """Name -> how many times as fast as the first; printed with the median times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        latency = measure_interleaved(calls, runs, block)
    finally:
        torch.set_num_threads(threads)
    first = next(iter(calls))
    speed = {name: ratio(latency[first], latency[name], block).median for name in calls}
    for name, value in speed.items():
        print(f"{name:28s} {np.median(latency[name].samples_ms):8.2f} ms {value:6.2f}")
    return speed


def session_calls(bundle: Bundle, image: np.ndarray, stack: ExitStack) -> dict[str, Call]:
    calls = {}
    for backend in ("onnxruntime", "openvino"):
        for precision in ("fp32", "int8"):
            session = stack.enter_context(open_session(bundle, precision, backend, threads=THREADS))
            calls[f"{backend} {precision}"] = lambda session=session: session.infer(image)
    return calls


@needs_vnni
def test_metro_w64_against_pytorch(tmp_path):
    """The released body network, reference weights."""
    pytest.importorskip("openvino")
    reference = write_reference(tmp_path / "state_dict.bin", W64)
    body = body_with(preset(W64), reference["template_joints"], reference["template_vertices"])
    checkpoint = load_any(tmp_path / "state_dict.bin", body)
    bundle = bundle_from(checkpoint, tmp_path / "made", [reference_images(1, seed) for seed in range(5, 9)])
    image = reference_images(1)
    with ExitStack() as stack:
        calls = {"PyTorch": pytorch_call(checkpoint.model.eval(), image), **session_calls(bundle, image, stack)}
        speed = measured(calls, runs=20, block=5)
    assert speed["onnxruntime int8"] >= 1.8
    assert speed["openvino int8"] >= 3.0


@needs_vnni
def test_the_shipped_network_against_its_plain_export():
    """The fastest of the bundle against its FP32 graph without any rewriting; see docs/backends.md."""
    pytest.importorskip("openvino")
    bundle = Bundle.load(None)
    size = bundle.spec.image_size
    image = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    with ExitStack() as stack:
        calls = {"plain export": plain_call(bundle.onnx_bytes("fp32"), image), **session_calls(bundle, image, stack)}
        speed = measured(calls, runs=200, block=25)
    assert speed["onnxruntime fp32"] >= 1.1
    assert max(speed.values()) >= 1.6
