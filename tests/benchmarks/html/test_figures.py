from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.html.body_picture import body_at_rest, body_of, joint_panels, plot_joints
from benchmarks.html.convert import inline, to_blocks, to_html
from benchmarks.html.figures import LABEL, figure_html, picture_html, plain, svg
from benchmarks.html.plots import Point, not_dominated, plot_accuracy_front, plot_distributions, plot_run_latency
from engines.quantize.plots import new_figure, save_figure
from metro_edge.joints import H36M14
from tests.benchmarks.conftest import made_report, second_report
from tests.benchmarks.html.pages import Page, check_contained


def test_an_svg_follows_the_page_and_stands_alone() -> None:
    def draw(path: Path) -> None:
        figure, axes = new_figure(3, 2)
        axes.plot([0, 1], [0, 1], color="#0072B2", label=plain("a $x$ <b>"))
        axes.set_title(plain("$\\frac{"))
        axes.legend()
        save_figure(figure, path)

    one, other = svg("one", draw), svg("other", draw)
    for text in (one, other):
        assert text.startswith("<svg viewBox=") and "http" not in text and "metadata" not in text
        assert "var(--int8)" in text and "var(--ink)" in text and not re.search("#0072b2|#010203", text, re.IGNORECASE)
        assert "a $x$ &lt;b&gt;" in text and "$\\frac{" in text  # words, and no formula
        assert "DejaVu" not in text and "font-family: var(--font)" in text
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (one, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]+)\)", one)) | set(re.findall(r'href="#([^"]+)"', one)) <= ids[0]


def test_a_figure_says_when_it_is_predicted() -> None:
    def draw(path: Path) -> None:
        save_figure(new_figure(1, 1)[0], path)

    page = Page(figure_html("a", 'of <a> & "b"', draw, prediction=True))
    check_contained(page)
    assert page.text.endswith('Prediction of <a> & "b"') and 'of <a> & "b"' in page.values("aria-label")
    assert "Prediction" not in figure_html("b", "measured", draw)


def test_labels_have_an_end() -> None:
    report = plain({"name": "n" * 1000, "k" * 1000: 1, "samples_ms": "A" * 1000})
    assert [len(key) for key in report] == [4, LABEL, 10]
    assert report["name"].endswith("…") and report["samples_ms"] == "A" * 1000


points = st.tuples(st.floats(0.1, 100), st.integers(1, 1000).map(lambda tenths: tenths / 10))


@given(st.lists(points, min_size=1, max_size=12))
def test_the_front_is_what_no_other_point_beats(places: list[tuple[float, float]]) -> None:
    found = not_dominated([Point("", "fp32", 0, ms, mm, None, None) for ms, mm in places])
    front = [places[i] for i in found]
    assert front == sorted(front) and len(set(front)) == len(front)
    for i, (ms, mm) in enumerate(places):
        beaten = any(a <= ms and b <= mm and (a, b) != (ms, mm) for a, b in places)
        assert (i in found) == (not beaten and (ms, mm) not in places[:i])


def test_the_rounding_of_an_engine_is_no_better_error() -> None:
    slow, fast = (
        Point("", "fp32", 0, 12.9, 190.6993945, None, None),
        Point("", "fp32", 0, 12.1, 190.6993977, None, None),
    )
    assert not_dominated([slow, fast]) == [1]


def test_the_plots_are_of_what_was_measured(tmp_path: Path) -> None:
    report = made_report()
    text = svg("a", lambda path: plot_run_latency(path, report))
    for entry in report["precisions"].values():
        for stage in ("network", "end_to_end"):
            for key in ("p50_ms", "p95_ms"):
                assert f">{entry['latency'][stage][key]:.3g}<" in text
    with_calls = text.count("<path")
    for entry in report["precisions"].values():
        for stage in entry["latency"].values():
            del stage["samples_ms"]
    assert svg("b", lambda path: plot_run_latency(path, report)).count("<path") == with_calls - 4  # a density of each
    old = second_report()
    for entry in old["precisions"].values():
        entry["latency"]["network"]["p99_ms"] = entry["latency"]["network"]["intervals"]["p50_ms"] = None
    plot_run_latency(tmp_path / "a.png", old)
    two = [Point("x", "fp32", 0, 3.0, 60.0, (2.0, 4.0), (59.0, 61.0)), Point("y", "new", 1, 5.0, 70.0, None, None)]
    assert ">x<" in svg("c", lambda path: plot_accuracy_front(path, two))
    subjects = {"ours": (np.arange(1.0, 50.0), "#0072B2"), "theirs": (np.arange(1.0, 90.0), "#555555")}
    assert ">theirs<" in svg("d", lambda path: plot_distributions(path, "t", subjects))


