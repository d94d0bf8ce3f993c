"""The roofline of a bundle's network: the least time that a device's peaks allow. Predictions: it is not timed.

Multiply-adds and constants are counted by `engines.cost.node_costs`, and nodes are joined to layers by
`engines.quantize.units.plan`: a product or convolution with the operators that engines run in its kernel.

The JSON file, schema 1. Times are milliseconds for one call with `batch` images; an operation is a multiplication or an
addition, so that a multiply-add is two.

- `schema_version`: 1; `kind`: `metro-edge roofline`; `prediction`: true; `created`: UTC, ISO 8601; `command`: what
  gives it again; `metro_edge`: version; `assumptions`: in words; `batch`: images of a call.
- `bundle`: `name` of the network, `onnx_sha256` of the FP32 graph that was counted.
- `total`: `macs` for one image, `bytes` {precision: of all layers, for one call}, `least_bytes` {precision: of
  constants, inputs and outputs of the network alone}.
- `layers`: in the order of the graph, each `name`, `kind` (a role of engines.quantize.layers, or an ONNX operator),
  `macs` for one image, the fields of Layer below, `bytes` {precision: for one call} and `intensity` {precision:
  operations per byte}.
- `devices`: name -> {`title`, `source` of its figures, `checked` (whether they were compared with the source),
  `measured`: null or absent for published peaks, {`cpu`, `cores`} for those of this CPU (benchmarks.cpu_peaks),
  `bandwidth_gbs`, `peaks_tops` {precision: dense, null where it has none},
  `precisions` {precision: null where its cores lack it, or {
  `ridge`: operations per byte above which compute bounds,
  `compute_ms`: all operations at the peak; `memory_ms`: the traffic of all layers at the bandwidth;
  `layered_ms`: sum over layers of the larger of both; `memory_layers`: how many layers memory bounds;
  `memory_share`: their part of `layered_ms`;
  `least_ms`: the larger of `compute_ms` and `least_bytes` at the bandwidth; `bound`: `compute` or `memory`, of it}}}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from benchmarks.common import named, when, write_three
from benchmarks.cpu_peaks import NAME as THIS_CPU
from benchmarks.cpu_peaks import measure_cpu
from engines.cost import NodeCost, node_costs
from engines.graph import constants, consumers
from engines.quantize.layers import quantisable
from engines.quantize.predict import BYTES, FREE
from engines.quantize.units import plan
from metro_edge import __version__
from metro_edge.bundle import Bundle
from metro_edge.devices import DEVICES, Device, device
from metro_edge.errors import UserError
from metro_edge.files import output_folder
from metro_edge.machine import cpu_model, usable_cores

SCHEMA_VERSION = 1
KIND = "metro-edge roofline"
PRECISIONS = ("fp32", "fp16", "int8")
MAX_BATCH = 4096
# What an FP32 graph does not have: another graph's bytes would be counted as if they were its own.
_NOT_FP32 = ("FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2")
ASSUMPTIONS = (
    "every layer in the one precision, every operation at the dense peak of the device's GPU in it, every byte at the "
    "full bandwidth; each layer reads its constants and inputs once and writes its outputs once, with what engines "
    "fuse inside it; views, concatenations and changes of type are free, and so is starting kernels. A cache that "
    "keeps activations between layers can beat the layered time, one that keeps all constants between calls (GPUs "
    "with tens of MB of it) the least time as well"
)


@dataclass(frozen=True)
class Layer:
    """A layer with what is fused to it.

    Attributes:
        name: of the layer, or of a node that belongs to none.
        kind: its role (engines.quantize.layers.Layer), or the node's ONNX operator.
        macs: multiply-adds for one image.
        weights: floating-point elements of its constants.
        index_bytes: of its whole-number constants, which no precision changes.
        inputs, outputs: elements of the activations that it reads and writes, for one image.
    """

    name: str
    kind: str
    macs: int
    weights: int
    index_bytes: int
    inputs: int
    outputs: int

    def bytes(self, precision: str, batch: int = 1) -> int:
        """Return what is read and written for `batch` images."""
        return self.index_bytes + (self.weights + batch * (self.inputs + self.outputs)) * BYTES[precision]

    def intensity(self, precision: str, batch: int = 1) -> float:
        """Return operations per byte; 0 for a layer without bytes."""
        moved = self.bytes(precision, batch)
        return 2 * self.macs * batch / moved if moved else 0.0


@dataclass(frozen=True)
class Least:
    """The least time of a network on a device in a precision; see the module's schema for the fields."""

    ridge: float
    compute_ms: float
    memory_ms: float
    layered_ms: float
    memory_layers: int
    memory_share: float
    least_ms: float
    bound: str


