"""The plots of a page that no table's picture has: latency, accuracy against it, distributions, shares, kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from engines.quantize.plots import CHOSEN, COLOURS, LINE, colour_of, new_figure, save_figure

WIDTH = 7.2  # inches; narrow enough for a phone on its side
STAGE_NAMES = {"network": "network", "end_to_end": "frame to body"}
MARKERS = "osD^vP*X"
SAME_MM = 0.01
LABEL_HEIGHTS = (6, -14, 24, -32)  # points above a point


@dataclass(frozen=True)
class Point:
    """One precision of a result, as the front shows it.

    Attributes:
        label: of the point.
        precision: gives its colour.
        result: number of its result on the page, gives its mark.
        ms, mm: median of frame to body and mean error.
        ms_ends, mm_ends: their intervals; None where there are none.
    """

    label: str
    precision: str
    result: int
    ms: float
    mm: float
    ms_ends: tuple[float, float] | None
    mm_ends: tuple[float, float] | None


def not_dominated(points: Sequence[Point]) -> list[int]:
    """Return the indices, by time, of the points that no other beats: faster or as fast, and as exact or more.

    Errors closer than SAME_MM are alike: engines round, so that one network on two of them never errs quite the same.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].ms, points[i].mm))
    best, kept = float("inf"), []
    for i in order:
        if points[i].mm < best - SAME_MM:
            best = points[i].mm
            kept.append(i)
    return kept


def plot_accuracy_front(path: Path, points: Sequence[Point]) -> None:
    """Write a picture of error against time, with intervals, and the points that no other beats ringed and joined.

    Raises MissingExtraError without matplotlib.
    """
    figure, axes = new_figure(WIDTH, 4.4)
    for place, point in enumerate(sorted(points, key=lambda point: point.ms)):
        axes.errorbar(
            point.ms, point.mm, xerr=_around(point.ms, point.ms_ends), yerr=_around(point.mm, point.mm_ends),
            fmt=MARKERS[point.result % len(MARKERS)], color=colour_of(point.precision), markersize=7,
            capsize=3, linewidth=1.2, zorder=3,
        )  # fmt: skip
        # Above, below, and farther away in turns: several precisions of one error may lie side by side.
        axes.annotate(point.label, (point.ms, point.mm), xytext=(8, LABEL_HEIGHTS[place % len(LABEL_HEIGHTS)]),
                      textcoords="offset points", fontsize=9)  # fmt: skip
    front = [points[i] for i in not_dominated(points)]
    axes.plot([p.ms for p in front], [p.mm for p in front], color=LINE, linewidth=1, linestyle="--", zorder=2,
              drawstyle="steps-post")  # fmt: skip
    axes.scatter([p.ms for p in front], [p.mm for p in front], s=190, facecolors="none", edgecolors=CHOSEN,
                 linewidths=1.6, zorder=4, label="no other is faster and as exact")  # fmt: skip
    axes.set_xlabel("frame to body, median ms")
    axes.set_ylabel("MPJPE, mm")
    axes.margins(y=0.18)
    axes.set_xlim(0, 1.25 * max(point.ms for point in points))
    axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.12))
    save_figure(figure, path)


def _around(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    # An interval of a bootstrap may lie beside the figure by rounding; a bar cannot have a negative length.
    return None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]


