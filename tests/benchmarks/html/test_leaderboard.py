from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.html.boards import BOARDS
from benchmarks.html.kinds import KINDS
from benchmarks.html.leaderboard import leaderboard_html, leaderboard_markdown, publish, read_folder
from benchmarks.published import PUBLISHED, SUCCESSORS
from metro_edge.errors import UserError
from tests.benchmarks.conftest import made_report
from tests.benchmarks.html.pages import RESULTS, Page, check_contained, made_energy, saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two results of one device, one of another, one of other data."""
    made = tmp_path / "results"
    made.mkdir()
    for name, created, cpu, seed in (("a", "01", "Some CPU", 3), ("b", "03", "Some CPU", 3), ("c", "02", "X CPU", 3),
                                     ("d", "04", "Some CPU", 5)):  # fmt: skip
        report = made_report(draw=int(created), loss_mm=float(created))
        report["created"] = f"2026-02-{created}T00:00:00Z"
        report["device"]["name"] = report["machine"]["cpu"] = cpu
        report["accuracy"]["seed"] = seed
        saved(made, name, report)
    return made


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| metro_")
    ]


def test_the_newest_of_each_stands_on_it(folder: Path) -> None:
    text = leaderboard_markdown(read_folder(folder))
    first, second = text.split("\n## ")[1:3]
    assert first.startswith("Latency and accuracy, 1 of 2") and second.startswith("Latency and accuracy, 2 of 2")
    assert [(row[2], row[4], row[-1]) for row in rows(first)] == [
        ("Some CPU, 2 cores", "int8", "2026-02-03"),  # the faster first
        ("Some CPU, 2 cores", "fp32", "2026-02-03"),
        ("X CPU, 2 cores", "int8", "2026-02-02"),
        ("X CPU, 2 cores", "fp32", "2026-02-02"),
    ]
    assert {row[-1] for row in rows(second)} == {"2026-02-04"}
    newest = next(row for row in rows(first) if row[4] == "int8")
    entry = made_report(draw=3, loss_mm=3.0)["precisions"]["int8"]
    assert newest[5] == f"{entry['latency']['network']['p50_ms']:.2f}"
    assert newest[8].startswith(f"{entry['accuracy']['mpjpe_mm']:.1f} (") and newest[11].startswith("+3.0")
    assert "by METRO" in first and "interleaved" in first and "`a.json`, `b.json`, `c.json`" in first


def test_engines_of_one_device_are_ranked_together(folder: Path) -> None:
    report = made_report(draw=9)
    report["created"], report["device"]["backend"] = "2026-02-05T00:00:00Z", "openvino"
    for precision, factor in (("int8", 2.0), ("fp32", 0.001)):  # between the others, and before them
        report["precisions"][precision]["latency"]["end_to_end"]["p50_ms"] *= factor
    saved(folder, "e", report)
    for other in RESULTS.glob("kernels-*.json"):  # has no table here, and is not counted
        (folder / other.name).write_bytes(other.read_bytes())
    text = leaderboard_markdown(read_folder(folder))
    first = [row for row in rows(text.split("\n## ")[1]) if row[2].startswith("Some CPU")]
    times = [float(row[6].split()[0]) for row in first]
    assert times == sorted(times) and first[0][3].startswith("openvino") and len(first) == 4
    assert "Of 5 results" in text and "on each device by time" in text


def test_published_figures_stand_apart(folder: Path) -> None:
    text = leaderboard_markdown(read_folder(folder))
    measured, published = text.split("## Published results, of other data: not comparable with the above")
    for one in (*PUBLISHED, *SUCCESSORS):
        assert f"\n| {one.method} | " in published and f"| {one.method} |" not in measured
    for one in SUCCESSORS:
        assert one.source in published and one.paper in published and "." in one.source
    assert "| TokenHMR | - | - | 84.3 | 70.9 | 44.8 | not said |" in published
    assert not any("metro_edge" in line for line in published.splitlines() if line.startswith("|"))
    page = Page(leaderboard_html(read_folder(folder)))
    check_contained(page)
    assert not any("TokenHMR" in table and "metro_edge" in table for table in page.tables)


def test_both_files_are_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = made_report()
    hostile["bundle"]["name"] = "<img src=http://evil.example> [x](javascript:y)"
    saved(folder, "e", hostile)
    page, text = tmp_path / "page.html", tmp_path / "page.md"
    assert main(["publish", str(folder), "-o", str(page), "--markdown", str(text)]) == 0
    assert "python -m benchmarks publish results" in text.read_text() and capsys.readouterr().err.count("wrote") == 2
    check_contained(Page(page.read_text(encoding="utf-8")))
    assert "<" not in text.read_text() and "](" not in text.read_text() and "&lt;img" in text.read_text()


def test_energy_stands_on_it(tmp_path: Path) -> None:
    saved(tmp_path, "energy", made_energy())
    text = leaderboard_markdown(read_folder(tmp_path))
    assert "## Energy and heat" in text
    assert [(row[4], row[5], row[7]) for row in rows(text)] == [("int8", "told", "5.00"), ("fp32", "told", "8.00")]
    assert rows(text)[0][8] == "0.5 (0.5 to 0.5)" and rows(text)[0][9] == "0.3"


def test_folders_that_are_none(tmp_path: Path, folder: Path) -> None:
    outputs = tmp_path / "page.html", tmp_path / "page.md"
    with pytest.raises(UserError, match="cannot read the folder"):
        publish(tmp_path / "none", *outputs)
    with pytest.raises(UserError, match=r"has no \.json file"):
        publish(tmp_path, *outputs)
    (folder / "z.json").write_text('{"kind": "diary"}')
    with pytest.raises(UserError, match="z.json is not a benchmark result of a known kind: 'diary'"):
        publish(folder, *outputs)
    (folder / "z.json").unlink()
    with pytest.raises(UserError, match="cannot write"):
        publish(folder, tmp_path / "none" / "page.html", outputs[1])
    assert not any(path.exists() for path in outputs)


def test_the_kept_results_make_one() -> None:
    text = leaderboard_markdown(read_folder(RESULTS))
    titles = [KINDS[kind].title for kind in BOARDS]
    assert sum(f"## {title}" in text for title in titles) >= 3
    assert "Roofline" not in text and len(rows(text)) >= 6
