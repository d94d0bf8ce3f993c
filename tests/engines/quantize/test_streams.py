"""Channels that can be scaled: whatever positive scales are taken, the graph computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.quantize.smooth import scale_stream
from engines.quantize.streams import Stream, streams
from tests.engines.quantize.graphs import TOKENS, attention, constant, graph, node, normal, run

EXACT = 1e-5  # relative to the largest value
PICTURE = ("n", 3, 8, 8)


def convolutions(*between: onnx.NodeProto, last: str, constants: dict | None = None, **second) -> onnx.ModelProto:
    """images -> a (8 channels) -> something -> y."""
    nodes = [
        node("Conv", "images wa ba", "a", pads=[1, 1, 1, 1]),
        *between,
        node("Conv", f"{last} wy by", "y", **second),
    ]
    values = {"wa": normal(0, 8, 3, 3, 3), "ba": normal(1, 8), "wy": normal(2, 5, 8, 3, 3), "by": normal(3, 5)}
    return graph(nodes, PICTURE, values | (constants or {}))


def residual() -> onnx.ModelProto:
    """A block of a ResNet: what goes round it, and what is added, have one scale."""
    between = [
        node("Relu", "a", "r"),
        node("Conv", "r wb bb", "b", pads=[1, 1, 1, 1]),
        node("Relu", "b", "br"),
        node("Conv", "br wc bc", "c", pads=[1, 1, 1, 1]),
        node("Add", "c r", "sum"),
        node("Relu", "sum", "out"),
    ]
    more = {"wb": normal(4, 8, 8, 3, 3), "bb": normal(5, 8), "wc": normal(6, 8, 8, 3, 3), "bc": normal(7, 8)}
    return convolutions(*between, last="out", constants=more)


def normalised() -> onnx.ModelProto:
    nodes = [
        node("LayerNormalization", "images gamma beta", "norm", axis=-1),
        node("MatMul", "norm wa", "a"),
        node("MatMul", "norm wb", "b"),
        node("Add", "a b", "y"),
    ]
    values = {"gamma": normal(0, 16), "beta": normal(1, 16), "wa": normal(2, 16, 5), "wb": normal(3, 16, 5)}
    return graph(nodes, TOKENS, values)


def products(**second) -> onnx.ModelProto:
    """Two Gemm, the second with a transposed weight, and a constant added per channel."""
    nodes = [
        node("Gemm", "images wa ba", "a", alpha=0.5, beta=2.0),
        node("Add", "table a", "sum"),
        node("Relu", "sum", "r"),
        node("Gemm", "r wy by", "y", **({"transB": 1} | second)),
    ]
    values = {
        "wa": normal(0, 16, 7), "ba": normal(1, 7), "table": normal(2, 1, 7), "wy": normal(3, 5, 7), "by": normal(4, 5),
    }  # fmt: skip
    return graph(nodes, ("n", 16), values)


def images_of(model: onnx.ModelProto) -> np.ndarray:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return normal(77, 2, *(dim.dim_value for dim in dims[1:]))


def check_exact(
    model: onnx.ModelProto, found: tuple[Stream, ...], seed: int = 0, powers: bool = False
) -> onnx.ModelProto:
    """Scale all streams at random; outputs stay, and the streams' tensors are divided by the scales.

    Powers of two change no float's digits, so with them nothing may change at all.
    """
    random, images = np.random.default_rng(seed), images_of(model)
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    exponents = [random.uniform(-4, 4, stream.channels) for stream in found]
    scales = [np.exp2(np.rint(exponent) if powers else exponent) for exponent in exponents]
    for stream, scale in zip(found, scales, strict=True):
        scale_stream(scaled, stream, scale)
    onnx.checker.check_model(scaled, full_check=True)
    inner = [name for stream in found for name in stream.tensors]
    before, after = run(model, images, inner), run(scaled, images, inner)
    for stream, scale in zip(found, scales, strict=True):
        for name in stream.tensors:
            shape = [-1 if axis == stream.axis % before[name].ndim else 1 for axis in range(before[name].ndim)]
            after[name] = after[name] * scale.reshape(shape)
    for name, values in before.items():
        allowed = 0.0 if powers else EXACT * np.abs(values).max()
        assert np.abs(after[name] - values).max() <= allowed, name
    return scaled


def depthwise(**attributes) -> onnx.ModelProto:
    between = [node("Conv", "a wd bd", "d", group=8, **attributes), node("Relu", "d", "r")]
    return convolutions(*between, last="r", constants={"wd": normal(8, 8, 1, 3, 3), "bd": normal(9, 8)})


EXACTLY = {
    "convolutions": (lambda: convolutions(node("Relu", "a", "r"), last="r"), ["a -> y"]),
    "pooling": (
        lambda: convolutions(
            node("MaxPool", "a", "m", kernel_shape=[2, 2]), node("Relu", "m", "r"),
            node("AveragePool", "r", "p", kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
            node("Resize", "p  enlarged", "z", mode="linear", coordinate_transformation_mode="half_pixel"),
            last="z", constants={"enlarged": np.array([1, 1, 2, 2], np.float32)},
        ),
        ["a -> y"],
    ),
    "depthwise": (depthwise, ["a -> d", "d -> y"]),
    "grouped maker": (
        lambda: convolutions(
            node("Relu", "a", "r"), node("Conv", "images wg", "g", group=3, pads=[1, 1, 1, 1]),
            node("Conv", "g wh", "h"), last="r", constants={"wg": normal(4, 6, 1, 3, 3), "wh": normal(5, 2, 6, 1, 1)},
        ),
        ["g -> h", "a -> y"],
    ),
    "residual": (residual, ["a c -> b y", "b -> c"]),
    "constant added": (
        lambda: convolutions(
            node("Add", "a table", "s"), last="s", constants={"table": normal(4, 1, 8, 1, 1)},
        ),
        ["a s -> y"],
    ),
    "normalisation": (normalised, ["norm -> a b"]),
    "products": (products, ["a sum -> y"]),
    "attention": (attention, ["qkv qkv_sum -> y"]),
    "attention without biases": (lambda: attention(biases=False), ["qkv -> y"]),
    "attention split at heads": (lambda: attention("heads"), ["qkv qkv_sum -> y"]),
    "attention of three products": (lambda: attention("none"), ["v v_sum -> y"]),
}  # fmt: skip


def said(stream: Stream) -> str:
    parts = [" ".join(sorted({factor.node for factor in factors})) for factors in (stream.makers, stream.readers)]
    return " -> ".join(parts)


@pytest.mark.parametrize("name", EXACTLY)
def test_any_scales_are_exact(name):
    make, expected = EXACTLY[name]
    model = make()
    found = streams(model)
    assert [said(stream) for stream in found] == expected
    for seed in range(3):
        check_exact(model, found, seed)


def fixed(*between: onnx.NodeProto, last: str, outputs: tuple[str, ...] = ("y",), **constants) -> onnx.ModelProto:
    """Like `convolutions`, with something between them that is not indifferent to scales."""
    made = convolutions(*between, last=last, constants=constants)
    return graph(made.graph.node, PICTURE, {t.name: constant(made, t.name) for t in made.graph.initializer}, outputs)


def ends(*nodes: onnx.NodeProto, shape=PICTURE, **constants) -> onnx.ModelProto:
    return graph(nodes, shape, constants)


REFUSED = {
    "relu6": lambda: fixed(
        node("Clip", "a low high", "c"), last="c", low=np.float32(0).reshape(()), high=np.float32(6).reshape(())
    ),
    "gelu": lambda: fixed(node("Gelu", "a", "g"), last="g"),
    "sigmoid": lambda: fixed(node("Sigmoid", "a", "s"), last="s"),
    "an output": lambda: fixed(node("Relu", "a", "r"), last="r", outputs=("y", "r")),
    "an output before the Relu": lambda: fixed(node("Relu", "a", "r"), last="r", outputs=("y", "a")),
    "another reader": lambda: fixed(
        node("Relu", "a", "r"), node("Sigmoid", "r", "s"), last="r", outputs=("y", "s")
    ),
    "the input": lambda: ends(node("Relu", "images", "r"), node("Conv", "r w", "y"), w=normal(0, 2, 3, 1, 1)),
    "the input in a sum": lambda: ends(
        node("Conv", "images w", "a"), node("Add", "a images", "s"), node("Conv", "s v", "y"),
        w=normal(0, 3, 3, 1, 1), v=normal(1, 2, 3, 1, 1),
    ),
    "groups": lambda: ends(
        node("Conv", "images w", "a"), node("Conv", "a v", "y", group=2),
        w=normal(0, 8, 3, 1, 1), v=normal(1, 4, 4, 1, 1),
    ),
    "two filters per channel": lambda: ends(
        node("Conv", "images w", "a"), node("Conv", "a v", "y", group=8),
        w=normal(0, 8, 3, 1, 1), v=normal(1, 16, 1, 1, 1),
    ),
    "a number added": lambda: fixed(node("Add", "a one", "s"), last="s", one=np.ones((), np.float32)),
    "one number per place added": lambda: fixed(node("Add", "a t", "s"), last="s", t=normal(0, 1, 1, 8, 8)),
    "one number per column added": lambda: fixed(node("Add", "a row", "s"), last="s", row=normal(0, 8)),
    "a sum that broadcasts": lambda: fixed(
        node("GlobalAveragePool", "a", "g"), node("Add", "a g", "s"), last="s"
    ),
    "channels multiplied": lambda: fixed(node("Mul", "a t", "m"), last="m", t=normal(0, 1, 8, 1, 1)),
    "a bias that is computed": lambda: ends(
        node("Conv", "images w", "a"), node("ReduceMean", "images axes", "b", keepdims=0),
        node("Conv", "a v b", "c"), node("Conv", "c u", "y"), axes=np.array([0, 2, 3]),
        w=normal(0, 8, 3, 1, 1), v=normal(1, 3, 8, 1, 1), u=normal(2, 2, 3, 1, 1),
    ),
    "constants added to each other": lambda: fixed(
        node("Add", "one two", "three"), node("Add", "a three", "s"), last="s",
        one=normal(4, 1, 8, 8, 8), two=normal(5, 1, 8, 8, 8),
    ),
    "a constant behind a Relu": lambda: fixed(
        node("Relu", "one", "positive"), node("Add", "a positive", "s"), last="s", one=normal(4, 1, 8, 8, 8)
    ),
    "a transposed input": lambda: ends(
        node("Gemm", "images w", "a"), node("Gemm", "a v", "y", transA=1), shape=(8, 16),
        w=normal(0, 16, 8), v=normal(1, 8, 5),
    ),
    "a matrix added": lambda: ends(
        node("Gemm", "images w b", "a"), node("Gemm", "a v", "y"), shape=(8, 16),
        w=normal(0, 16, 8), b=normal(2, 1, 8), v=normal(1, 8, 5),
    ),
    "a stack of weights": lambda: ends(
        node("LayerNormalization", "images g", "a", axis=-1), node("MatMul", "a w", "y"), shape=TOKENS,
        g=normal(0, 16), w=normal(1, 1, 16, 4),
    ),
    "normalisation of two axes": lambda: ends(
        node("LayerNormalization", "images g", "a", axis=1), node("MatMul", "a w", "y"), shape=TOKENS,
        g=normal(0, 6, 16), w=normal(1, 16, 4),
    ),
    "normalisation by what is computed": lambda: ends(
        node("ReduceMean", "images axes", "g", keepdims=0), node("LayerNormalization", "images g", "a", axis=-1),
        node("MatMul", "a w", "y"), shape=TOKENS, axes=np.array([0, 1]), w=normal(1, 16, 4),
    ),
    "another shape": lambda: ends(
        node("Conv", "images w", "a"), node("Reshape", "a flat", "b"), node("MatMul", "b v", "y"),
        flat=np.array([0, -1, 8]), w=normal(0, 8, 3, 1, 1), v=normal(1, 8, 4),
    ),
    "attention split inside of heads": lambda: attention("inner"),
    "attention split inside of heads at the end": lambda: attention("last"),
    "attention that is an output": lambda: attention(extra="context"),
    "values that are an output": lambda: attention(extra="v"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_scales_would_change_is_left_alone(name):
    model = REFUSED[name]()
    found = [stream for stream in streams(model) if said(stream) != "a -> c"]  # what is before the bias is no matter
    assert found == []


def test_a_weight_that_two_layers_share_is_scaled_for_each():
    model = convolutions(
        node("Relu", "a", "r"), node("Conv", "r wb", "b"), node("Relu", "b", "br"), node("Conv", "br wb", "c"),
        last="c", constants={"wb": normal(4, 8, 8, 3, 3)},
    )  # fmt: skip
    found = streams(model)
    assert [said(stream) for stream in found] == ["a -> b", "b -> c", "c -> y"]
    scaled = check_exact(model, found)
    used = {n.name: n.input[1] for n in scaled.graph.node if n.op_type == "Conv"}
    assert len(set(used.values())) == 4 and (constant(scaled, "wb") == constant(model, "wb")).all()


@st.composite
def backbones(draw) -> onnx.ModelProto:
    """Convolutions, activation functions, pooling and sums in any order."""
    nodes, constants, now, channels = [], {}, "images", 3
    open_sums: list[tuple[str, int]] = []
    for index, kind in enumerate(draw(st.lists(st.sampled_from("cccdrrprsgx"), min_size=3, max_size=12))):
        name = f"n{index}"
        if kind == "c":
            width = draw(st.sampled_from([3, 4]))
            constants |= {f"w{name}": normal(index, width, channels, 3, 3) / 5, f"b{name}": normal(index, width)}
            nodes.append(node("Conv", f"{now} w{name} b{name}", name, pads=[1, 1, 1, 1]))
            channels = width
        elif kind == "d":
            constants[f"w{name}"] = normal(index, channels, 1, 3, 3) / 3
            nodes.append(node("Conv", f"{now} w{name}", name, pads=[1, 1, 1, 1], group=channels))
        elif kind == "p":
            nodes.append(node("AveragePool", now, name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif kind == "s":
            others = [other for other, width in open_sums if width == channels]
            if not others:
                continue
            nodes.append(node("Add", f"{now} {draw(st.sampled_from(others))}", name))
        else:
            nodes.append(node({"r": "Relu", "g": "Sigmoid", "x": "Identity"}[kind], now, name))
        now = name
        open_sums.append((now, channels))
    constants["wy"] = normal(99, 2, channels, 1, 1)
    return graph([*nodes, node("Conv", f"{now} wy", "y")], PICTURE, constants)


@settings(max_examples=60, deadline=None)
@given(backbones())
def test_whatever_is_found_is_exact(model):
    check_exact(model, streams(model), powers=True)


def test_streams_of_a_network(converted):
    """Every kind is there; ... and with all of them scaled at once the network is the same."""
    found = streams(converted.graph)
    makers = {n.name: n.op_type for n in converted.graph.graph.node}
    by = [({makers[f.node] for f in stream.makers}, {makers[f.node] for f in stream.readers}) for stream in found]
    assert ({"Conv"}, {"Conv"}) in by and ({"LayerNormalization"}, {"MatMul"}) in by and ({"MatMul"}, {"MatMul"}) in by
    assert any(len({f.node for f in stream.makers}) > 1 for stream in found)
    assert [stream.channels for stream in found if stream.makers[0].start] == [128, 64]  # values, one per block
    scaled = onnx.ModelProto()
    scaled.CopyFrom(converted.graph)
    random, images = np.random.default_rng(0), converted.images(2)
    for stream in found:
        scale_stream(scaled, stream, np.exp2(random.uniform(-3, 3, stream.channels)))
    before, after = run(converted.graph, images), run(scaled, images)
    for name, values in before.items():
        assert 0 < np.abs(after[name] - values).max() <= EXACT * np.abs(values).max()
