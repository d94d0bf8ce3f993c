"""INT8 weights rounded on data, and biases corrected for what quantisation shifts.

Rounding each weight to its nearest level keeps W near; what counts is W x. Each column of W is rounded in turn, and
its error, as far as the inputs correlate, is made good by the columns not rounded yet (Frantar et al., GPTQ, ICLR
2023, which solves the layers of Optimal Brain Surgeon in a fixed order). The inputs are those of the FP32 graph, at
their own levels. What is left of a shift in the mean of the product is taken out of the bias (Nagel et al.,
Data-Free Quantization, ICCV 2019, section 4.2, here with means measured on images).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tqdm import tqdm

from engines.graph import constants, consumers, value_of
from engines.quantize.layers import weight_place
from engines.quantize.products import Moments, groups_of, inputs_of, moments, weight_matrix, weight_of_matrix
from engines.quantize.weights import FORMATS, MAX, quantised, weight_scale

SAMPLES = 128  # images that weights are rounded on; more change nothing that can be measured
_DAMPING = 0.01  # of the mean second moment, added to all: inputs that hardly vary must not rule
_BLOCK = 64  # columns whose errors are passed on to the others together
_MOST_INPUTS = 2304  # of a product: 256 channels under 3 x 3; beyond, solving takes minutes for little
_MOST_MOMENTS = 1 << 27  # second moments held at once, 1 GiB


@dataclass(frozen=True, eq=False)
class Rounded:
    """The INT8 weight of one product.

    Attributes:
        levels: int8, as the weight.
        scale: (C,) per output channel.
        shift: (C,) mean change of the product's output, to be taken from its bias.
    """

    levels: NDArray[np.int8]
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]


def round_on_data(
    model: onnx.ModelProto,
    nodes: Iterable[str],
    thresholds: Mapping[str, float],
    images: Sequence[NDArray[np.float32]],
) -> dict[str, Rounded]:
    """Round the weights of the named nodes that have one.

    Args:
        model: FP32 graph.
        nodes: names; those without a constant weight, or with a stack of them, are passed over.
        thresholds: per activation the magnitude of int8 level 127.
        images: batches (N, 3, S, S) of calibration images, SAMPLES in all are enough.

    Raises UserError when there is no image, or no threshold of an activation.
    """
    known, chosen = constants(model), set(nodes)
    found = [node for node in model.graph.node if node.name in chosen and _has_matrix(node, known)]
    result: dict[str, Rounded] = {}
    with tqdm(total=len(found), desc="round weights on data", leave=False) as bar:
        for part in _parts(found, known):
            seen = moments(model, part, thresholds, images, second=inputs_of(part[0], known) <= _MOST_INPUTS)
            for node in part:
                result[node.name] = _rounded(node, known, seen.pop(node.name))
                bar.update()
    return result


def _has_matrix(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    place = weight_place(node, known)
    return place is not None and (node.op_type == "Conv" or len(known[node.input[place[0]]].dims) == 2)


def correct_biases(model: onnx.ModelProto, rounded: Mapping[str, Rounded]) -> None:
    """Take the shifts of products from their biases, in place.

    A product without a bias of its own (queries and keys share a softmax that no common shift moves; tokens summed
    before a constant is added) is left as it is.
    """
    known, readers = constants(model), consumers(model)
    for node in [n for n in model.graph.node if n.name in rounded]:
        place = bias_place(node, known, readers)
        if place is None:
            continue
        owner, index, after = place
        bias = value_of(known[owner.input[index]])
        shift = rounded[node.name].shift
        name = f"{node.name}.corrected_bias"
        values = (bias - shift.reshape(-1, *[1] * after)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        owner.input[index] = name


def _rounded(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto], seen: Moments) -> Rounded:
    place = weight_place(node, known)
    assert place is not None
    weight, axis = value_of(known[node.input[place[0]]]), place[1]
    groups = groups_of(node)
    if seen.second is None:
        scale = weight_scale(weight, axis, "int8")
        levels = weight_matrix(quantised(weight, scale, axis, "int8"), axis, groups)
    else:
        scale = weight_scale(weight, axis, "int8", MAX)
        matrix = weight_matrix(weight, axis, groups)
        scales = scale.reshape(groups, -1)
        levels = np.stack([round_rows(*row) for row in zip(matrix, scales, seen.second, strict=True)])
    plain, shifted = seen.shift
    before = np.einsum("grk,gk->gr", weight_matrix(weight, axis, groups).astype(np.float64), plain)
    stored = levels * scale.astype(np.float64).reshape(groups, -1, 1)
    shift = (np.einsum("grk,gk->gr", stored, shifted) - before).reshape(-1).astype(np.float32)
    return Rounded(weight_of_matrix(levels, weight.shape, axis), scale, shift)


def round_rows(
    weight: NDArray[np.floating], scale: NDArray[np.floating], second: NDArray[np.floating]
) -> NDArray[np.int8]:
    """Return levels (R, K) of a weight (R, K) whose product with inputs of these second moments errs little.

    A row never errs more than with its nearest levels: it keeps those where rounding in turn ends worse.

    Args:
        weight: float.
        scale: (R,) what one level stands for.
        second: (K, K) sum of x x^T over the inputs.
    """
    form = FORMATS["int8"]
    work = weight.astype(np.float64)
    matrix = second.astype(np.float64)
    diagonal = np.diag(matrix).copy()
    # An input that is always zero correlates with none: damped, it can be divided by, and takes the nearest level.
    matrix[np.diag_indices_from(matrix)] += _DAMPING * diagonal.mean() + np.finfo(np.float64).tiny
    order = np.argsort(-diagonal)  # what weighs most is rounded first, while most others can make it good
    work, matrix = work[:, order], matrix[np.ix_(order, order)]
    # Row j of the upper factor of the inverse says how the columns after j make good an error in column j.
    upper = np.linalg.cholesky(np.linalg.inv(matrix)).T
    levels = np.zeros(work.shape, np.int8)
    steps = scale.astype(np.float64)
    for start in range(0, work.shape[1], _BLOCK):
        stop = min(start + _BLOCK, work.shape[1])
        errors = np.zeros((len(work), stop - start))
        for j in range(start, stop):
            levels[:, j] = form.levels(work[:, j] / steps)
            errors[:, j - start] = (work[:, j] - levels[:, j] * steps) / upper[j, j]
            work[:, j + 1 : stop] -= np.outer(errors[:, j - start], upper[j, j + 1 : stop])
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    back = np.empty_like(levels)
    back[:, order] = levels
    nearest = form.levels(weight / steps[:, None])
    left, most = (_squared_error(one * steps[:, None] - weight, second) for one in (back, nearest))
    return np.where((left <= most)[:, None], back, nearest)


def _squared_error(rows: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the sum (R,) of squared products of rows (R, K) with inputs of some second moments."""
    return ((rows @ second) * rows).sum(1)


