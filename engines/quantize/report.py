"""The report of a search: report.json, report.md and two plots, from one dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.quantize.calibration import WORDS
from engines.quantize.plots import plot_front, plot_sensitivity
from metro_edge.files import output_folder, write_bytes, write_json

SHOWN = 15  # layers in the table of the dearest
NAMES = {"mpjpe": "MPJPE", "mpvpe": "MPVPE", "moved": "distance from FP32"}


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, report.md, front.png and sensitivity.png; raises UserError when the folder cannot be used."""
    output_folder(folder)
    write_json(folder / "report.json", report)
    plot_front(folder / "front.png", report)
    plot_sensitivity(folder / "sensitivity.png", report)
    write_bytes(folder / "report.md", markdown(report).encode())


def front(trials: Sequence[Mapping[str, Any]], metric: str) -> list[int]:
    """Return which trials no other one beats in both time and loss, fastest first.

    Timed trials are compared with each other; where none is, expected times are.
    """
    timed = [i for i, t in enumerate(trials) if t["ms"] is not None] or list(range(len(trials)))
    found: list[int] = []
    for i in sorted(timed, key=lambda i: (time_of(trials[i]), trials[i][f"{metric}_mm"])):
        if not found or trials[i][f"{metric}_mm"] < trials[found[-1]][f"{metric}_mm"]:
            found.append(i)
    return found


def time_of(trial: Mapping[str, Any]) -> float:
    """Return a trial's time in ms, the expected one where it was not timed."""
    return float(trial["estimate_ms"] if trial["ms"] is None else trial["ms"])


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown, with links to the plots beside it."""
    parts = [_head(report), _mixes(report), _calibration(report), _sensitivity(report), _chosen(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    best, samples, metric = report["best"], report["samples"], report["metric"]
    counts = ", ".join(f"{count} {precision}" for precision, count in best["counts"].items() if count)
    search, proof = samples["search"], samples["proof"]
    lost, proven = best["lost"], best["proof"]
    kind = "predicted" if report["speed"]["predicted"] else "measured"
    budget = f"{report['settings']['max_loss_mm']:g} mm of {NAMES[metric]}"
    lines = [
        f"# {report['network']['name']}: the fastest mix within {budget}",
        f"**{best['times_as_fast']:.2f} times as fast as FP32** ({kind}): {best['ms']:.3g} against "
        f"{best['fp32_ms']:.3g} ms; {report['speed']['label']}. Layers: {counts}.",
        "| samples | count | FP32 | MPJPE lost | MPVPE lost | moved |\n| --- | --- | --- | --- | --- | --- |\n"
        + _loss_row(f"searched on: {search['data']}", search, lost)
        + "\n"
        + _loss_row(f"never seen by the search: {proof['data']}", proof, proven),
        "Losses are in mm, more than FP32 errs on the same samples, with standard errors; below 0 it errs less. Moved: "
        "mean distance from the FP32 mesh.",
    ]
    if report["speed"]["predicted"]:
        lines.append(f"Times are predicted, not measured: {report['speed']['assumptions']}.")
    return "\n\n".join(lines)


def _loss_row(name: str, samples: Mapping[str, Any], loss: Mapping[str, Any]) -> str:
    exact = ", ".join(f"{NAMES[metric]} {value:.1f} mm" for metric, value in samples["fp32"].items()) or "no truth"
    cells = [_with_error(loss, metric) for metric in ("mpjpe", "mpvpe", "moved")]
    return f"| {name} | {samples['count']} | {exact} | {' | '.join(cells)} |"


def _mixes(report: Mapping[str, Any]) -> str:
    trials, metric = report["trials"], report["metric"]
    best_ones = front(trials, metric)
    precisions = list(report["best"]["counts"])
    head = ["", *precisions, "MPJPE lost", "MPVPE lost", "moved", "expected ms", "ms", "from"]
    rows = []
    for i in sorted(range(len(trials)), key=lambda i: time_of(trials[i])):
        trial = trials[i]
        mark = "**chosen**" if trial["best"] else "front" if i in best_ones else ""
        cells = [mark, *(str(trial["layers"][p]) for p in precisions)]
        cells += [_number(trial[f"{name}_mm"]) for name in ("mpjpe", "mpvpe", "moved")]
        cells += [f"{trial['estimate_ms']:.3g}", "" if trial["ms"] is None else f"{trial['ms']:.3g}", trial["origin"]]
        rows.append(cells)
    return "## Mixes that were measured\n\n![mm against time](front.png)\n\n" + _table(head, rows)


def _calibration(report: Mapping[str, Any]) -> str:
    about = report["calibration"]
    compared = [row for row in about.get("compared", []) if row["loss"]]
    text = f"## Calibration\n\n{about['data']}, {about['samples']} samples; method {about['method']}"
    text += ", smoothed" if about.get("smoothed") else ""
    text += f", weights {WORDS[about['rounding']]}." if "rounding" in about else "."
    if not compared:
        return text
    rows = [
        [
            row["method"],
            row["graph"],
            WORDS[row["weights"]],
            *(_with_error(row["loss"], name) for name in ("mpjpe", "mpvpe", "moved")),
        ]
        for row in compared
    ]
    head = ["method", "graph", "weights", "MPJPE lost", "MPVPE lost", "moved"]
    return f"{text} The default layers in {report_kind(report)}:\n\n{_table(head, rows)}"


def report_kind(report: Mapping[str, Any]) -> str:
    """Return the quantised type of a report."""
    return next((p for p in report["settings"]["precisions"] if p != "fp16"), "fp16")


def _sensitivity(report: Mapping[str, Any]) -> str:
    rows = []
    for item in report["sensitivity"]:
        for precision, loss in item["alone"].items():
            rows.append((item["expected_mm"][precision], [item["name"], precision, *_cells(loss)], item["macs"]))
    if not rows:
        return ""
    rows.sort(key=lambda row: -row[0])
    table = [[*cells, f"{expected:.4f}", f"{macs / 1e6:.1f}"] for expected, cells, macs in rows[:SHOWN]]
    head = ["layer", "in", "MPJPE lost", "MPVPE lost", "moved", "expected", "M multiply-adds"]
    text = f"The {len(table)} of {len(rows)} that cost most; all are in report.json."
    return f"## Each by itself, the rest in FP32\n\n![sensitivity](sensitivity.png)\n\n{text}\n\n{_table(head, table)}"


def _cells(loss: Mapping[str, Any]) -> list[str]:
    return [_with_error(loss, name) for name in ("mpjpe", "mpvpe", "moved")]


def _chosen(report: Mapping[str, Any]) -> str:
    kinds: dict[str, list[str]] = {}
    for layer, precision in report["best"]["layers"].items():
        kinds.setdefault(precision, []).append(f"`{layer}`")
    smallest = sorted(kinds.items(), key=lambda entry: len(entry[1]))
    *listed, (most, _) = smallest
    lines = [f"- {precision}: {', '.join(names)}" for precision, names in listed]
    return "\n".join(["## Precision of each layer", "", *lines, f"- {most}: all others"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _with_error(loss: Mapping[str, Any], metric: str) -> str:
    value, error = loss[f"{metric}_mm"], loss[f"{metric}_error_mm"]
    return "unknown" if value is None else f"{value:.3f} ± {error:.3f}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
