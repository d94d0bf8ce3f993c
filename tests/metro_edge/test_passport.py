from __future__ import annotations

import copy
import json

import pytest

from metro_edge.errors import BundleError
from metro_edge.passport import parse_passport, passport_bytes
from tests.metro_edge.conftest import PASSPORT

NEEDED, ALLOWED = ("spec.json", "body.npz"), ("spec.json", "body.npz", "model.fp32.onnx")
GOOD = PASSPORT | {
    "schema_version": 1,
    "files": {name: {"sha256": "0" * 64, "bytes": 3} for name in ALLOWED},
    "calibration": {"samples": 512},
    "folds": {"folds": [{"name": "batch_norm"}]},
    "verification": {"precisions": {"fp16": {"moved_mm": 0.1}}},
    "maker": ["anything"],
}


def parsed(passport: dict) -> dict:
    return parse_passport(passport_bytes(passport), "b", NEEDED, ALLOWED)


def test_round_trip_keeps_what_it_does_not_know():
    assert parsed(GOOD) == GOOD


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("files", "spec.json", "sha256"), "0" * 63, "'sha256' of spec.json must be 64 digits"),
        (("files", "spec.json", "sha256"), "A" * 64, "64 digits"),
        (("files", "spec.json", "sha256"), 3, "has no 'sha256'"),
        (("files", "spec.json", "bytes"), -1, "'bytes' of spec.json"),
        (("files", "spec.json", "bytes"), "3", "'bytes' of spec.json"),
        (("calibration",), [], "'calibration' must be an object"),
        (("folds",), [], "'folds' must be an object"),
        (("folds", "folds"), 3, "'folds' must be a list"),
        (("folds", "folds"), [{}], "must have a 'name'"),
        (("verification",), "done", "'verification' must be an object"),
        (("verification", "precisions"), [], "'precisions' of 'verification' must be an object"),
        (("verification", "precisions", "fp16"), 3, "verification of fp16 must be an object"),
        (("verification", "precisions", "fp16", "moved_mm"), "1", "'moved_mm' must be a number"),
        (("accuracy", "precisions", "fp32", "mpjpe_mm"), True, "'mpjpe_mm' must be a number"),
        (("accuracy", "precisions", "fp32"), {"mpjpe_mm": 1}, "accuracy of fp32 lacks 'pa_mpjpe_mm'"),
    ],
)
def test_values_of_another_kind(path, value, message):
    passport = copy.deepcopy(GOOD)
    inner = passport
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(BundleError, match=message):
        parsed(passport)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(number):
    text = json.dumps(GOOD).replace('"moved_mm": 0.1', f'"moved_mm": {number}')
    assert number in text
    with pytest.raises(BundleError, match=r"is no JSON|must be a number"):
        parse_passport(text.encode(), "b", NEEDED, ALLOWED)
