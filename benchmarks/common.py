"""What the results of several commands share: their head, their command line, and how their files are written."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2

from metro_edge import __version__
from metro_edge.backends.gpu import first_gpu
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.files import json_bytes, output_folder, replacing
from metro_edge.machine import LIBRARIES, cpu_model, describe_machine

REFERENCE = "fp32"
MOST_NAME = 80  # characters of a bundle's name in a file's name
VERSIONS = (*LIBRARIES, "onnx", "torch", "anny")


def chosen_precisions(bundle: Bundle, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return what is measured, the reference first; raises UserError for one that the bundle lacks."""
    for precision in wanted:
        if precision not in bundle.precisions:
            raise UserError(f"bundle {bundle.path} has no {precision} network; it has {', '.join(bundle.precisions)}")
    chosen = set(wanted or bundle.precisions) | {REFERENCE}
    return tuple(p for p in bundle.precisions if p in chosen)


def chosen(bundle: Bundle, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the precisions wanted, all of the bundle for none; raises UserError for one that the bundle lacks."""
    return tuple(p for p in chosen_precisions(bundle, wanted) if not wanted or p in wanted)


def header(
    kind: str,
    schema_version: int,
    bundle: Bundle,
    backend: str,
    threads: int | None,
    engines: Mapping[str, str],
    command: str,
) -> dict[str, Any]:
    """Return the parts that say what was measured, on what, and by which command.

    `schema_version`; `kind`; `created`: UTC, ISO 8601; `command`; `metro_edge`: version; `bundle`: {`name`,
    `checkpoint` {`name`, `sha256`}, `onnx_sha256` {precision: hash}}; `device`: {`processor`: `CPU` or `GPU`, `name`,
    `backend`, `engine`, `threads` (null: the engine's choice)}; `machine`: what
    metro_edge.machine.describe_machine returns.

    Args:
        engines: precision -> engine in words.

    Raises:
        UserError: engines that differ, or whose processor is not known: nothing is labelled by a guess.
    """
    engine = engine_words(engines)
    processor, name = processor_of(engine)
    return {
        "schema_version": schema_version,
        "kind": kind,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "metro_edge": __version__,
        "bundle": {
            "name": bundle.spec.name,
            "checkpoint": bundle.passport["checkpoint"],
            "onnx_sha256": {precision: bundle.onnx_sha256(precision) for precision in engines},
        },
        "device": {
            "processor": processor,
            "name": name,
            "backend": backend,
            "engine": engine,
            "threads": threads,
        },
        "machine": describe_machine(VERSIONS),
    }


def engine_words(engines: Mapping[str, str]) -> str:
    """Return one engine in words, of those of several precisions, with what holds of some of them alone.

    Raises UserError for engines that differ in more than a remark behind a comma.
    """
    names = {precision: words.partition(", ")[::2] for precision, words in engines.items()}
    bases = {base for base, _ in names.values()}
    if len(bases) != 1:
        raise UserError(f"the precisions run on different engines: {', '.join(sorted(bases))}")
    remarks = list(dict.fromkeys(remark for _, remark in names.values() if remark))
    return "; ".join([*bases, *remarks])


def processor_of(engine: str) -> tuple[str, str]:
    """Return `CPU` or `GPU` and its name for an engine as sessions describe it.

    Raises UserError when it is not known: a latency without its processor is never printed.
    """
    if "CPUExecutionProvider" in engine or re.fullmatch(r"openvino \S+ CPU(;.*)?", engine):
        return "CPU", cpu_model()
    gpu = first_gpu()
    if gpu is not None and any(word in engine.lower() for word in ("cuda", "tensorrt")):
        return "GPU", gpu.name
    raise UserError(f"cannot tell which processor {engine!r} runs on, so its latency cannot be labelled")


def command_line(command: str, bundle: Path, given: Sequence[tuple[str, Any, Any]]) -> str:
    """Return a command, with the options whose value (second) is not the default (third)."""
    words = ["python", "-m", "benchmarks", command, shown_path(bundle)]
    for option, value, default in given:
        if value != default:
            values = value if isinstance(value, tuple) else (value,)
            words += [option, *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return shlex.join(words)


def shown_path(path: Path) -> str:
    """Return a path relative to the working folder, or its name alone when it lies elsewhere."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd()).as_posix()
    return path.name


def engine_threads(threads: int | None) -> dict[str, int]:
    """Return the option of open_session that a number of threads is; none where the engine chooses."""
    return {} if threads is None else {"threads": threads}


@contextlib.contextmanager
def opencv_threads(threads: int | None) -> Iterator[None]:
    """Let OpenCV take as many threads as the engine inside; None takes what OpenCV takes by itself."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(-1 if threads is None else threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextlib.contextmanager
def results_folder(path: Path) -> Iterator[Path]:
    """Make the folder before the minutes of measuring; folders that were made for nothing are removed again."""
    made = [p for p in (path, *path.parents) if not p.exists()]
    folder = output_folder(path)
    try:
        yield folder
    except BaseException:
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()
        raise


def write_all(
    command: str,
    output: Path,
    measure: Callable[[], dict[str, Any]],
    markdown_of: Callable[..., str],
    plot: Callable[[Path, dict[str, Any]], None],
) -> tuple[str, list[Path]]:
    """Measure, and write `COMMAND-NAME-PROCESSOR-TIME.json`, `.md` and `.png`, all or none.

    Args:
        command: begins the files' names.
        output: folder, which is made and tried before the minutes of measuring.
        measure: returns a report with the parts of `header`.
        markdown_of: of a report and, as a second argument, the picture's name.
        plot: writes the picture of a report.

    Returns:
        The Markdown without the picture's link, and the paths.

    Raises:
        UserError: of measuring, or a folder that cannot be written.
        MissingExtraError: no matplotlib.
    """
    from engines.quantize.plots import new_figure

    new_figure(1, 1)  # without matplotlib nothing is measured
    folder = output_folder(output)
    report = measure()
    device = report["device"]
    stem = f"{command}-{named(report)}-{device['backend']}-{device['processor'].lower()}-{when(report)}"
    return write_three(folder / stem, report, markdown_of, plot)


def write_three(
    stem: Path,
    report: dict[str, Any],
    markdown_of: Callable[..., str],
    plot: Callable[[Path, dict[str, Any]], None],
) -> tuple[str, list[Path]]:
    """Write `STEM.json`, `.md` and `.png`, all or none; see `write_all`."""
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".json", ".md", ".png")]
    with contextlib.ExitStack() as stack:
        json_file, markdown_file, picture = (stack.enter_context(replacing(path)) for path in paths)
        plot(picture, report)
        json_file.write_bytes(json_bytes(report))
        markdown_file.write_text(markdown_of(report, paths[2].name), encoding="utf-8")
    return markdown_of(report), paths


def named(report: dict[str, Any]) -> str:
    """Return the bundle's name as a part of a file's name."""
    return file_part(report["bundle"]["name"])


def file_part(name: str) -> str:
    """Return a bundle's name as a part of a file's name: a stranger's may hold anything."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:MOST_NAME] or "bundle"


def when(report: dict[str, Any]) -> str:
    """Return when a report was made, as a part of a file's name."""
    return str(report["created"]).replace("-", "").replace(":", "")
