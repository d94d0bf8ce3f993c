"""Released METRO weights (microsoft/MeshTransformer) under this project's names.

A released state dictionary holds more than the network uses: BERT's vocabulary embeddings and poolers in
every encoder, and the backbone's ImageNet classifier. Loading with `strict=False` would pass over those and
over real gaps alike, so each entry is accounted for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metro_edge.errors import UserError
from training.model.backbone import RELEASED_RESNET_CHILDREN
from training.model.config import MetroConfig
from training.model.metro import Metro
from training.model.weight_files import KeyReport, refuse_shapes

_UNUSED = re.compile(r"trans_encoder\.\d+\.bert\.(embeddings|pooler)\.|backbone\.classifier\.")
TEMPLATE_BUFFERS = ("template_joints", "template_vertices")  # released code computes them from the body model
_LAYER_NAMES = {
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_input": "intermediate.dense",
    "ffn_output": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
_BLOCK_NAMES = {"input": "bert.img_embedding", "output": "cls_head", "residual": "residual"}
_CAMERA_NAMES = {"coordinates": "cam_param_fc", "points": "cam_param_fc2", "output": "cam_param_fc3"}


def state_dict_from_released(
    released: Mapping[str, Any], config: MetroConfig, strict: bool = True
) -> tuple[dict[str, Tensor], KeyReport]:
    """Translate a released state dictionary.

    Args:
        released: name -> tensor or array, as saved by the released code.
        config: the architecture it belongs to, a `metro_body_*` or `metro_hand_*` preset.
        strict: refuse missing and unexpected entries; otherwise only report them.

    Returns:
        The state dictionary of `Metro(config, ...)` without the template buffers, which come from the body,
        and the report.

    Raises:
        UserError: an entry of the wrong shape, missing or unexpected entries, or a configuration that the
            released code cannot have made.
    """
    wanted = _shapes(config)
    sources = {name: released_names(name, config) for name in wanted}
    needed = [source for names in sources.values() for source in names]
    report = KeyReport(
        used=tuple(name for name in needed if name in released),
        unused=tuple(name for name in released if _UNUSED.match(name)),
        unexpected=tuple(name for name in released if name not in set(needed) and not _UNUSED.match(name)),
        missing=tuple(name for name in needed if name not in released),
    )
    if strict and (report.missing or report.unexpected):
        raise UserError(f"this is not a released checkpoint of {config.name}: {report}")
    state, wrong = {}, {}
    for name, names in sources.items():
        if any(source not in released for source in names):
            continue
        values = [torch.as_tensor(released[source]) for source in names]
        shape = (wanted[name][0] // len(names), *wanted[name][1:]) if len(names) > 1 else tuple(wanted[name])
        misshapen = {s: (tuple(v.shape), shape) for s, v in zip(names, values, strict=True) if tuple(v.shape) != shape}
        if misshapen:
            wrong.update(misshapen)
        else:
            state[name] = torch.cat(values) if len(values) > 1 else values[0]
    refuse_shapes(wrong, config.name)
    return state, report


def load_released(model: Metro, released: Mapping[str, Any]) -> KeyReport:
    """Fill `model` with a released state dictionary, but keep its template.

    Raises:
        UserError: as state_dict_from_released.
    """
    state, report = state_dict_from_released(released, model.config)
    template = {name: getattr(model, name) for name in TEMPLATE_BUFFERS}
    model.load_state_dict({**state, **template})
    return report


def released_names(name: str, config: MetroConfig) -> tuple[str, ...]:
    """Return the released entries that make our entry `name`: one, or three that are stacked (q, k, v).

    Raises:
        UserError: the released code has no such part.
    """
    module, _, kind = name.rpartition(".")
    parts = name.split(".")
    if parts[0] == "backbone":
        return (f"backbone.{_released_backbone_name(parts[2:], config)}",)
    if parts[0] == "encoders":
        prefix = f"trans_encoder.{parts[1]}."
        if parts[2] == "positions":
            return (f"{prefix}bert.position_embeddings.weight",)
        if parts[2] != "layers":
            return (f"{prefix}{_BLOCK_NAMES[parts[2]]}.{kind}",)
        layer = f"{prefix}bert.encoder.layer.{parts[3]}."
        if parts[4] == "qkv":
            return tuple(f"{layer}attention.self.{part}.{kind}" for part in ("query", "key", "value"))
        return (f"{layer}{_LAYER_NAMES[parts[4]]}.{kind}",)
    if parts[0] == "camera_head":
        return (f"{_CAMERA_NAMES[parts[1]]}.{kind}",)
    if parts[0] == "upsampling" and config.upsampling[int(parts[1])] == "dense":
        return (f"upsampling{'' if parts[1] == '0' else int(parts[1]) + 1}.{kind}",)
    if module == "token_mixer":
        return (f"conv_learn_tokens.{kind}",)
    raise UserError(f"released METRO networks have nothing like {name} of {config.name}")


def _released_backbone_name(parts: list[str], config: MetroConfig) -> str:
    if config.backbone.startswith("resnet"):
        parts = [RELEASED_RESNET_CHILDREN.get(parts[0], parts[0]), *parts[1:]]
    elif not config.backbone.startswith("hrnet_"):
        raise UserError(f"released METRO networks use HRNet or ResNet, not {config.backbone}")
    return ".".join(parts)


def _shapes(config: MetroConfig) -> dict[str, torch.Size]:
    """Shapes of our state dictionary without the template, from a network that holds no memory."""
    with torch.device("meta"):
        model = Metro.blank(config)
    return {name: value.shape for name, value in model.state_dict().items() if name not in TEMPLATE_BUFFERS}