@dataclass(frozen=True)
class Network:
    """A network as layers.

    Attributes:
        layers: in the order of the graph.
        ends: elements of the graph's inputs and outputs for one image, which no schedule saves.
    """

    layers: tuple[Layer, ...]
    ends: int

    def least_bytes(self, precision: str, batch: int = 1) -> int:
        """Return the bytes of constants, inputs and outputs of the whole network, for `batch` images."""
        fixed = sum(layer.index_bytes for layer in self.layers)
        return fixed + (sum(layer.weights for layer in self.layers) + batch * self.ends) * BYTES[precision]


def network_layers(model: onnx.ModelProto) -> Network:
    """Count the layers of an FP32 graph.

    Raises:
        UserError: nodes without names of their own, a graph with quantised or half-precision constants, or a tensor
            whose shape cannot be told.
    """
    for tensor in model.graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind in _NOT_FP32:
            raise UserError(f"constant {tensor.name} is {kind}: the FP32 graph of a bundle was expected")
    layers = quantisable(model)
    costs = {cost.name: cost for cost in node_costs(model)}
    division = plan(model, layers)
    owner = {name: unit.layer for unit in division.units for name in unit.nodes}
    roles = {layer.name: layer.role for layer in layers}
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.name in owner or node.op_type not in FREE:
            groups.setdefault(owner.get(node.name, node.name), []).append(node)
    known, readers, sizes = constants(model), consumers(model), division.sizes
    ends = {value.name for value in model.graph.output}
    found = []
    for name, nodes in groups.items():
        role = roles.get(name, nodes[0].op_type)
        found.append(_layer(name, role, nodes, costs, sizes, known, readers, ends))
    given = [value.name for value in model.graph.input if value.name not in known]
    return Network(tuple(found), sum(sizes[name] for name in (*given, *ends)))


def _layer(
    name: str,
    kind: str,
    nodes: Sequence[onnx.NodeProto],
    costs: Mapping[str, NodeCost],
    sizes: Mapping[str, int],
    known: Mapping[str, onnx.TensorProto],
    readers: Mapping[str, list[onnx.NodeProto]],
    ends: set[str],
) -> Layer:
    inside = {node.name for node in nodes}
    made = {output for node in nodes for output in node.output if output}
    read = {given for node in nodes for given in node.input if given} - made - set(known)
    left = {o for o in made if o in ends or any(reader.name not in inside for reader in readers.get(o, []))}
    index_bytes = sum(
        prod(known[given].dims) * int(tensor_dtype_to_np_dtype(known[given].data_type).itemsize)
        for node in nodes
        for given in node.input
        if given in known and known[given].data_type != onnx.TensorProto.FLOAT
    )
    return Layer(
        name=name,
        kind=kind,
        macs=sum(costs[node.name].macs for node in nodes),
        weights=(sum(costs[node.name].weight_bytes for node in nodes) - index_bytes) // BYTES["fp32"],
        index_bytes=index_bytes,
        inputs=sum(sizes[tensor] for tensor in read),
        outputs=sum(sizes[tensor] for tensor in left),
    )


def least_time(network: Network, target: Device, precision: str, batch: int = 1) -> Least:
    """Return the least time of a network on a device.

    Raises:
        UserError: a device without a source, whose figures nobody could check, or whose cores lack the precision.
    """
    if not target.source.strip():
        raise UserError(f"device {target.name} has no source for its peaks; nothing is predicted for it")
    peak = target.peaks.get(precision)
    if peak is None:
        raise UserError(f"{target.title} does not compute in {precision}; it has {', '.join(target.precisions)}")
    per_op, per_byte = 1e3 / (peak * 1e12), 1e3 / (target.bandwidth_gbs * 1e9)
    compute = [2 * layer.macs * batch * per_op for layer in network.layers]
    memory = [layer.bytes(precision, batch) * per_byte for layer in network.layers]
    bound = [m for c, m in zip(compute, memory, strict=True) if m > c]
    layered = sum(max(pair) for pair in zip(compute, memory, strict=True))
    ends = network.least_bytes(precision, batch) * per_byte
    return Least(
        ridge=per_byte / per_op,
        compute_ms=sum(compute),
        memory_ms=sum(memory),
        layered_ms=layered,
        memory_layers=len(bound),
        memory_share=sum(bound) / layered if layered else 0.0,
        least_ms=max(sum(compute), ends),
        bound="memory" if ends > sum(compute) else "compute",
    )


