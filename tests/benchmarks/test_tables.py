from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.markdown import markdown_table
from benchmarks.published import PUBLISHED
from benchmarks.report import pack_samples, read_report, unpack_samples, write_report
from benchmarks.tables import BEGIN, END, between_markers, report_markdown
from metro_edge.errors import UserError
from tests.benchmarks.conftest import made_report, second_report


def latency(p50: float, p95: float, median: float | None = None) -> dict[str, Any]:
    ratio = None if median is None else {"median": median, "low": median - 0.1, "high": median + 0.1}
    return {"p50_ms": p50, "p95_ms": p95, "ratio_to_fp32": ratio}


REPORT: dict[str, Any] = {
    "schema_version": 1,
    "kind": "metro-edge benchmark",
    "created": "2026-01-02T03:04:05Z",
    "command": "python -m benchmarks run bundle",
    "metro_edge": "0.1.0",
    "bundle": {
        "name": "metro_edge",
        "checkpoint": {"name": "a.ckpt", "sha256": "0" * 64},
        "onnx_sha256": {"fp32": "ab" * 32, "int8": "cd" * 32},
    },
    "device": {
        "processor": "CPU",
        "name": "Some CPU",
        "backend": "onnxruntime",
        "engine": "onnxruntime 1.23.0 CPUExecutionProvider",
        "threads": 2,
    },
    "machine": {
        "cpu": "Some CPU",
        "cores": 2,
        "memory_gb": 8.0,
        "system": "Linux 6",
        "architecture": "x86_64",
        "python": "3.11.0",
        "versions": {"numpy": "2.0", "anny": None},
    },
    "latency": {"runs": 100, "warmup": 13, "protocol": "interleaved"},
    "accuracy": {"data": "generated people of seed 3", "seed": 3, "samples": 2000, "protocol": "by METRO"},
    "precisions": {
        "fp32": {
            "latency": {"network": latency(30.0, 33.04), "end_to_end": latency(36.0, 41.0)},
            "accuracy": {"mpjpe_mm": 61.26, "pa_mpjpe_mm": 41.5, "mpvpe_mm": 71.75, "against_fp32": None},
        },
        "int8": {
            "latency": {"network": latency(9.876, 12.0, 0.329), "end_to_end": latency(15.0, 18.0, 0.42)},
            "accuracy": {
                "mpjpe_mm": 62.51,
                "pa_mpjpe_mm": 42.0,
                "mpvpe_mm": 73.0,
                "against_fp32": {
                    "moved_mm": 4.321,
                    "moved_worst_mm": 30.0,
                    "moved_worst_sample": 12,
                    "mpjpe_change_mm": 1.25,
                },
            },
        },
    },
}


def test_the_table_has_a_row_per_precision_and_says_what_was_measured() -> None:
    text = report_markdown(REPORT)
    assert "| fp32 | 30.0 | 33.0 | - | 36.0 | 41.0 | - | 61.3 | 41.5 | 71.8 | - | - |" in text
    assert "| int8 | 9.88 | 12.0 | 0.33 | 15.0 | 18.0 | 0.42 | 62.5 | 42.0 | 73.0 | 4.32 | +1.25 |" in text
    assert text.startswith("**metro_edge, measured on CPU: Some CPU**\n\n| precision |")
    for fact in (
        "2000 samples, generated people of seed 3; by METRO",
        "Latency on CPU (onnxruntime 1.23.0 CPUExecutionProvider, threads: 2), 100 calls of each after 13 to warm up",
        "Python 3.11.0, numpy 2.0; metro-edge 0.1.0; 2026-01-02T03:04:05Z",
        "fp32 `abababababab`, int8 `cdcdcdcdcdcd`",
        "`python -m benchmarks run bundle`",
    ):
        assert fact in text


