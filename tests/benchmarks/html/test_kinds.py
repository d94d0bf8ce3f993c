"""The Markdown of every kind of result, as `table` prints it, and of files that are none."""

from __future__ import annotations

import json

import pytest

from benchmarks.html.kinds import saved_markdown
from metro_edge.errors import UserError
from tests.benchmarks.conftest import made_report
from tests.test_layout import ROOT

RESULTS = ROOT / "benchmarks/results"


def test_every_kept_result_is_printed_again():
    kept = sorted(RESULTS.glob("*.json"))
    assert len({json.loads(path.read_text())["kind"] for path in kept}) >= 6
    for path in kept:
        printed = [line for line in saved_markdown(path).splitlines() if line and not line.startswith("![")]
        written = path.with_suffix(".md").read_text().splitlines()
        new = set(printed) - set(written)  # of an older version's file the head is worded otherwise
        assert len(printed) > 5 and len(new) <= (3 if "an older version wrote" in "".join(new) else 0), path.name


def test_without_a_picture_beside_it_there_is_no_link(tmp_path):
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        text = saved_markdown(tmp_path / path.name)
        assert not [line for line in text.splitlines() if line.startswith("![") and "worst" not in line], path.name


def test_a_run_is_printed(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(made_report()))
    assert "measured on CPU" in saved_markdown(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a benchmark result"),
        ("[]", "is not a benchmark result"),
        ('{"kind": "photo"}', "'photo'; known: metro-edge benchmark, metro-edge stages"),
        (
            '{"kind": "metro-edge stages", "schema_version": 7}',
            "has schema version 7 of metro-edge stages, this metro-edge reads 1",
        ),
        ('{"kind": "metro-edge stages", "schema_version": 1}', "incomplete metro-edge stages result"),
        ('{"kind": "metro-edge load", "schema_version": 1, "device": 3}', "incomplete metro-edge load result"),
    ],
)
def test_files_that_are_none(tmp_path, content, words):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=words):
        saved_markdown(tmp_path / "a.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read the result"):
        saved_markdown(tmp_path / "a.json")