def plot_run_latency(path: Path, report: Mapping[str, Any]) -> None:
    """Write a picture of the calls of each precision: least to p99 thin, p50 to p95 thick, both with intervals.

    Where the result keeps its calls (`samples_ms`) their density stands behind. Raises MissingExtraError without
    matplotlib.
    """
    from benchmarks.report import unpack_samples

    precisions = report["precisions"]
    figure, panels = new_figure(WIDTH, 1.7 + 0.9 * len(precisions), rows=len(STAGE_NAMES))
    furthest = 0.0
    for axes, (stage, words) in zip(panels, STAGE_NAMES.items(), strict=True):
        for place, (precision, entry) in enumerate(precisions.items()):
            figures, colour = entry["latency"][stage], colour_of(precision)
            if (packed := figures.get("samples_ms")) is not None:
                _violin(axes, place, unpack_samples(packed), colour)
            far = next((figures[k] for k in ("p99_ms", "p95_ms") if figures.get(k) is not None), figures["p50_ms"])
            furthest = max(furthest, far)
            axes.plot([figures.get("min_ms", figures["p50_ms"]), far], [place, place], color=colour, linewidth=1.2)
            if figures["p95_ms"] is not None:
                axes.plot([figures["p50_ms"], figures["p95_ms"]], [place, place], color=colour, linewidth=5,
                          solid_capstyle="butt", alpha=0.6)  # fmt: skip
            for key, mark in (("p50_ms", "o"), ("p95_ms", "s")):
                if figures[key] is None:
                    continue
                ends = (figures.get("intervals") or {}).get(key)
                error = _around(figures[key], ends and (ends["low"], ends["high"]))
                axes.errorbar(figures[key], place, xerr=error, fmt=mark, color=colour, markersize=6, capsize=4,
                              linewidth=1.4, markeredgecolor=LINE)  # fmt: skip
                axes.annotate(f"{figures[key]:.3g}", (figures[key], place), xytext=(0, 8 if mark == "o" else -14),
                              textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
        axes.set_yticks(range(len(precisions)), list(precisions))
        axes.set_ylim(len(precisions) - 0.4, -0.6)
        axes.set_title(f"{words}: circle p50, square p95", fontsize=10)
    for axes in panels:  # the same scale: a network is a part of its frame
        axes.set_xlim(0, 1.06 * furthest)
    panels[-1].set_xlabel("ms")
    save_figure(figure, path)


def _violin(axes: Any, place: float, samples: ArrayLike, colour: str) -> None:
    drawn = axes.violinplot([samples], positions=[place], orientation="horizontal", widths=0.85, showextrema=False)
    for body in drawn["bodies"]:
        body.set(facecolor=colour, edgecolor="none", alpha=0.25)


def plot_distributions(path: Path, title: str, subjects: Mapping[str, tuple[ArrayLike, str]]) -> None:
    """Write a picture of the share of calls within a time, p50 and p95 marked.

    Args:
        path: of the file.
        title: of the picture.
        subjects: label -> its calls in ms and its colour.

    Raises:
        MissingExtraError: no matplotlib.
    """
    figure, axes = new_figure(WIDTH, 3.6 + 0.13 * len(subjects))
    furthest, styles = 0.0, ("-", "--", "-.", ":")
    for place, (label, (samples, colour)) in enumerate(subjects.items()):
        calls = np.sort(np.asarray(samples, np.float64))
        share = np.arange(1, len(calls) + 1) / len(calls)
        axes.step(calls, share, styles[place % len(styles)], where="post", color=colour, linewidth=1.4, label=label)
        for q, mark in ((50, "o"), (95, "s")):
            axes.plot(np.percentile(calls, q), q / 100, mark, color=colour, markersize=6, markeredgecolor=LINE)
        furthest = max(furthest, float(np.percentile(calls, 99)))
    axes.set_xlim(0, 1.1 * furthest)  # one call that was held up would press all others together
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("ms of a call: circle p50, square p95")
    axes.set_ylabel("share of calls within")
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.2))
    save_figure(figure, path)


def plot_shares(path: Path, shares: Mapping[str, tuple[float, str]]) -> None:
    """Write bars of predicted to measured time, label -> share and precision.

    Raises MissingExtraError without matplotlib.
    """
    figure, axes = new_figure(WIDTH, 1.4 + 0.4 * len(shares))
    for place, (share, precision) in enumerate(shares.values()):
        axes.barh(place, 100 * share, 0.65, color=colour_of(precision))
        axes.annotate(f"{share:.1%}", (100 * share, place), xytext=(5, 0), textcoords="offset points", va="center",
                      fontsize=9)  # fmt: skip
    axes.axvline(100, color=LINE, linestyle="--", linewidth=1)
    axes.set_xlim(0, max(112.0, *(112 * share for share, _ in shares.values())))
    axes.set_yticks(range(len(shares)), list(shares), fontsize=9)
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.set_xlabel("least time, predicted, as a share of the measured one, %")
    save_figure(figure, path)


def plot_kernels(path: Path, report: Mapping[str, Any]) -> None:
    """Write bars of the time of each kernel, for each number of people, with the time of its twin as a mark.

    Raises MissingExtraError without matplotlib.
    """
    rows = report["rows"]
    figure, axes = new_figure(WIDTH, 1.4 + 0.24 * len(rows))
    for place, row in enumerate(rows):
        axes.barh(place, row["gpu_us"], 0.7, color=COLOURS["int8"], label="GPU, median" if place == 0 else None)
        axes.plot([row["gpu_us"], row["gpu_p95_us"]], [place, place], color=LINE, linewidth=1.4)
        axes.plot(row["cpu_us"], place, "D", color=COLOURS["fp16"], markersize=5,
                  label="its twin on the CPU, median" if place == 0 else None)  # fmt: skip
    words = [f"{row['name']}, {row['people']}" for row in rows]
    axes.set_yticks(range(len(rows)), words, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlabel("us (line: to p95); behind the name: people")
    axes.legend(fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    save_figure(figure, path)
