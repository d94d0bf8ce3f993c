import dataclasses

import numpy as np
import pytest
import torch

from metro_edge.errors import UserError
from tests.reference_weights import REFERENCE, ReferenceState, reference_images
from training.model import Metro, load_released, preset, state_dict_from_released
from training.model.released import released_names


class Edited(ReferenceState):
    """A released state with entries taken away, added or cut, which makes no tensor until one is read."""

    def __init__(self, network, without=(), extra=None):
        super().__init__(network)
        self.shapes = {name: s for name, s in self.shapes.items() if name not in without} | (extra or {})


@pytest.mark.parametrize(
    "network",
    [
        "metro_body_resnet50",
        pytest.param("metro_hand_hrnet_w64", marks=pytest.mark.slow),
        pytest.param("metro_body_hrnet_w64", marks=pytest.mark.slow),
    ],
)
def test_parity_with_the_released_code(network):
    """Camera, joints and every mesh level, on deterministic weights, against the original implementation."""
    reference = np.load(REFERENCE / f"{network}.npz")
    config = preset(network)
    model = Metro(config, reference["template_joints"], reference["template_vertices"]).eval()
    report = load_released(model, ReferenceState(network, int(reference["seed"])))
    assert report.missing == report.unexpected == ()
    with torch.no_grad():
        images = torch.from_numpy(reference_images(2, int(reference["image_seed"])))
        output = model(images)
        features = model.backbone(images[:1])[0]
    expected_features = reference["image_features"].astype(np.float32)
    if config.token_mode == "global":
        features = features.mean(dim=(1, 2))
    np.testing.assert_allclose(features, expected_features, atol=1e-3 * np.abs(expected_features).max())

    predicted = {"camera": output.camera, "joints": output.joints}
    for size, vertices in zip(config.vertex_levels, output.vertices, strict=True):
        predicted[f"vertices_{size}"] = vertices
    for name, value in predicted.items():
        wanted = reference[name]
        assert np.abs(value.numpy() - wanted).max() <= 1e-4 * np.abs(wanted).max(), name


@pytest.mark.parametrize("network", ["metro_body_hrnet_w64", "metro_body_resnet50", "metro_hand_hrnet_w64"])
def test_every_entry_is_accounted_for(network):
    released = ReferenceState(network)
    with torch.device("meta"):
        model = Metro.blank(preset(network))
    names = [
        n for key in model.state_dict() if not key.startswith("template") for n in released_names(key, model.config)
    ]
    assert len(set(names)) == len(names)
    assert set(names) <= set(released)
    left = set(released) - set(names)
    assert all(".bert.embeddings." in n or ".bert.pooler." in n or "backbone.classifier" in n for n in left)


def test_missing_and_unexpected_entries_are_refused_and_reported():
    network, config = "metro_body_resnet50", preset("metro_body_resnet50")
    with pytest.raises(
        UserError, match=r"not a released checkpoint of metro_body_resnet50.*1 missing \(upsampling\.bias\)"
    ):
        state_dict_from_released(Edited(network, without=["upsampling.bias"]), config)
    with pytest.raises(UserError, match=r"1 unexpected \(mystery\.weight\)"):
        state_dict_from_released(Edited(network, extra={"mystery.weight": [3]}), config)
    many = [f"trans_encoder.{k}.bert.encoder.layer.{i}.output.dense.bias" for k in range(3) for i in range(4)]
    with pytest.raises(UserError, match=r"12 missing \(trans_encoder\.0\..*, and 4 more\)"):
        state_dict_from_released(Edited(network, without=many), config)


def test_checkpoint_of_another_architecture_is_refused():
    with pytest.raises(UserError, match="not a released checkpoint of metro_body_hrnet_w64"):
        state_dict_from_released(ReferenceState("metro_body_resnet50"), preset("metro_body_hrnet_w64"))


def test_lenient_report_lists_what_happened():
    only = Edited("metro_body_resnet50", extra={"mystery.weight": [3]})
    only.shapes = {n: s for n, s in only.shapes.items() if n.startswith(("cam_param", "mystery")) or "pooler" in n}
    state, report = state_dict_from_released(only, preset("metro_body_resnet50"), strict=False)
    assert sorted(state) == sorted(
        f"camera_head.{layer}.{kind}" for layer in ("coordinates", "points", "output") for kind in ("weight", "bias")
    )
    assert len(report.used) == 6 and len(report.unused) == 6 and report.unexpected == ("mystery.weight",)
    assert "upsampling2.weight" in report.missing
    assert str(report).startswith("6 entries used, 6 known to be unused, 1 unexpected (mystery.weight), ")


def test_wrong_shape_is_refused():
    cut = Edited("metro_body_resnet50", extra={"cam_param_fc3.weight": [4, 250]})
    query = "trans_encoder.2.bert.encoder.layer.1.attention.self.query.bias"
    cut.shapes = {n: s for n, s in cut.shapes.items() if n.startswith("cam_param")} | {query: [100]}
    cut.shapes |= {query.replace("query", part): [128] for part in ("key", "value")}
    with pytest.raises(
        UserError, match=r"2 entries .*query\.bias has shape \(100,\) where .* has \(128,\), cam_param_fc3"
    ):
        state_dict_from_released(cut, preset("metro_body_resnet50"), strict=False)


def test_qkv_are_stacked_in_order():
    prefix = "trans_encoder.2.bert.encoder.layer.1.attention.self."
    assert released_names("encoders.2.layers.1.qkv.bias", preset("metro_body_resnet50")) == tuple(
        f"{prefix}{part}.bias" for part in ("query", "key", "value")
    )


def test_parts_the_released_code_never_had_are_refused(tiny_config):
    with pytest.raises(UserError, match=r"nothing like upsampling\.1\.weights of tiny"):
        released_names("upsampling.1.weights", tiny_config)
    with pytest.raises(UserError, match="use HRNet or ResNet, not test_efficientnet"):
        released_names(
            "backbone.model.conv_stem.weight", dataclasses.replace(tiny_config, backbone="test_efficientnet")
        )
