"""The losses against values worked out by hand in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metro_edge.errors import UserError
from metro_edge.joints import H36M14
from training.bodies import body_template
from training.losses import LossWeights, MetroLoss, project
from training.model import MetroOutput

TEMPLATE = body_template("anny")
N = 3


def _batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rest = torch.from_numpy(TEMPLATE.vertices)
    vertices = (
        rest
        + 0.05 * torch.randn(N, 1, 3, generator=generator)
        + torch.randn(N, *rest.shape, generator=generator) * 0.01
    )
    joints = torch.from_numpy(TEMPLATE.joints("h36m14", vertices.numpy())).float()
    joints_2d = torch.cat([torch.rand(N, 14, 2, generator=generator) * 2 - 1, torch.ones(N, 14, 1)], -1)
    ones = torch.ones(N)
    return {
        "vertices": vertices, "joints": joints, "joints_2d": joints_2d,
        "has_vertices": ones, "has_joints": ones.clone(), "has_joints_2d": ones.clone(),
    }  # fmt: skip


def _perfect(batch: dict[str, torch.Tensor]) -> MetroOutput:
    root = batch["joints"][:, list(H36M14.root_indices)].mean(1, keepdim=True)
    vertices = batch["vertices"] - root
    return MetroOutput(
        torch.tensor([[0.9, 0.1, -0.2]]).repeat(N, 1),
        batch["joints"] - root,
        tuple(vertices[:, torch.from_numpy(level).long()] for level in TEMPLATE.level_vertices),
    )


def _loss(**weights: float) -> MetroLoss:
    return MetroLoss(TEMPLATE, H36M14, LossWeights(**weights))


def test_a_perfect_prediction_costs_nothing() -> None:
    batch = _batch()
    output = _perfect(batch)
    batch["joints_2d"][..., :2] = project(output.joints, output.camera)
    terms = _loss()(output, batch)
    assert terms["loss"] == pytest.approx(0, abs=2e-6)


def test_terms_are_the_l1_means_of_the_paper() -> None:
    batch = _batch()
    perfect = _perfect(batch)
    shift = torch.tensor([0.02, -0.01, 0.06])
    output = MetroOutput(perfect.camera, perfect.joints + shift, tuple(v + shift for v in perfect.vertices))
    terms = _loss(vertices=2, joints=3, regressed_joints=5, joints_2d=7)(output, batch)
    # Joints are compared after centring, so a common shift is free there and costs its mean |component| on meshes.
    assert terms["vertices"] == pytest.approx(0.03, abs=1e-5)
    assert terms["joints"] == pytest.approx(0, abs=1e-6)
    assert terms["regressed_joints"] == pytest.approx(0, abs=1e-6)
    pixels = 0.9 * (output.joints[..., :2].numpy() + np.array([0.1, -0.2]))
    expected_2d = np.abs(pixels - batch["joints_2d"][..., :2].numpy()).mean()
    assert terms["joints_2d"] == pytest.approx(expected_2d, rel=1e-4)
    assert terms["loss"] == pytest.approx(2 * 0.03 + 7 * expected_2d, rel=1e-4)


def test_each_mesh_level_counts_equally() -> None:
    batch = _batch()
    perfect = _perfect(batch)
    for level in range(3):
        vertices = list(perfect.vertices)
        vertices[level] = vertices[level] + 0.03
        terms = _loss()(perfect._replace(vertices=tuple(vertices)), batch)
        assert terms["vertices"] == pytest.approx(0.01, abs=1e-5)


def test_unlabelled_samples_are_left_out_even_when_they_hold_nan() -> None:
    batch = _batch()
    output = _perfect(batch)
    for key in ("vertices", "joints", "joints_2d"):
        flag = f"has_{key}"
        batch[flag] = torch.tensor([1.0, 0.0, 1.0])
        batch[key] = batch[key].clone()
        batch[key][1] = torch.nan
    terms = _loss()(output, batch)
    assert torch.isfinite(terms["loss"])
    assert terms["vertices"] == pytest.approx(0, abs=1e-6)


def test_no_label_at_all_still_gives_gradients() -> None:
    batch = _batch()
    for flag in ("has_vertices", "has_joints", "has_joints_2d"):
        batch[flag] = torch.zeros(N)
    output = _perfect(batch)
    leaves = [t.clone().requires_grad_() for t in (output.camera, output.joints, *output.vertices)]
    terms = _loss()(MetroOutput(leaves[0], leaves[1], tuple(leaves[2:])), batch)
    terms["loss"].backward()
    assert terms["loss"] == 0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_joints_outside_the_crop_do_not_count_in_2d() -> None:
    batch = _batch()
    output = _perfect(batch)
    batch["joints_2d"][..., :2] = project(output.joints, output.camera)
    batch["joints_2d"][:, 0] = torch.tensor([5.0, 5.0, 0.0])
    assert _loss()(output, batch)["joints_2d"] == pytest.approx(0, abs=1e-6)


def test_3d_joints_count_by_their_confidence() -> None:
    batch = _batch()
    output = _perfect(batch)
    head = H36M14.index("head_top")  # no part of the root
    batch["joints"][:, head] += 1.0
    weighed = {**batch, "joints_confidence": torch.ones(N, 14)}
    plain = _loss()(output, batch)
    for name in ("joints", "regressed_joints"):
        assert _loss()(output, weighed)[name] == plain[name] > 0.05
    weighed["joints_confidence"][:, head] = 0.5
    assert _loss()(output, weighed)["joints"] == pytest.approx(float(plain["joints"]) / 2, rel=1e-4)
    weighed["joints_confidence"][:, head] = 0
    weighed["joints"] = batch["joints"].clone()
    weighed["joints"][:, head] = torch.nan
    for name in ("joints", "regressed_joints"):
        assert _loss()(output, weighed)[name] == pytest.approx(0, abs=2e-6)


def test_regression_equals_the_runtime() -> None:
    batch = _batch()
    regressed = _loss().regress(batch["vertices"]).numpy()
    np.testing.assert_allclose(regressed, TEMPLATE.joints("h36m14", batch["vertices"].numpy()), atol=1e-6)


@pytest.mark.parametrize(
    "weights",
    [
        {"joints": -1.0},
        {"joints": float("nan")},
        dict.fromkeys(("vertices", "joints", "regressed_joints", "joints_2d"), 0.0),
    ],
)
def test_senseless_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UserError, match="loss weights"):
        LossWeights(**weights)
