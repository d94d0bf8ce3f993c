"""From the feature map to the encoders: project before mixing, and constants once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.fold.network import (
    Affine,
    ConstantPart,
    Encoder,
    InferenceNetwork,
    Positions,
    ProjectingEncoder,
    TemplatePart,
    Tokens,
    constant,
)


def grid_projection(network: InferenceNetwork) -> str:
    """Swap the linear maps across positions and across channels: (M X) W = M (X W), and X has few rows.

    X (h * w, C) are the feature map's positions, M (T, h * w) mixes them into tokens, W (C, hidden + output) is the
    first encoder's input projection beside its residual's. Of global tokens X is one row, the mean.
    """
    tokens, encoder = network.tokens, network.encoders[0]
    assert isinstance(tokens, Tokens) and isinstance(encoder, Encoder)
    first, second = Affine.of(encoder.input), Affine.of(encoder.residual)
    count, hidden = tokens.count, first.weight.shape[1]
    weight = torch.cat([first.weight, second.weight], dim=1)
    skipped = 0 if tokens.template is None else tokens.template.shape[1]
    mixer, mixer_bias = tokens.mixer, None
    if mixer is not None:
        mixer_bias = None if mixer.bias is None else mixer.bias[:, None]
        mixer = _mixer_without_bias(mixer)
    positions = weight.new_zeros(count, weight.shape[1])
    positions[:, :hidden] = encoder.positions[:count]
    if encoder.residual_constant is not None:
        positions[:, hidden:] += encoder.residual_constant
    part: nn.Module
    if tokens.template is None:
        part = ConstantPart(positions)
    else:
        bias = _joined_bias(first, second, weight)
        sums = _sums(weight[skipped:])
        part = TemplatePart(tokens.template, Affine(weight[:skipped], bias), mixer_bias, sums, positions)
    projection = Affine(weight[skipped:].contiguous())
    network.encoders[0] = ProjectingEncoder(encoder, projection, mixer, part)
    network.tokens = Positions(pooled=mixer is None)
    return f"{weight.shape[0] - skipped} features of {_rows(mixer)} to {weight.shape[1]}, then {count} tokens"


def template_constant(network: InferenceNetwork) -> str:
    """Compute once what no image changes, and add it with the positions.

    That is the template's coordinates times their weights, the token convolution's bias times the sums of the weights
    that it meets, and the biases of input, residual and output projections.
    """
    values = 0
    for encoder in network.encoders:
        assert isinstance(encoder, Encoder)
        if isinstance(encoder, ProjectingEncoder):
            values += _absorb_part(encoder)
        elif encoder is network.encoders[0]:
            values += _absorb_template(network, encoder)
        else:
            values += _absorb_biases(encoder)
    return f"{values} constants are added where there were products"


def _absorb_part(encoder: ProjectingEncoder) -> int:
    """Compute what is added to the projected tokens, in float64, and the output's bias with it."""
    dtype, hidden = encoder.projection.weight.dtype, encoder.widths[0]
    value = encoder.part.double()().clone()
    value[:, hidden:] += bias_of(encoder.output)
    encoder.output = Affine(Affine.of(encoder.output).weight)
    encoder.part = ConstantPart(value.to(dtype))
    return value.numel()


def _absorb_template(network: InferenceNetwork, encoder: Encoder) -> int:
    """Fold template and biases of tokens that are still mixed before they are projected."""
    tokens = network.tokens
    assert isinstance(tokens, Tokens)
    parts = []
    for linear in (Affine.of(encoder.input), Affine.of(encoder.residual)):
        weight = linear.weight.double()
        value = weight.new_zeros(tokens.count, weight.shape[1]) + bias_of(linear)
        if tokens.template is not None:
            value = value + tokens.template.double() @ weight[:3]
            weight = weight[3:]
        if tokens.mixer is not None and tokens.mixer.bias is not None:
            value = value + tokens.mixer.bias.double()[:, None] * weight.sum(0)
        parts.append((Affine(weight.to(linear.weight.dtype)), value))
    (encoder.input, first), (encoder.residual, second) = parts
    dtype = encoder.positions.dtype
    encoder.positions = constant((first + encoder.positions[: tokens.count].double()).to(dtype))
    encoder.residual_constant = constant((second + bias_of(encoder.output)).to(dtype))
    encoder.output = Affine(Affine.of(encoder.output).weight)
    mixer = None if tokens.mixer is None else _mixer_without_bias(tokens.mixer)
    network.tokens = Tokens(tokens.count, None, mixer)
    return first.numel() + second.numel()


def _absorb_biases(encoder: Encoder) -> int:
    """Fold the input's bias into the positions, and the residual's into the output's."""
    dtype = encoder.positions.dtype
    first, residual, output = (Affine.of(m) for m in (encoder.input, encoder.residual, encoder.output))
    encoder.positions = constant((encoder.positions.double() + bias_of(first)).to(dtype))
    encoder.input, encoder.residual = Affine(first.weight), Affine(residual.weight)
    encoder.output = Affine(output.weight, (bias_of(output) + bias_of(residual)).to(dtype))
    return encoder.positions.numel()


def bias_of(linear: nn.Module) -> Tensor:
    """Return the bias of a linear map in float64, zeros where it has none."""
    affine = Affine.of(linear)
    if affine.bias is None:
        return affine.weight.new_zeros(affine.weight.shape[1], dtype=torch.float64)
    return affine.bias.double()


def _joined_bias(first: Affine, second: Affine, like: Tensor) -> Tensor:
    return torch.cat([bias_of(first), bias_of(second)]).to(like.dtype)


def _sums(weight: Tensor) -> Tensor:
    return weight.double().sum(0).to(weight.dtype)


def _rows(mixer: nn.Conv1d | None) -> str:
    return "the mean position" if mixer is None else f"{mixer.in_channels} positions"


def _mixer_without_bias(mixer: nn.Conv1d) -> nn.Conv1d:
    """Return the token convolution without bias; it shares the weights."""
    with torch.device("meta"):
        bare = nn.Conv1d(mixer.in_channels, mixer.out_channels, 1, bias=False)
    bare.weight = constant(mixer.weight)
    return bare
