"""What of each kind stands on the leaderboard: its columns, its rows and how it was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from benchmarks import against_report, energy, load, report, stages
from benchmarks.markdown import NONE, number
from benchmarks.stage_frames import CAPTURE_TO_MESH
from benchmarks.tables import SHOWN_DIGITS

Data = Mapping[str, Any]
HEAD = ("bundle", "checkpoint", "device", "backend", "precision")
TEXT_COLUMNS = ("no.", *HEAD, "network", "weights", "engine", "reader", "throttled", "quiet machine", "measured")


@dataclass(frozen=True)
class Row:
    """One line of a leaderboard.

    Attributes:
        key: bundle, device, backend, precision and what else tells rows apart; only the newest of a key is kept.
        group: rows of one group stand together: a network on a device.
        created: when it was measured, ISO 8601.
        rank: sorts within a group, the smallest first.
        cells: of the table.
    """

    key: tuple[str, ...]
    group: tuple[str, str]
    created: str
    rank: float
    cells: list[str]


@dataclass(frozen=True)
class Board:
    """The table of one kind.

    Attributes:
        header: of the table.
        rows: of one result.
        notes: how a group of comparable results was measured, a list.
    """

    header: tuple[str, ...]
    rows: Callable[[Data], list[Row]]
    notes: Callable[[Data], list[str]]


def ms(value: float | None) -> str:
    """Return milliseconds in three digits or so, a dash for none."""
    return NONE if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def mm(value: float | None) -> str:
    """Return millimetres in one digit, a dash for none."""
    return number(value, 1)


def _row(data: Data, precision: str, rank: float, cells: list[str], *more: str) -> Row:
    """Return a row of a result with the usual head (benchmarks.common.header)."""
    device, machine, bundle = data["device"], data["machine"], data["bundle"]
    cores = f", {machine['cores']} cores" if device["processor"] == "CPU" else ""
    threads = "" if device["threads"] is None else f", {device['threads']} threads"
    precision, _, other = precision.partition(" ")  # of a further backend, see benchmarks.report
    where, engine = f"{device['name']}{cores}", f"{other or device['backend']}{threads}"
    head = [bundle["name"], f"`{bundle['checkpoint']['sha256'][:SHOWN_DIGITS]}`", where, engine, precision]
    key = (bundle["name"], where, engine, precision, *more)
    return Row(key, (where, bundle["name"]), data["created"], rank, [*head, *cells, data["created"][:10]])


def _with(value: float | None, entry: Data, key: str, write: Callable[[float | None], str]) -> str:
    """Return a figure and its interval, where there is one."""
    ends = (entry.get("intervals") or {}).get(key)
    return write(value) if ends is None else f"{write(value)} ({write(ends['low'])} to {write(ends['high'])})"


def _quiet(data: Data) -> str:
    return "no" if data["state"]["doubts"] else "yes"


def _run_rows(data: Data) -> list[Row]:
    rows = []
    for precision, entry in data["precisions"].items():
        latency, accuracy = entry["latency"], entry["accuracy"]
        whole, lost = latency["end_to_end"], (accuracy["against_fp32"] or {}).get("mpjpe_change_mm")
        cells = [
            ms(latency["network"]["p50_ms"]),
            _with(whole["p50_ms"], whole, "p50_ms", ms),
            ms(whole["p95_ms"]),
            _with(accuracy["mpjpe_mm"], accuracy, "mpjpe_mm", mm),
            mm(accuracy["pa_mpjpe_mm"]),
            mm(accuracy["mpvpe_mm"]),
            number(lost, 2, signed=True),
        ]
        rows.append(_row(data, precision, whole["p50_ms"], cells))
    return rows


def _run_notes(data: Data) -> list[str]:
    latency, accuracy = data["latency"], data["accuracy"]
    return [
        f"Accuracy: {accuracy['samples']} samples, {accuracy['data']}; {accuracy['protocol']}.",
        f"Latency: {latency['protocol']}.",
        "Change: of the MPJPE against FP32, paired. In brackets: intervals of 95 %.",
    ]


def _stages_rows(data: Data) -> list[Row]:
    rows = []
    for precision, entry in data["precisions"].items():
        whole, deadline = entry["stages"][CAPTURE_TO_MESH], entry["deadline"]
        most = max((row["frames_per_s"] for row in entry["throughput"]["streams"]), default=None)
        cells = [
            _with(whole["p50_ms"], whole, "p50_ms", ms),
            _with(whole["p95_ms"], whole, "p95_ms", ms),
            ms(whole["p99_ms"]),
            f"{deadline['share']:.1%} of {deadline['ms']:.1f} ms",
            number(most, 1),
            f"{entry['cold']['median']['first_result_ms']:.0f}",
            _quiet(data),
        ]
        rows.append(_row(data, precision, whole["p50_ms"], cells))
    return rows


def _stages_notes(data: Data) -> list[str]:
    source = data["source"]
    width, height = source["frame_wh"]
    return [
        f"Source: {source['name']}, {width} x {height}, one person, box: {source['boxes']}.",
        f"{data['protocol']}.",
        "Missed: frames whose mesh was later than one period of the rate. Streams: the most frames a second of all "
        "streams together. First result: from the start of a process, median of cold starts.",
    ]


def _load_rows(data: Data) -> list[Row]:
    rows = []
    for found in data["breaking"]:
        largest, cameras = found["largest_hz"], found["cameras"]
        total = None if largest is None else largest * cameras
        cells = [str(cameras), number(largest, 1), number(total, 1), _quiet(data)]
        rows.append(_row(data, data["precision"], cameras, cells, str(cameras)))
    return rows


def _load_notes(data: Data) -> list[str]:
    given = data["settings"]
    return [
        f"{data['protocol']}.",
        f"Largest rate of each camera at which at most {given['allowed']:.0%} of the frames are dropped or later than "
        f"{given['deadline_ms']:g} ms; {given['arrivals']} arrivals, {given['queue']} waiting of each camera.",
    ]


def _against_rows(data: Data) -> list[Row]:
    network, device = data["network"], data["device"]
    where = f"{device['name']}, {device['threads']} threads"
    rows = []
    for entry in data["subjects"].values():
        if entry["skipped"] is not None:
            continue
        ratio, title = entry["ratio"], f"**{entry['title']}**" if entry["ours"] else entry["title"]
        ends = ratio["interval"]
        faster = f"{1 / ratio['median']:.2f}"
        if ends is not None:
            faster += f" ({1 / ends['high']:.2f} to {1 / ends['low']:.2f})"
        head = [network["name"], network["weights"], where, title, entry["precision"]]
        cells = [*head, ms(entry["latency"]["p50_ms"]), ms(entry["latency"]["p95_ms"]), faster, data["created"][:10]]
        key = (network["name"], where, entry["title"], entry["precision"])
        rows.append(Row(key, (network["name"], where), data["created"], ratio["median"], cells))
    return rows


def _against_notes(data: Data) -> list[str]:
    latency = data["latency"]
    reference = data["subjects"][latency["reference"]]["title"]
    return [
        f"{latency['protocol']}.",
        f"Times as fast as {reference} in the same run, median over rounds, in brackets its interval; bold: ours. The "
        "weights are what the time does not depend on.",
    ]


def _energy_rows(data: Data) -> list[Row]:
    rows = []
    for precision, entry in data["precisions"].items():
        for reader, power in entry["power"].items():
            ends = power["interval"]
            joules = f"{power['joules_per_frame']:.4g}"
            if ends is not None:
                joules += f" ({ends['low']:.4g} to {ends['high']:.4g})"
            flagged = "yes" if entry["throttling"]["flagged"] else "no"
            cells = [reader, number(entry["fps"], 1), number(power["mean_w"], 2), joules,
                     f"{power['joules_per_frame_above_idle']:.4g}", flagged]  # fmt: skip
            rows.append(_row(data, precision, power["joules_per_frame"], cells, reader))
    return rows


def _energy_notes(data: Data) -> list[str]:
    settings = data["settings"]
    rate = "as fast as it goes" if settings["fps"] is None else f"{settings['fps']:g} frames a second"
    return [f"{settings['protocol']}.", f"{settings['seconds']:g} s each, {rate}."]


BOARDS: Mapping[str, Board] = MappingProxyType({
    report.KIND: Board(
        (*HEAD, "network p50 ms", "frame to body p50 ms", "p95 ms", "MPJPE mm", "PA-MPJPE mm", "MPVPE mm", "change mm",
         "measured"),
        _run_rows,
        _run_notes,
    ),
    stages.KIND: Board(
        (*HEAD, "capture to mesh p50 ms", "p95 ms", "p99 ms", "missed", "streams, frames a second", "first result ms",
         "quiet machine", "measured"),
        _stages_rows,
        _stages_notes,
    ),
    against_report.KIND: Board(
        ("network", "weights", "device", "engine", "precision", "p50 ms", "p95 ms", "times as fast", "measured"),
        _against_rows,
        _against_notes,
    ),
    energy.KIND: Board(
        (*HEAD, "reader", "fps", "mean W", "J a frame", "above idle", "throttled", "measured"),
        _energy_rows,
        _energy_notes,
    ),
    load.KIND: Board(
        (*HEAD, "cameras", "largest Hz of each", "frames a second, all", "quiet machine", "measured"),
        _load_rows,
        _load_notes,
    ),
})  # fmt: skip
