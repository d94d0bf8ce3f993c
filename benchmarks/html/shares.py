"""How near a measured network comes to the least time that its device allows: prediction over measurement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import report, roofline
from benchmarks.html.reading import Result
from benchmarks.markdown import markdown_table
from metro_edge.devices import device_of_gpu


@dataclass(frozen=True)
class Share:
    """One precision of a measured result.

    Attributes:
        label: result and precision.
        precision: of it.
        share: predicted least time over the measured median of the network alone.
        files: names of both files.
    """

    label: str
    precision: str
    share: float
    files: tuple[str, str]


def least_shares(results: Sequence[Result]) -> list[Share]:
    """Return the shares of all measured runs whose FP32 graph and device a prediction of one image has."""
    runs = [result for result in results if result.kind == report.KIND]
    found = []
    for run in runs:
        for predicted in (result for result in results if result.kind == roofline.KIND):
            for precision, share in _shares_of(run.data, predicted.data):
                name, _, other = precision.partition(" ")  # of a further backend, see benchmarks.report
                words = f"{run.data['bundle']['name']}, {other or run.data['device']['backend']}, {name}"
                number = f"{runs.index(run) + 1}: " if len(runs) > 1 else ""
                found.append(Share(f"{number}{words}", precision, share, (run.name, predicted.name)))
    return found


def shares_markdown(shares: Sequence[Share]) -> str:
    """Return the table of shares and what they are."""
    rows = [[row.label, f"{row.share:.1%}", *row.files] for row in shares]
    table = markdown_table(("network", "share", "measured in", "predicted in"), rows,
                           text_columns=("network", "measured in", "predicted in"))  # fmt: skip
    return (
        "A share of 100 % would mean that nothing is left to gain on this device in this precision. It is the least "
        "time of a **prediction** over the **measured** median of the network alone; neither time is in this "
        "table.\n\n"
        f"{table}\n\n"
        "- The prediction leaves out starting kernels and caches that keep constants between calls, so that a small "
        "network on a processor with a large cache may come beyond 100 %."
    )


def _shares_of(run: Mapping[str, Any], predicted: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    same = run["bundle"]["onnx_sha256"].get("fp32") == predicted["bundle"]["onnx_sha256"]
    if not same or predicted["batch"] != 1 or (entry := _device_of(run, predicted)) is None:
        return
    for precision, measured in run["precisions"].items():
        time, p50 = entry["precisions"].get(precision.partition(" ")[0]), measured["latency"]["network"]["p50_ms"]
        if time is not None and p50 > 0:
            yield precision, time["least_ms"] / p50


def _device_of(run: Mapping[str, Any], predicted: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the prediction's entry of the processor that a run was measured on."""
    device, machine = run["device"], run["machine"]
    if device["processor"] == "GPU":
        known = device_of_gpu(device["name"])
        return None if known is None else predicted["devices"].get(known.name)
    for entry in predicted["devices"].values():
        if (cpu := entry.get("measured")) and cpu["cpu"] == machine["cpu"] and cpu["cores"] == machine["cores"]:
            return entry
    return None
