"""Weights that no output reads."""

from __future__ import annotations

from torch import nn

from engines.fold.network import Encoder, InferenceNetwork, ProjectingEncoder, constant
from engines.fold.trace import operations


def dead_weights(network: InferenceNetwork) -> str:
    """Drop what no output reads: spare rows of positions, and every module none of whose weights takes part."""
    before = count_weights(network)
    rows = network.token_count
    for encoder in network.encoders:
        if isinstance(encoder, Encoder) and not isinstance(encoder, ProjectingEncoder):
            encoder.positions = constant(encoder.positions[:rows].clone())
    used = {name for operation in operations(network, network.image_size) for name in operation.arguments}
    dropped = []
    for path, module in list(network.named_modules()):
        own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        if not own or used & {f"{path}.{name}" for name in own}:
            continue
        if path.startswith("backbone."):
            network.own_backbone()
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, nn.Identity())
        dropped.append(path)
    spare = before - count_weights(network)
    shown = ", ".join(dropped[:3]) + (", ..." if len(dropped) > 3 else "")
    return f"{spare} values{': ' + shown if shown else ''}"


def count_weights(network: nn.Module) -> int:
    """Return how many numbers the parameters and buffers of a network hold."""
    return sum(value.numel() for value in (*network.parameters(), *network.buffers()))