def test_the_published_results_stand_apart_below() -> None:
    ours, published = report_markdown(REPORT).split("**Published results")
    assert published.startswith(", of other data sets: not comparable with the table above**")
    assert [entry.method for entry in PUBLISHED] == [
        "HMR", "GraphCMR", "SPIN", "Pose2Mesh", "I2LMeshNet", "VIBE", "METRO",
    ]  # fmt: skip
    for entry in PUBLISHED:
        assert f"\n| {entry.method} | " in published
        assert f"\n| {entry.method} | " not in ours
        assert entry.paper in published
    assert "| METRO | 54.0 | 36.7 | 88.2 | 77.1 | 47.9 | Lin et al." in published
    assert "| HMR | 88.0 | 56.8 | - | - | 81.3 | Kanazawa et al." in published


def test_signs_and_zero() -> None:
    report = copy.deepcopy(REPORT)
    change = report["precisions"]["int8"]["accuracy"]["against_fp32"]
    for value, text in ((-0.001, "| +0.00 |"), (-0.26, "| -0.26 |")):
        change["mpjpe_change_mm"] = value
        assert text in report_markdown(report)


def test_cells_cannot_break_the_table() -> None:
    assert markdown_table(("precision", "n"), [["a|b", "1"]]).splitlines() == [
        "| precision | n |",
        "| --- | ---: |",
        "| a\\|b | 1 |",
    ]
    with pytest.raises(ValueError, match="2 cells"):
        markdown_table(("a", "b"), [["1"]])


PLAIN = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r<"), max_size=40)


@settings(deadline=None)
@given(PLAIN, PLAIN, PLAIN, PLAIN)
def test_only_what_is_between_the_markers_changes(before: str, old: str, after: str, table: str) -> None:
    text = f"{before}{BEGIN}{old}{END}{after}"
    once = between_markers(text, table)
    assert once == f"{before}{BEGIN}\n{table.strip()}\n{END}{after}"
    assert between_markers(once, table) == once


def test_windows_line_ends_stay() -> None:
    assert between_markers(f"a\r\n{BEGIN}\r\n{END}\r\nb", "x\ny\n") == f"a\r\n{BEGIN}\r\nx\r\ny\r\n{END}\r\nb"


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{END}", f"{BEGIN}{BEGIN}{END}"])
def test_missing_or_repeated_markers_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="must be there once each, in this order"):
        between_markers(text, "x")


def test_a_table_with_a_marker_is_refused() -> None:
    with pytest.raises(UserError, match="holds a marker"):
        between_markers(f"{BEGIN}{END}", f"a {END}")


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write_report(tmp_path, "result", REPORT, "text")[0]


def test_table_command_updates_a_readme(result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# A title\n\n{BEGIN}\nold\n{END}\n\nThe end: é\n", encoding="utf-8")
    assert main(["table", str(result), "--readme", str(readme)]) == 0
    printed = capsys.readouterr().out
    assert printed == report_markdown(REPORT)
    expected = f"# A title\n\n{BEGIN}\n{printed.strip()}\n{END}\n\nThe end: é\n"
    assert readme.read_text(encoding="utf-8") == expected
    assert main(["table", str(result), "--readme", str(readme)]) == 0
    assert readme.read_text(encoding="utf-8") == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "result.json", "result.md"]


