from __future__ import annotations

import json

import pytest

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec, check_precision


def changed(spec: ModelSpec, **changes) -> str:
    values = {**json.loads(spec.to_json()), **changes}
    return json.dumps({k: v for k, v in values.items() if v != "absent"})


def test_round_trip(spec):
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(changed(spec, mean=[0.1, 0.2, 0.3])).mean == (0.1, 0.2, 0.3)
    assert ModelSpec.from_json(changed(spec, box_scale="absent")).box_scale == 1.2
    assert len(spec.joints) == 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this metro-edge reads 1"),
        ({"schema_version": "absent"}, "schema version None"),
        ({"colour": 1}, "unknown fields: colour"),
        ({"body": "absent", "name": "absent"}, "lacks: body, name"),
        ({"joint_set": "x"}, "unknown joint set"),
        ({"crop_rule": "x"}, "unknown crop rule 'x'; known: box_area, box_bilinear"),
        ({"image_size": 16}, "image_size 16"),
        ({"vertex_count": 0}, "vertex_count 0"),
        ({"box_scale": 0}, "box_scale 0"),
        ({"std": [1, 0, 1]}, "must be positive"),
        ({"std": [1, 1]}, "wrong kind"),
        ({"mean": 0.5}, "wrong kind"),
        ({"image_size": "large"}, "wrong kind"),
    ],
)
def test_bad_specs(spec, changes, message):
    with pytest.raises(UserError, match=message):
        ModelSpec.from_json(changed(spec, **changes))


@pytest.mark.parametrize("text", ["no json", "[1]", "3"])
def test_no_object(text):
    with pytest.raises(UserError, match="not a JSON object"):
        ModelSpec.from_json(text)


def test_precisions():
    assert check_precision("int8") == "int8"
    with pytest.raises(UserError, match="unknown precision 'FP32'; known: fp32, fp16, int8"):
        check_precision("FP32")
