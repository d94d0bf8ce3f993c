"""The joints of a result on the body at rest: a disc each, coloured and labelled by its error and by its loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.html.figures import INK
from engines.quantize.plots import COLOURS, OTHER, new_figure, save_figure
from metro_edge.errors import UserError
from metro_edge.raster import FAR_M, project, rasterise, vertex_normals
from metro_edge.template import BodyTemplate

HEIGHT_PX = 520
DISTANCE_M = 8.0  # from far away, so that little is foreshortened
MARGIN_M = 0.12
DISC = 80  # area, points squared
BODY = (0.62, 0.66, 0.72)  # grey that stands before light and dark
OPACITY = 0.75  # the labels of inner joints lie on it
PANEL_WH = (3.1, 4.6)  # inches
Panel = tuple[str, dict[str, float], bool]


def body_of(joint_set: str, bundle: Path | None = None) -> BodyTemplate | None:
    """Return the body of a bundle, by default the shipped one; None when it has no such joints or is not there."""
    from metro_edge.bundle import Bundle

    try:
        template = Bundle.load(bundle).template
    except UserError:
        return None
    return template if joint_set in template.regressors else None


def plot_joints(path: Path, report: Mapping[str, Any], template: BodyTemplate | None) -> None:
    """Write a picture: the error of each joint of the reference, and what each other precision loses, in mm.

    Args:
        path: of the file.
        report: a result of `run` of schema 3 or later.
        template: body to draw on, which has the result's joint set; None for bars.

    Raises:
        MissingExtraError: no matplotlib.
    """
    panels = joint_panels(report)
    if template is None:
        _plot_bars(path, panels)
        return
    picture, places = body_at_rest(template, report["accuracy"]["joint_set"])
    names = list(panels[0][1])
    # One scale for all changes, so that the same colour is the same loss.
    most = {flag: _most(values for _, values, change in panels if change == flag) for flag in (False, True)}
    width, height = PANEL_WH
    figure, axes = new_figure(width * len(panels), height, columns=len(panels))
    for one, panel in zip(np.atleast_1d(axes), panels, strict=True):
        _plot_panel(one, panel, picture, dict(zip(names, places, strict=True)), most[panel[2]])
    save_figure(figure, path)


def joint_panels(report: Mapping[str, Any]) -> list[Panel]:
    """Return title, joint -> mm and whether they are changes: of the first precision its errors, then all changes."""
    from metro_edge.joints import joint_set

    order = joint_set(report["accuracy"]["joint_set"]).names
    panels: list[Panel] = []
    for precision, entry in report["precisions"].items():
        joints = entry["accuracy"]["per_joint"]
        changes = {name: joints[name]["change_mm"] for name in order}
        if None not in changes.values():
            panels.append((f"{precision}: mm lost", changes, True))
        elif not panels:
            panels.append((f"{precision}: mean error, mm", {name: joints[name]["error_mm"] for name in order}, False))
    return panels


def body_at_rest(template: BodyTemplate, joint_set: str) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the body from the front, (H, W, 4) uint8 RGBA on nothing, and its joints there, (J, 2) px."""
    vertices = np.asarray(template.vertices, np.float64)
    low, high = vertices.min(axis=0) - MARGIN_M, vertices.max(axis=0) + MARGIN_M
    # Bodies at rest face the camera; the optical axis goes through the middle of the box around them.
    middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, -DISTANCE_M])
    focal = HEIGHT_PX * DISTANCE_M / (high[1] - low[1])
    size = int(np.ceil(HEIGHT_PX * (high[0] - low[0]) / (high[1] - low[1]))), HEIGHT_PX
    centre = (size[0] - 1) / 2, (size[1] - 1) / 2
    seen = vertices - middle
    shade = 0.45 + 0.55 * np.clip(-vertex_normals(vertices, template.faces)[:, 2:], 0, 1)
    colour, depth = rasterise(seen, template.faces, shade * np.array(BODY), focal, centre, size, cull_back=True)
    alpha = np.where(depth < FAR_M, OPACITY, 0.0).astype(np.float32)
    picture = np.concatenate([colour, alpha[..., None]], axis=2)
    joints = np.asarray(template.joints(joint_set, vertices), np.float64) - middle
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8), np.asarray(project(joints, focal, centre), np.float64)


def _most(panels: Iterable[Mapping[str, float]]) -> float:
    return max((abs(value) for values in panels for value in values.values()), default=0.0) or 1.0


def _plot_panel(
    axes: Any, panel: Panel, picture: NDArray[np.uint8], places: Mapping[str, NDArray[np.float64]], most: float
) -> None:
    title, values, change = panel
    middle = picture.shape[1] / 2
    axes.imshow(picture, interpolation="bilinear")
    limits = (-most, most) if change else (0.0, most)
    points = np.array([places[name] for name in values])
    discs = axes.scatter(
        points[:, 0], points[:, 1], s=DISC, c=list(values.values()), cmap="RdBu_r" if change else "YlOrRd",
        vmin=limits[0], vmax=limits[1], edgecolors=INK, linewidths=0.8, zorder=3,
    )  # fmt: skip
    for name, value in values.items():
        x, y = places[name]
        side = -1 if x < middle - 1 else 1
        words = f"{round(value, 2) + 0.0:+.2f}" if change else f"{value:.0f}"
        axes.annotate(
            words, (x, y), xytext=(7 * side, 0), textcoords="offset points", fontsize=9, va="center",
            ha="right" if side < 0 else "left", zorder=4,
        )  # fmt: skip
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()
    axes.set_xlim(-0.12 * picture.shape[1], 1.12 * picture.shape[1])
    axes.figure.colorbar(discs, ax=axes, orientation="horizontal", shrink=0.7, aspect=28, pad=0.01)


def _plot_bars(path: Path, panels: list[Panel]) -> None:
    """Draw the panels as bars: for joints of which no body is at hand."""
    names = list(panels[0][1])
    figure, axes = new_figure(3.1 * len(panels), 1.2 + 0.24 * len(names), columns=len(panels))
    for place, (one, (title, values, change)) in enumerate(zip(np.atleast_1d(axes), panels, strict=True)):
        one.barh(range(len(names)), list(values.values()), 0.7, color=COLOURS["int8"] if change else OTHER)
        words = [name.replace("_", " ") for name in names] if place == 0 else [""] * len(names)
        one.set_yticks(range(len(names)), words, fontsize=8)
        one.set_ylim(len(names) - 0.4, -0.6)
        one.set_title(title, fontsize=11)
    save_figure(figure, path)
