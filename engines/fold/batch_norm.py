"""Batch norms into the convolutions before them."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from engines.fold.network import InferenceNetwork, constant
from engines.fold.trace import Operation, operations


def batch_norm(network: InferenceNetwork) -> str:
    """Scale each convolution's filters and shift its bias by what the norm after it does with the running statistics.

    A norm is folded when it alone reads the result of a convolution, and both run once; others stay and are named.
    """
    network.own_backbone()
    backbone = network.backbone
    norms = {name for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)}
    pairs = _pairs(operations(backbone, network.image_size))
    folded = [(conv, norm) for conv, norm in pairs if norm in norms and _fold(backbone, conv, norm)]
    left = sorted(norms - {norm for _, norm in folded})
    text = f"{len(folded)} of {len(norms)} folded"
    return text + (f"; stay: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}" if left else "")


def _pairs(trace: list[Operation]) -> list[tuple[str, str]]:
    """Return the paths of convolutions and of the norms that alone read them."""
    readers = Counter(argument for operation in trace for argument in operation.arguments)
    makers = {result: operation for operation in trace for result in operation.results}
    pairs = []
    for norm in trace:
        if "batch_norm" not in norm.kind:
            continue
        conv = makers.get(norm.arguments[0])
        means = [name for name in norm.arguments if name.endswith(".running_mean")]
        if conv is None or conv.kind != "convolution" or not means:
            continue
        weight = conv.arguments[1]
        if weight.endswith(".weight") and readers[conv.results[0]] == readers[weight] == readers[means[0]] == 1:
            pairs.append((weight.removesuffix(".weight"), means[0].removesuffix(".running_mean")))
    return pairs


def _fold(backbone: nn.Module, conv_path: str, norm_path: str) -> bool:
    """Fold one pair in place; returns False for modules that are of another kind than they seem."""
    conv, norm = backbone.get_submodule(conv_path), backbone.get_submodule(norm_path)
    if not isinstance(conv, nn.modules.conv._ConvNd) or conv.transposed or not isinstance(norm, _BatchNorm):
        return False
    rest = _activation(norm)
    if rest is None or norm.running_mean is None or norm.running_var is None:
        return False
    dtype = conv.weight.dtype
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale.reshape(-1, *[1] * (conv.weight.ndim - 1))
    conv.weight, conv.bias = constant(weight.to(dtype)), constant(shift.to(dtype))
    parent, _, name = norm_path.rpartition(".")
    setattr(backbone.get_submodule(parent), name, rest)
    return True


def _activation(norm: nn.Module) -> nn.Module | None:
    """Return what a norm module does after normalising; None when that is unknown."""
    if type(norm).forward is nn.BatchNorm2d.forward:
        return nn.Identity()
    if {name for name, _ in norm.named_children()} == {"drop", "act"}:  # timm's norm and activation in one module
        drop, act = norm.get_submodule("drop"), norm.get_submodule("act")
        return act if isinstance(drop, nn.Identity) else nn.Sequential(drop, act)
    return None
