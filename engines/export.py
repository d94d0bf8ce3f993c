"""PyTorch -> ONNX: one small module is exported; workarounds live in it and not in the network.

PyTorch's `dynamo` exporter is used, not the older TorchScript one: for `metro_edge` it writes 355 operators where
the other writes 1,427 (418 after simplification against 289), folds batch normalisation itself, writes no shape
arithmetic for the padding of convolutions, and warns of nothing; the other is deprecated.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from torch import Tensor, nn

from engines.fold import InferenceNetwork
from metro_edge.errors import UserError
from metro_edge.spec import INPUT_NAME, ModelSpec

# The newest that TensorRT 10.0 to 10.3 (JetPack 6) reads; Gelu and LayerNormalization are single operators in it.
OPSET = 20
PROTOBUF_LIMIT = 2**31 - 1  # bytes of one message, and so of a graph with its weights inside
_GRAPH_ALLOWANCE = 16 << 20  # for all of a graph that is not weights


class _Exported(nn.Module):
    """Gives the weights one prefix, whichever module is exported."""

    def __init__(self, network: InferenceNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.network(images)


def export_onnx(network: InferenceNetwork, spec: ModelSpec, checkpoint_sha256: str) -> onnx.ModelProto:
    """Export a network, its weights inside the graph, with a dynamic batch.

    Args:
        network: of `engines.fold.fold`, on the CPU, folded or not.
        spec: of the network; its name goes into the graph's metadata.
        checkpoint_sha256: of the weights' file; goes into the metadata as well.

    Raises:
        UserError: weights that do not fit one ONNX file, or other outputs than the spec's.
    """
    if network.outputs != spec.outputs:
        raise UserError(
            f"the network gives {', '.join(network.outputs)}; the spec of {spec.name} says {', '.join(spec.outputs)}"
        )
    size = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    if size + _GRAPH_ALLOWANCE > PROTOBUF_LIMIT:
        raise UserError(f"the weights of {spec.name} take {size / 2**30:.2f} GiB; one ONNX file holds less than 2 GiB")
    images = torch.zeros(2, 3, spec.image_size, spec.image_size)  # a batch of 1 would be taken for a constant
    program = torch.onnx.export(
        _Exported(network).eval(),
        (images,),
        input_names=[INPUT_NAME],
        output_names=list(spec.outputs),
        dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    strip_traces(graph)
    set_metadata(graph, spec, checkpoint_sha256)
    return graph


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove, in place, what tells only of the code and the machine that exported: file names, stack traces."""
    parts: list[Any] = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info]
    for part in (*parts, *model.graph.input, *model.graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def set_metadata(model: onnx.ModelProto, spec: ModelSpec, checkpoint_sha256: str) -> None:
    """Write, in place, where a graph comes from into its metadata."""
    model.graph.name = spec.name
    model.producer_name, model.producer_version = "metro-edge", ""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"spec": spec.name, "checkpoint_sha256": checkpoint_sha256})
