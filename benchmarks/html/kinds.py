"""The kinds of results: how each becomes tables and figures, and what two of a kind must have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import against_report, energy, kernels_report, load, report, roofline, stages
from benchmarks.against_report import plot_against
from benchmarks.compare import differences
from benchmarks.energy_report import energy_markdown, plot_energy
from benchmarks.html import plots
from benchmarks.html.body_picture import body_of, plot_joints
from benchmarks.html.figures import figure_html, picture_html, plain
from benchmarks.html.reading import Result
from benchmarks.load_report import load_markdown, plot_load
from benchmarks.roofline_report import plot_roofline, roofline_markdown
from benchmarks.stages_report import plot_stages, stages_markdown
from benchmarks.tables import report_markdown
from engines.quantize.plots import OTHER, colour_of
from metro_edge.errors import UserError

Data = dict[str, Any]
RUN = report.KIND
LOAD_SETTINGS = ("seconds", "warm_s", "arrivals", "queue", "deadline_ms", "allowed")


@dataclass(frozen=True)
class Kind:
    """One kind of result.

    Attributes:
        kind: what the file says.
        title: of its section.
        about: what the section shows, in a sentence.
        versions: schemas that are read.
        name: of what was measured, and on what.
        markdown: tables and notes of a result, as its command printed them; some have a link to the picture of that
            name unless it is empty.
        figures: of a result; the text begins their names.
        apart: what forbids to read two results as one measurement, in words; empty for comparable ones.
        prediction: whether its figures are predicted.
    """

    kind: str
    title: str
    about: str
    versions: tuple[int, ...]
    name: Callable[[Data], str]
    markdown: Callable[[Data, str], str]
    figures: Callable[[Result, str], list[str]]
    apart: Callable[[Data, Data], list[str]]
    prediction: bool = False

    @property
    def slug(self) -> str:
        """Return the last word of `kind`, for anchors."""
        return self.kind.split()[-1]

    def check(self, result: Result) -> None:
        """Raise UserError unless the result is complete enough for its tables."""
        if self.kind == report.KIND:
            report.read_report(result.path)  # says what is missing
        guarded(
            result, lambda: (self.name(result.data), self.markdown(result.data, ""), self.apart(*2 * [result.data]))
        )


def guarded(result: Result, make: Callable[[], Any]) -> Any:
    """Return what `make` makes of a result; raises UserError where the result lacks what it needs."""
    try:
        return make()
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, StopIteration, ArithmeticError) as error:
        words = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"{result.path} is an incomplete {result.kind} result ({words:.120}): measure again") from None


def groups(kind: Kind, results: Sequence[Result]) -> list[list[Result]]:
    """Return the results sorted into groups that may be read as one measurement, in order."""
    found: list[list[Result]] = []
    for result in results:
        for group in found:
            if not kind.apart(group[0].data, result.data):
                group.append(result)
                break
        else:
            found.append([result])
    return found


def _on_device(data: Data) -> str:
    return f"{data['bundle']['name']} on {data['device']['name']}, {data['device']['backend']}"


def _facts(data: Data, *paths: str) -> dict[str, Any]:
    found = {}
    for path in paths:
        value: Any = data
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found[path] = value
    return found


def _apart_in(*paths: str) -> Callable[[Data, Data], list[str]]:
    """Return a comparison of the facts under some paths."""

    def apart(a: Data, b: Data) -> list[str]:
        pairs = zip(_facts(a, *paths).items(), _facts(b, *paths).values(), strict=True)
        return [f"{path.replace('.', ', ')} is {x} and {y}" for (path, x), y in pairs if x != y]

    return apart


def _runs_apart(a: Data, b: Data) -> list[str]:
    return [words for kind, words in differences(a, b).items() if kind != "machine"]


def _run_figures(result: Result, name: str) -> list[str]:
    data = plain(result.data)
    found = [
        figure_html(f"{name}-latency", "Time of a call of each precision; thin line: least to p99, thick: p50 to p95, "
                    "whiskers: intervals", partial(plots.plot_run_latency, report=data)),
    ]  # fmt: skip
    if result.data["schema_version"] < 3:
        return found
    template = body_of(result.data["accuracy"]["joint_set"])
    where = (
        "on the shipped body at rest, seen from the front (its right side is at the left)" if template else "as bars"
    )
    caption = f"Joints {where}: mean error, and what other precisions lose (+) or gain (-), mm"
    found.append(figure_html(f"{name}-joints", caption, partial(plot_joints, report=data, template=template)))
    for precision, entry in result.data["precisions"].items():
        if (worst := entry["worst"]) is not None and worst["picture"] is not None:
            words = f"Worst sample of {precision} against FP32: {worst['sample']}, {worst['loss_mm']:+.1f} mm"
            found.append(picture_html(result.path.parent / Path(worst["picture"]).name, words))
    return found


def _stages_figures(result: Result, name: str) -> list[str]:
    words = "Medians of the stages on one another, and the share of frames whose mesh is there within a time"
    return [figure_html(f"{name}-stages", words, partial(plot_stages, report=plain(result.data)))]


def _load_figures(result: Result, name: str) -> list[str]:
    words = (
        "Latency from when a frame is due, and the share of frames dropped or late, against the load that is offered"
    )
    return [figure_html(f"{name}-load", words, partial(plot_load, report=plain(result.data)))]


def _roofline_figures(result: Result, name: str) -> list[str]:
    draw = partial(plot_roofline, report=plain(result.data))
    return [figure_html(f"{name}-roofs", "Layers under the roofs of the first device, and the least times of all",
                        draw, prediction=True)]  # fmt: skip


def _against_figures(result: Result, name: str) -> list[str]:
    data = plain(result.data)
    words = "How many times as fast as the reference each engine is; line: interval"
    found = [figure_html(f"{name}-engines", words, partial(plot_against, report=data))]
    subjects = {
        entry["title"]: (report.unpack_samples(entry["samples_ms"]), _colour(entry))
        for entry in data["subjects"].values()
        if entry["skipped"] is None and entry["samples_ms"] is not None
    }
    if subjects:
        draw = partial(plots.plot_distributions, title=data["network"]["name"], subjects=subjects)
        found.append(figure_html(f"{name}-calls", "Share of the calls of each engine within a time", draw))
    return found


def _colour(entry: Mapping[str, Any]) -> str:
    return colour_of(entry["precision"]) if entry["ours"] else OTHER


def _energy_figures(result: Result, name: str) -> list[str]:
    words = "Power (thin: idle) and the hottest sensor over the run"
    return [figure_html(f"{name}-power", words, partial(plot_energy, report=plain(result.data)))]


def _kernels_figures(result: Result, name: str) -> list[str]:
    draw = partial(plots.plot_kernels, report=plain(result.data))
    return [figure_html(f"{name}-kernels", "Time of each CUDA kernel and of its twin on the CPU", draw)]


_KINDS = (
    Kind(
        report.KIND,
        "Latency and accuracy",
        "Latency and accuracy of every precision of a bundle, measured in one run.",
        report.READABLE,
        _on_device,
        lambda data, _: report_markdown(data, published=False),
        _run_figures,
        _runs_apart,
    ),
    Kind(
        stages.KIND,
        "Stages, throughput and cold start",
        "Where the time from the camera to the mesh goes, how it is distributed, throughput and the first result.",
        (stages.SCHEMA_VERSION,),
        _on_device,
        lambda data, _: stages_markdown(data),
        _stages_figures,
        _apart_in("protocol", "source.name", "source.frame_wh", "source.boxes", "rate_hz", "stability"),
    ),
    Kind(
        load.KIND,
        "Latency under load",
        "Several cameras before one engine: latency, dropped and late frames against the rate.",
        (load.SCHEMA_VERSION,),
        lambda data: f"{_on_device(data)}, {data['precision']}",
        lambda data, _: load_markdown(data),
        _load_figures,
        _apart_in("protocol", "source.name", "source.frame_wh", *(f"settings.{key}" for key in LOAD_SETTINGS)),
    ),
    Kind(
        against_report.KIND,
        "Against other engines",
        "One network on several engines in turns: PyTorch, plain exports, and metro-edge's own graphs.",
        (against_report.SCHEMA_VERSION,),
        lambda data: f"{data['network']['name']} on {data['device']['name']}",
        against_report.against_markdown,
        _against_figures,
        _apart_in("latency.protocol", "latency.reference"),
    ),
    Kind(
        energy.KIND,
        "Energy and heat",
        "Joules of a frame, heat, clocks and throttling, as the device's own sensors tell.",
        (energy.SCHEMA_VERSION,),
        _on_device,
        energy_markdown,
        _energy_figures,
        _apart_in("settings.protocol", "settings.fps", "device.power_mode"),
    ),
    Kind(
        kernels_report.KIND,
        "CUDA kernels",
        "Time of each CUDA kernel on a GPU, beside its twin on the CPU.",
        (kernels_report.SCHEMA_VERSION,),
        lambda data: f"{data['device']}",
        lambda data, _: kernels_report.kernels_markdown(data),
        _kernels_figures,
        lambda a, b: [],
    ),
    Kind(
        roofline.KIND,
        "Roofline",
        "The least time that the peaks of devices allow. The network was not timed; none of these figures is measured.",
        (roofline.SCHEMA_VERSION,),
        lambda data: f"{data['bundle']['name']}, batch {data['batch']}",
        roofline_markdown,
        _roofline_figures,
        _apart_in("assumptions"),
        prediction=True,
    ),
)
KINDS: Mapping[str, Kind] = MappingProxyType({entry.kind: entry for entry in _KINDS})


def read_run(path: Path) -> Result:
    """Read a result of `run`; raises UserError for anything else, as benchmarks.html.reading.read_result."""
    from benchmarks.html.reading import read_result

    result = read_result(path)
    if result.kind != RUN:
        raise UserError(f"{path} is a {result.kind}: expected a result of `python -m benchmarks run`")
    return result


def saved_markdown(path: str | os.PathLike[str], details: bool = True) -> str:
    """Return the Markdown of a saved result of any kind, with a link to the picture that lies beside it.

    Without `details`, that of `run` is its first table alone, as a README wants it.

    Raises:
        UserError: a file that is missing, none of these, incomplete or of another schema.
    """
    from benchmarks.html.reading import read_result

    result = read_result(Path(path))
    if result.kind == RUN:
        return report_markdown(result.data, details)
    picture = result.path.with_suffix(".png")
    return KINDS[result.kind].markdown(result.data, picture.name if picture.exists() else "")
