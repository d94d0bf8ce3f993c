"""The detailed part of a result (schema 3) as Markdown: joints, shares, the picture's plane, motion, crops, worst."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.markdown import ends, markdown_table, number

Report = dict[str, Any]
CROP_BOXES = {"true": "true box", "detected": "as a detector's", "whole_frame": "whole frame"}


def details_markdown(report: Report) -> str:
    """Return the tables of all that schema 3 added; empty for results of before."""
    if report["schema_version"] < 3:
        return ""
    tables = (_joints, _shares, _reprojection, _motion, _crops, _worst)
    return "\n\n".join(text for table in tables if (text := table(report)))


def _joints(report: Report) -> str:
    precisions = report["precisions"]
    header, rows = ["joint"], []
    for precision, entry in precisions.items():
        header += [f"{precision} mm", f"{precision} PA mm"]
        header += [f"{precision} change mm"] if entry["accuracy"]["against_fp32"] else []
    for joint in next(iter(precisions.values()))["accuracy"]["per_joint"]:
        cells = [joint.replace("_", " ")]
        for entry in precisions.values():
            row = entry["accuracy"]["per_joint"][joint]
            cells += [_with(row, "error", 1, unit="_mm"), number(row["pa_error_mm"], 1)]
            cells += [_with(row, "change", 2, signed=True, unit="_mm")] if entry["accuracy"]["against_fp32"] else []
        rows.append(cells)
    return "Error of each joint, root moved to the origin\n\n" + markdown_table(tuple(header), rows, ("joint",))


def _shares(report: Report) -> str:
    facts, names = report["accuracy"], ("pck", "auc", "pa_pck", "pa_auc")
    first, last, _ = facts["auc_mm"]
    titles = [name.upper().replace("_", "-") for name in names]
    header = ("precision", *(f"{title} %" for title in titles), *(f"{title} change" for title in titles[:2]))

    def cells(entry: dict[str, Any]) -> list[str]:
        shares = entry["accuracy"]["shares"]
        changes = [_with(shares, f"{name}_change", 2, True, 100.0) for name in names[:2]]
        return [*(_with(shares, name, 1, scale=100.0) for name in names), *changes]

    words = (
        f"Joints nearer than {facts['pck_mm']:g} mm (PCK), mean of that over thresholds from {first:g} to {last:g} mm "
        "(AUC), changes in points"
    )
    return f"{words}\n\n{_by_precision(report, header, cells)}"


def _reprojection(report: Report) -> str:
    if any(entry["accuracy"]["reprojection"] is None for entry in report["precisions"].values()):
        return ""
    header = ("precision", "px", "p95 px", "% of the box", "p95", "change px", "its p95", "change % of the box")

    def cells(entry: dict[str, Any]) -> list[str]:
        found = entry["accuracy"]["reprojection"]
        return [
            _with(found, "px", 2),
            _with(found, "px_p95", 1),
            _with(found, "box_share", 2, scale=100.0),
            _with(found, "box_share_p95", 1, scale=100.0),
            _with(found, "px_change", 3, True),
            _with(found, "px_change_p95", 2, True),
            _with(found, "box_share_change", 3, True, 100.0),
        ]

    words = "Distance on the picture between predicted and true joints, px of the full frame"
    return f"{words}\n\n{_by_precision(report, header, cells)}"


def _motion(report: Report) -> str:
    facts = report["motion"]
    if facts is None:
        return ""
    header = ("precision", "acceleration error mm/frame^2", "gain %", "jitter mm/frame^3", "gain %")

    def cells(entry: dict[str, Any]) -> list[str]:
        found, row = entry["motion"], []
        for name in ("acceleration_error", "jitter"):
            row += [_with(found, name, 1, unit="_mm"), _with(found, f"{name}_gain", 1, True, 100.0)]
        return row

    words = (
        f"People who move, unsmoothed: {facts['walks']} walks, {facts['frames']} frames at {facts['fps']:g} a second; "
        f"jitter of the truth {facts['true_jitter_mm']:.1f} mm/frame^3"
    )
    return f"{words}\n\n{_by_precision(report, header, cells)}"


def _crops(report: Report) -> str:
    facts = report["crops"]
    if facts is None:
        return ""
    header, rows = ["crop rule", "box"], []
    for precision, entry in report["precisions"].items():
        header += [f"{precision} MPJPE mm", f"{precision} change mm"]
        header += [f"{precision} against FP32 mm"] if entry["accuracy"]["against_fp32"] else []
    for crop in facts["crops"]:
        cells = [crop["crop_rule"], CROP_BOXES.get(crop["box"], crop["box"])]
        for entry in report["precisions"].values():
            row = entry["crops"][crop["name"]]
            cells += [number(row["mpjpe_mm"], 1), _with(row, "change", 1, True, unit="_mm")]
            cells += [_with(row, "against_fp32", 2, True, unit="_mm")] if entry["accuracy"]["against_fp32"] else []
        rows.append(cells)
    words = f"Other crops of the first {facts['samples']} samples, against the network's own from the true box"
    return f"{words}\n\n{markdown_table(tuple(header), rows, ('crop rule', 'box'))}"


def _worst(report: Report) -> str:
    lines = []
    for precision, entry in report["precisions"].items():
        if (worst := entry["worst"]) is None:
            continue
        text = (
            f"Worst of {precision} against FP32: sample {worst['sample']}, MPJPE {number(worst['mpjpe_mm'], 1)} mm "
            f"({number(worst['loss_mm'], 1, True)})"
        )
        lines.append(f"![{text}]({worst['picture']})\n{text}" if worst["picture"] else text)
    return "\n\n".join(lines)


def _by_precision(report: Report, header: tuple[str, ...], cells: Callable[[dict[str, Any]], list[str]]) -> str:
    rows = [[precision, *cells(entry)] for precision, entry in report["precisions"].items()]
    return markdown_table(header, rows)


def _with(row: dict[str, Any], name: str, digits: int, signed: bool = False, scale: float = 1.0, unit: str = "") -> str:
    """Return a figure with its interval, scaled."""
    value, around = row[f"{name}{unit}"], row[f"{name}_interval"]
    text = number(None if value is None else value * scale, digits, signed)
    if around is None:
        return text
    return f"{text} ({ends({end: limit * scale for end, limit in around.items()}, digits, signed)})"
