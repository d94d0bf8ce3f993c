import dataclasses
import json

import pytest

from metro_edge.errors import UserError
from training.model import PRESETS, EncoderBlock, MetroConfig, preset


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_json(name):
    config = preset(name)
    assert config.name == name
    assert MetroConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_dict_holds_plain_values_only(tiny_config):
    values = tiny_config.to_dict()
    assert values["vertex_levels"] == [20, 40, 90]
    assert values["blocks"][0] == {"hidden": 32, "layers": 2, "heads": 4, "ffn": 64, "output": 16}


def test_released_sizes():
    body, hand, edge = preset("metro_body_hrnet_w64"), preset("metro_hand_hrnet_w64"), preset("metro_edge")
    assert (body.num_joints, body.num_tokens) == (14, 445)
    assert (hand.num_joints, hand.num_tokens) == (21, 216)
    assert edge.body == "anny" and edge.upsampling[-1] == "sparse"
    assert [block.ffn for block in body.blocks] == [3072] * 3
    assert [block.ffn for block in hand.blocks] == [4096, 1024, 256]


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match=r"'metro'.*metro_edge"):
        preset("metro")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_mode": "pooled"}, "unknown token_mode 'pooled'; known: grid, global"),
        ({"camera_from": "joints"}, "unknown camera_from"),
        ({"backbone_feature": "first"}, "unknown backbone_feature"),
        ({"upsampling": ("dense", "cubic")}, "unknown upsampling 'cubic'"),
        ({"upsampling": ("dense",)}, "3 vertex levels need 2 upsampling steps, not 1"),
        ({"vertex_levels": (40, 20, 90)}, "must grow from coarse to full"),
        ({"vertex_levels": (), "upsampling": ()}, "must grow"),
        ({"vertex_levels": (0, 20, 90)}, "vertex_levels must be a positive integer, not 0"),
        ({"image_size": 64.0}, "image_size must be a positive integer, not 64.0"),
        ({"max_tokens": 33}, "34 tokens exceed max_tokens 33"),
        ({"blocks": ()}, "must have output 3"),
        ({"blocks": (EncoderBlock(8, 1, 1, 8, 4),)}, "must have output 3"),
        ({"dropout": 1.0}, "dropout 1.0 must be in"),
        ({"mvm_fraction": 1.5}, "mvm_fraction 1.5 in"),
        ({"joint_set": "body25"}, "unknown joint set 'body25'"),
    ],
)
def test_bad_value_is_refused(tiny_config, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(tiny_config, **change)


def test_bad_block_is_refused():
    with pytest.raises(UserError, match="hidden 10 is not divisible by heads 4"):
        EncoderBlock(10, 1, 4, 8, 3)
    with pytest.raises(UserError, match="layers must be a positive integer, not True"):
        EncoderBlock(8, True, 4, 8, 3)


def _without(values, key):
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {**v, "depth": 3}, "unknown depth; known: name, backbone"),
        (lambda v: _without(v, "backbone"), "missing backbone"),
        (lambda v: [v], "expected names and values"),
        (lambda v: {**v, "blocks": 3}, "blocks must be a list, not 3"),
        (lambda v: {**v, "blocks": [{"hidden": 4}]}, "encoder block: missing layers, heads, ffn, output"),
        (lambda v: {**v, "dropout": "much"}, "wrong type"),
    ],
)
def test_bad_dict_is_refused(tiny_config, change, message):
    with pytest.raises(UserError, match=message):
        MetroConfig.from_dict(change(tiny_config.to_dict()))


def test_defaults_may_be_left_out_of_a_dict(tiny_config):
    assert MetroConfig.from_dict(_without(tiny_config.to_dict(), "mvm_fraction")).mvm_fraction == 0.3
