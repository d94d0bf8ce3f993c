"""Resize by repeating pixels, before QuantizeLinear, as the same Resize of the quantised numbers.

HRNet enlarges a convolution's result by repeating pixels before it is quantised and added. Quantised first, the
convolution becomes an integer one and the repetition moves a quarter of the bytes. Transposing or reshaping late
instead of early gains nothing.
"""

from __future__ import annotations

from typing import Any

from metro_edge.backends.cpu_twin.graph import Graph


def quantise_before_repeating(graph: Graph) -> int:
    """Rewrite x -> Resize -> Q as x -> Q -> Resize, wherever only Q reads the result; returns how many there were."""
    readers, count = graph.readers(), 0
    for copy in [node for node in graph.nodes if _repeats(node)]:
        quantiser = graph.only_reader(readers, copy.output[0])
        if quantiser is None or quantiser.op_type != "QuantizeLinear" or not _per_tensor(graph, quantiser):
            continue
        middle = graph.new_name(f"{quantiser.output[0]}_source")
        first = graph.node("QuantizeLinear", [copy.input[0], *quantiser.input[1:]], [middle])
        graph.replace([copy, quantiser], [first, copy])
        copy.input[0], copy.output[0] = middle, quantiser.output[0]
        count += 1
    return count


def _repeats(node: Any) -> bool:
    if node.op_type != "Resize" or node.domain:
        return False
    modes = {found.name: found.s for found in node.attribute}
    cropped = modes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"  # fills in numbers of its own
    return modes.get("mode", b"nearest") == b"nearest" and not cropped


def _per_tensor(graph: Graph, quantiser: Any) -> bool:
    scale = graph.constant(quantiser.input[1])
    return scale is not None and scale.size == 1
