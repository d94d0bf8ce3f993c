"""Every fold, alone and with others, leaves the network's outputs as they were: in float64, to rounding."""

from __future__ import annotations

import dataclasses
import random
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from engines.cost import total_macs
from engines.export import export_onnx
from engines.fold import FOLDS, LIMIT, Fold, InferenceNetwork, fold
from engines.fold.meshes import cheapest_groups
from engines.fold.network import Affine, AffineUpsampling, Layer
from engines.fold.run import ROUNDINGS, relative_difference
from engines.fold.trace import macs
from engines.simplify import simplify
from metro_edge.backends import Outputs
from metro_edge.errors import UserError
from metro_edge.spec import KNOWN_OUTPUTS
from metro_edge.template import BodyTemplate
from tests.engines.conftest import TINY, randomised
from tests.released_files import made_body
from training.bodies import body_template
from training.config import FitConfig
from training.model import EncoderBlock, Metro, MetroConfig
from training.model.upsampling import DenseUpsampling, SparseUpsampling

EXACT = 1e-12  # relative, in float64: what summing in another order can make
BLOCKS = (EncoderBlock(64, 2, 2, 96, 48), EncoderBlock(32, 1, 4, 64, 3))
JOINTS_ONLY = ("camera", "joints", "mesh_joints")


def configuration(kind: str) -> MetroConfig:
    """Three small networks with every kind of part among them."""
    edge = dataclasses.replace(FitConfig.from_dict(dict(TINY)).model, blocks=BLOCKS)
    if kind == "edge":
        return edge
    common = {"body": "smpl", "vertex_levels": (20, 60, 300), "upsampling": ("dense", "dense"), "camera_image": False}
    released = dataclasses.replace(edge, **common, max_tokens=64)
    if kind == "body":
        return released
    return dataclasses.replace(
        released, token_mode="global", camera_from="joints_vertices", camera_image=True, upsampling=("sparse", "dense"),
        sparse_neighbours=30,
    )  # fmt: skip


@cache
def trained(kind: str) -> tuple[Metro, BodyTemplate]:
    """A network none of whose weights is zero or one, in float64, and its body."""
    config = configuration(kind)
    if kind == "edge":
        return randomised(dataclasses.replace(FitConfig.from_dict(dict(TINY)), model=config)).double(), anny()
    torch.manual_seed(1)
    template = made_body(config)
    neighbours = [None, None]
    if config.upsampling[0] == "sparse":
        indices = np.random.default_rng(0).integers(0, 20, (60, 30))
        neighbours = [(indices, np.full((60, 30), 1 / 30, np.float32)), None]
    points = template.joints(config.joint_set, template.vertices), template.vertices[template.level_vertices[0]]
    model = Metro(config, *points, neighbours).eval().double()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return model, template


@cache
def anny() -> BodyTemplate:
    return body_template("anny")


