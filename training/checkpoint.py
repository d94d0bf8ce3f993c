"""Checkpoints: one file with weights, configuration and what is known of them, readable without running code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metro_edge.errors import UserError
from metro_edge.files import replacing
from training.config import FitConfig
from training.model import Metro

FORMAT = "metro-edge checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A network with the run that made it.

    Attributes:
        model: in evaluation mode.
        config: of the run.
        metrics: what was measured of these weights, see training.evaluate.
        sha256: of the file it was read from, empty for one that was not.
    """

    model: Metro
    config: FitConfig
    metrics: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def build_model(config: FitConfig) -> Metro:
    """Make the untrained network of a run, with the body's template and upsampling matrices in it."""
    template = config.template
    return Metro(
        config.model,
        template.joints(config.model.joint_set, template.vertices),
        template.vertices[template.level_vertices[0]],
        template.upsampling,
    )


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, half: bool = False) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: the file to write.
        checkpoint: what to write.
        half: store floating-point weights as float16, for weights that are float16 values already.
    """
    state = checkpoint.model.state_dict()
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    content = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": checkpoint.config.to_dict(),
        "metrics": checkpoint.metrics,
        "state_dict": state,
    }
    with replacing(path) as partial, open(partial, "wb") as file:
        torch.save(content, file)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours or one that `fit` wrote through Lightning; runs no code from it.

    Raises:
        UserError: no such file, not a checkpoint of METRO, or one of another architecture.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a metro-edge checkpoint: it holds a {type(content).__name__}")
    if content.get("format") == FORMAT:
        if content["version"] != FORMAT_VERSION:
            raise UserError(f"{path} has checkpoint version {content['version']}, this reads {FORMAT_VERSION}")
        config, state = content["config"], content["state_dict"]
    elif "hyper_parameters" in content and "state_dict" in content:
        config = content["hyper_parameters"]
        state = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    else:
        raise UserError(
            f"{path} is not a metro-edge checkpoint: its entries are {', '.join(map(str, list(content)[:5]))}"
        )
    fit_config = FitConfig.from_dict(config)
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    model = Metro.from_state_dict(fit_config.model, state).eval()
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return Checkpoint(model, fit_config, content.get("metrics", {}), sha256)
