"""Load as Markdown and as a picture; see benchmarks.load for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.load import offered
from benchmarks.markdown import NONE, markdown_table
from benchmarks.stages_report import STAGE_COLOURS, common_notes, doubt_lines, ms
from engines.quantize.plots import new_figure, save_figure

PERCENTILES = ("p50_ms", "p95_ms", "p99_ms", "worst_ms")
PERCENTILE_NAMES = ("p50 ms", "p95 ms", "p99 ms", "worst ms")


def load_markdown(report: Mapping[str, Any], picture: str | None = None) -> str:
    """Return the tables of a report, with a link to its picture when that has a name."""
    device, given = report["device"], report["settings"]
    title = f"# Load on {report['bundle']['name']}\n\n" if picture else ""
    parts = [
        f"{title}**{report['bundle']['name']} {report['precision']}, cameras before one engine on "
        f"{device['processor']}: {device['name']}**",
        *doubt_lines(report["state"]["doubts"]),
    ]
    if report["closed"]:
        parts += ["Closed loop: each camera waits for its answer", _closed_table(report)]
    if report["open"]:
        parts += [f"Open loop: frames are due by plan ({given['arrivals']})", _open_table(report)]
    if report["breaking"]:
        parts += [
            f"Largest rate of each camera at which at most {given['allowed']:.0%} of the frames are dropped or late",
            _breaking_table(report),
        ]
    parts += [f"![Latency against load]({picture})"] if picture else []
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in _notes(report))]) + "\n"


def _closed_table(report: Mapping[str, Any]) -> str:
    rows = [
        [str(row["cameras"]), f"{row['per_s']:.1f}", *(ms(row[key]) for key in PERCENTILES)] for row in report["closed"]
    ]
    return markdown_table(("cameras", "frames a second, all", *PERCENTILE_NAMES), rows)


def _open_table(report: Mapping[str, Any]) -> str:
    rows = [
        [str(row["cameras"]), f"{row['rate_hz']:g}", f"{row['offered_per_s']:g}", f"{row['per_s']:.1f}",
         *(ms(row[key]) for key in PERCENTILES), f"{row['dropped']} of {row['frames']}",
         NONE if row["share"] is None else f"{row['share']:.1%}"]
        for row in report["open"]
    ]  # fmt: skip
    header = ("cameras", "Hz of each", "offered a second", "answered a second", *PERCENTILE_NAMES, "dropped", "missed")
    return markdown_table(header, rows)


def _breaking_table(report: Mapping[str, Any]) -> str:
    rows = []
    for row in report["breaking"]:
        low, high = row["largest_hz"], row["breaks_hz"]
        cells = [NONE if value is None else f"{value:.1f}" for value in (low, high)]
        total = NONE if low is None else f"{low * row['cameras']:.1f}"
        rows.append([str(row["cameras"]), *cells, total, str(len(row["probes"]))])
    return markdown_table(("cameras", "largest Hz", "breaks at Hz", "frames a second, all", "probes"), rows)


def _notes(report: Mapping[str, Any]) -> list[str]:
    given, source = report["settings"], report["source"]
    width, height = source["frame_wh"]
    waiting = "1 frame" if given["queue"] == 1 else f"{given['queue']} frames"
    notes = [
        f"{report['protocol']}.",
        f"Source: {source['name']}, {width} x {height}. Each cell takes {given['seconds']:g} s, of which the first "
        f"{given['warm_s']:g} s are not counted; seed {given['seed']}.",
        f"Of each camera {waiting} may wait; one more drops its oldest, as live sources do. Percentiles are of frames "
        f"that were answered; missed are those dropped or later than {given['deadline_ms']:g} ms.",
    ]
    if report["breaking"]:
        notes.append(
            f"The largest rate is searched by bisection until the rates around it lie within {given['tolerance']:.0%}; "
            "a dash: every rate missed, or none did."
        )
    return [*notes, *common_notes(report)]


def plot_load(path: Path, report: Mapping[str, Any]) -> None:
    """Write a picture: p95 and p50 against the offered load, and missed frames against it, probes of the search too.

    Raises MissingExtraError without matplotlib.
    """
    figure, (above, below) = new_figure(9, 7, rows=2)
    counts = sorted({row["cameras"] for kind in ("closed", "open", "breaking") for row in report[kind]})
    for count, colour in zip(counts, (STAGE_COLOURS[3], *STAGE_COLOURS[4:], *STAGE_COLOURS), strict=False):
        name = "1 camera" if count == 1 else f"{count} cameras"
        rows = [row for row in offered(report["open"], count) if row["p95_ms"] is not None]
        places = [row["offered_per_s"] for row in rows]
        above.plot(places, [row["p95_ms"] for row in rows], "o-", color=colour)
        above.plot(places, [row["p50_ms"] for row in rows], "o:", color=colour, markersize=3)
        for row in offered(report["closed"], count):
            above.plot(row["per_s"], row["p50_ms"], "s", color=colour, fillstyle="none")
        points = [(row["offered_per_s"], row["share"]) for row in offered(report["open"], count)]
        probes = [probe for row in offered(report["breaking"], count) for probe in row["probes"]]
        points += [(count * p["rate_hz"], p["missed"] / p["frames"]) for p in probes if p["frames"]]
        points = sorted(point for point in points if point[1] is not None)
        below.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=name) if points else None
    deadline = report["settings"]["deadline_ms"]
    above.axhline(deadline, color="#333333", linestyle="--", linewidth=1, label=f"deadline {deadline:g} ms")
    above.set_ylabel("ms from when a frame is due")
    above.set_title(
        f"{report['bundle']['name']} {report['precision']} on {report['device']['processor']}: "
        f"{report['device']['name']}\nfull: p95, dotted: p50, square: closed loop's p50"
    )
    below.axhline(report["settings"]["allowed"], color="#333333", linestyle="--", linewidth=1, label="allowed")
    below.set_ylabel("share dropped or late")
    below.set_ylim(-0.02, 1.02)
    limits = [limit for axes in (above, below) for limit in axes.get_xlim()]
    for axes in (above, below):
        axes.set_xlabel("frames a second offered, all cameras")
        axes.set_xscale("log")
        axes.set_xlim(max(min(limits), 1.0), max(limits))
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    above.set_ylim(bottom=0)
    save_figure(figure, path)