def test_table_command_refuses_a_bad_readme_and_leaves_it(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_bytes(b"no markers")
    assert main(["table", str(result), "--readme", str(readme)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {readme}: the lines {BEGIN} and {END} must be there")
    assert readme.read_bytes() == b"no markers"
    readme.write_bytes(b"\xff\xfe")
    assert main(["table", str(result), "--readme", str(readme)]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err
    assert main(["table", str(result), "--readme", str(tmp_path / "none.md")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_result_is_read_back_as_it_was_written(result: Path) -> None:
    assert read_report(result) == REPORT
    assert result.with_suffix(".md").read_text() == "text"


def broken(path: Path, change: Any) -> Path:
    report = copy.deepcopy(REPORT)
    change(report)
    path.write_text(json.dumps(report))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("kind"), "is not a benchmark result"),
        (lambda r: r.update(schema_version=4), "has schema version 4, this metro-edge reads 1, 2, 3"),
        (lambda r: r.pop("machine"), "incomplete benchmark result: 'machine' is missing"),
        (lambda r: r["precisions"].clear(), "no precision was measured"),
        (lambda r: r["precisions"]["fp32"].pop("latency"), "incomplete benchmark result"),
        (lambda r: r["precisions"]["int8"]["accuracy"].pop("against_fp32"), "incomplete benchmark result"),
        (lambda r: r["precisions"]["fp32"]["accuracy"].update(mpjpe_mm=float("nan")), "fp32 is not finite"),
        (lambda r: r["precisions"]["fp32"]["accuracy"].update(mpjpe_mm="much"), "incomplete benchmark result"),
    ],
)
def test_results_that_are_none_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_report(broken(tmp_path / "r.json", change))


def test_the_figures_of_schema_2_have_intervals_in_the_file_and_in_the_table(tmp_path: Path) -> None:
    report = made_report()
    path, _ = write_report(tmp_path, "result", report, "text")
    assert read_report(path) == report
    text = report_markdown(report)
    change = report["precisions"]["int8"]["accuracy"]["against_fp32"]
    low, high = (change["intervals"]["mpjpe_change_mm"][end] for end in ("low", "high"))
    worst = f"{change['mpjpe_change_worst_mm']:+.1f} ({change['mpjpe_change_worst_sample']})"
    assert f"| {low:+.2f} to {high:+.2f} | " in text and f" | {worst} |" in text
    assert "Intervals of 95% of these figures\n\n| precision | network x FP32 |" in text
    assert "Intervals: bootstrap, 2000 resamples, seed 0" in text
    # Two samples and rounds give no interval and no 95th percentile, and the table says so by a dash.
    text = report_markdown(made_report(samples=2, runs=20))
    (row,) = [line for line in text.splitlines() if line.startswith("| int8 | - |")]
    assert row.startswith("| int8 | - | - | - | - | - | - | - | +1.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["fp32"]["accuracy"].pop("intervals"), "incomplete benchmark result"),
        (lambda p: p["int8"]["latency"]["network"].pop("intervals"), "incomplete benchmark result"),
        (lambda p: p["int8"]["latency"]["network"]["ratio_to_fp32"].pop("interval"), "incomplete benchmark result"),
        (
            lambda p: p["int8"]["accuracy"]["intervals"]["mpjpe_mm"].update(low=float("nan")),
            "a figure of int8 is not finite",
        ),
        (
            lambda p: p["int8"]["accuracy"]["against_fp32"].update(mpvpe_change_worst_mm=float("inf")),
            "a figure of int8 is not finite",
        ),
        (
            lambda p: p["int8"]["accuracy"]["per_sample_mm"].update(mpjpe=pack_samples([1.0] * 59)),
            "the errors per sample are not those of 60 samples",
        ),
        (
            lambda p: p["int8"]["accuracy"]["per_sample_mm"].update(mpjpe=pack_samples([np.nan] * 60)),
            "the error of a sample is not finite",
        ),
        (lambda p: p["int8"]["accuracy"]["per_sample_mm"].update(mpjpe="?"), "incomplete benchmark result"),
        (lambda p: p["int8"]["accuracy"]["per_sample_mm"].update(mpjpe="AAAA"), "incomplete benchmark result"),
    ],
)
def test_broken_intervals_and_samples_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    report = made_report()
    change(report["precisions"])
    (tmp_path / "r.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=message):
        read_report(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, p: p["accuracy"].pop("per_joint"), "incomplete benchmark result"),
        (lambda r, p: p["accuracy"]["per_joint"].pop("neck"), "the joints are not those of h36m14"),
        (lambda r, p: p["accuracy"]["shares"].update(pck=None), "incomplete benchmark result"),
        (lambda r, p: p["accuracy"]["shares"].update(pck=float("nan")), "a figure of int8 is not finite"),
        (lambda r, p: p["accuracy"]["reprojection"].update(px=float("inf")), "a figure of int8 is not finite"),
        (lambda r, p: p["motion"].update(jitter_mm=None), "incomplete benchmark result"),
        (lambda r, p: p.update(motion=None), "motion is there without how it was measured, or the other way"),
        (lambda r, p: r.update(crops=None), "crops is there without how it was measured, or the other way"),
        (lambda r, p: p["crops"].pop("box_area/detected"), "incomplete benchmark result"),
        (lambda r, p: p["worst"].update(loss_mm=None), "incomplete benchmark result"),
        (lambda r, p: p["accuracy"].update(mpjpe_mm=None), "incomplete benchmark result"),
        (lambda r, p: r["accuracy"].pop("joint_set"), "incomplete benchmark result"),
    ],
)
def test_broken_details_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    report = made_report()
    change(report, report["precisions"]["int8"])
    (tmp_path / "r.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=message):
        read_report(tmp_path / "r.json")


def test_results_of_schema_2_are_read_and_shown_as_before(tmp_path: Path) -> None:
    report = second_report()
    (tmp_path / "r.json").write_text(json.dumps(report))
    assert read_report(tmp_path / "r.json") == report
    text = report_markdown(report)
    assert "Intervals of 95% of these figures" in text and "PCK" not in text


def test_details_are_in_the_table_and_not_in_a_readme() -> None:
    report = made_report()
    text = report_markdown(report)
    row = report["precisions"]["int8"]["accuracy"]["per_joint"]["left_wrist"]
    assert f"| {row['error_mm']:.1f} (" in text and "| left wrist |" in text
    for words in (
        "Joints nearer than 150 mm (PCK), mean of that over thresholds from 0 to 150 mm (AUC)",
        "| fp32 | 12.00 (12.00 to 12.00) | 12.0",  # 0.1 of half of 240 px
        "+4.0 (+4.0 to +4.0) |",  # the gain of jitter
        "| box_area | as a detector's |",
        f"Worst of int8 against FP32: sample {report['precisions']['int8']['worst']['sample']}, MPJPE ",
    ):
        assert words in text
    assert report_markdown(report, details=False).count("\n| fp32 |") == 1
    report["motion"] = report["crops"] = None
    for entry in report["precisions"].values():
        entry |= {"motion": None, "crops": None}
        entry["accuracy"]["reprojection"] = None
    text = report_markdown(report)
    assert "jitter" not in text and "detector" not in text and "px of the full frame\n" not in text


def test_pictures_are_written_with_the_result_or_not_at_all(tmp_path: Path) -> None:
    write_report(tmp_path, "a", REPORT, "text", {"a-worst.png": b"png"})
    assert (tmp_path / "a-worst.png").read_bytes() == b"png"
    (tmp_path / "b-worst.png").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_report(tmp_path, "b", REPORT, "text", {"b-worst.png": b"png"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-worst.png", "a.json", "a.md", "b-worst.png"]


@given(st.lists(st.floats(0, 1e4, width=32), max_size=30))
def test_packed_samples_come_back(values: list[float]) -> None:
    assert unpack_samples(pack_samples(values)).tolist() == values


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the result"):
        read_report(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(UserError, match="is not a benchmark result"):
        read_report(tmp_path / "text.json")


def test_both_files_are_written_or_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_report(tmp_path / "none", "a", REPORT, "text")
    (tmp_path / "a.md").mkdir()  # cannot be replaced by a file
    with pytest.raises(UserError, match=r"cannot write .*a\.md"):
        write_report(tmp_path, "a", REPORT, "text")
    assert [p.name for p in tmp_path.iterdir()] == ["a.md"]
