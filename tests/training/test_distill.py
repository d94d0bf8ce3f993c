"""Distillation: the teacher sees what the student sees, and the student gains by it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metro_edge.errors import UserError
from training.checkpoint import Checkpoint, build_model, save_checkpoint
from training.config import FitConfig
from training.distill import TERMS, Teacher, shared_levels
from training.module import MetroModule


def _config(base: FitConfig, **changes: Any) -> FitConfig:
    values = base.to_dict()
    values["optim"] = {"pretrained": False}
    model = values["model"] | changes.pop("model", {})
    return FitConfig.from_dict({**values, **changes, "model": model})


@pytest.fixture
def teacher(tiny_config: FitConfig, tmp_path: Path) -> str:
    """A larger network for larger pictures and another normalisation."""
    torch.manual_seed(3)
    config = _config(tiny_config, model={"name": "large", "image_size": 96}, normalisation="half")
    save_checkpoint(tmp_path / "teacher.pt", Checkpoint(build_model(config).eval(), config))
    return str(tmp_path / "teacher.pt")


def test_the_teacher_sees_its_own_normalisation_and_size(tiny_config: FitConfig) -> None:
    ours, theirs = tiny_config, _config(tiny_config, model={"image_size": 96}, normalisation="half")
    teacher = Teacher(Checkpoint(build_model(theirs), theirs), ours)
    grey = torch.tensor([0.2, 0.5, 0.9]).reshape(1, 3, 1, 1).expand(1, 3, 64, 64)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (ours.spec.mean, ours.spec.std))
    seen = teacher.images((grey - mean) / std)
    assert seen.shape == (1, 3, 96, 96)
    torch.testing.assert_close(seen * 0.5 + 0.5, grey[:, :, :1, :1].expand(seen.shape), rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in teacher.model.parameters()) and not teacher.model.training
    assert copy.deepcopy({"teacher": teacher})["teacher"] is teacher


def test_every_term_teaches_unlabelled_pictures_too(teacher: str, tiny_config: FitConfig) -> None:
    config = _config(tiny_config, distill={"teacher": teacher})
    module = MetroModule(config).train()
    assert not any("teacher" in name for name in module.state_dict())
    batch = {
        "image": torch.randn(2, 3, 64, 64),
        "vertices": torch.zeros(2, 13718, 3),
        "joints": torch.zeros(2, 14, 3),
        "joints_2d": torch.zeros(2, 14, 3),
        **{f"has_{name}": torch.zeros(2) for name in ("vertices", "joints", "joints_2d")},
    }
    module._freeze_batch_norm()
    terms = module._terms(batch, torch.zeros(2, config.model.num_tokens, dtype=torch.bool))
    for name in TERMS:
        module.zero_grad()
        terms[f"distill_{name}"].backward(retain_graph=True)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.model.parameters()), name
    weights = config.distill
    expected = sum(getattr(weights, name) * terms[f"distill_{name}"] for name in TERMS)
    torch.testing.assert_close(terms["loss"], expected)  # no label adds to it
    projection = module.distiller.projection  # type: ignore[union-attr]
    assert projection.weight.grad is not None  # type: ignore[union-attr]


def test_a_perfect_student_has_nothing_to_learn(teacher: str, tiny_config: FitConfig) -> None:
    config = _config(
        tiny_config,
        model={"name": "large", "image_size": 96, "mvm_fraction": 0.0},
        normalisation="half",
        optim={"start_from": teacher},
        distill={"teacher": teacher, "features": 0.0},
    )
    module = MetroModule(config).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        output = module.model(images)
        terms = module.distiller(output, torch.zeros(1), images)  # type: ignore[misc]
    assert terms["joints"] < 1e-6 and terms["joints_2d"] < 1e-6
    root = module.loss.regress(output.vertices[-1])[:, module.loss.root].mean(1, keepdim=True)
    # Only the root differs: the teacher's mesh is moved to it, as labels are.
    torch.testing.assert_close(terms["vertices"], root.abs().mean(), rtol=1e-3, atol=1e-6)


def test_shared_levels() -> None:
    a, b, c = np.arange(3), np.arange(5), np.arange(9)
    assert shared_levels((a, b, c), (b + 1, c)) == [(2, 1)]
    assert shared_levels((a, b), (a, b)) == [(0, 0), (1, 1)]
    assert shared_levels((a,), (b,)) == []


def test_teachers_that_do_not_fit(teacher: str, tiny_config: FitConfig) -> None:
    with pytest.raises(UserError, match=r"teacher has box_scale 1\.2, this network 1\.5"):
        MetroModule(_config(tiny_config, box_scale=1.5, distill={"teacher": teacher}))
    with pytest.raises(UserError, match="no"):
        MetroModule(_config(tiny_config, distill={"teacher": "missing.pt"}))
    with pytest.raises(UserError, match="not be negative"):
        _config(tiny_config, distill={"vertices": -1.0})
