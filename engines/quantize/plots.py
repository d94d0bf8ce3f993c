"""The two pictures of a report: loss against time, and what each layer loses by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metro_edge.errors import MissingExtraError
from metro_edge.files import replacing

# Colours that stay apart for colour-blind readers (Okabe and Ito, "Color Universal Design", 2008).
COLOURS = {"int8": "#0072B2", "fp8": "#009E73", "fp16": "#E69F00", "fp32": "#555555"}
CHOSEN, OTHER, LINE = "#D55E00", "#9AA5B1", "#333333"
BARS = 40


def colour_of(name: str) -> str:
    """Return the colour of a precision, also where the name of an engine stands behind it."""
    return COLOURS.get(name.partition(" ")[0], OTHER)


def plot_front(path: Path, report: Mapping[str, Any]) -> None:
    """Write a picture of all measured mixes, mm against ms, with the front, the budget and the chosen mix."""
    from engines.quantize.report import NAMES, front, time_of

    figure, axes = new_figure(8, 5)
    metric, trials = report["metric"], report["trials"]
    points = [(time_of(t), t[f"{metric}_mm"]) for t in trials]
    timed = [p for p, t in zip(points, trials, strict=True) if t["ms"] is not None]
    others = [p for p, t in zip(points, trials, strict=True) if t["ms"] is None]
    kind = "predicted" if report["speed"]["predicted"] else "measured"
    if others:
        axes.scatter(*zip(*others, strict=True), s=26, facecolors="none", edgecolors=OTHER, label="expected time only")
    axes.scatter(*zip(*timed, strict=True), s=34, color=OTHER, label=f"{kind} time", zorder=2)
    along = [points[i] for i in front(trials, metric)]
    axes.step(*zip(*along, strict=True), where="post", color=LINE, linewidth=1.2, zorder=3, label="front")
    axes.scatter(*zip(*along, strict=True), s=34, color=LINE, zorder=4)
    for place, trial in zip(points, trials, strict=True):
        if trial["best"]:
            axes.scatter(*place, s=170, marker="*", color=CHOSEN, zorder=6, label="chosen")
        if trial["origin"].startswith("all ") or trial["origin"] == "default layers":
            axes.annotate(trial["origin"], place, xytext=(6, 6), textcoords="offset points", fontsize=9)
    budget = report["settings"]["max_loss_mm"]
    axes.axhline(budget, color=CHOSEN, linestyle="--", linewidth=1, label=f"budget {budget:g} mm")
    values = [loss for _, loss in points]
    if max(values) > 4 * budget:
        axes.set_yscale("symlog", linthresh=budget)
        axes.set_ylim(min(*values, 0.0) - 0.1 * budget, max(values) * 1.6)
    axes.set_xlabel(f"ms for one image, {_short(report['speed']['label'])}")
    axes.set_ylabel(f"{NAMES[metric]} lost, mm" if metric != "moved" else f"{NAMES[metric]}, mm")
    axes.set_title(f"{report['network']['name']}: mixes of precisions")
    axes.legend(fontsize=9, frameon=False)
    save_figure(figure, path)


def plot_sensitivity(path: Path, report: Mapping[str, Any]) -> None:
    """Write bars of the distance that each layer moves the mesh by itself, the largest, in the order of the network."""
    from engines.quantize.report import NAMES

    items = [item for item in report["sensitivity"] if item["alone"]]
    kinds = [kind for kind in COLOURS if items and kind in items[0]["alone"]]
    largest = sorted(items, key=lambda item: -max(loss["moved_mm"] for loss in item["alone"].values()))[:BARS]
    shown = [item for item in items if item in largest]
    figure, axes = new_figure(8, 1.6 + 0.2 * max(len(shown), 4))
    chosen = report["best"]["layers"]
    for place, item in enumerate(shown):
        for offset, kind in enumerate(kinds):
            loss = item["alone"][kind]
            height = 0.8 / len(kinds)
            y = place + (offset - (len(kinds) - 1) / 2) * height
            axes.barh(y, loss["moved_mm"], height, color=COLOURS[kind], label=kind if place == 0 else None)
        became = {chosen[name] for name in item["layers"]} - {kinds[0]}
        if became:
            end = max(loss["moved_mm"] for loss in item["alone"].values())
            words = f"kept {', '.join(sorted(became))}"
            axes.annotate(words, (end, place), xytext=(4, -3), textcoords="offset points", fontsize=7, color=CHOSEN)
    axes.set_yticks(range(len(shown)), [_short(item["name"], 46) for item in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_xlabel(f"{NAMES['moved']}, mm, with this layer alone in lower precision")
    # In two lines: the names at the left leave little room, and a long title ran out of the picture.
    axes.set_title(f"{report['network']['name']}\nthe {len(shown)} of {len(items)} that move the mesh most")
    if kinds and shown:
        axes.legend(fontsize=9, frameon=False, loc="lower right")
    save_figure(figure, path)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure of some inches and its axes, an array of them for more than one row or column.

    Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("matplotlib", "train", "draw the plots of a report") from None
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns)
    for each in figure.axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
        each.set_axisbelow(True)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, or as SVG where the path ends so, by way of a temporary file."""
    with replacing(path) as partial:
        figure.savefig(partial, metadata={"Date" if path.suffix == ".svg" else "Software": None})


def _short(text: str, length: int = 70) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