def _parts(nodes: Sequence[onnx.NodeProto], known: Mapping[str, onnx.TensorProto]) -> Iterator[list[onnx.NodeProto]]:
    """Divide nodes so that the second moments of a part fit into memory; those too large for any come last."""
    large = [node for node in nodes if inputs_of(node, known) > _MOST_INPUTS]
    part: list[onnx.NodeProto] = []
    held = 0
    for node in nodes:
        inputs = inputs_of(node, known)
        if inputs > _MOST_INPUTS:
            continue
        size = inputs**2 * groups_of(node)
        if part and held + size > _MOST_MOMENTS:
            yield part
            part, held = [], 0
        part.append(node)
        held += size
    if part:
        yield part
    if large:
        yield large


def bias_place(
    node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto], readers: Mapping[str, list[onnx.NodeProto]]
) -> tuple[onnx.NodeProto, int, int] | None:
    """Return the node that adds a product's bias, the bias's input and the axes behind the output channels."""
    place = weight_place(node, known)
    assert place is not None
    if any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute):
        return None  # a Gemm whose product or bias is not what it adds
    after = len(known[node.input[1]].dims) - 2 if node.op_type == "Conv" else 1 - place[0]
    if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2] in known:
        return node, 2, 0  # its bias is one number per channel, wherever the channels are
    following = readers.get(node.output[0], [])
    if len(following) == 1 and following[0].op_type == "Add":
        for index, name in enumerate(following[0].input):
            if name in known:
                return following[0], index, after
    return None