def images(count: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


@torch.no_grad()
def changed(kind: str, names: tuple[str, ...], outputs: tuple[str, ...] = KNOWN_OUTPUTS) -> float:
    model, template = trained(kind)
    network, _ = fold(model, template, names, outputs)
    return relative_difference(fold(model, template, (), outputs)[0](images()), network(images()))


@pytest.mark.parametrize("kind", ["edge", "body", "hand"])
@torch.no_grad()
def test_unfolded_is_the_trained_network(kind):
    model, template = trained(kind)
    single = Metro.from_state_dict(model.config, {k: v.float() for k, v in _floats(model)}).eval()
    network, report = fold(single, template, (), KNOWN_OUTPUTS)
    x = images(dtype=torch.float32)
    expected, found = single(x), Outputs(**dict(zip(KNOWN_OUTPUTS, network(x), strict=True)))
    assert report.results == () and report.difference < 1e-6 and report.macs_before == report.macs_after
    joints = template.joints(model.config.joint_set, expected.vertices[-1].numpy())
    s, t = expected.camera[:, None, :1].numpy(), expected.camera[:, None, 1:].numpy()
    pixels = (s * (joints[..., :2] + t) + 1) * 32 - 0.5
    assert relative_difference(
        [expected.camera, expected.joints, *expected.vertices[::2], torch.tensor(joints), torch.tensor(pixels)],
        [found.camera, found.joints, found.coarse, found.vertices, found.mesh_joints, found.joints_px],
    ) < 2e-6  # fmt: skip


def _floats(model: Metro):
    return ((k, v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", ["edge", "body", "hand"])
@pytest.mark.parametrize("name", list(FOLDS))
def test_each_alone(kind, name):
    assert changed(kind, (name,)) < EXACT


@pytest.mark.parametrize("kind", ["edge", "body", "hand"])
@pytest.mark.parametrize("outputs", [KNOWN_OUTPUTS, JOINTS_ONLY])
def test_all_together(kind, outputs):
    assert changed(kind, tuple(FOLDS), outputs) < EXACT


@pytest.mark.parametrize("seed", range(6))
def test_random_subsets_in_any_order(seed):
    chosen = random.Random(seed).sample(list(FOLDS), k=random.Random(seed).randint(2, len(FOLDS) - 1))
    kind, outputs = ("edge", "body", "hand")[seed % 3], (KNOWN_OUTPUTS, JOINTS_ONLY)[seed % 2]
    assert changed(kind, tuple(chosen), outputs) < EXACT, chosen


@pytest.mark.parametrize("kind", ["edge", "body", "hand"])
@torch.no_grad()
def test_in_reverse_order(kind):
    network = InferenceNetwork(*trained(kind), KNOWN_OUTPUTS)
    expected = network(images())
    for entry in reversed(FOLDS.values()):
        entry.apply(network)
    assert relative_difference(expected, network(images())) < EXACT


@pytest.mark.parametrize("kind", ["edge", "body", "hand"])
def test_single_precision_stays_within_the_limit(kind):
    model, template = trained(kind)
    single = Metro.from_state_dict(model.config, {k: v.float() for k, v in _floats(model)}).eval()
    _, report = fold(single, template, outputs=KNOWN_OUTPUTS)
    assert report.dtype == "float32" and 0 < report.difference < 1e-5
    assert all(result.difference < 1e-5 for result in report.results)


def magnifying() -> Metro:
    """A network in float32 in which LayerNorm takes a large common bias away, and leaves what it cost in rounding."""
    model, _ = trained("edge")
    single = Metro.from_state_dict(model.config, {k: v.float() for k, v in _floats(model)}).eval()
    with torch.no_grad():
        single.encoders[-1].layers[-1].attention_output.bias.add_(3000.0)
    return single


def test_rounding_that_a_network_magnifies_is_no_fault_of_a_fold():
    _, report = fold(magnifying(), anny(), ["attention_bias", "camera"])
    worst = max(report.difference, *(result.difference for result in report.results))
    assert report.rounding is not None and LIMIT < worst <= ROUNDINGS * report.rounding
    assert report.to_dict()["rounding"] == pytest.approx(report.rounding, rel=0.05)
    assert fold(magnifying().double(), anny(), ["attention_bias", "camera"])[1].difference < 1e-11


@pytest.mark.parametrize("by", [1e-3, float("nan")])
def test_a_fold_that_changes_more_is_refused(monkeypatch, by):
    right = FOLDS["camera"].apply

    def wrong(network):
        note = right(network)
        network.camera.bias = nn.Parameter(network.camera.bias + by, requires_grad=False)
        return note

    monkeypatch.setitem(FOLDS, "camera", Fold("camera", "", wrong))
    model, template = trained("edge")
    single = Metro.from_state_dict(model.config, {k: v.float() for k, v in _floats(model)}).eval()
    for network in (single, model, magnifying()):  # in float64 too, and where rounding would hide it
        with pytest.raises(UserError, match=r"the fold camera changed an output by .*, 1e-05 is allowed"):
            fold(network, template, ["camera"])


def test_a_network_whose_outputs_are_not_finite_is_no_fold_to_blame():
    model = magnifying()
    with torch.no_grad():
        model.camera_head.output.bias.fill_(float("inf"))
    with pytest.raises(UserError, match="outputs are not finite on random images"):
        fold(model, anny())


def test_the_trained_network_is_left_alone():
    model, template = trained("edge")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    fold(model, template, outputs=JOINTS_ONLY)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize("kind", ["edge", "body", "hand"])
def test_what_each_saves(kind):
    """Against the sums of a page of paper."""
    model, template = trained(kind)
    config = model.config
    _, report = fold(model, template, outputs=KNOWN_OUTPUTS)
    saved = {result.name: result.macs_saved for result in report.results}
    assert sum(saved.values()) == report.macs_before - report.macs_after
    tokens, channels, coarse = config.num_tokens, model.backbone.channels, config.vertex_levels[0]
    rows = model.backbone.grid_hw[0] * model.backbone.grid_hw[1]
    width = 64 + 48
    assert saved["qkv"] == saved["attention_bias"] == saved["dead_weights"] == 0
    assert saved["attention_scale"] == tokens**2 * (2 * 2 + 4)
    template_part = tokens * 3 * width + (tokens * width if kind != "hand" else 0)
    assert saved["template_constant"] == template_part
    if kind == "hand":
        assert saved["grid_projection"] == (tokens - 1) * channels * width
        points, levels = tokens, (20 * 30 * 3 * 2 + 60 * 300) * 3
        assert saved["upsampling"] == (60 * 30 + 60 * 300 - 20 * 300) * 3 and levels
    else:
        before = tokens * rows * channels + tokens * (channels + 3) * width
        after = rows * channels * width + tokens * rows * width + template_part
        assert saved["grid_projection"] == before - after
        points = coarse
        assert saved["upsampling"] == (0 if kind == "edge" else (20 * 60 + 60 * 300 - 20 * 300) * 3)
    assert saved["camera"] == points * 3 + points * 16 + 16 * 3 - points * 9


def test_counts_agree_with_the_exported_graph(converted):
    network, report = fold(converted.model, converted.bundle.template, outputs=converted.spec.outputs)
    assert total_macs(converted.graph) == report.macs_after == macs(network, 64)
    plain, _ = fold(converted.model, converted.bundle.template, (), converted.spec.outputs)
    graph = simplify(export_onnx(plain, converted.spec, ""))
    norms = {r.name: r.macs_saved for r in report.results}["batch_norm"]
    assert total_macs(graph) == report.macs_before - norms  # which the exporter folds by itself


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet50", "hrnet_w18_small", "test_resnet", "resnetv2_50"])
@torch.no_grad()
def test_batch_norms_of_backbones(name):
    config = dataclasses.replace(configuration("body"), backbone=name, backbone_feature="final", token_mode="grid")
    template = made_body(config)
    torch.manual_seed(0)
    points = template.joints(config.joint_set, template.vertices), template.vertices[template.level_vertices[0]]
    model = Metro(config, *points).eval().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.6, 1.4)
            module.bias.normal_(0, 0.1)
    network, report = fold(model, template, ["batch_norm"])
    left = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    count = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    note = report.results[0].note
    assert report.difference < EXACT and note.startswith(f"{count - len(left)} of {count} folded")
    if name == "resnetv2_50":  # norms before convolutions: some follow a sum
        assert len(left) > 0 and "; stay: model." in note
    else:
        assert not left and count > 5 and "stay" not in note


def test_a_norm_that_another_reads_beside_stays():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    model, template = trained("edge")
    network = InferenceNetwork(model, template)
    network.backbone = Forked().eval()
    assert FOLDS["batch_norm"].apply(network) == "0 of 1 folded; stay: norm"


def test_groups_of_upsampling_steps():
    assert cheapest_groups((431, 1723, 6890), (431 * 1723, 1723 * 6890)) == [(0, 2)]
    assert cheapest_groups((146, 1227, 13718), (146 * 1227, 13718 * 8)) == [(0, 1), (1, 2)]
    assert cheapest_groups((10, 100, 1000, 5000), (1000, 100_000, 5000 * 3)) == [(0, 2), (2, 3)]
    assert cheapest_groups((10, 20), (200,)) == [(0, 1)]


@torch.no_grad()
def test_a_sparse_step_after_a_dense_one():
    torch.manual_seed(2)
    steps = [DenseUpsampling(8, 20), SparseUpsampling(torch.randint(20, (50, 15)), torch.randn(50, 15))]
    network = SimpleNamespace(levels=(8, 20, 50), upsampling=[step.double() for step in steps])
    points = torch.randn(3, 8, 3, dtype=torch.float64)
    expected = steps[1](steps[0](points))
    assert FOLDS["upsampling"].apply(network) == "8 -> 20 -> 50 became 8 -> 50" and network.levels == (8, 50)
    (step,) = network.upsampling
    assert step.weight.shape == (8, 50) and relative_difference([expected], [step(points)]) < EXACT


def test_dead_weights():
    model, template = trained("edge")
    network, report = fold(model, template, ["mesh_joints", "dead_weights"], JOINTS_ONLY)
    assert not any(isinstance(step, (AffineUpsampling, SparseUpsampling)) for step in network.upsampling)
    assert [len(encoder.positions) for encoder in network.encoders] == [model.config.num_tokens] * 2
    rows = model.config.max_tokens - model.config.num_tokens
    mesh = sum(value.numel() for step in model.upsampling for value in step.state_dict().values())
    assert report.results[1].weights_saved >= rows * (64 + 32) + mesh and "upsampling.0" in report.results[1].note


def test_mistakes():
    model, template = trained("edge")
    with pytest.raises(UserError, match=r"unknown fold 'all'; known: batch_norm, "):
        fold(model, template, ["all"])
    with pytest.raises(UserError, match="unknown output 'mesh'"):
        fold(model, template, outputs=["mesh"])
    for outputs in ((), ("joints", "joints")):
        with pytest.raises(UserError, match="one or more different names"):
            fold(model, template, outputs=outputs)
    with pytest.raises(UserError, match="no regressor for joint set 'h36m14', which mesh_joints"):
        fold(model, dataclasses.replace(template, regressors={}), outputs=JOINTS_ONLY)
    with pytest.raises(UserError, match="training mode"):
        fold(Metro.blank(configuration("body")).train(), template)


def test_weights_are_stored_as_products_read_them():
    network, _ = fold(*trained("body"), ())
    assert not any(isinstance(m, nn.Linear) for name, m in network.named_modules() if not name.startswith("backbone"))
    layer = network.encoders[0].layers[0]
    assert isinstance(layer, Layer) and isinstance(layer.qkv, Affine) and layer.qkv.weight.shape == (64, 192)


def test_report():
    _, report = fold(*trained("body"), ["camera", "upsampling"], JOINTS_ONLY)
    lines = str(report).splitlines()
    assert len(lines) == 4 and lines[1].startswith("upsampling") and "20 -> 60 -> 300 became 20 -> 300" in lines[1]
    content = report.to_dict()
    assert [entry["name"] for entry in content["folds"]] == ["upsampling", "camera"]
    assert content["macs_before"] - content["macs_after"] == sum(entry["macs_saved"] for entry in content["folds"]) > 0
