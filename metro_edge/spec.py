"""ModelSpec: everything a runtime must know about a network that is not in its weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from metro_edge.errors import UserError
from metro_edge.joints import JointSet, joint_set

SCHEMA_VERSION = 2  # 1 had no outputs
PRECISIONS = ("fp32", "fp16", "int8")
GRAPHS = (*PRECISIONS, "fp8")  # that a bundle may hold; fp8 is for GPUs and comes of `python -m engines quantize`
LEAST_SIZE, MOST_SIZE = 32, 4096  # pixels of an input's side
LEAST_SCALE, MOST_SCALE = 0.1, 10.0  # box_scale: nothing of a person is seen in less, next to nothing in more
LEAST_STD, MOST_STD = 1e-3, 10.0  # of images scaled to [0, 1]; 1/255 is that of a network that takes 0 to 255
CROP_RULES = ("box_area", "box_bilinear", "metro_eval", "metro_demo")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INPUT_NAME = "images"
OUTPUT_NAMES = ("camera", "joints", "vertices")  # what a network gives unless other outputs are asked for
KNOWN_OUTPUTS = ("camera", "joints", "mesh_joints", "coarse", "vertices", "joints_px")


@dataclass(frozen=True)
class ModelSpec:
    """Sizes, normalisation, crop rule and names of a network, frozen beside its weights.

    Tensors: `images` (N, 3, S, S) normalised RGB float32 -> those of `outputs`, float32, metres in the camera frame
    (x right, y down, z away) near the root joint unless said otherwise:

    - `camera` (N, 3) as (s, tx, ty);
    - `joints` (N, J, 3), the network's own;
    - `mesh_joints` (N, J, 3), the same joints regressed from the full mesh;
    - `coarse` (N, C, 3), the mesh's coarse level;
    - `vertices` (N, V, 3), the full mesh;
    - `joints_px` (N, J, 2), `mesh_joints` on the crop in px, counted from pixel centres:
      (s (x + tx) + 1) S / 2 - 0.5, alike for y.

    Attributes:
        name: preset or checkpoint name.
        image_size: S, side of the square input in pixels.
        joint_set: name of the joint set of `joints`, see metro_edge.joints.
        body: name of the body template, such as `anny`.
        vertex_count: V, vertices of the full mesh.
        mean, std: per RGB channel, of images scaled to [0, 1]: so is the mean, and std is LEAST_STD to MOST_STD.
        crop_rule: how a box becomes the input: `box_area` averages over the source pixels of each output pixel,
            `box_bilinear` takes four; `metro_eval` and `metro_demo` are what METRO's authors evaluate and demonstrate
            with, see metro_edge.crop_rules.
        box_scale: side of the square crop over the longer side of the person's box, LEAST_SCALE to MOST_SCALE;
            `metro_demo` does without it.
        outputs: names of KNOWN_OUTPUTS in the graph's order: `camera`, `joints`, and `vertices` or, for joints alone,
            `mesh_joints`, either of which tells where the root is.
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
    outputs: tuple[str, ...] = OUTPUT_NAMES

    def __post_init__(self) -> None:
        joint_set(self.joint_set)
        self._check_outputs()
        if self.crop_rule not in CROP_RULES:
            raise UserError(f"unknown crop rule {self.crop_rule!r}; known: {', '.join(CROP_RULES)}")
        if not LEAST_SIZE <= self.image_size <= MOST_SIZE or self.vertex_count < 1:
            raise UserError(
                f"spec {self.name!r}: image_size {self.image_size} must be {LEAST_SIZE} to {MOST_SIZE} and "
                f"vertex_count {self.vertex_count} at least 1"
            )
        if not LEAST_SCALE <= self.box_scale <= MOST_SCALE:
            raise UserError(
                f"spec {self.name!r}: box_scale {self.box_scale:g} must be {LEAST_SCALE:g} to {MOST_SCALE:g}"
            )
        if not (all(0 <= m <= 1 for m in self.mean) and all(LEAST_STD <= s <= MOST_STD for s in self.std)):
            raise UserError(
                f"spec {self.name!r}: mean {self.mean} must be 0 to 1 and std {self.std} {LEAST_STD:g} to "
                f"{MOST_STD:g}, of images scaled to 0 to 1"
            )
        if type(self.image_size) is not int or type(self.vertex_count) is not int:
            raise UserError(
                f"spec {self.name!r}: image_size {self.image_size} and vertex_count {self.vertex_count} must be whole"
            )
        if not all(isinstance(text, str) for text in (self.name, self.body)):
            raise UserError(f"spec: name {self.name!r} and body {self.body!r} must be text")

    def _check_outputs(self) -> None:
        if unknown := [name for name in self.outputs if name not in KNOWN_OUTPUTS]:
            raise UserError(f"unknown output {', '.join(map(str, unknown))}; known: {', '.join(KNOWN_OUTPUTS)}")
        if len(set(self.outputs)) < len(self.outputs):
            raise UserError(f"outputs {', '.join(self.outputs)}: each goes in once")
        if missing := [name for name in ("camera", "joints") if name not in self.outputs]:
            raise UserError(f"outputs {', '.join(self.outputs)} lack {', '.join(missing)}")
        if not {"vertices", "mesh_joints"} & set(self.outputs):
            raise UserError(
                f"outputs {', '.join(self.outputs)} need vertices or mesh_joints: bodies are centred on the mesh's root"
            )

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
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(f"spec.json is not a JSON object: {error}") from None
        if version not in range(1, SCHEMA_VERSION + 1):
            raise UserError(f"spec.json has schema version {version!r}, this metro-edge reads up to {SCHEMA_VERSION}")
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
            if "outputs" in values:
                values["outputs"] = tuple(values["outputs"])
            return cls(**values)
        except UserError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"spec.json has a value of the wrong kind: {error}") from None


def check_precision(precision: str, known: tuple[str, ...] = PRECISIONS) -> str:
    """Return `precision`; raises UserError when it is not one of `known`, by default fp32, fp16, int8."""
    if precision not in known:
        raise UserError(f"unknown precision {precision!r}; known: {', '.join(known)}")
    return precision