def test_joints_lie_on_the_shipped_body() -> None:
    template = body_of("h36m14")
    assert template is not None and body_of("freihand21") is None and body_of("h36m14", Path("none")) is None
    picture, places = body_at_rest(template, "h36m14")
    height, width = picture.shape[:2]
    assert picture.dtype == np.uint8 and places.shape == (14, 2)
    for x, y in places.round().astype(int):
        assert 0 <= x < width and 0 <= y < height and picture[y, x, 3] > 0
    assert picture[0, 0, 3] == 0 and 0.1 < (picture[..., 3] > 0).mean() < 0.5
    joints = dict(zip(H36M14.names, places, strict=True))
    assert joints["right_hip"][0] < width / 2 < joints["left_hip"][0]  # it faces us
    assert joints["head_top"][1] < joints["neck"][1] < joints["right_knee"][1] < joints["right_ankle"][1]


def test_the_joints_of_a_result_with_a_body_and_without() -> None:
    report = made_report()
    panels = joint_panels(report)
    assert [(title, change) for title, _, change in panels] == [
        ("fp32: mean error, mm", False),
        ("int8: mm lost", True),
    ]
    change = report["precisions"]["int8"]["accuracy"]["per_joint"]["neck"]["change_mm"]
    assert panels[1][1]["neck"] == change and list(panels[0][1]) == list(H36M14.names)
    drawn = svg("a", lambda path: plot_joints(path, report, body_of("h36m14")))
    assert drawn.count("<image") >= 2 and drawn.count(f">{change:+.2f}<") == 14
    bars = svg("b", lambda path: plot_joints(path, report, None))
    assert "<image" not in bars and "right ankle" in bars and "mm lost" in bars


def test_markdown_becomes_html() -> None:
    text = "# A\n\n**b** and `c<d`\nmore\n\n| x | n |\n| --- | ---: |\n| a\\|b | 1 |\n\n"
    text += "- one\n  two\n- three\n\n![p](q.png)\n"
    assert [block.kind for block in to_blocks(text)] == ["heading", "paragraph", "table", "list"]
    assert to_html(text, level=3) == (
        "<h3>A</h3>\n<p><strong>b</strong> and <code>c&lt;d</code> more</p>\n"
        '<div class="scroll" tabindex="0"><table>\n'
        '<thead><tr><th scope="col">x</th><th class="number" scope="col">n</th></tr></thead>\n'
        '<tbody>\n<tr><td>a|b</td><td class="number">1</td></tr>\n</tbody>\n</table></div>\n'
        "<ul>\n<li>one two</li>\n<li>three</li>\n</ul>"
    )
    assert inline("[words](http://example.com)") == "words"


@given(st.text(alphabet="ab<>&\"'`*|-#![]() \n\\:", max_size=80))
def test_no_text_becomes_a_tag_of_its_own(text: str) -> None:
    page = Page(to_html(text))
    assert page.trouble == []
    assert set(page.tags) <= {"p", "ul", "li", "code", "strong", "div", "table", "thead", "tbody", "tr", "th", "td",
                              "h1", "h2", "h3", "h4", "h5", "h6"}  # fmt: skip
    assert {name for _, name, _ in page.attributes} <= {"class", "scope", "tabindex"}


@pytest.mark.parametrize("count", [1, 3])
def test_new_figures_have_columns(count: int) -> None:
    assert np.size(new_figure(4, 2, columns=count)[1]) == count


def test_a_strangers_words_and_file_names_stay_text(tmp_path):
    bad = '<img src=x onerror="alert(1)"> & worse'
    shown = "&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp; worse"
    absent = picture_html(tmp_path / "<b>gone.png", bad)
    assert absent == f'<p class="absent">{shown}: its picture &lt;b&gt;gone.png is not beside the result.</p>'
    (tmp_path / "<i>none.png").write_bytes(b"no picture")
    assert (
        picture_html(tmp_path / "<i>none.png", bad)
        == f'<p class="absent">{shown}: &lt;i&gt;none.png is not a picture.</p>'
    )
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
    figure = picture_html(tmp_path / "a.png", bad)
    assert figure.count(shown) == 2 and "<img src=x" not in figure and 'width="6" height="4"' in figure
