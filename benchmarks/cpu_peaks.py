"""What this CPU can do at most, measured: for processors whose peaks nobody publishes, as those of virtual machines.

Bandwidth by the loops of J. McCalpin's STREAM (copy and add, bytes as he counts them, that is without the line that a
write fetches first) and by reading alone, over arrays well beyond the caches; arithmetic by square matrix products of
every library at hand. The best of all is the peak, so that a time predicted from it is the least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper
from tqdm import tqdm

from metro_edge.devices import Device
from metro_edge.machine import cpu_model, usable_cores

NAME = "this-cpu"
ARRAY_BYTES = 256 << 20  # of each of three; the largest cache that we met has 105 MB
SIDES = (1024, 2048)  # of the matrices
REPEATS = 8


def measure_cpu(array_bytes: int = ARRAY_BYTES, sides: tuple[int, ...] = SIDES, repeats: int = REPEATS) -> Device:
    """Measure this CPU on all its usable cores (about ten seconds, 1 GB) and return it as a device.

    FP16's peak is at least FP32's, as engines may compute it so. `fp8` is None.

    Args:
        array_bytes: of each of the three arrays of the bandwidth.
        sides: of the square matrices, in elements.
        repeats: of everything; the fastest counts.
    """
    cores = usable_cores()
    loops = tqdm(_bandwidths(array_bytes, cores, repeats), "bandwidth of this CPU", leave=False)
    bandwidth, loop = max((gbs, name) for name, gbs in loops)
    best: dict[str, tuple[float, str]] = {}
    products = tqdm(_products(sides, cores), "products on this CPU", leave=False)
    for precision, library, side, product in products:
        tops = 2 * side**3 / _fastest(product, repeats) / 1e12
        best[precision] = max(best.get(precision, (0.0, "")), (tops, f"{library}, {side} x {side}"))
    best["fp16"] = max(best["fp32"], best.get("fp16", (0.0, "")))
    peaks = {name: _rounded(best[name][0]) for name in ("fp32", "fp16", "int8")}
    how = "; ".join(f"{name}: matrix product of {best[name][1]}" for name in peaks)
    where = f"measured on {cpu_model()}, best of {repeats}"
    return Device(
        name=NAME,
        title=f"This CPU, {cores} cores, peaks measured",
        compute_capability="",
        peaks=MappingProxyType({**peaks, "fp8": None}),
        bandwidth_gbs=_rounded(bandwidth),
        memory_gb=0.0,
        dla_cores=0,
        tensorrt=MappingProxyType({}),
        source=f"{where}. Bandwidth: {loop}, {array_bytes / 1e6:.0f} MB arrays; {how}",
        checked=True,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")  # more digits than two runs have in common would be read as exact


def _fastest(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _bandwidths(array_bytes: int, cores: int, repeats: int) -> Iterator[tuple[str, float]]:
    """Yield each loop's name and GB/s (10^9), with the arrays cut into a part per core."""
    count = array_bytes // 8
    a, b, c = (np.full(count, value) for value in (1.0, 2.0, 0.0))
    parts = [slice(i * count // cores, (i + 1) * count // cores) for i in range(cores)]
    loops: dict[str, tuple[int, Callable[[slice], object]]] = {
        "read": (1, lambda part: a[part].max()),
        "copy": (2, lambda part: np.copyto(c[part], a[part])),
        "add": (3, lambda part: np.add(a[part], b[part], out=c[part])),
    }
    # NumPy lets go of Python's lock inside these.
    with ThreadPoolExecutor(cores) as pool:
        for name, (arrays, loop) in loops.items():
            seconds = _fastest(lambda loop=loop: list(pool.map(loop, parts)), repeats)  # type: ignore[misc]
            yield name, arrays * count * 8 / seconds / 1e9


def _products(sides: tuple[int, ...], cores: int) -> Iterator[tuple[str, str, int, Callable[[], object]]]:
    """Yield precision, library, side and a call of one product, for every library that is there."""
    random = np.random.default_rng(0)
    for side in sides:
        left, right = (random.normal(size=(side, side)).astype(np.float32) for _ in range(2))
        yield "fp32", "NumPy", side, lambda a=left, b=right: a @ b  # type: ignore[misc]
        yield "fp32", "ONNX Runtime", side, _onnx_product("MatMul", left, right, cores)
        small = random.integers(0, 255, (side, side), dtype=np.uint8)
        signed = random.integers(-64, 64, (side, side), dtype=np.int8)
        yield "int8", "ONNX Runtime", side, _onnx_product("MatMulInteger", small, signed, cores)
        if find_spec("torch") is not None:
            yield from _torch_products(left, right, signed)


def _torch_products(
    left: np.ndarray, right: np.ndarray, signed: np.ndarray
) -> Iterator[tuple[str, str, int, Callable[[], object]]]:
    import torch

    a, b, whole = torch.from_numpy(left), torch.from_numpy(right), torch.from_numpy(signed)
    half = a.half(), b.half()
    side = len(left)
    yield "fp32", "PyTorch", side, lambda: a @ b
    yield "fp16", "PyTorch", side, lambda: half[0] @ half[1]
    if hasattr(torch, "_int_mm"):
        yield "int8", "PyTorch", side, lambda: torch._int_mm(whole, whole)


def _onnx_product(kind: str, left: np.ndarray, right: np.ndarray, cores: int) -> Callable[[], object]:
    """Return a call of one product by ONNX Runtime, the right factor a constant as weights are."""
    import onnxruntime

    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
    out = TensorProto.FLOAT if kind == "MatMul" else TensorProto.INT32
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", types[left.dtype], left.shape)],
        [helper.make_tensor_value_info("c", out, left.shape)],
        [onnx.numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": left})
