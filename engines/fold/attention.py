"""Attention in fewer steps: no scaling, one cut into heads, a bias where it matters."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.fold.network import Affine, InferenceNetwork, Layer, constant


def qkv(network: InferenceNetwork) -> str:
    """Cut query, key and value into heads together: one reshape and one split per layer instead of one and three.

    Their product is one already in every network that is trained or imported here, so no multiply-adds are saved.
    """
    layers = _layers(network)
    for layer in layers:
        layer.heads_at_once = True
    return f"{len(layers)} layers; the product of query, key and value was one before"


def attention_scale(network: InferenceNetwork) -> str:
    """Divide the query's weights by the root of a head's width instead of every score."""
    layers = [layer for layer in _layers(network) if layer.scale is not None]
    for layer in layers:
        assert layer.scale is not None
        joint = Affine.of(layer.qkv)
        layer.qkv = Affine(
            _scaled(joint.weight, layer.scale), None if joint.bias is None else _scaled(joint.bias, layer.scale)
        )
        if layer.query_bias is not None:
            layer.query_bias = constant(layer.query_bias * layer.scale)
        layer.scale = None
    return f"{len(layers)} layers"


def attention_bias(network: InferenceNetwork) -> str:
    """Keep the query's bias alone.

    The key's adds the same number to all scores of a query, which softmax does not see. The value's passes through
    the weighted mean unchanged, as the weights sum to 1: it joins the bias of the attention's output.
    """
    layers = _layers(network)
    for layer in layers:
        joint, output = Affine.of(layer.qkv), Affine.of(layer.attention_output)
        if joint.bias is None:
            continue
        query, _, value = joint.bias.chunk(3)
        shift = value.double() @ output.weight.double()
        if output.bias is not None:
            shift = shift + output.bias.double()
        layer.query_bias = constant(query.reshape(layer.heads, -1))
        layer.qkv = Affine(joint.weight)
        layer.attention_output = Affine(output.weight, shift.to(output.weight.dtype))
    return f"{len(layers)} layers"


def _layers(network: InferenceNetwork) -> list[Layer]:
    return [layer for encoder in network.encoders for layer in encoder.layers]  # type: ignore[union-attr]


def _scaled(joint: Tensor, scale: float) -> Tensor:
    """Return a joint weight (in, 3 * hidden) or bias (3 * hidden,) whose query part is multiplied by `scale`."""
    hidden = joint.shape[-1] // 3
    return torch.cat([joint[..., :hidden] * scale, joint[..., hidden:]], dim=-1)
