from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import pytest

from metro_edge.backends import open_session
from metro_edge.backends import openvino as backend
from metro_edge.bundle import Bundle, write_bundle
from metro_edge.errors import BundleError, MissingExtraError, PredictionError, UserError

ov = pytest.importorskip("openvino")
ROOT = Path(__file__).parents[3]


def some_images(spec, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    colours = rng.normal(size=(count, 3, 1, 1))
    return (colours + 0.1 * rng.normal(size=(count, 3, spec.image_size, spec.image_size))).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_same_bodies_as_onnx_runtime(shared_bundle, precision):
    spec = shared_bundle.spec
    tolerance = {"fp32": 1e-6, "fp16": 2e-3, "int8": 1e-5}[precision]
    with open_session(shared_bundle, precision, "openvino") as session, open_session(shared_bundle, precision) as other:
        assert session.precision == precision and session.spec == spec
        assert session.device.startswith(f"openvino {ov.__version__.split('-')[0]} CPU")
        for count in (0, 1, 5, 2, 1):  # one image and batches are networks of their own
            images = some_images(spec, count)
            found, expected = session.infer(images), other.infer(images)
            assert [v.shape for v in found[:3]] == [(count, 3), (count, 14, 3), (count, spec.vertex_count, 3)]
            for name in ("camera", "joints", "vertices"):
                values = getattr(found, name)
                assert values.dtype == np.float32
                np.testing.assert_allclose(values, getattr(expected, name), atol=tolerance, err_msg=name)


def test_results_stay_when_others_are_made(shared_bundle):
    images = some_images(shared_bundle.spec, 2)
    with open_session(shared_bundle, "fp32", "openvino") as session:
        first = session.infer(images[:1])
        kept = first.vertices.copy()
        session.infer(images[1:])
        np.testing.assert_array_equal(first.vertices, kept)
    np.testing.assert_array_equal(first.vertices, kept)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_several_threads_at_once(shared_bundle, name):
    """Each thread gets the results of its own images, single ones and batches."""
    images = [some_images(shared_bundle.spec, 1 + number % 3, number) for number in range(24)]
    options = {"streams": 2} if name == "openvino" else {}
    with open_session(shared_bundle, "fp32", name, threads=1, **options) as session:
        assert session.concurrent
        expected = [session.infer(one).vertices for one in images]
        with ThreadPoolExecutor(4) as workers:
            found = list(workers.map(lambda one: session.infer(one).vertices, images * 3))
    for number, vertices in enumerate(found):
        np.testing.assert_allclose(vertices, expected[number % len(images)], atol=1e-6)


def test_streams_are_of_the_engine_and_share_its_threads(shared_bundle):
    for threads, streams, wanted in ((1, 1, 1), (1, 2, 2), (3, 2, 3)):
        threads = min(threads, os.cpu_count() or 1)
        with open_session(shared_bundle, "fp32", "openvino", threads=threads, streams=streams) as session:
            assert session.concurrent == (streams > 1)
            compiled = session._compiled[True][0]
            assert compiled.get_property("NUM_STREAMS") == streams
            if wanted <= (os.cpu_count() or 1):
                assert compiled.get_property("INFERENCE_NUM_THREADS") == wanted
    for streams in (0, 17):
        with pytest.raises(UserError, match=f"1 to 16 streams, and one where cores are given, got {streams}$"):
            open_session(shared_bundle, "fp32", "openvino", streams=streams)
    with pytest.raises(UserError, match="got 2 with affinity"):
        open_session(shared_bundle, "fp32", "openvino", streams=2, affinity=sorted(os.sched_getaffinity(0))[:1])


def test_float32_is_float32():
    """By itself OpenVINO takes bfloat16 where the CPU has it, which moves vertices by millimetres."""
    bundle = Bundle.load(None)
    images = some_images(bundle.spec, 3, seed=3)
    with open_session(bundle, "fp32", "openvino") as session, open_session(bundle, "fp32") as other:
        compiled = session._compiled[True][0]
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
        for batch in (images[:1], images):
            np.testing.assert_allclose(session.infer(batch).vertices, other.infer(batch).vertices, atol=1e-5)


def test_half_precision_borders_are_converted(bundle_of, network, shared_bundle):
    bundle = bundle_of(network("fp16", half_borders=True))
    images = some_images(bundle.spec, 2)
    with open_session(bundle, "fp32", "openvino") as session, open_session(shared_bundle) as exact:
        found, expected = session.infer(images), exact.infer(images)
    assert found.vertices.dtype == np.float32
    np.testing.assert_allclose(found.vertices, expected.vertices, atol=5e-3)


def test_nothing_is_left_on_disk(shared_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with open_session(shared_bundle, "int8", "openvino") as session:
        session.infer(some_images(shared_bundle.spec, 2))
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_threads_and_cores(shared_bundle):
    cores = sorted(os.sched_getaffinity(0))
    image = some_images(shared_bundle.spec, 1)
    with open_session(shared_bundle, "fp32", "openvino", threads=1) as session:
        assert session._compiled[True][0].get_property("INFERENCE_NUM_THREADS") == 1
    before = set(os.listdir("/proc/self/task"))
    with open_session(shared_bundle, "fp32", "openvino", affinity=cores[-1:]) as session:
        session.infer(image)
        compiled = session._compiled[True][0]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1 and compiled.get_property("ENABLE_CPU_PINNING")
        started = [task for task in os.listdir("/proc/self/task") if task not in before]
        assert all(os.sched_getaffinity(int(task)) == {cores[-1]} for task in started)
    assert os.sched_getaffinity(0) == set(cores)


def test_mistakes(shared_bundle, monkeypatch):
    for options, message in (
        ({"threads": 0}, "threads must be 1 to"),
        ({"affinity": (10**6,)}, "affinity must be different cores of"),
        ({"provider": "CPU"}, "openvino has no option provider; it has threads, affinity"),
    ):
        with pytest.raises(UserError, match=message):
            open_session(shared_bundle, "fp32", "openvino", **options)
    with open_session(shared_bundle, "fp32", "openvino") as session:
        pass
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.infer(some_images(shared_bundle.spec, 1))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'metro-edge\[openvino\]'"):
        open_session(shared_bundle, "fp32", "openvino")


def test_networks_that_are_not_the_specs(bundle_of, network):
    for model, message in (
        (network(outputs=("cam", "joints", "vertices")), r"outputs \['cam'"),
        (network(size=32), r"takes images \[\?,3,32,32\]; expected \(any, 3, 64, 64\)"),
        (network(dynamic=False), r"takes images \[1,3,64,64\]; expected \(any"),
    ):
        with pytest.raises(BundleError, match=message):
            open_session(bundle_of(model), "fp32", "openvino")


def test_inputs_of_another_type(bundle_of, network):
    model = network()
    model.graph.node[0].input[0] = "floats"
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(BundleError, match="tensors of type float64; expected float32 or float16"):
        open_session(bundle_of(model), "fp32", "openvino")


def test_files_that_are_no_network(tmp_path, spec, template, passport, network):
    unknown = network()
    unknown.graph.node[1].op_type = "Frobnicate"
    for content, message in (
        (b"not a protobuf message", "is not an ONNX graph"),
        (unknown.SerializeToString(), "OpenVINO cannot load the fp32 network of .*Frobnicate"),
    ):
        (tmp_path / "no.onnx").write_bytes(content)
        bundle = write_bundle(tmp_path / "b", spec, template, {"fp32": tmp_path / "no.onnx"}, passport)
        with pytest.raises(BundleError, match=message) as caught:
            open_session(bundle, "fp32", "openvino")
        assert len(str(caught.value).splitlines()) == 1


def test_a_network_that_fails_when_it_runs(fails_over_batches, monkeypatch):
    """OpenVINO mostly notices the wrong shapes, and at times returns them, whatever ran before in the process."""
    images = some_images(fails_over_batches.spec, 3)
    with open_session(fails_over_batches, "fp32", "openvino") as session:
        session.infer(images[:1])
        with pytest.raises(
            PredictionError, match=r"failed on OpenVINO: .+|camera are \(1, 3\), its spec says \(3, 3\)"
        ):
            session.infer(images)

        def fails(single: bool) -> NoReturn:
            raise RuntimeError("Exception from src/plugin.cpp:3:\nout of memory\n")

        monkeypatch.setattr(session, "_request", fails)
        with pytest.raises(PredictionError, match="the fp32 network of .* failed on OpenVINO: out of memory$"):
            session.infer(images)


def test_fp8_is_computed_with_floats(bundle_of, network, shared_bundle):
    images = some_images(shared_bundle.spec, 2)
    with open_session(bundle_of(network("fp8"), "fp8"), "fp8", "openvino") as session:
        assert session.device.endswith("CPU, fp8 computed in float32")
        found = session.infer(images)
    with open_session(shared_bundle) as exact:
        moved = np.abs(found.vertices - exact.infer(images).vertices)
    assert 1e-6 < moved.max() < 1e-2


def test_a_network_that_does_not_compile(bundle_of, network, monkeypatch):
    monkeypatch.setattr(backend, "_properties", lambda *_, **__: {"NO_SUCH_PROPERTY": 1})
    with pytest.raises(BundleError, match="OpenVINO cannot compile the fp32 network"):
        open_session(bundle_of(network()), "fp32", "openvino")


WITHOUT_VNNI = """
import sys
import numpy as np
from metro_edge.backends import open_session
from metro_edge.backends.openvino import products_saturate
from metro_edge.bundle import Bundle
with open_session(Bundle.load(None), "int8", "openvino") as session:
    size = session.spec.image_size
    images = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    np.save(sys.argv[1], session.infer(images).vertices)
    print(products_saturate(), session.device)
"""


def test_where_products_saturate_floats_take_their_place(shared_bundle, monkeypatch):
    bundle = Bundle.load(None)
    monkeypatch.setattr(backend, "products_saturate", lambda: True)
    with open_session(bundle, "int8", "openvino") as session:
        assert session.device.endswith("int8 computed in float32: this CPU's integer products saturate")
        operators = session._compiled[True][0].get_runtime_model().get_ops()
        kinds = {str(o.get_rt_info()["primitiveType"].astype(str)) for o in operators if o.get_type_name() != "Result"}
    assert any(kind.endswith("_f32") for kind in kinds)
    assert not [kind for kind in kinds if kind.lower().endswith("_i8") and ("gemm" in kind or "conv" in kind)]
    with open_session(bundle, "fp32", "openvino") as session:
        assert session.device == f"openvino {ov.__version__.split('-')[0]} CPU"


@pytest.mark.slow
def test_int8_is_right_without_vnni(tmp_path):
    """OpenVINO told to do without VNNI: its integer products clip, which is noticed, and floats take their place."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512_vnni" not in flags:
        pytest.skip("needs a CPU with AVX-512 and VNNI")
    vertices, printed = [], []
    for isa in ("AVX512_CORE", "DEFAULT"):
        file = tmp_path / f"{isa}.npy"
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_VNNI, str(file)], cwd=ROOT, env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        vertices.append(np.load(file))
        printed.append(done.stdout)
    assert printed[0].startswith("True") and "int8 computed in float32" in printed[0]
    assert printed[1].startswith("False") and "float32" not in printed[1]
    moved_mm = 1000 * np.linalg.norm(vertices[0] - vertices[1], axis=-1).mean()
    print(f"{moved_mm:.1f} mm")
    assert moved_mm < 15  # 5 to 12 between any two right engines on noise, 25 and more where products clip
