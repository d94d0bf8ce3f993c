"""MetroConfig: every number of a METRO network, as plain data that travels inside checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metro_edge.errors import UserError
from metro_edge.joints import joint_set

TOKEN_MODES = ("grid", "global")
CAMERA_SOURCES = ("vertices", "joints_vertices")
BACKBONE_FEATURES = ("final", "last_stage")
UPSAMPLINGS = ("dense", "sparse")


@dataclass(frozen=True)
class EncoderBlock:
    """One encoder of the chain whose width shrinks (paper: progressive dimensionality reduction).

    Attributes:
        hidden: width of the transformer layers.
        layers: how many of them.
        heads: attention heads per layer; divides `hidden`.
        ffn: inner width of the feed-forward part.
        output: features per token that the block hands on; 3 (x, y, z) in the last block.
    """

    hidden: int
    layers: int
    heads: int
    ffn: int
    output: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_integer("encoder block", field.name, getattr(self, field.name))
        if self.hidden % self.heads:
            raise UserError(f"encoder block: hidden {self.hidden} is not divisible by heads {self.heads}")


@dataclass(frozen=True)
class MetroConfig:
    """Architecture of a METRO network; the template's coordinates and the weights are not part of it.

    Attributes:
        name: preset name, shown in logs and reports.
        backbone: name of a timm model.
        backbone_feature: `final` is the map that the model's classifier would pool (`forward_features`);
            `last_stage` is the output of the last block before any 1x1 head convolution.
        image_size: side of the square input in pixels.
        body: name of the body whose template is used, such as `anny`.
        joint_set: name of the joints that are predicted, see metro_edge.joints.
        vertex_levels: vertices per mesh level, coarse to full; only the coarse ones are tokens.
        token_mode: `grid` learns, per joint and vertex, its own mixture of the feature map's positions
            (released body network); `global` repeats the pooled feature for every token (paper, released hand
            network).
        blocks: the encoders, in order.
        camera_from: what the camera head reads, `vertices` (body) or `joints_vertices` (hand).
        camera_hidden: width of the camera head's middle layer.
        camera_image: the camera also reads the pooled image features (ours; the released camera sees only points,
            which says little about a body that the crop cuts off).
        upsampling: per step from one mesh level to the next, `dense` or `sparse` (see upsampling.py).
        sparse_neighbours: coarse vertices that each fine one is made of in a `sparse` step.
        max_tokens: rows of the learned position table.
        dropout: after embeddings, attention weights, attention output and feed-forward output.
        mvm_fraction: largest share of joints and of vertices hidden by masked vertex modelling.
        mvm_value: what every feature of a hidden token is set to.
    """

    name: str
    backbone: str
    image_size: int
    body: str
    joint_set: str
    vertex_levels: tuple[int, ...]
    token_mode: str
    blocks: tuple[EncoderBlock, ...]
    camera_from: str
    camera_hidden: int
    upsampling: tuple[str, ...]
    backbone_feature: str = "final"
    sparse_neighbours: int = 8
    camera_image: bool = False
    max_tokens: int = 512
    dropout: float = 0.1
    mvm_fraction: float = 0.3
    mvm_value: float = 0.01

    def __post_init__(self) -> None:
        joint_set(self.joint_set)
        for key in ("image_size", "camera_hidden", "sparse_neighbours", "max_tokens"):
            _check_integer(self.name, key, getattr(self, key))
        for count in self.vertex_levels:
            _check_integer(self.name, "vertex_levels", count)
        self._check_choice("token_mode", self.token_mode, TOKEN_MODES)
        self._check_choice("camera_from", self.camera_from, CAMERA_SOURCES)
        self._check_choice("backbone_feature", self.backbone_feature, BACKBONE_FEATURES)
        for kind in self.upsampling:
            self._check_choice("upsampling", kind, UPSAMPLINGS)
        if not self.vertex_levels or list(self.vertex_levels) != sorted(set(self.vertex_levels)):
            raise UserError(f"{self.name}: vertex_levels {self.vertex_levels} must grow from coarse to full")
        if len(self.upsampling) != len(self.vertex_levels) - 1:
            raise UserError(
                f"{self.name}: {len(self.vertex_levels)} vertex levels need {len(self.vertex_levels) - 1} "
                f"upsampling steps, not {len(self.upsampling)}"
            )
        if not self.blocks or self.blocks[-1].output != 3:
            raise UserError(f"{self.name}: the last encoder block must have output 3 (x, y, z)")
        if self.num_tokens > self.max_tokens:
            raise UserError(f"{self.name}: {self.num_tokens} tokens exceed max_tokens {self.max_tokens}")
        if not (0 <= self.dropout < 1 and 0 <= self.mvm_fraction <= 1):
            raise UserError(
                f"{self.name}: dropout {self.dropout} must be in [0, 1) and mvm_fraction {self.mvm_fraction} in [0, 1]"
            )

    def _check_choice(self, key: str, value: str, known: tuple[str, ...]) -> None:
        if value not in known:
            raise UserError(f"{self.name}: unknown {key} {value!r}; known: {', '.join(known)}")

    @property
    def num_joints(self) -> int:
        """J, the number of joints of the joint set."""
        return len(joint_set(self.joint_set))

    @property
    def num_tokens(self) -> int:
        """Tokens of the encoder: joints, then coarse vertices."""
        return self.num_joints + self.vertex_levels[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as numbers, strings, lists and dicts only (JSON, YAML, checkpoints)."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetroConfig:
        """Rebuild a configuration from `to_dict`'s result.

        Raises:
            UserError: an unknown or missing key, or a value of the wrong type or range.
        """
        values = dict(_checked_keys(cls, "network configuration", values))
        for key in ("vertex_levels", "upsampling", "blocks"):
            if not isinstance(values[key], (list, tuple)):
                raise UserError(f"network configuration: {key} must be a list, not {values[key]!r}")
            values[key] = tuple(values[key])
        values["blocks"] = tuple(
            block
            if isinstance(block, EncoderBlock)
            else EncoderBlock(**_checked_keys(EncoderBlock, "encoder block", block))
            for block in values["blocks"]
        )
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"network configuration: a value has the wrong type ({error})") from None


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _check_integer(owner: str, key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{owner}: {key} must be a positive integer, not {value!r}")


def _checked_keys(kind: Any, what: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{what}: expected names and values, not {values!r}")
    fields = dataclasses.fields(kind)
    unknown = sorted(set(values) - {field.name for field in fields})
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if unknown or missing:
        problems = [f"unknown {', '.join(map(str, unknown))}"] * bool(unknown) + [
            f"missing {', '.join(missing)}"
        ] * bool(missing)
        raise UserError(f"{what}: {'; '.join(problems)}; known: {', '.join(f.name for f in fields)}")
    return values
