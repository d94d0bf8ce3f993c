"""The frame of a page: what is text stays text, whoever wrote it."""

from __future__ import annotations

from benchmarks.html.leaderboard import leaderboard_html
from benchmarks.html.page import Section, page_html
from benchmarks.html.reading import read_result
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
