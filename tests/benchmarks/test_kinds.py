"""`table` of every kind of result, and of files that are none."""

from __future__ import annotations

import json

import pytest

from benchmarks.kinds import saved_markdown
from metro_edge.errors import UserError
from tests.benchmarks.conftest import made_report
from tests.test_layout import ROOT

RESULTS = ROOT / "benchmarks/results"


def test_every_kept_result_that_has_a_picture_is_printed_again():
    kept = [path for path in sorted(RESULTS.glob("*.json")) if path.with_suffix(".png").exists()]
    assert len(kept) >= 3
    for path in kept:
        kind = json.loads(path.read_text())["kind"]
        if kind in ("metro-edge roofline", "metro-edge against"):
            assert saved_markdown(path) == path.with_suffix(".md").read_text()
        elif kind in ("metro-edge stages", "metro-edge load"):
            lines = [line for line in saved_markdown(path).splitlines() if line]
            assert set(lines) - set(path.with_suffix(".md").read_text().splitlines()) <= {lines[0]}


def test_a_run_is_printed(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(made_report()))
    assert "measured on CPU" in saved_markdown(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a benchmark result"),
        ("[]", "is not a benchmark result"),
        ('{"kind": "photo"}', "'photo'; known: metro-edge benchmark, metro-edge stages"),
        ('{"kind": "metro-edge stages", "schema_version": 7}', "has schema version 7, this metro-edge reads 1"),
        ('{"kind": "metro-edge stages", "schema_version": 1}', "incomplete result"),
        ('{"kind": "metro-edge load", "schema_version": 1, "device": 3}', "incomplete result"),
    ],
)
def test_files_that_are_none(tmp_path, content, words):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=words):
        saved_markdown(tmp_path / "a.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read the result"):
        saved_markdown(tmp_path / "a.json")