def roofline_report(
    bundle: Bundle,
    precisions: Sequence[str] = (),
    devices: Sequence[str] = (),
    batch: int = 1,
    command: str = "",
) -> dict[str, Any]:
    """Return the roofline of a bundle; see the module for its schema.

    Args:
        bundle: its FP32 graph is counted.
        precisions: fp32, fp16, int8, fp8; the first three when empty.
        devices: names of the table, or `this-cpu`, whose peaks are measured now; all of the table when empty.
        batch: images of a call, 1 to 4096.
        command: what gives the report again.

    Raises:
        UserError: an unknown precision or device, a device without the precision where both are named, a batch out of
            range, a bundle without FP32 graph, or as `network_layers` and `least_time`.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise UserError(f"--batch must be 1 to {MAX_BATCH}, got {batch}")
    if unknown := [name for name in precisions if name not in BYTES]:
        raise UserError(f"unknown precision {', '.join(unknown)}; known: {', '.join(BYTES)}")
    chosen = list(dict.fromkeys(precisions)) or list(PRECISIONS)
    targets = [_target(name) for name in dict.fromkeys(devices)] or list(DEVICES.values())
    network = network_layers(onnx.load_from_string(bundle.onnx_bytes("fp32")))
    strict = bool(precisions and devices)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "prediction": True,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "metro_edge": __version__,
        "assumptions": ASSUMPTIONS,
        "batch": batch,
        "bundle": {"name": bundle.spec.name, "onnx_sha256": bundle.onnx_sha256("fp32")},
        "total": {
            "macs": sum(layer.macs for layer in network.layers),
            "bytes": {p: sum(layer.bytes(p, batch) for layer in network.layers) for p in chosen},
            "least_bytes": {p: network.least_bytes(p, batch) for p in chosen},
        },
        "layers": [
            {
                **asdict(layer),
                "bytes": {p: layer.bytes(p, batch) for p in chosen},
                "intensity": {p: layer.intensity(p, batch) for p in chosen},
            }
            for layer in network.layers
        ],
        "devices": {target.name: _device_entry(network, target, chosen, batch, strict) for target in targets},
    }


def _target(name: str) -> Device:
    return measure_cpu() if name == THIS_CPU else device(name)


def _device_entry(
    network: Network, target: Device, precisions: Sequence[str], batch: int, strict: bool
) -> dict[str, Any]:
    able = [p for p in precisions if strict or target.peaks.get(p) is not None]
    times = {p: asdict(least_time(network, target, p, batch)) for p in able}
    return {
        "title": target.title,
        "source": target.source,
        "checked": target.checked,
        "measured": {"cpu": cpu_model(), "cores": usable_cores()} if target.name == THIS_CPU else None,
        "bandwidth_gbs": target.bandwidth_gbs,
        "peaks_tops": {p: target.peaks.get(p) for p in precisions},
        "precisions": {p: times.get(p) for p in precisions},
    }


def run(
    path: Path, precisions: Sequence[str], devices: Sequence[str], batch: int, output: Path
) -> tuple[str, list[Path]]:
    """Write `roofline-NETWORK-TIME.json`, `.md` and `.png` into `output`; returns the Markdown and the paths.

    Raises:
        UserError: as `roofline_report`, no matplotlib, or a folder that cannot be written.
    """
    from benchmarks.roofline_report import plot_roofline, roofline_markdown

    words = ["python -m benchmarks roofline", str(path)]
    words += ["--precision", *precisions] if precisions else []
    words += ["--device", *devices] if devices else []
    words += ["--batch", str(batch)] if batch != 1 else []
    report = roofline_report(Bundle.load(path), precisions, devices, batch, " ".join(words))
    stem = output_folder(output) / f"roofline-{named(report)}-{when(report)}"
    return write_three(stem, report, roofline_markdown, plot_roofline)
