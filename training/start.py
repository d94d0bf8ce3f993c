"""What a run starts from: another run, a released network, weights of a backbone, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from metro_edge.errors import UserError
from training.checkpoint import Checkpoint, load_any
from training.config import DistillConfig, FitConfig
from training.model import Metro, MetroConfig
from training.model.backbone import load_backbone_checkpoint, load_pretrained
from training.model.weight_files import listed, read_weights

# They change what training does, not what the weights are.
TRAINING_ONLY = ("name", "dropout", "mvm_fraction", "mvm_value")
OF_THE_BODY = ("body", "joint_set", "vertex_levels", "upsampling")


@dataclass(frozen=True)
class StartReport:
    """What became of the entries of a network that another one starts from.

    Attributes:
        used: entries that were taken over.
        other_shape: entries that both networks have, of different shapes.
        left: entries of the source that the network lacks, or that belong to another body.
        fresh: entries of the network that stay as initialised.
    """

    used: tuple[str, ...]
    other_shape: tuple[str, ...]
    left: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.used)} entries taken over"
        for what, names in (
            ("of another shape", self.other_shape),
            ("left over", self.left),
            ("stay as initialised", self.fresh),
        ):
            if names:
                text += f"; {len(names)} {what}: {listed(names)}"
        return text


def start_weights(model: Metro, config: FitConfig) -> str:
    """Fill `model` as `config.optim` says and return what was done, in words; nothing for random weights.

    Raises:
        UserError: files that are missing or do not fit.
    """
    optim = config.optim
    if optim.start_from:
        source = load_any(optim.start_from, config.template, config.body_path)
        if optim.start_partial:
            return f"started from {optim.start_from}: {start_partially(model, source, config)}"
        _refuse_other_architecture(source, config)
        model.load_state_dict(source.model.state_dict())
        return f"started from {optim.start_from}"
    if optim.backbone_checkpoint:
        report = load_backbone_checkpoint(model.backbone, optim.backbone_checkpoint)
        return f"backbone from {optim.backbone_checkpoint}: {report}"
    if optim.pretrained:
        load_pretrained(model.backbone)
    return ""


def start_partially(model: Metro, source: Checkpoint, config: FitConfig) -> StartReport:
    """Take over the entries of `source` that fit `model` by name and shape; raises UserError when none does.

    The template's points and the upsampling belong to a body and its mesh levels: where those differ, they stay.
    """
    state, own = source.model.state_dict(), model.state_dict()
    same_body = all(getattr(source.config.model, name) == getattr(config.model, name) for name in OF_THE_BODY)
    bound = () if same_body else ("template_", "upsampling.")
    usable = {name: value for name, value in state.items() if name in own and not name.startswith(bound)}
    used = {name: value for name, value in usable.items() if value.shape == own[name].shape}
    report = StartReport(
        used=tuple(used),
        other_shape=tuple(name for name in usable if name not in used),
        left=tuple(name for name in state if name not in usable),
        fresh=tuple(name for name in own if name not in used),
    )
    if not any(value.is_floating_point() and value.ndim for value in used.values()):
        raise UserError(f"cannot start from {config.optim.start_from}: no entry fits {config.model.name!r}; {report}")
    with torch.no_grad():
        model.load_state_dict({**own, **used})
    return report


def check_resumable(file: Path, config: FitConfig) -> None:
    """Raise UserError unless a run's last checkpoint can be read and its run trained the parameters of `config`."""
    content = read_weights(file)
    values = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(values, dict) or not {"model", "distill"} <= values.keys():
        raise UserError(f"cannot resume from {file}: it is no checkpoint of a run, which `fit` writes")
    differing = _differing(MetroConfig.from_dict(values["model"]), config.model)
    if _projects(DistillConfig(**values["distill"])) != _projects(config.distill):
        differing.append("distill")
    if differing:
        raise UserError(
            f"cannot resume from {file}: its run differs from {config.name!r} in {', '.join(differing)}; resume with "
            "the same, or begin another run, in another folder, with optim.start_from"
        )


def _projects(distill: DistillConfig) -> bool:
    """Whether a run's optimiser has the parameters that match the teacher's features."""
    return bool(distill.teacher) and distill.features > 0


def _differing(theirs: MetroConfig, ours: MetroConfig) -> list[str]:
    """Return the fields in which two architectures differ."""
    values = theirs.to_dict()
    return [name for name, value in ours.to_dict().items() if name not in TRAINING_ONLY and values[name] != value]


def _refuse_other_architecture(source: Checkpoint, config: FitConfig) -> None:
    theirs = source.config.model
    if differing := _differing(theirs, config.model):
        raise UserError(
            f"cannot start from {config.optim.start_from}: it holds another architecture, {theirs.name!r}, which "
            f"differs in {', '.join(differing)}; optim.start_partial takes over what fits"
        )
