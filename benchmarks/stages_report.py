"""Stages as Markdown and as a picture; see benchmarks.stages for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine_state import state_line
from benchmarks.markdown import NONE, markdown_table
from benchmarks.report import unpack_samples
from benchmarks.stage_frames import CAPTURE_TO_MESH, CAPTURE_TO_PICTURE, STAGES
from benchmarks.tables import SHOWN_DIGITS
from engines.quantize.plots import COLOURS, new_figure, save_figure
from metro_edge.machine import machine_line

PERCENTILES = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "worst_ms")
NAMES = {CAPTURE_TO_MESH: "capture to mesh", CAPTURE_TO_PICTURE: "capture to picture"}
# Okabe and Ito's colours again, one a stage.
STAGE_COLOURS = ("#999999", "#56B4E9", "#F0E442", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")


def stages_markdown(report: Mapping[str, Any], picture: str | None = None) -> str:
    """Return the tables of a report, with a link to its picture when that has a name."""
    device = report["device"]
    title = f"# Stages of {report['bundle']['name']}\n\n" if picture else ""
    parts = [
        f"{title}**{report['bundle']['name']}, frame to mesh on {device['processor']}: {device['name']}**",
        *doubt_lines(report["state"]["doubts"]),
        _stage_table(report),
        _deadline_table(report),
        *([f"![Stages and distributions]({picture})"] if picture else []),
        "Throughput",
        *(_throughput_table(report, name) for name in ("batch", "people", "streams")),
        "Cold start, medians",
        _cold_table(report),
        *_plan_lines(report["plan"]),
        "\n".join(f"- {note}" for note in _notes(report)),
    ]
    return "\n\n".join(parts) + "\n"


def doubt_lines(doubts: Sequence[str]) -> list[str]:
    """Return a warning for a machine that was not quiet, none for one that was."""
    return [f"**Not a quiet machine: {'; '.join(doubts)}. Take these times with doubt.**"] if doubts else []


def common_notes(report: Mapping[str, Any]) -> list[str]:
    """Return what was measured with which engine, on which machine in which state, and the command."""
    device, state = report["device"], report["state"]
    threads = "the engine's choice" if device["threads"] is None else device["threads"]
    hashes = ", ".join(f"{p} `{h[:SHOWN_DIGITS]}`" for p, h in report["bundle"]["onnx_sha256"].items())
    return [
        f"Engine: {device['engine']}, threads: {threads}.",
        f"Machine: {machine_line(report['machine'])}; metro-edge {report['metro_edge']}; {report['created']}.",
        f"Before: {state_line(state['before'])}.",
        f"After: {state_line(state['after'])}.",
        f"ONNX files, first {SHOWN_DIGITS} digits of the SHA-256: {hashes}.",
        f"Again: `{report['command']}`",
    ]


def ms(value: float | None) -> str:
    """Return milliseconds with three digits or so, a dash for none."""
    if value is None:
        return NONE
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _stage_table(report: Mapping[str, Any]) -> str:
    rows = []
    for precision, entry in report["precisions"].items():
        stages = entry["stages"]
        for stage in (*STAGES, CAPTURE_TO_MESH, CAPTURE_TO_PICTURE):
            if (figures := stages[stage]) is None:
                rows.append([precision, stage.replace("_", " "), *[NONE] * 6])
                continue
            share = figures["mean_ms"] / stages[CAPTURE_TO_PICTURE]["mean_ms"]
            cells = [ms(figures[key]) for key in PERCENTILES]
            rows.append([precision, NAMES.get(stage, stage.replace("_", " ")), *cells, f"{share:.0%}"])
    header = ("precision", "stage", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "worst ms", "share of the picture's mean")
    return markdown_table(header, rows, text_columns=("precision", "stage"))


def _deadline_table(report: Mapping[str, Any]) -> str:
    rows = []
    for precision, entry in report["precisions"].items():
        deadline, whole = entry["deadline"], entry["stages"][CAPTURE_TO_MESH]["intervals"]
        ends = deadline["interval"]
        settled = f"after {entry['settled_after']}" if entry["settled"] else "no"
        rows.append(
            [precision, f"{deadline['ms']:.1f}", f"{deadline['missed']} of {deadline['frames']}",
             f"{deadline['share']:.1%}", NONE if ends is None else f"{ends['low']:.1%} to {ends['high']:.1%}",
             _ends(whole["p50_ms"]), _ends(whole["p95_ms"]), settled]
        )  # fmt: skip
    header = ("precision", "deadline ms", "missed", "share", "95 % interval", "p50 ms, interval", "p95 ms, interval",
              "settled")  # fmt: skip
    return markdown_table(header, rows, text_columns=("precision", "settled"))


def _ends(interval: Mapping[str, float] | None) -> str:
    return NONE if interval is None else f"{ms(interval['low'])} to {ms(interval['high'])}"


def _throughput_table(report: Mapping[str, Any], name: str) -> str:
    columns = {"batch": ("images_per_s",), "people": ("people_per_s", "frames_per_s"), "streams": ("frames_per_s",)}
    rows = [
        [precision, str(row[name]), ms(row["p50_ms"]), ms(row["p95_ms"]), *(f"{row[c]:.1f}" for c in columns[name])]
        for precision, entry in report["precisions"].items()
        for row in entry["throughput"][name]
    ]
    header = ("precision", name, "p50 ms", "p95 ms", *(c.replace("_per_s", " a second") for c in columns[name]))
    return markdown_table(header, rows)


def _cold_table(report: Mapping[str, Any]) -> str:
    keys = ("interpreter_ms", "import_ms", "bundle_ms", "session_ms", "first_inference_ms", "first_result_ms")
    rows = []
    for precision, entry in report["precisions"].items():
        found = entry["cold"]["median"]
        memory = [NONE if found[key] is None else f"{found[key]:.0f}" for key in ("host_peak_mb", "device_mb")]
        rows.append([precision, *(f"{found[key]:.0f}" for key in keys), ms(found["warm_ms"]), *memory])
    header = ("precision", "process ms", "import ms", "bundle ms", "session ms", "first inference ms",
              "first result ms", "warm ms", "host memory MB", "device memory MB")  # fmt: skip
    return markdown_table(header, rows)


def _plan_lines(plan: Mapping[str, Any] | None) -> list[str]:
    if plan is None:
        return []
    rows = [[p, f"{entry['build_s']:.1f}", f"{entry['plan_mb']:.1f}"] for p, entry in plan["precisions"].items()]
    where = "this machine's GPU" if plan["target"] is None else f"{plan['target']}, ahead of time"
    return [f"Building a plan with {plan['library']} for {where}", markdown_table(("precision", "s", "MB"), rows)]


def _notes(report: Mapping[str, Any]) -> list[str]:
    source, rule, found = report["source"], report["stability"], report["precisions"]
    width, height = source["frame_wh"]
    unsettled = [p for p, entry in found.items() if not entry["settled"]]
    settled = (
        f"Settled: p50 and p95 of the last {rule['windows']} windows of {rule['window']} frames within "
        f"{rule['within']:.0%}, after {rule['least']} to {rule['most']} frames; figures are of the frames from those "
        "windows on"
    )
    if unsettled:
        settled += f". {', '.join(unsettled)} did not settle: figures are of all frames there"
    starts = len(next(iter(found.values()))["cold"]["starts"])
    processes = "1 fresh process" if starts == 1 else f"{starts} fresh processes"
    return [
        f"Source: {source['name']}, {width} x {height}, one person, box: {source['boxes']}.",
        f"{report['protocol']}.",
        f"{settled}. The intervals are of 95 %, by the bootstrap over blocks of {report['intervals']['block']} frames.",
        f"Deadline: capture to mesh within a period of {report['rate_hz']:g} Hz.",
        "Throughput: batch, the network alone; people, from one frame in memory to their bodies; streams, as many "
        "estimators at once, each in a thread with an engine of its own.",
        f"Cold start: {processes} each, files in the system's cache; process is what the stages do not "
        "explain. Host memory is the most that was resident.",
        *common_notes(report),
    ]


def plot_stages(path: Path, report: Mapping[str, Any]) -> None:
    """Write a picture: the medians of the stages on one another, and how capture to mesh is distributed.

    Raises MissingExtraError without matplotlib.
    """
    found = report["precisions"]
    figure, (above, below) = new_figure(9, 4.2 + 0.5 * len(found), rows=2)
    above.get_gridspec().set_height_ratios([1.2 + 0.5 * len(found), 3.2])
    drawn: set[str] = set()
    for place, entry in enumerate(found.values()):
        start = 0.0
        for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True):
            if (figures := entry["stages"][stage]) is None:
                continue
            label = None if stage in drawn else stage.replace("_", " ")
            drawn.add(stage)
            above.barh(place, figures["p50_ms"], 0.6, left=start, color=colour, label=label)
            start += figures["p50_ms"]
    above.set_yticks(range(len(found)), list(found))
    above.set_ylim(len(found) - 0.4, -0.6)
    above.set_xlabel("median ms of each stage")
    above.set_title(f"{report['bundle']['name']} on {report['device']['processor']}: {report['device']['name']}")
    above.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.12))
    for precision, entry in found.items():
        figures = entry["stages"][CAPTURE_TO_MESH]
        samples = np.sort(unpack_samples(figures["samples_ms"])[entry["first"] :])
        share = np.arange(1, len(samples) + 1) / len(samples)
        below.step(samples, share, where="post", color=COLOURS.get(precision), label=precision)
        for key, height, mark in (("p50_ms", 0.5, "o"), ("p95_ms", 0.95, "s")):
            if figures[key] is not None:
                below.plot(figures[key], height, mark, color=COLOURS.get(precision), markersize=6)
    deadline = 1000.0 / report["rate_hz"]
    below.axvline(deadline, color="#333333", linestyle="--", linewidth=1, label=f"{report['rate_hz']:g} Hz")
    below.set_xlabel("capture to mesh, ms (circle p50, square p95)")
    below.set_ylabel("share of frames within")
    below.set_ylim(0, 1.02)
    # A single frame that was held up would press all others against the axis.
    slow = [entry["stages"][CAPTURE_TO_MESH] for entry in found.values()]
    below.set_xlim(0, 1.1 * max(deadline, *(figures["p99_ms"] or 2 * figures["p95_ms"] for figures in slow)))
    below.legend(fontsize=9, frameon=False, loc="lower right")
    save_figure(figure, path)
