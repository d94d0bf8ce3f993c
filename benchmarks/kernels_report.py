"""The kernels' times as Markdown.

The JSON file, schema 1: `kind`: `kernels`; `schema_version`; `device`: GPU and compute capability; `machine`: what
metro_edge.machine.describe_machine returns; `command`; `created`; `rows`: fields of benchmarks.kernels.Row each; newer
ones also `image_size` of the crops, `protocol` in words and `metro_edge`: version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import markdown_table
from metro_edge.machine import machine_line

KIND, SCHEMA_VERSION = "kernels", 1
HEADER = ("launcher", "people", "GPU us", "p95 us", "CPU us", "CPU / GPU")


def kernels_markdown(report: Mapping[str, Any]) -> str:
    """Return the table of a report and how it was measured."""
    cells = [
        [row["name"], str(row["people"]), f"{row['gpu_us']:.1f}", f"{row['gpu_p95_us']:.1f}", f"{row['cpu_us']:.0f}",
         f"{row['cpu_us'] / row['gpu_us']:.0f}"]
        for row in report["rows"]
    ]  # fmt: skip
    crops = f", crops of {report['image_size']} px" if "image_size" in report else ""
    version = f"; metro-edge {report['metro_edge']}" if "metro_edge" in report else ""
    protocol = report.get("protocol", "How it was measured is not in this file, which an older version wrote")
    parts = [
        f"**CUDA kernels on {report['device']}{crops}**",
        markdown_table(HEADER, cells, text_columns=("launcher",)),
        f"- {protocol}.\n- Machine: {machine_line(report['machine'])}{version}; {report['created'][:10]}.\n"
        f"- Again: `{report['command']}`",
    ]
    return "\n\n".join(parts) + "\n"
