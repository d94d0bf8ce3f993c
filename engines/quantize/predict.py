"""The time of a choice on a device that is not here: a roofline of each unit from the device's table."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import onnx

from engines.quantize.costs import PLAIN, QUANTISED, Costs
from engines.quantize.units import Plan, Unit
from metro_edge.devices import Device

BYTES = {"fp32": 4, "fp16": 2, "int8": 1, "fp8": 1}
# Shares of the printed peaks that good kernels reach, and what starting one costs. Rules of thumb for small batches,
# not measurements: they scale all precisions alike and matter where compute, memory and starting are weighed.
PEAK_SHARE = 0.5
BANDWIDTH_SHARE = 0.75
KERNEL_MS = 0.004
# Tensor cores work on blocks: channels are filled up to these numbers.
BLOCK = {"fp32": 1, "fp16": 8, "int8": 32, "fp8": 16}
# Free: engines take them as another view of the same memory, or run them inside their neighbour.
FREE = ("Reshape", "Shape", "Squeeze", "Unsqueeze", "Identity", "Concat", "Split", "Expand", "Cast", "Transpose")
ASSUMPTIONS = (
    f"per layer the larger of multiply-adds at {PEAK_SHARE:.0%} of the dense peak and bytes at {BANDWIDTH_SHARE:.0%} "
    f"of the bandwidth, {KERNEL_MS * 1000:.0f} us per kernel, depthwise convolutions without tensor cores, activation "
    "functions and changes of type fused, batch 1"
)


def predicted_costs(model: onnx.ModelProto, plan: Plan, device: Device, precisions: Sequence[str]) -> Costs:
    """Return the costs of a graph's units on a device.

    Args:
        model: FP32 graph.
        plan: of it.
        device: from the table.
        precisions: of interest; fp32 is always there.

    Raises UserError for a precision that the device's cores do not have.
    """
    device.check_computes(precisions)
    rest = "fp16" if "fp16" in precisions else "fp32"
    units = {}
    for unit in plan.units:
        units[unit.layer] = {
            (precision, after): _unit_ms(unit, plan, device, precision, after, rest)
            for precision in dict.fromkeys((*precisions, "fp32"))
            for after in ((PLAIN, precision) if precision in QUANTISED else (PLAIN,))
        }
    tensors = {*plan.readers, *(unit.output for unit in plan.units)}
    given = {value.name for value in model.graph.input}
    quantise = {name: dict.fromkeys(QUANTISED, _change_ms(name, 1, plan, device, given)) for name in tensors}
    cast = {name: _change_ms(name, BYTES[rest], plan, device, given) for name in tensors}
    return Costs(plan, units, quantise, cast, _rest_ms(model, plan, device, rest), rest)


def _unit_ms(unit: Unit, plan: Plan, device: Device, precision: str, after: str, rest: str) -> float:
    moved = sum(plan.sizes.get(name, 0) for name in unit.inputs) * BYTES[precision]
    moved += unit.weights * BYTES[precision]
    made = precision if after == PLAIN and precision not in QUANTISED else rest if after == PLAIN else after
    moved += plan.sizes.get(unit.output, 0) * BYTES[made]
    compute = 2 * unit.macs / (_peak(unit, device, precision) * PEAK_SHARE * 1e12) * 1e3
    return max(compute * _filling(unit, precision), _traffic_ms(device, moved)) + KERNEL_MS


def _change_ms(name: str, size: int, plan: Plan, device: Device, given: set[str]) -> float:
    """Return what writing a value in another type takes: its maker's kernel does it, for the graph's inputs its own."""
    return _traffic_ms(device, plan.sizes.get(name, 0) * size) + (KERNEL_MS if name in given else 0.0)


def _peak(unit: Unit, device: Device, precision: str) -> float:
    """Return the TFLOPS or TOPS that a unit can reach at most."""
    peak, plain = device.peaks[precision], device.peaks["fp32"]
    assert peak is not None and plain is not None
    # One channel at a time is no matrix product: ordinary cores do it, two FP16 numbers at once.
    return min(peak, plain * (1 if precision == "fp32" else 2)) if unit.role == "depthwise" else peak


def _filling(unit: Unit, precision: str) -> float:
    """Return how much more is computed than asked for, as channels fill whole blocks."""
    if unit.role == "depthwise" or not unit.weights:
        return 1.0
    block = BLOCK[precision]
    return ceil(unit.depth / block) * ceil(unit.width / block) * block * block / max(unit.depth * unit.width, 1)


def _traffic_ms(device: Device, moved: float) -> float:
    return moved / (device.bandwidth_gbs * BANDWIDTH_SHARE * 1e9) * 1e3


def _rest_ms(model: onnx.ModelProto, plan: Plan, device: Device, rest: str) -> float:
    """Return the time of the nodes that belong to no unit: they read and write memory."""
    total, names = 0.0, set(plan.rest)
    for node in model.graph.node:
        if node.name in names and node.op_type not in FREE:
            moved = sum(plan.sizes.get(name, 0) for name in (*node.input, *node.output)) * BYTES[rest]
            total += _traffic_ms(device, moved) + KERNEL_MS
    return total
