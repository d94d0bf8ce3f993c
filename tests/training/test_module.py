"""Validation by what each sample is labelled with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metro_edge.errors import UserError
from training.config import FitConfig
from training.module import MetroModule


@pytest.fixture
def module(tiny_config: FitConfig) -> MetroModule:
    return MetroModule(tiny_config, start=False)


def _batch(module: MetroModule, meshes: list[int], joints: list[int], confidence: list[float]) -> dict[str, Any]:
    mesh = torch.from_numpy(module.template.vertices).repeat(len(meshes), 1, 1)
    regressed = module.template.joints("h36m14", module.template.vertices)
    known = torch.ones(len(meshes), 14)
    known[:, 3] = torch.tensor(confidence)
    return {
        "vertices": mesh * torch.tensor(meshes)[:, None, None],
        "joints": torch.from_numpy(np.asarray(regressed, np.float32)).repeat(len(meshes), 1, 1) * 1.1,
        "joints_confidence": known,
        "has_vertices": torch.tensor(meshes),
        "has_joints": torch.tensor(joints),
    }


def test_errors_use_meshes_then_joints_then_nothing(module: MetroModule) -> None:
    batch = _batch(module, meshes=[1, 0, 0, 0], joints=[1, 1, 1, 0], confidence=[1, 1, 0, 1])
    predicted = np.repeat(module.template.vertices[None], 4, 0).astype(np.float32)
    errors = module._errors(predicted, batch)
    np.testing.assert_allclose(errors[0], 0, atol=1e-6)  # the mesh itself, not the joints a tenth larger
    assert errors[1, 0] > 0.01 and errors[1, 1] < 1e-6 and np.isnan(errors[1, 2])
    assert np.isnan(errors[2:]).all()  # a joint without confidence; no label at all


def test_training_hides_tokens_and_validation_does_not(tiny_config: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked vertex modelling is on where the network learns, with the configuration's share and value."""
    values = tiny_config.to_dict()
    values["model"] |= {"mvm_fraction": 0.5, "mvm_value": -7.0}
    module = MetroModule(FitConfig.from_dict(values), start=False)
    monkeypatch.setattr(MetroModule, "log", lambda *args, **options: None)
    seen: list[torch.Tensor] = []
    module.model.encoders[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))
    count, tokens, joints = 16, module.config.model.num_tokens, module.config.model.num_joints
    batch = _batch(module, meshes=[1] * count, joints=[1] * count, confidence=[1.0] * count)
    batch |= {"image": torch.randn(count, 3, 64, 64), "joints_2d": torch.ones(count, 14, 3)}
    batch |= {"has_joints_2d": torch.ones(count)}
    module.train()
    module._freeze_batch_norm()
    module.training_step(batch, 0)
    hidden = (seen[0] == -7.0).all(dim=2)
    shares = hidden[:, joints:].float().mean(1)
    assert hidden.shape == (count, tokens) and hidden[:, :joints].any() and len(set(shares.tolist())) > count / 2
    assert 0 < shares.max() <= 0.5
    module.eval()
    with torch.no_grad():
        module.validation_step(batch, 0)
    assert not (seen[1] == -7.0).any()


def test_nothing_to_validate_by(module: MetroModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetroModule, "all_gather", lambda self, values: values)
    module._validation.append(np.full((2, 3), np.nan))
    with pytest.raises(UserError, match="no validation sample has a mesh or 3D joints"):
        module.on_validation_epoch_end()
    logged: dict[str, float] = {}
    monkeypatch.setattr(MetroModule, "log", lambda self, name, value, **options: logged.update({name: float(value)}))
    module._validation += [np.array([[0.1, 0.2, np.nan]]), np.array([[0.2, np.nan, np.nan], [0.3, 0.4, np.nan]])]
    module.on_validation_epoch_end()
    assert logged == pytest.approx({"validation/mpjpe_mm": 200.0, "validation/pa_mpjpe_mm": 300.0})
