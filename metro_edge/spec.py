"""ModelSpec: everything a runtime must know about a network that is not in its weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from metro_edge.errors import UserError
from metro_edge.joints import JointSet, joint_set

SCHEMA_VERSION = 1
PRECISIONS = ("fp32", "fp16", "int8")
CROP_RULES = ("box_area", "box_bilinear", "metro_eval", "metro_demo")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INPUT_NAME = "images"
OUTPUT_NAMES = ("camera", "joints", "vertices")


@dataclass(frozen=True)
class ModelSpec:
    """Sizes, normalisation, crop rule and names of a network, frozen beside its weights.

    Tensors: `images` (N, 3, S, S) normalised RGB float32 -> `camera` (N, 3) as (s, tx, ty), `joints`
    (N, J, 3) and `vertices` (N, V, 3), both metres in the camera frame (x right, y down, z away), near the
    root joint.

    Attributes:
        name: preset or checkpoint name.
        image_size: S, side of the square input in pixels.
        joint_set: name of the joint set of `joints`, see metro_edge.joints.
        body: name of the body template, such as `anny`.
        vertex_count: V, vertices of the full mesh.
        mean, std: per RGB channel, of images scaled to [0, 1].
        crop_rule: how a box becomes the input: `box_area` averages over the source pixels of each output pixel,
            `box_bilinear` takes four; `metro_eval` and `metro_demo` are what METRO's authors evaluate and demonstrate
            with, see metro_edge.crop_rules.
        box_scale: side of the square crop over the longer side of the person's box; `metro_demo` does without it.
    """

    name: str
    image_size: int
    joint_set: str
    body: str
    vertex_count: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_rule: str = "box_area"
    box_scale: float = 1.2

    def __post_init__(self) -> None:
        joint_set(self.joint_set)
        if self.crop_rule not in CROP_RULES:
            raise UserError(f"unknown crop rule {self.crop_rule!r}; known: {', '.join(CROP_RULES)}")
        if self.image_size < 32 or self.vertex_count < 1:
            raise UserError(
                f"spec {self.name!r}: image_size {self.image_size} must be at least 32 and "
                f"vertex_count {self.vertex_count} at least 1"
            )
        if not (self.box_scale > 0 and all(s > 0 for s in self.std)):
            raise UserError(f"spec {self.name!r}: box_scale {self.box_scale} and std {self.std} must be positive")

    @property
    def joints(self) -> JointSet:
        """The joint set of the network's `joints` output."""
        return joint_set(self.joint_set)

    def to_json(self) -> str:
        """Return the JSON text of spec.json."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Parse spec.json; raises UserError when it is not one or of another schema version."""
        try:
            values: dict[str, Any] = json.loads(text)
            version = values.pop("schema_version", None)
        except (json.JSONDecodeError, AttributeError, TypeError) as error:
            raise UserError(f"spec.json is not a JSON object: {error}") from None
        if version != SCHEMA_VERSION:
            raise UserError(f"spec.json has schema version {version!r}, this metro-edge reads {SCHEMA_VERSION}")
        fields = {f.name for f in dataclasses.fields(cls)}
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if unknown := values.keys() - fields:
            raise UserError(f"spec.json has unknown fields: {', '.join(sorted(unknown))}")
        if missing := required - values.keys():
            raise UserError(f"spec.json lacks: {', '.join(sorted(missing))}")
        try:
            for key in ("mean", "std"):
                if key in values:
                    red, green, blue = values[key]
                    values[key] = (float(red), float(green), float(blue))
            return cls(**values)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"spec.json has a value of the wrong kind: {error}") from None


def check_precision(precision: str) -> str:
    """Return `precision`; raises UserError when it is not one of fp32, fp16, int8."""
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    return precision
