"""FitConfig: all of a training run, read from YAML and stored in its checkpoints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from metro_edge.errors import MissingExtraError, UserError
from metro_edge.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from metro_edge.template import BodyTemplate
from training.bodies import body_template
from training.losses import LossWeights
from training.model import MetroConfig
from training.model.presets import preset

T = TypeVar("T")

PRECISIONS = ("fp32", "bf16", "fp16")  # of training; all but fp32 by autocast, with weights and coordinates in FP32
HALF = (0.5, 0.5, 0.5)
# Mean and standard deviation that the backbone was pretrained with; EfficientNet-Lite used (x - 127) / 128.
NORMALISATIONS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": (HALF, HALF)}


@dataclass(frozen=True)
class DataConfig:
    """Generated people: `train_count` and `validation_count` samples of two seeds, cached below `folder`."""

    folder: str = "runs/people"
    train_seed: int = 1
    train_count: int = 40_000
    validation_seed: int = 2
    validation_count: int = 2_000
    workers: int = 1

    def __post_init__(self) -> None:
        if self.train_count < 1 or self.validation_count < 1 or self.workers < 0:
            raise UserError(f"data: counts must be at least 1 and workers at least 0, got {self}")
        if self.train_seed == self.validation_seed:
            raise UserError(f"data: training and validation share the seed {self.train_seed}; use two")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay over `epochs`.

    Attributes:
        lr: of all but the backbone, whose rate is lr * backbone_lr_factor.
        freeze_batch_norm: keep the backbone's running statistics as pretrained, which keeps features that were
            learnt on photographs near what photographs need.
        pretrained: start the backbone from ImageNet weights.
        precision: `bf16` and `fp16` are mixed precision (autocast; fp16, with its loss scaling, on GPUs only).
        start_from: checkpoint of the same architecture whose weights the run starts from, empty for none.
    """

    epochs: int = 8
    batch_size: int = 32
    lr: float = 5e-4
    backbone_lr_factor: float = 0.4
    weight_decay: float = 0.02
    warmup_steps: int = 200
    validations_per_epoch: int = 1
    clip_norm: float = 1.0
    freeze_batch_norm: bool = True
    pretrained: bool = True
    precision: str = "fp32"
    start_from: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.validations_per_epoch) < 1 or self.lr <= 0:
            raise UserError(f"optim: epochs, batch_size and validations must be at least 1, lr positive, got {self}")
        if self.precision not in PRECISIONS:
            raise UserError(f"optim: unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class FitConfig:
    """A training run: network, data, losses, optimisation.

    Attributes:
        name: of the run and of the network in its ModelSpec.
        model, data, losses, optim: see their classes.
        box_scale: side of the square crop over the longer side of the person's box.
        normalisation: key of NORMALISATIONS.
        body_path: template file of the body, for bodies that are not built in (`python -m training body`).
    """

    name: str
    model: MetroConfig
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    box_scale: float = 1.2
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
        expected = (int, float) if hints[key] is float else hints[key]
        if not isinstance(value, expected) or (isinstance(value, bool) and hints[key] is not bool):
            raise UserError(f"{section}: {key} must be {hints[key].__name__}, got {value!r}")
    return values
