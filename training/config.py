"""FitConfig: all of a training run, read from YAML and stored in its checkpoints."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from metro_edge.errors import MissingExtraError, UserError
from metro_edge.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from metro_edge.template import BodyTemplate
from training.bodies import body_template
from training.data.augment import augmentation
from training.losses import LossWeights
from training.model import MetroConfig
from training.model.presets import preset

T = TypeVar("T")

PRECISIONS = ("fp32", "bf16", "fp16")  # of training; all but fp32 by autocast, with weights and coordinates in FP32
SCHEDULES = ("cosine", "step", "constant")
HALF = (0.5, 0.5, 0.5)
# Mean and standard deviation that the backbone was pretrained with; EfficientNet-Lite used (x - 127) / 128.
NORMALISATIONS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": (HALF, HALF)}


@dataclass(frozen=True)
class DataConfig:
    """Generated people, or data sets that the user has.

    Attributes:
        folder: below it generated people are cached: `train_count` and `validation_count` samples of two seeds.
        workers: processes that read and augment.
        train_sets, validation_sets: data sets instead of generated people: YAML files of METRO's TSV sets, folders of
            3DPW or Human3.6M as distributed; several are taken as one.
        smpl: SMPL or MANO file that makes meshes of the poses in them, or the folder where it is.
        augmentation: `edge` or `metro`, see training.data.augment.
        skip_bad: step over samples that cannot be used and report how many, instead of stopping at the first.
    """

    folder: str = "runs/people"
    train_seed: int = 1
    train_count: int = 40_000
    validation_seed: int = 2
    validation_count: int = 2_000
    workers: int = 1
    train_sets: tuple[str, ...] = ()
    validation_sets: tuple[str, ...] = ()
    smpl: str = ""
    augmentation: str = "edge"
    skip_bad: bool = False

    def __post_init__(self) -> None:
        for name in ("train_sets", "validation_sets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if bool(self.train_sets) != bool(self.validation_sets):
            raise UserError("data: give both train_sets and validation_sets, or neither for generated people")
        augmentation(self.augmentation)
        if not self.train_sets and (self.augmentation != "edge" or self.skip_bad or self.smpl):
            raise UserError("data: augmentation, skip_bad and smpl are for train_sets; generated people need none")
        if self.train_count < 1 or self.validation_count < 1 or self.workers < 0:
            raise UserError(f"data: counts must be at least 1 and workers at least 0, got {self}")
        if self.train_seed == self.validation_seed:
            raise UserError(f"data: training and validation share the seed {self.train_seed}; use two")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule over `epochs` counted in optimiser steps, and how a run starts and is kept.

    Attributes:
        batch_size: samples per batch and process.
        accumulate: batches per optimiser step.
        lr: of all but the backbone, whose rate is lr * backbone_lr_factor.
        warmup_steps: optimiser steps in which the rate rises linearly, whatever the schedule.
        schedule: `cosine` goes down to a hundredth; `step` multiplies by `step_factor` after the share `step_at` of
            the steps (METRO's released code: 1e-4, a tenth of it from the middle of 200 epochs on); `constant` stays.
        clip_norm: largest norm of a step's gradient, 0 for no limit.
        ema_decay: of an exponential moving average of the weights, which validation and checkpoints use; 0 for none.
        freeze_batch_norm: keep the backbone's running statistics as pretrained, which keeps features that were
            learnt on photographs near what photographs need.
        precision: `bf16` and `fp16` are mixed precision (autocast; fp16, with its loss scaling, on GPUs only).
        skip_non_finite: leave out samples whose loss is not finite, name and count them, instead of stopping.
        checkpoint_every_steps: write last.ckpt every so many optimiser steps, not only after validations; 0: only then.
        start_from: checkpoint, of ours or released by METRO, whose weights the run starts from, empty for none.
        start_partial: take over what fits of `start_from` by name and shape, and report what did not.
        backbone_checkpoint: weights of the backbone alone, used where `start_from` is empty.
        pretrained: start the backbone from ImageNet weights, where neither is given.
    """

    epochs: int = 8
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 5e-4
    backbone_lr_factor: float = 0.4
    weight_decay: float = 0.02
    warmup_steps: int = 200
    schedule: str = "cosine"
    step_at: float = 0.5
    step_factor: float = 0.1
    validations_per_epoch: int = 1
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    freeze_batch_norm: bool = True
    pretrained: bool = True
    precision: str = "fp32"
    skip_non_finite: bool = False
    checkpoint_every_steps: int = 0
    start_from: str = ""
    start_partial: bool = False
    backbone_checkpoint: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch_size, self.accumulate, self.validations_per_epoch)
        if min(counts) < 1 or self.lr <= 0:
            raise UserError(
                f"optim: epochs, batch_size, accumulate and validations must be at least 1, lr positive, got {self}"
            )
        if min(self.warmup_steps, self.checkpoint_every_steps, self.clip_norm, self.seed) < 0:
            raise UserError(
                f"optim: warmup_steps, checkpoint_every_steps, clip_norm and seed must not be negative, got {self}"
            )
        if not (0 <= self.ema_decay < 1 and 0 < self.step_at <= 1 and 0 < self.step_factor <= 1):
            raise UserError(
                f"optim: ema_decay must be in [0, 1), step_at and step_factor in (0, 1], got {self.ema_decay}, "
                f"{self.step_at} and {self.step_factor}"
            )
        for name, known in (("precision", PRECISIONS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise UserError(f"optim: unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        if self.start_partial and not self.start_from:
            raise UserError("optim: start_partial says how much of start_from to take over; give start_from")
        if self.start_from and self.backbone_checkpoint:
            raise UserError("optim: start_from has a backbone already; leave out backbone_checkpoint")


@dataclass(frozen=True)
class DistillConfig:
    """A trained network to learn from besides the labels, see training.distill; weights of its terms.

    Attributes:
        teacher: checkpoint, of ours or released by METRO, of the same body; empty for none.
        vertices, joints, joints_2d: L1 to the teacher's mesh levels, joints and projected joints.
        features: squared difference of feature maps, relative to the teacher's.
    """

    teacher: str = ""
    vertices: float = 1.0
    joints: float = 1.0
    joints_2d: float = 0.5
    features: float = 0.1

    def __post_init__(self) -> None:
        weights = (self.vertices, self.joints, self.joints_2d, self.features)
        if min(weights) < 0 or max(weights) == 0:
            raise UserError(f"distill: weights must not be negative nor all zero, got {self}")


@dataclass(frozen=True)
class FitConfig:
    """A training run: network, data, losses, optimisation, and a teacher if there is one.

    Attributes:
        name: of the run and of the network in its ModelSpec.
        model, data, losses, optim, distill: see their classes.
        box_scale: side of the square crop over the longer side of the person's box.
        crop_rule: how pictures are cut, see ModelSpec; networks that METRO released were trained with `metro_eval`.
        normalisation: key of NORMALISATIONS.
        body_path: template file of the body, for bodies that are not built in (`python -m training body`).
    """

    name: str
    model: MetroConfig
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    box_scale: float = 1.2
    crop_rule: str = "box_area"
    normalisation: str = "imagenet"
    body_path: str = ""

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise UserError(f"unknown normalisation {self.normalisation!r}; known: {', '.join(NORMALISATIONS)}")

    @property
    def template(self) -> BodyTemplate:
        """The body of the network; raises UserError when `body_path` holds another one or none."""
        return body_template(self.model.body, self.body_path)

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec of the network this run trains."""
        return ModelSpec(
            name=self.name,
            image_size=self.model.image_size,
            joint_set=self.model.joint_set,
            body=self.model.body,
            vertex_count=self.model.vertex_levels[-1],
            mean=NORMALISATIONS[self.normalisation][0],
            std=NORMALISATIONS[self.normalisation][1],
            crop_rule=self.crop_rule,
            box_scale=self.box_scale,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values only, as stored in checkpoints."""
        values = dataclasses.asdict(self)
        values["model"] = self.model.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FitConfig:
        """Build from plain values; `model` is a preset's name, or a dict, whose `preset` fills what it leaves out.

        Raises:
            UserError: an unknown field, a value of the wrong kind, or a body that does not fit the network.
        """
        values = dict(values)
        for key in ("name", "model"):
            if key not in values:
                raise UserError(f"the training configuration lacks {key!r}")
        config = cls(
            model=_model_config(values.pop("model")),
            data=_section(DataConfig, "data", values.pop("data", {})),
            losses=_section(LossWeights, "losses", values.pop("losses", {})),
            optim=_section(OptimConfig, "optim", values.pop("optim", {})),
            distill=_section(DistillConfig, "distill", values.pop("distill", {})),
            **_checked(cls, "configuration", values),
        )
        levels = config.template.level_sizes
        if levels != config.model.vertex_levels:
            raise UserError(
                f"network {config.model.name!r} has mesh levels {config.model.vertex_levels}, "
                f"body {config.model.body!r} has {levels}"
            )
        return config

    @classmethod
    def from_yaml(cls, path: str | Path) -> FitConfig:
        """Read a YAML file; raises UserError when it is missing or does not hold a configuration."""
        try:
            import yaml
        except ImportError:
            raise MissingExtraError("yaml", "train", "read training configurations") from None
        try:
            values = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} holds no configuration: expected a mapping, found {type(values).__name__}")
        return cls.from_dict(values)


def _model_config(value: Any) -> MetroConfig:
    if isinstance(value, str):
        return preset(value)
    if not isinstance(value, dict):
        raise UserError(f"model must be a preset's name or a mapping, got {value!r}")
    value = dict(value)
    base = preset(value.pop("preset")).to_dict() if "preset" in value else {}
    return MetroConfig.from_dict({**base, **value})


def _section(kind: type[T], name: str, values: Any) -> T:
    if not isinstance(values, dict):
        raise UserError(f"{name} must be a mapping, got {values!r}")
    return kind(**_checked(kind, name, values))


def _checked(kind: type, section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` when they are fields of `kind` with values of the right type; ints pass as floats."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{section} has no field {key!r}; it has {', '.join(hints)}")
        if hints[key] == tuple[str, ...]:
            if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
                raise UserError(f"{section}: {key} must be a list of names, got {value!r}")
            continue
        expected = (int, float) if hints[key] is float else hints[key]
        if not isinstance(value, expected) or (isinstance(value, bool) and hints[key] is not bool):
            raise UserError(f"{section}: {key} must be {hints[key].__name__}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{section}: {key} must be a finite number, got {value!r}")
    return values
