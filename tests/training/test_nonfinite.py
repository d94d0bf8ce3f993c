"""Losses that are not finite: samples are named, and the run stops or leaves them out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metro_edge.errors import UserError
from training.config import FitConfig
from training.module import MetroModule
from training.nonfinite import describe, offending, rows


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    count = 3
    return {
        "key": [f"set.tsv:{i}" for i in range(count)],
        "image": torch.randn(count, 3, 64, 64, generator=generator),
        "vertices": torch.randn(count, 13718, 3, generator=generator) * 0.3,
        "joints": torch.randn(count, 14, 3, generator=generator) * 0.3,
        "joints_2d": torch.rand(count, 14, 3, generator=generator),
        **{f"has_{name}": torch.ones(count) for name in ("vertices", "joints", "joints_2d")},
    }


def _module(values: dict[str, Any], **optim: Any) -> MetroModule:
    torch.manual_seed(0)
    return MetroModule(FitConfig.from_dict(values | {"optim": values["optim"] | optim})).train()


@pytest.fixture
def values(tiny_config: FitConfig) -> dict[str, Any]:
    values = tiny_config.to_dict()
    values["optim"]["pretrained"] = False
    values["model"]["mvm_fraction"] = 0.0
    return values


def _step(module: MetroModule, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(MetroModule, "log", lambda *args, **options: None)
    monkeypatch.setattr(MetroModule, "global_step", 12)
    monkeypatch.setattr(MetroModule, "current_epoch", 3)
    module._freeze_batch_norm()
    return module.training_step(batch, 0)


def _spoilt(batch: dict[str, Any], *samples: int) -> dict[str, Any]:
    vertices = batch["vertices"].clone()
    vertices[list(samples), 5] = float("nan")
    return batch | {"vertices": vertices}


def test_the_run_stops_and_names_the_sample(
    values: dict[str, Any], batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _module(values)
    with pytest.raises(UserError, match=r"step 12 of epoch 3; samples: set\.tsv:1 \(vertices not finite\)\. Mend"):
        _step(module, _spoilt(batch, 1), monkeypatch)


def test_skipping_leaves_out_the_sample_and_counts(
    values: dict[str, Any], batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = _module(values, skip_non_finite=True)
    loss = _step(module, _spoilt(batch, 1), monkeypatch)
    assert module.skipped == 1 and "set.tsv:1" in caplog.text and "set.tsv:0" not in caplog.text
    expected = _step(_module(values), rows(batch, [0, 2]), monkeypatch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_a_batch_without_a_good_sample_gives_gradients_of_zero(
    values: dict[str, Any], batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _module(values, skip_non_finite=True)
    loss = _step(module, _spoilt(batch, 0, 1, 2), monkeypatch)
    loss.backward()
    assert module.skipped == 3 and loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("skip", [False, True])
def test_weights_that_are_not_finite_always_stop(
    skip: bool, values: dict[str, Any], batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _module(values, skip_non_finite=skip)
    with torch.no_grad():
        module.model.camera_head.output.bias[0] = float("inf")
    with pytest.raises(UserError, match=r"weights are no longer finite .* lower optim\.lr"):
        _step(module, batch, monkeypatch)


@pytest.mark.parametrize("skip", [False, True])
def test_gradients_that_are_not_finite_do_not_reach_the_weights(
    skip: bool, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MetroModule, "log", lambda *args, **options: None)
    monkeypatch.setattr(MetroModule, "global_step", 12)
    monkeypatch.setattr(MetroModule, "current_epoch", 3)
    module = _module(values, skip_non_finite=skip)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.configure_gradient_clipping(optimizer, 0.5)
    norm = torch.stack([p.grad.square().sum() for p in module.parameters()]).sum().sqrt()  # type: ignore[union-attr]
    assert norm == pytest.approx(0.5, rel=1e-4)
    module.model.camera_head.output.bias.grad[0] = float("nan")  # type: ignore[index]
    if not skip:
        with pytest.raises(UserError, match="gradient is not finite at step 12 of epoch 3"):
            module.configure_gradient_clipping(optimizer, 0.5)
        return
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.configure_gradient_clipping(optimizer, 0.5)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert "the step is left out" in caplog.text


def test_long_lists_and_samples_without_key() -> None:
    batch = {"image": torch.zeros(12, 1)}
    text = describe(batch, list(range(11)))
    assert text.startswith("sample 0 of the batch, ") and text.endswith("sample 7 of the batch and 3 more")


def test_offending_samples() -> None:
    values = torch.tensor([1.0, float("nan"), 2.0, float("inf")])
    assert offending(lambda chosen: values[chosen].sum(), 4) == [1, 3]
