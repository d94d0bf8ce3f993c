"""The frame of a page: what is text stays text, whoever wrote it."""

from __future__ import annotations

import json

from benchmarks.html.leaderboard import leaderboard_html
from benchmarks.html.page import Section, page_html
from benchmarks.html.reading import read_result
from benchmarks.html.report import html_of
from tests.benchmarks.conftest import made_report
from tests.benchmarks.html.pages import RESULTS, Page, check_contained

BAD = '<img src=x onerror="alert(1)"> & <b>'


def test_titles_are_text():
    part = Section("b", f"part {BAD}", "<p>part</p>")
    page = page_html(f"page {BAD}", "<p>lead</p>", [Section("a", f"section {BAD}", "<p>text</p>", (part,))])
    seen = Page(page)
    check_contained(seen)
    assert not seen.trouble and not seen.tags["img"] and not seen.tags["b"]
    shown = "&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp; &lt;b&gt;"
    counts = {name: page.count(f"{name} {shown}") for name in ("page", "section", "part")}
    assert counts == {"page": 2, "section": 2, "part": 2}


def test_the_command_of_a_leaderboard_is_text():
    result = read_result(next(RESULTS.glob("metro_edge-*.json")))
    page = leaderboard_html([result], f"python {BAD}")
    seen = Page(page)
    assert not seen.trouble and not seen.tags["img"] and "python &lt;img src=x" in page


def test_names_of_files_commands_and_what_differs_are_text(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.html.figures.svg", lambda name, draw: '<svg viewBox="0 0 1 1"></svg>')
    paths = []
    for letter in "ab":
        report = made_report()
        report["accuracy"]["protocol"] = f"by {letter} {BAD}"
        paths.append(tmp_path / f"<i>{letter}.json")
        paths[-1].write_text(json.dumps(report))
    text = html_of([read_result(path) for path in paths], mixed=True, command=f"python {BAD}")
    seen = Page(text)
    check_contained(seen)
    assert not seen.tags["img"] and not seen.tags["i"] and not seen.tags["b"]
    assert "python &lt;img src=x" in text and "&lt;i&gt;a.json" in text and "&lt;i&gt;b.json" in text
    assert "Not comparable" in text and text.count("by b &lt;img src=x") >= 2
