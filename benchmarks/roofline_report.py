"""A roofline as Markdown and as a picture; see benchmarks.roofline for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import NONE, markdown_table
from benchmarks.tables import SHOWN_DIGITS
from engines.quantize.plots import COLOURS, new_figure, save_figure

SHOWN_LAYERS = 15
DEVICE_HEADER = (
    "device", "precision", "peak TOPS", "GB/s", "least ms", "bound by", "layer by layer ms", "layers bound by memory",
    "their share of the time", "compared",
)  # fmt: skip


def roofline_markdown(report: Mapping[str, Any], picture: str = "") -> str:
    """Return the tables of a roofline, with a link to its picture when that has a name."""
    bundle, total, batch = report["bundle"], report["total"], report["batch"]
    images = "1 image" if batch == 1 else f"{batch} images"
    moved = ", ".join(f"{precision} {value / 1e6:.1f} MB" for precision, value in total["bytes"].items())
    least = ", ".join(f"{precision} {value / 1e6:.1f} MB" for precision, value in total["least_bytes"].items())
    title = f"# Roofline of {bundle['name']}"
    measured = any(entry.get("measured") for entry in report["devices"].values())
    head = f"**Predictions from published peaks, {images} a call. No device was timed.**"
    if measured:
        head = (
            f"**Predictions from peaks, published or measured as said below, {images} a call. No network was timed.**"
        )
    notes = [
        f"- Network: {total['macs'] / 1e9:.3f} G multiply-adds for one image in {len(report['layers'])} layers. Bytes "
        f"of a call, layer by layer: {moved}; constants, inputs and outputs alone: {least}.",
        "- Least: the larger of all operations at the peak, and constants, inputs and outputs at the bandwidth; layer "
        "by layer: sum of the larger of both for each layer, with activations going through memory.",
        f"- Assumed: {report['assumptions']}.",
        "- Peaks are dense, of the GPU alone. Compared: whether they were compared with the source below; the others "
        "are from general knowledge of that document.",
        f"- Counted in the FP32 graph, SHA-256 `{bundle['onnx_sha256'][:SHOWN_DIGITS]}`; metro-edge "
        f"{report['metro_edge']}; {report['created']}.",
        f"- Again: `{report['command']}`",
    ]
    sources = [f"- {entry['title']}: {entry['source']}" for entry in report["devices"].values()]
    parts = [title, head, _device_table(report), "\n".join(notes)]
    parts += [f"![Roofline, least time per device]({picture})"] if picture else []
    parts += [f"## The {min(SHOWN_LAYERS, len(report['layers']))} layers with the most multiply-adds"]
    parts += [_layer_table(report), "All layers are in the JSON file.", "## Sources of the peaks", "\n".join(sources)]
    return "\n\n".join(parts) + "\n"


def _device_table(report: Mapping[str, Any]) -> str:
    rows = []
    for entry in report["devices"].values():
        for precision, time in entry["precisions"].items():
            peak, compared = entry["peaks_tops"][precision], "yes" if entry["checked"] else "no"
            start = [entry["title"], precision, NONE if peak is None else f"{peak:g}", f"{entry['bandwidth_gbs']:g}"]
            if time is None:
                rows.append([*start, *[NONE] * 5, compared])
                continue
            layers = f"{time['memory_layers']} of {len(report['layers'])}"
            times = [f"{time['least_ms']:.3g}", time["bound"], f"{time['layered_ms']:.3g}", layers]
            rows.append([*start, *times, f"{time['memory_share']:.0%}", compared])
    return markdown_table(DEVICE_HEADER, rows, text_columns=("device", "precision", "bound by", "compared"))


def _layer_table(report: Mapping[str, Any]) -> str:
    precisions = list(report["total"]["bytes"])
    largest = sorted(report["layers"], key=lambda layer: -layer["macs"])[:SHOWN_LAYERS]
    header = (
        "layer",
        "kind",
        "M multiply-adds",
        *(f"{p} kB" for p in precisions),
        *(f"{p} ops/byte" for p in precisions),
    )
    rows = [
        [layer["name"], layer["kind"], f"{layer['macs'] / 1e6:.2f}",
         *(f"{layer['bytes'][p] / 1e3:.0f}" for p in precisions),
         *(f"{layer['intensity'][p]:.1f}" for p in precisions)]
        for layer in largest
    ]  # fmt: skip
    return markdown_table(header, rows, text_columns=("layer", "kind"))


def plot_roofline(path: Path, report: Mapping[str, Any]) -> None:
    """Write a picture: the layers under the roofs of the first device, and the least times of all devices.

    Raises:
        MissingExtraError: no matplotlib.
    """
    devices = list(report["devices"].values())
    figure, (above, below) = new_figure(9, 6 + 0.42 * len(devices), rows=2)
    figure.get_layout_engine().set(hspace=0.04)
    above.get_gridspec().set_height_ratios([5, 1 + 0.42 * len(devices)])
    _plot_roofs(above, report, devices[0])
    _plot_devices(below, report, devices)
    save_figure(figure, path)


def _plot_roofs(axes: Any, report: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Draw what each layer can reach at most on one device, the larger the more multiply-adds."""
    counted = [layer for layer in report["layers"] if layer["macs"]]
    most = max((layer["macs"] for layer in counted), default=1)
    for precision, time in entry["precisions"].items():
        if time is None:
            continue
        peak, slope = entry["peaks_tops"][precision], entry["bandwidth_gbs"] / 1e3
        places = [max(layer["intensity"][precision], 1e-3) for layer in counted]
        span = np.geomspace(min([0.1, *places]), max([1000.0, 2 * time["ridge"], *places]), 400)
        colour = COLOURS[precision]
        axes.plot(
            span, np.minimum(span * slope, peak), color=colour, linewidth=1.4, label=f"{precision}, {peak:g} TOPS"
        )
        reach = [min(place * slope, peak) for place in places]
        sizes = [8 + 90 * layer["macs"] / most for layer in counted]
        axes.scatter(places, reach, s=sizes, facecolors="none", edgecolors=colour, linewidths=0.9, zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte, batch " + str(report["batch"]))
    axes.set_ylabel("TOPS at most")
    axes.set_title(f"{report['bundle']['name']} on {entry['title']}: predicted, each circle a layer")
    axes.legend(fontsize=9, frameon=False, loc="upper left")


def _plot_devices(axes: Any, report: Mapping[str, Any], devices: list[Mapping[str, Any]]) -> None:
    """Draw the least times as bars and those layer by layer as marks behind them."""
    precisions = list(report["total"]["bytes"])
    height = 0.8 / len(precisions)
    for place, entry in enumerate(devices):
        for order, precision in enumerate(precisions):
            if (time := entry["precisions"][precision]) is None:
                continue
            y = place + (order - (len(precisions) - 1) / 2) * height
            label = f"{precision}, least" if place == 0 else None
            axes.barh(y, time["layered_ms"], height, color=COLOURS[precision], alpha=0.3)
            axes.barh(y, time["least_ms"], height, color=COLOURS[precision], label=label)
    axes.set_xscale("log")
    axes.set_yticks(range(len(devices)), [entry["title"] for entry in devices], fontsize=8)
    axes.set_ylim(len(devices) - 0.4, -0.6)
    axes.set_xlabel("predicted ms of a call: least (full colour), layer by layer (pale)")
    # Bars have no zero on a logarithmic axis: the shortest keeps half of its length's room.
    times = [time["least_ms"] for entry in devices for time in entry["precisions"].values() if time is not None]
    axes.set_xlim(left=min(times) / 2 if times else None)
    axes.legend(fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(precisions))
