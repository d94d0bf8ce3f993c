"""A comparison of engines as Markdown and as a picture; see benchmarks.against for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables import NONE, SHOWN_DIGITS, markdown_table
from engines.quantize.plots import COLOURS, OTHER, new_figure, save_figure
from metro_edge.machine import machine_line

SCHEMA_VERSION = 1
KIND = "metro-edge against"
HEADER = (
    "engine", "p50 ms", "p95 ms", "time, x reference", "95 % interval", "times as fast", "largest change", "worst mm",
)  # fmt: skip
OURS = "**"  # around our own


def against_markdown(report: Mapping[str, Any], picture: str | None = None) -> str:
    """Return the table, what was left out and how it was measured, with a link to the picture if there is one."""
    network, device = report["network"], report["device"]
    subjects = report["subjects"]
    measured = {name: entry for name, entry in subjects.items() if entry["skipped"] is None}
    skipped = [f"- Not measured: {entry['title']}: {entry['skipped']}." for entry in subjects.values()
               if entry["skipped"]]  # fmt: skip
    title = f"# {network['name']} against other engines"
    head = (
        f"**{device['processor']}: {device['name']}, {device['threads']} threads for every engine on the CPU; batch 1**"
    )
    parts = [title, head]
    if network["weights"] != "trained":
        parts.append(
            f"**Weights: {network['weights']}. Only latency and changes relative to the outputs mean anything; there "
            "are no millimetres.**"
        )
    parts += [markdown_table(HEADER, [_row(entry) for entry in measured.values()], text_columns=("engine",))]
    parts += ["\n".join([*skipped, *_notes(report)])]
    if picture:
        parts.append(f"![Time of each engine against {_reference(report)}]({picture})")
    return "\n\n".join(parts) + "\n"


def _row(entry: Mapping[str, Any]) -> list[str]:
    latency, ratio, moved = entry["latency"], entry["ratio"], entry["difference"]
    title = f"{OURS}{entry['title']}{OURS}" if entry["ours"] else entry["title"]
    if not entry["interleaved"]:
        title += " (timed by itself)"
    ends = ratio["interval"]
    p95 = latency["p95_ms"]
    return [
        title,
        _ms(latency["p50_ms"]),
        NONE if p95 is None else _ms(p95),
        f"{ratio['median']:.3f}",
        NONE if ends is None else f"{ends['low']:.3f} to {ends['high']:.3f}",
        f"{1 / ratio['median']:.2f}",
        f"{moved['relative']:.1e}",
        NONE if moved["worst_mm"] is None else f"{moved['worst_mm']:.3g}",
    ]


def _reference(report: Mapping[str, Any]) -> str:
    name: str = report["latency"]["reference"]
    return str(report["subjects"].get(name, {"title": name})["title"])


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _notes(report: Mapping[str, Any]) -> list[str]:
    network, latency, images = report["network"], report["latency"], report["images"]
    boot = report["intervals"]
    reference = _reference(report)
    groups = "; ".join(
        f"{len(group['subjects'])} subjects, blocks of {group['block']} calls after {group['uncounted']} uncounted"
        for group in latency["groups"]
    )
    hashes = ", ".join(f"{p} `{h[:SHOWN_DIGITS]}`" for p, h in network["onnx_sha256"].items())
    memory = report["peak_memory_mb"]
    notes = [
        f"- Reference: {reference}. {latency['protocol']}. {latency['rounds']} rounds: {groups}.",
        f"- Intervals: {boot['level']:.0%}, bootstrap over rounds, {boot['resamples']} resamples, seed {boot['seed']}.",
        "- Largest change: of a number of any output against PyTorch in FP32, as a share of the largest number of that "
        f"output; worst mm: of a vertex. {images['count']} images ({images['data']}).",
        f"- Engines: {'; '.join(dict.fromkeys(e['device'] for e in report['subjects'].values() if 'device' in e))}.",
        f"- INT8 calibrated on: {network['calibration']}. ONNX files: plain "
        f"`{network['plain_sha256'][:SHOWN_DIGITS]}`, {hashes}.",
    ]
    if len(latency["groups"]) > 1:
        notes.append(
            "- So large that a few engines at a time are open: each group alternates with the reference, whose own row "
            "is of the first group."
        )
    if memory is not None:
        notes.append(f"- Peak memory of the whole run: {memory / 1000:.1f} GB.")
    return [
        *notes,
        f"- Machine: {machine_line(report['machine'])}; metro-edge {report['metro_edge']}; {report['created']}.",
        f"- Again: `{report['command']}`",
    ]


def plot_against(path: Path, report: Mapping[str, Any]) -> None:
    """Write bars of how many times as fast as the reference each engine is, with its interval.

    Raises:
        MissingExtraError: no matplotlib.
    """
    entries = [entry for entry in report["subjects"].values() if entry["skipped"] is None]
    figure, axes = new_figure(9, 1.6 + 0.42 * len(entries))
    furthest = 1.0
    for place, entry in enumerate(entries):
        ratio = entry["ratio"]
        colour = COLOURS.get(entry["precision"], OTHER) if entry["ours"] else OTHER
        speed = 1 / ratio["median"]
        axes.barh(place, speed, 0.7, color=colour)
        end = speed
        if ends := ratio["interval"]:
            low, end = 1 / ends["high"], 1 / ends["low"]
            axes.plot([low, end], [place, place], color="#111111", linewidth=1.4)
        furthest = max(furthest, end)
        axes.annotate(
            f"{_ms(entry['latency']['p50_ms'])} ms", (end, place), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    axes.axvline(1, color="#333333", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(entries)), [entry["title"] for entry in entries], fontsize=9)
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * furthest)
    reference = _reference(report)
    axes.set_xlabel(f"times as fast as {reference} (line: 95 % interval)")
    axes.set_title(f"{report['network']['name']}, {report['device']['name']}, {report['device']['threads']} threads")
    save_figure(figure, path)
