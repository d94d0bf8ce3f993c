"""Architectures from shapes alone."""

from __future__ import annotations

import dataclasses

import pytest

from metro_edge.errors import UserError
from tests.reference_weights import ReferenceState
from tests.released_files import SMALL_HAND, released_shapes
from training.model import preset
from training.model.infer import config_from_released, describe, infer_backbone

RELEASED = ("metro_body_hrnet_w64", "metro_body_resnet50", "metro_hand_hrnet_w64")


def shapes_of(network: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in ReferenceState(network).shapes.items()}


@pytest.mark.parametrize("network", RELEASED)
def test_released_networks_are_the_presets(network):
    assert config_from_released(shapes_of(network)) == preset(network)


def test_hrnet_w40_is_told_by_its_width():
    shapes = shapes_of("metro_body_hrnet_w64")
    shapes["backbone.stage4.0.branches.0.0.conv1.weight"] = (40, 40, 3, 3)
    assert config_from_released(shapes) == preset("metro_body_hrnet_w40")


def test_other_sizes_are_read():
    """Hidden sizes, layers, inner widths, position rows and the camera's width are all in the shapes."""
    config = dataclasses.replace(SMALL_HAND, max_tokens=300, camera_hidden=17)
    assert config_from_released(released_shapes(config)) == config


def test_inner_width_of_the_newer_setting():
    shapes = shapes_of("metro_body_resnet50")
    for name in shapes:
        if "intermediate.dense.weight" in name:
            shapes[name] = (4 * shapes[name][1], shapes[name][1])
    assert [block.ffn for block in config_from_released(shapes).blocks] == [4096, 1024, 512]


@pytest.mark.parametrize(("blocks", "name"), [((3, 4, 23, 3), "resnet101"), ((3, 8, 36, 3), "resnet152")])
def test_deeper_resnets(blocks, name):
    shapes = {"0.weight": (64, 3, 7, 7)}
    for stage, count in zip((4, 5, 6, 7), blocks, strict=True):
        shapes |= {f"{stage}.{i}.conv3.weight": (256, 64, 1, 1) for i in range(count)}
    assert infer_backbone(shapes) == name


def test_the_description_says_what_was_not_in_the_file():
    text = describe(preset("metro_hand_hrnet_w64"))
    assert "21 joints and 195 vertices" in text and "4096/1024/256" in text
    assert text.endswith("not in the file and taken as released: 4 heads, 224 px")


@pytest.mark.parametrize(
    "name",
    [
        "upsampling.weight",
        "cam_param_fc2.weight",
        "conv_learn_tokens.weight",
        "trans_encoder.0.bert.img_embedding.weight",
        "trans_encoder.1.cls_head.weight",
        "trans_encoder.0.bert.position_embeddings.weight",
        "trans_encoder.2.bert.encoder.layer.0.intermediate.dense.weight",
        "backbone.0.weight",
    ],
)
def test_what_is_missing_is_named(name):
    shapes = shapes_of("metro_body_resnet50")
    del shapes[name]
    with pytest.raises(UserError, match=f"missing .*{name}"):
        config_from_released(shapes)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("upsampling.weight", (1723, 431, 1), "upsampling.weight has shape (1723, 431, 1); 2 dimensions"),
        ("upsampling2.weight", (6890, 1700), "upsampling2.weight (6890, 1700) takes 1700 vertices"),
        ("upsampling2.weight", (6000, 1723), "6000 vertices, of no body"),
        ("conv_learn_tokens.weight", (445, 50, 1), "mixes 50 positions, which are no square"),
        ("conv_learn_tokens.weight", (447, 49, 1), "16 joints are no set"),
        ("cam_param_fc2.weight", (250, 400), "reads 400 points; there are 445 tokens"),
        ("trans_encoder.1.bert.img_embedding.weight", (256, 500), "takes 500 features, encoder 0 makes 512"),
        ("trans_encoder.0.bert.img_embedding.weight", (1023, 2051), "1023 wide, which 4 heads do not divide"),
        ("backbone.6.6.conv1.weight", (256, 1024, 1, 1), "(3, 4, 7, 3) blocks, of no ResNet"),
    ],
)
def test_what_fits_nothing_is_named(name, shape, message):
    shapes = shapes_of("metro_body_resnet50") | {name: shape}
    with pytest.raises(UserError) as caught:
        config_from_released(shapes)
    assert message in str(caught.value)


def test_an_hrnet_of_no_known_width():
    with pytest.raises(UserError, match="HRNet of width 65"):
        infer_backbone({"x.stage4.0.branches.0.0.conv1.weight": (65, 65, 3, 3)}, "x.")


def test_no_encoders():
    shapes = {k: s for k, s in shapes_of("metro_body_resnet50").items() if not k.startswith("trans_encoder")}
    with pytest.raises(UserError, match="no METRO network"):
        config_from_released(shapes)
