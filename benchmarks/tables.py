"""Results as Markdown: our table, the published one, and their place in a README."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.detail_tables import details_markdown
from benchmarks.markdown import NONE, ends, markdown_table, number
from benchmarks.published import COLLECTED_IN, PROTOCOLS, PUBLISHED
from metro_edge.errors import UserError
from metro_edge.files import reason, write_bytes
from metro_edge.machine import machine_line

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
SHOWN_DIGITS = 12  # of a SHA-256
HEADER = (
    "precision",
    "network p50 ms",
    "p95 ms",
    "x FP32",
    "frame to body p50 ms",
    "p95 ms",
    "x FP32",
    "MPJPE mm",
    "PA-MPJPE mm",
    "MPVPE mm",
    "moved from FP32 mm",
    "MPJPE change mm",
)
INTERVALS_HEADER = (
    "precision",
    "network x FP32",
    "frame to body x FP32",
    "MPJPE mm",
    "PA-MPJPE mm",
    "MPVPE mm",
    "MPJPE change mm",
    "its p95",
    "its worst (sample)",
)
PUBLISHED_HEADER = (
    "method",
    "Human3.6M MPJPE",
    "Human3.6M PA-MPJPE",
    "3DPW MPVPE",
    "3DPW MPJPE",
    "3DPW PA-MPJPE",
    "paper",
)


def report_markdown(report: dict[str, Any], details: bool = True, published: bool = True) -> str:
    """Return our table, what was measured and how, and the published table below; see benchmarks.report.

    Without `details` it has neither intervals nor what is beyond the first table, as a README wants it.
    """
    device = report["device"]
    title = f"**{report['bundle']['name']}, measured on {device['processor']}: {device['name']}**"
    rows = [_row(precision, entry) for precision, entry in report["precisions"].items()]
    notes = "\n".join(f"- {note}" for note in _notes(report, details))
    parts = [title, markdown_table(HEADER, rows)]
    if details and report["schema_version"] > 1:
        level = f"{report['intervals']['level']:.0%}"
        rows = [_interval_row(precision, entry) for precision, entry in report["precisions"].items()]
        parts += [f"Intervals of {level} of these figures", markdown_table(INTERVALS_HEADER, rows)]
    if details and (text := details_markdown(report)):
        parts.append(text)
    return "\n\n".join([*parts, notes, *([published_markdown()] if published else [])]) + "\n"


def published_markdown() -> str:
    """Return the table of published results, which says that it is not comparable."""
    rows = [
        [
            entry.method,
            *(
                number(value, 1)
                for value in (
                    entry.h36m_mpjpe_mm,
                    entry.h36m_pa_mpjpe_mm,
                    entry.dpw_mpvpe_mm,
                    entry.dpw_mpjpe_mm,
                    entry.dpw_pa_mpjpe_mm,
                )
            ),
            entry.paper,
        ]
        for entry in PUBLISHED
    ]
    table = markdown_table(PUBLISHED_HEADER, rows, text_columns=("method", "paper"))
    return (
        "**Published results, of other data sets: not comparable with the table above** (mm)\n\n"
        f"{table}\n\n"
        f"- Figures as reported by the papers and collected in {COLLECTED_IN}. {PROTOCOLS}.\n"
        "- None of these methods was run here, and our network was not run on these data sets."
    )


def insert_into_readme(path: str | os.PathLike[str], markdown: str) -> None:
    """Replace what stands between the two markers of a README by `markdown`, atomically.

    Doing it twice changes nothing. Raises UserError unless the file is readable text with each marker once, in order.
    """
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    try:
        replaced = between_markers(text, markdown)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # Through a link, the file that it names is what changes.
    write_bytes(Path(path).resolve(), replaced.encode())


def between_markers(text: str, markdown: str) -> str:
    """Return `text` with `markdown` between BEGIN and END; raises UserError unless each is there once, in order."""
    begin, end = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or end < begin:
        raise UserError(f"the lines {BEGIN} and {END} must be there once each, in this order")
    if BEGIN in markdown or END in markdown:
        raise UserError("the table itself holds a marker")
    newline = "\r\n" if "\r\n" in text else "\n"
    body = markdown.strip().replace("\n", newline)
    return newline.join([text[: begin + len(BEGIN)], body, text[end:]])


def _row(precision: str, entry: dict[str, Any]) -> list[str]:
    cells = [precision]
    for stage in ("network", "end_to_end"):
        latency = entry["latency"][stage]
        ratio = latency["ratio_to_fp32"]
        cells += [_ms(latency["p50_ms"]), _ms(latency["p95_ms"]), number(ratio and ratio["median"], 2)]
    accuracy = entry["accuracy"]
    cells += [number(accuracy[key], 1) for key in ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm")]
    change = accuracy["against_fp32"] or {}
    return [*cells, number(change.get("moved_mm"), 2), number(change.get("mpjpe_change_mm"), 2, signed=True)]


def _interval_row(precision: str, entry: dict[str, Any]) -> list[str]:
    accuracy = entry["accuracy"]
    change = accuracy["against_fp32"] or {"intervals": {}}
    ratios = [entry["latency"][stage]["ratio_to_fp32"] or {} for stage in ("network", "end_to_end")]
    cells = [precision, *(ends(ratio.get("interval"), 2) for ratio in ratios)]
    cells += [ends(accuracy["intervals"][key], 1) for key in ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm")]
    cells += [ends(change["intervals"].get(key), 2, signed=True) for key in ("mpjpe_change_mm", "mpjpe_change_p95_mm")]
    worst = number(change.get("mpjpe_change_worst_mm"), 1, signed=True)
    return [*cells, worst if worst == NONE else f"{worst} ({change['mpjpe_change_worst_sample']})"]


def _notes(report: dict[str, Any], details: bool) -> list[str]:
    latency, accuracy, device = report["latency"], report["accuracy"], report["device"]
    threads = "threads: the engine's choice" if device["threads"] is None else f"threads: {device['threads']}"
    hashes = ", ".join(f"{p} `{h[:SHOWN_DIGITS]}`" for p, h in report["bundle"]["onnx_sha256"].items())
    engines = "; ".join([device["engine"], *(f"{name}: {words}" for name, words in device.get("beside", {}).items())])
    notes = [
        f"Latency on {device['processor']} ({engines}, {threads}), {latency['runs']} calls of each after "
        f"{latency['warmup']} to warm up. {latency['protocol']}.",
        f"Accuracy: {accuracy['samples']} samples, {accuracy['data']}; {accuracy['protocol']}.",
    ]
    if any(entry["accuracy"]["against_fp32"] for entry in report["precisions"].values()):
        notes.append(
            "Against FP32, paired per sample: mean distance of the vertices from FP32's, each mesh centred on its "
            "root; mean change of the MPJPE."
        )
    if details and (bootstrap := report.get("intervals")):
        notes.append(
            f"Intervals: bootstrap, {bootstrap['resamples']} resamples, seed {bootstrap['seed']}, over samples for "
            "errors (paired for changes) and over rounds for ratios; none for the worst sample or too few."
        )
    if details and report["schema_version"] > 2:
        notes.append(f"On the picture: {accuracy['reprojection']}.")
        notes += [
            f"{name}: {report[part]['protocol']}." for part, name in (("motion", "Motion"), ("crops", "Crops"))
            if report[part] is not None
        ]  # fmt: skip
    return [
        *notes,
        f"Machine: {machine_line(report['machine'])}; metro-edge {report['metro_edge']}; {report['created']}.",
        f"ONNX files, first {SHOWN_DIGITS} digits of the SHA-256: {hashes}.",
        f"Again: `{report['command']}`",
    ]


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
