"""Checkpoints: one file with weights, configuration and what is known of them, readable without running code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.files import replacing
from metro_edge.template import BodyTemplate
from training.config import FitConfig
from training.model import Metro, MetroConfig
from training.model.infer import config_from_released
from training.model.released import TEMPLATE_BUFFERS, state_dict_from_released
from training.model.weight_files import KeyReport, find_weights, listed, read_weights, state_dict_of

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
        body: the template that a released network was given; ours name theirs in the configuration.
        entries: what became of a released file's entries.
    """

    model: Metro
    config: FitConfig
    metrics: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    body: BodyTemplate | None = None
    entries: KeyReport | None = None

    @property
    def template(self) -> BodyTemplate:
        """The body of the network; raises UserError when the configuration's is not there."""
        return self.body or self.config.template


def build_model(config: FitConfig) -> Metro:
    """Make the untrained network of a run, with the body's template and upsampling matrices in it."""
    template = config.template
    return Metro(config.model, *template_points(template, config.model), template.upsampling)


def template_points(template: BodyTemplate, config: MetroConfig) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what of a body enters a network: joints (J, 3) and coarse vertices (C, 3), metres, camera frame."""
    return template.joints_at_rest(config.joint_set), template.vertices[template.level_vertices[0]]


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


def load_any(path: str | Path, template: BodyTemplate | None = None, body_path: str = "") -> Checkpoint:
    """Read a checkpoint of ours, or a network that METRO released; the content tells which.

    Args:
        path: a file, or a checkpoint folder that METRO's training wrote.
        template: the body, which released networks need and ours name themselves.
        body_path: where `template` was read from, for the configuration; a checkpoint of ours looks for its body
            there instead of where its configuration says.

    Raises:
        UserError: as load_checkpoint and load_released_checkpoint, or a released network without `template`.
    """
    file = find_weights(path)
    content = read_weights(file)
    if _is_ours(content):
        return _own_checkpoint(file, content, body_path)
    return _released_checkpoint(file, content, template, body_path)


def load_checkpoint(path: str | Path, body_path: str = "") -> Checkpoint:
    """Read a checkpoint of ours or one that `fit` wrote through Lightning; runs no code from it.

    Args:
        path: the file.
        body_path: where its body is now, if not where its configuration says.

    Raises:
        UserError: no such file, not a checkpoint of METRO, or one of another architecture.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no checkpoint at {path}")
    content = read_weights(file)
    if not _is_ours(content):
        what = f"its entries are {listed(list(map(str, content)))}" if isinstance(content, dict) else None
        raise UserError(f"{path} is not a metro-edge checkpoint: {what or f'it holds a {type(content).__name__}'}")
    return _own_checkpoint(file, content, body_path)


def load_released_checkpoint(
    path: str | Path, template: BodyTemplate | None, body_path: str = ""
) -> tuple[Checkpoint, KeyReport]:
    """Read a network that METRO released (microsoft/MeshTransformer); its architecture follows from the shapes.

    The released files hold no template: the original computes it from SMPL or MANO, whose template comes in here.

    Args:
        path: the state dictionary, or a checkpoint folder that METRO's training wrote.
        template: of the network's body, with the mesh levels and the joint set of the network.
        body_path: where `template` was read from, for the configuration.

    Returns:
        The checkpoint, with METRO's evaluation crop, and what became of every entry of the file.

    Raises:
        UserError: not such a file, entries that are missing, unexpected or of another shape, or a template of
            another body.
    """
    file = find_weights(path)
    checkpoint = _released_checkpoint(file, read_weights(file), template, body_path)
    assert checkpoint.entries is not None
    return checkpoint, checkpoint.entries


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and (
        content.get("format") == FORMAT or ("hyper_parameters" in content and "state_dict" in content)
    )


def _own_checkpoint(file: Path, content: dict[str, Any], body_path: str) -> Checkpoint:
    if content.get("format") == FORMAT:
        if content["version"] != FORMAT_VERSION:
            raise UserError(f"{file} has checkpoint version {content['version']}, this reads {FORMAT_VERSION}")
        config, state = content["config"], content["state_dict"]
    else:
        config = content["hyper_parameters"]
        state = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    if body_path and config.get("body_path"):  # a built-in body has no place
        config = {**config, "body_path": body_path}
    fit_config = FitConfig.from_dict(config)
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    model = Metro.from_state_dict(fit_config.model, state).eval()
    return Checkpoint(model, fit_config, content.get("metrics", {}), _sha256(file))


def _released_checkpoint(file: Path, content: Any, template: BodyTemplate | None, body_path: str) -> Checkpoint:
    released = state_dict_of(content, file)
    if not any(name.startswith("trans_encoder.") for name in released):
        raise UserError(
            f"{file} is neither a metro-edge checkpoint nor a METRO network, which has entries trans_encoder.*: its "
            f"entries are {listed(list(released))}; a backbone alone goes into optim.backbone_checkpoint of a training"
        )
    try:
        config = config_from_released({name: tuple(value.shape) for name, value in released.items()})
        template = _fitting_template(template, config)
        state, report = state_dict_from_released(released, config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    model = Metro.blank(config)
    points = zip(TEMPLATE_BUFFERS, template_points(template, config), strict=True)
    model.load_state_dict({**state, **{name: torch.as_tensor(values) for name, values in points}})
    run = FitConfig(config.name, config, crop_rule="metro_eval", body_path=body_path)
    return Checkpoint(model.eval(), run, {}, _sha256(file), template, report)


def _fitting_template(template: BodyTemplate | None, config: MetroConfig) -> BodyTemplate:
    if template is None:
        raise UserError(f"a released network of {config.body!r}, whose template it needs: {config.body}=PATH")
    if (template.name, template.level_sizes) != (config.body, config.vertex_levels):
        raise UserError(
            f"a released network of {config.body!r} with mesh levels {config.vertex_levels}; the body given is "
            f"{template.name!r} with {template.level_sizes}"
        )
    return template


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
