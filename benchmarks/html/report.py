"""`python -m benchmarks html`: results of any kind as one page, each kind in a section of its own."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import roofline
from benchmarks.html import plots
from benchmarks.html.convert import to_blocks, to_html
from benchmarks.html.figures import figure_html, plain
from benchmarks.html.kinds import KINDS, RUN, Kind, groups, guarded
from benchmarks.html.leaderboard import run_table
from benchmarks.html.page import Section, page_html
from benchmarks.html.reading import Result, read_result
from benchmarks.html.shares import least_shares, shares_markdown
from metro_edge import __version__
from metro_edge.errors import UserError
from metro_edge.files import write_bytes


def write_html(paths: Sequence[Path], output: Path, mixed: bool = False, command: str = "") -> None:
    """Write the page of some results, in the order given.

    Args:
        paths: of JSON files.
        output: of the page.
        mixed: permit results of one kind whose data or protocols differ; they are told apart, and never in one table.
        command: what gives the page again.

    Raises:
        UserError: a file that is no result, incomplete, given twice, or of another schema; results that differ in data
            or protocol, without `mixed`; a page that cannot be written.
        MissingExtraError: no matplotlib.
    """
    write_bytes(output, html_of([read_result(path) for path in paths], mixed, command).encode())


def html_of(results: Sequence[Result], mixed: bool = False, command: str = "") -> str:
    """Return the page of some results; see `write_html`."""
    if twice := [r for i, r in enumerate(results) if any(r.path.resolve() == s.path.resolve() for s in results[:i])]:
        raise UserError(f"{twice[0].path} is given twice")
    sections = []
    for kind in KINDS.values():
        found = [result for result in results if result.kind == kind.kind]
        if kind.kind == roofline.KIND and (share := _shares(results)) is not None:
            sections.append(share)
        if found:
            sections.append(_section(kind, found, mixed))
    count = "1 result" if len(results) == 1 else f"{len(results)} results"
    again = f" Again: <code>{html.escape(command)}</code>" if command else ""
    lead = f'<p class="soft">{count}; page by metro-edge {html.escape(__version__)}.{again}</p>'
    return page_html("metro-edge benchmarks", lead, sections)


def _section(kind: Kind, results: list[Result], mixed: bool) -> Section:
    slug = kind.slug
    sorted_out = groups(kind, results)
    first = sorted_out[0][0]
    apart = [(group[0], "; ".join(kind.apart(first.data, group[0].data))) for group in sorted_out[1:]]
    if apart and not mixed:
        other, words = apart[0]
        raise UserError(
            f"{first.path} and {other.path} are not comparable: {words:.300}. --mixed shows them on one page all the "
            "same, each by itself"
        )
    parts = [f"<p>{html.escape(kind.about)}</p>"]
    if kind.prediction:
        mark = '<strong class="mark">Prediction</strong>'
        parts.append(f'<p class="warning">{mark} Nothing in this section is measured.</p>')
    parts += [
        f'<p class="warning">Not comparable: <code>{html.escape(first.name)}</code> and '
        f"<code>{html.escape(other.name)}</code>: {html.escape(words)}. They are in no table together.</p>"
        for other, words in apart
    ]
    numbers = {id(result): number for number, result in enumerate(results, start=1)}
    if kind.kind == RUN:
        for place, group in enumerate(sorted_out, start=1):
            parts += _runs_together(group, numbers, f"{slug}-group{place}")
    articles = tuple(
        guarded(result, partial(_article, kind, result, number, len(results)))
        for number, result in enumerate(results, start=1)
    )
    return Section(slug, kind.title, "\n".join(parts), articles)


def _article(kind: Kind, result: Result, number: int, count: int) -> Section:
    """Return the part of one result: facts of the file, its first table, how it was measured, figures, other tables."""
    anchor = f"{kind.slug}-{number}"
    blocks = to_blocks(kind.markdown(result.data, ""), level=4)
    table = next((i for i, block in enumerate(blocks) if block.kind == "table"), len(blocks) - 1)
    # How it was measured is the first list; elsewhere it may stand below all tables, here it stands by the numbers.
    rest = blocks[table + 1 :]
    place = next((i for i, block in enumerate(rest) if block.kind == "list"), len(rest))
    notes, others = rest[place : place + 1], rest[:place] + rest[place + 1 :]
    lines = [
        _facts(result),
        *(block.html for block in blocks[: table + 1]),
        *(block.html for block in notes),
        *kind.figures(result, anchor),
        *(block.html for block in others),
    ]
    title = kind.name(result.data)
    return Section(anchor, title if count == 1 else f"{number}. {title}", "\n".join(lines))


def _facts(result: Result) -> str:
    bundle = result.data.get("bundle")
    checkpoint = bundle.get("checkpoint") if isinstance(bundle, dict) else None
    hashed = f", checkpoint <code>{html.escape(str(checkpoint['sha256'])[:12])}</code>" if checkpoint else ""
    created = html.escape(str(result.data.get("created", "unknown time")))
    return f'<p class="soft">File <code>{html.escape(result.name)}</code>, {created}{hashed}</p>'


def _runs_together(group: Sequence[Result], numbers: dict[int, int], name: str) -> list[str]:
    """Return the front of comparable runs and, for several, their table."""
    points = [
        plots.Point(
            label=precision if len(numbers) == 1 else f"{numbers[id(result)]}: {precision}",
            precision=precision,
            result=numbers[id(result)] - 1,
            ms=entry["latency"]["end_to_end"]["p50_ms"],
            mm=entry["accuracy"]["mpjpe_mm"],
            ms_ends=_ends(entry["latency"]["end_to_end"].get("intervals"), "p50_ms"),
            mm_ends=_ends(entry["accuracy"].get("intervals"), "mpjpe_mm"),
        )
        for result in group
        for precision, entry in plain(result.data)["precisions"].items()
    ]
    words = "Error against time, with their intervals; ringed: no other point is faster and as exact"
    if len(numbers) > 1:
        words += "; numbers: of the results below"
    parts = [figure_html(f"{name}-front", words, partial(plots.plot_accuracy_front, points=points))]
    if len(group) > 1:
        parts.append(to_html(run_table(group, [str(numbers[id(result)]) for result in group])))
    return parts


def _ends(intervals: dict | None, key: str) -> tuple[float, float] | None:
    ends = (intervals or {}).get(key)
    return None if ends is None else (ends["low"], ends["high"])


def _shares(results: Sequence[Result]) -> Section | None:
    """Return the section of measured times as a share of the predicted least ones; None where none belong together."""
    found = least_shares(results)
    if not found:
        return None
    bars = {row.label: (row.share, row.precision) for row in found}
    draw = partial(plots.plot_shares, shares=bars)
    picture = figure_html("shares", "How much of the measured time the least possible one is", draw)
    return Section("shares", "Measured time and the least possible", f"{to_html(shares_markdown(found))}\n{picture}")
