"""Energy and heat as Markdown and as a picture; see benchmarks.energy for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables import NONE, markdown_table
from metro_edge.machine import machine_line

HEADER = (
    "precision", "counted", "fps", "idle W", "mean W", "max W", "J a frame", "95 % interval", "above idle", "throttled",
)  # fmt: skip
HEAT_HEADER = ("precision", "sensor", "mean", "min", "max", "first", "last")
_UNITS = {"temperature_c": "°C", "clock_mhz": "MHz", "load": "in use"}


def energy_markdown(report: Mapping[str, Any], picture: str | None = None) -> str:
    """Return the tables of energy and heat and how they were measured, with a link to the picture if there is one."""
    device, settings = report["device"], report["settings"]
    mode = f", power mode {device['power_mode']}" if device["power_mode"] else ""
    title = f"# Energy of {report['bundle']['name']}"
    head = f"**{device['processor']}: {device['name']}{mode}, {device['backend']}**"
    entries = report["precisions"]
    rows = [row for precision, entry in entries.items() for row in _rows(precision, entry)]
    heat = [row for precision, entry in entries.items() for row in _heat_rows(precision, entry)]
    rate = "as fast as it goes" if settings["fps"] is None else f"{settings['fps']:g} frames a second asked for"
    scopes = dict.fromkeys(
        f"- {name}: {power['scope']}; energy {power['method']}"
        + (" by the device." if power["method"] == "counted" else " from power readings here.")
        for entry in entries.values()
        for name, power in entry["power"].items()
    )
    threads = "the engine's choice" if device["threads"] is None else device["threads"]
    notes = [
        *scopes,
        f"- {settings['seconds']:g} s each, {rate}, after {settings['idle_seconds']:g} s idle; readings every "
        f"{settings['interval_ms']} ms. {settings['protocol']}.",
        f"- Intervals: bootstrap over {settings['segments']} parts of the run in order; a run that warms up drifts, "
        "and they do not tell what another run would give.",
        *_throttling(entries),
        f"- Engines: {'; '.join(dict.fromkeys(entry['engine'] for entry in entries.values()))}; threads: {threads}.",
        f"- Machine: {machine_line(report['machine'])}; metro-edge {report['metro_edge']}; {report['created']}.",
        f"- Again: `{report['command']}`",
    ]
    parts = [title, head, markdown_table(HEADER, rows, text_columns=("precision", "counted", "throttled"))]
    if heat:
        parts.append(markdown_table(HEAT_HEADER, heat, text_columns=("precision", "sensor")))
    parts.append("\n".join(notes))
    if picture:
        parts.append(f"![Power and heat over the run]({picture})")
    return "\n\n".join(parts) + "\n"


def _rows(precision: str, entry: Mapping[str, Any]) -> list[list[str]]:
    flagged = "yes" if entry["throttling"]["flagged"] else "no"
    rows = []
    for name, power in entry["power"].items():
        ends = power["interval"]
        rows.append([
            precision, name, f"{entry['fps']:.1f}", f"{power['idle_w']:.2f}", f"{power['mean_w']:.2f}",
            NONE if power["max_w"] is None else f"{power['max_w']:.2f}", f"{power['joules_per_frame']:.4g}",
            NONE if ends is None else f"{ends['low']:.4g} to {ends['high']:.4g}",
            f"{power['joules_per_frame_above_idle']:.4g}", flagged,
        ])  # fmt: skip
    return rows


def _heat_rows(precision: str, entry: Mapping[str, Any]) -> list[list[str]]:
    return [
        [precision, f"{name}, {unit}", *(f"{values[key]:.4g}" for key in ("mean", "min", "max", "first", "last"))]
        for kind, unit in _UNITS.items()
        for name, values in entry[kind].items()
    ]


def _throttling(entries: Mapping[str, Any]) -> list[str]:
    throttled, late = [], []
    for precision, entry in entries.items():
        words = [f"{reason} in {share:.0%} of the readings" for reason, share in entry["throttling"]["reasons"].items()]
        if entry["throttling"]["slowed"]:
            words.append(f"frames took {entry['slowdown']:.2f} times as long at the end as at the beginning")
        if words:
            throttled.append(f"- **Throttled, {precision}:** {', '.join(words)}.")
        if entry["late_frames"]:
            late.append(f"- {precision}: {entry['late_frames']} of {entry['frames']} frames started late.")
    nothing = ["- No sign of throttling: no reason named, frames as fast at the end as at the beginning."]
    return [*(throttled or nothing), *late]


def plot_energy(path: Path, report: Mapping[str, Any]) -> None:
    """Write power and temperature over time, a line for each precision.

    Raises:
        MissingExtraError: no matplotlib.
    """
    from engines.quantize.plots import colour_of, new_figure, save_figure

    figure, (above, below) = new_figure(9, 6.5, rows=2)
    styles = ("-", "--", ":", "-.")
    for precision, entry in report["precisions"].items():
        colour = colour_of(precision)
        for style, (name, power) in zip(styles, entry["power"].items(), strict=False):
            series = entry["series"][name]
            rails = [series["power_w"][rail] for rail in power["total"] if rail in series["power_w"]]
            rails = rails or list(series["power_w"].values())
            total = [sum(values) for values in zip(*rails, strict=True) if None not in values]
            if len(total) == len(series["time_s"]):
                above.plot(series["time_s"], total, style, color=colour, linewidth=1.2, label=f"{precision}, {name}")
                above.axhline(power["idle_w"], color=colour, linewidth=0.7, alpha=0.6)
        hottest = max(entry["temperature_c"], key=lambda name: entry["temperature_c"][name]["max"], default=None)
        for series in entry["series"].values():
            if hottest in series["temperature_c"]:
                values = [float("nan") if value is None else value for value in series["temperature_c"][hottest]]
                below.plot(series["time_s"], values, color=colour, linewidth=1.2, label=f"{precision}, {hottest}")
                break
    above.set_ylabel("W (thin: idle)")
    above.set_ylim(bottom=0)
    above.set_title(f"{report['bundle']['name']} on {report['device']['name']}, {report['device']['backend']}")
    below.set_ylabel("°C, hottest sensor")
    below.set_xlabel("s from the first frame")
    for axes in (above, below):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9, frameon=False)
    save_figure(figure, path)
