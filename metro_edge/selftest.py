"""Selftest: every engine and precision that works here against FP32 on ONNX Runtime, in mm, on shipped frames.

What an engine may differ by comes from the bundle's passport, which says what each precision was measured to lose.
Where an NVIDIA GPU is, the kernels are compared with their references too: metro_edge.cuda.selftest.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metro_edge.backends import BACKENDS, Outputs, Session, open_session
from metro_edge.backends.gpu import first_gpu
from metro_edge.bundle import Bundle
from metro_edge.demo import DemoAssets
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.postprocess import centre_on_root
from metro_edge.preprocess import network_input
from metro_edge.spec import GRAPHS
from metro_edge.tables import text_table

REFERENCE = ("onnxruntime", "fp32")
DEFAULT_FRAMES = 12
# A few frames in place of hundreds, and another engine's roundings: twice what the passport states.
SLACK = 2.0
LEAST_MM, LEAST_PX = 0.05, 0.05  # float32 itself, summed in another order
UNSTATED_MM = {"fp32": 0.05, "fp16": 2.0, "int8": 20.0, "fp8": 20.0}  # where a passport states nothing
UNSTATED_PX = {"fp32": 0.05, "fp16": 0.5, "int8": 4.0, "fp8": 4.0}
KERNELS = "metro_edge.cuda.selftest"
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass(frozen=True)
class Result:
    """One row.

    Attributes:
        name: what was tested, such as `openvino int8`.
        state: PASSED, FAILED or SKIPPED.
        note: why it failed or was skipped, or what ran.
        moved_mm: mean distance of the mesh's vertices (of a network without mesh: its joints) from the reference's,
            both centred on their root; None where nothing was measured in millimetres.
        worst_mm: of the worst frame.
        limit_mm: what `moved_mm` may be.
        moved_px: mean distance of the projected points, px of the crop.
        limit_px: what `moved_px` may be.
        p50_ms: median time of one image.
    """

    name: str
    state: str
    note: str = ""
    moved_mm: float | None = None
    worst_mm: float | None = None
    limit_mm: float | None = None
    moved_px: float | None = None
    limit_px: float | None = None
    p50_ms: float | None = None


class Points(NamedTuple):
    """What is compared: points (N, P, 3) in mm from the root, and (N, P, 2) px of the crop."""

    mm: NDArray[np.float64]
    px: NDArray[np.float64]


def shipped_images(bundle: Bundle, frames: int = DEFAULT_FRAMES) -> NDArray[np.float32]:
    """Return the network's input (N, 3, S, S): the shipped picture and evenly spaced frames of the shipped clip.

    Raises UserError for fewer than one frame.
    """
    if frames < 1:
        raise UserError(f"the selftest needs at least one frame, got {frames}")
    assets = DemoAssets.load()
    ids = np.unique(np.linspace(0, len(assets.clip) - 1, min(frames - 1, len(assets.clip))).astype(int))
    parts = [network_input(assets.picture, assets.picture_box, bundle.spec)]
    return np.concatenate([*parts, *(network_input(assets.clip[i], assets.boxes[i], bundle.spec) for i in ids)])


def limits(bundle: Bundle, precision: str) -> tuple[float, float]:
    """Return the mm and the px that a precision may differ by from FP32: SLACK times what the passport states."""
    stated = bundle.passport.get("accuracy") or bundle.passport.get("verification") or {}
    values = stated.get("precisions", {}).get(precision, {})
    mm = [float(values[key]) for key in ("moved_mm", "tolerance_mm") if key in values]
    px = values.get("image_moved_px")
    measured = isinstance(px, (int, float)) and np.isfinite(px)
    return (
        max(SLACK * max(mm), LEAST_MM) if mm else UNSTATED_MM[precision],
        max(SLACK * float(px), LEAST_PX) if measured else UNSTATED_PX[precision],
    )


def names_of(bundle: Bundle, backends: Sequence[str] = (), precisions: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the pairs of backend and precision to test, the reference first.

    Args:
        bundle: with an fp32 network.
        backends, precisions: which; none: all that there are.

    Raises:
        UserError: an unknown backend or precision, or a bundle without fp32.
    """
    for given, known, what in ((backends, BACKENDS, "backend"), (precisions, GRAPHS, "precision")):
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"unknown {what} {unknown[0]!r}; known: {', '.join(known)}")
    if lacking := [name for name in ("fp32", *precisions) if name not in bundle.precisions]:
        raise UserError(f"the selftest needs {lacking[0]}, bundle {bundle.path} has {', '.join(bundle.precisions)}")
    pairs = [(b, p) for b in backends or BACKENDS for p in precisions or bundle.precisions]
    return [REFERENCE, *(pair for pair in pairs if pair != REFERENCE)]


def compare_engines(
    bundle: Bundle, pairs: Iterable[tuple[str, str]], images: NDArray[np.float32], threads: int | None = None
) -> Iterator[Result]:
    """Yield a Result for each pair of backend and precision, of which the first is the reference.

    Every image runs alone and together with all others, and the larger difference counts. Whatever an engine raises is
    its result; a library that is not installed is skipped.
    """
    reference: Points | None = None
    for number, (backend, precision) in enumerate(pairs):
        name = f"{backend} {precision}"
        if number and reference is None:
            yield Result(name, FAILED, "there is no reference to compare it with")
            continue
        options: dict[str, Any] = {} if threads is None or backend == "tensorrt" else {"threads": threads}
        try:
            with open_session(bundle, precision, backend, **options) as session:
                alone, together, p50_ms = _run(bundle, session, images)
                reference = reference or alone
                yield _compared(name, bundle, precision, (alone, together), reference, session.device, p50_ms)
        except MissingExtraError as error:
            yield Result(name, SKIPPED, str(error))
        except Exception as error:  # a broken engine raises anything; the others are tested all the same
            if backend == "tensorrt" and first_gpu() is None:
                yield Result(name, SKIPPED, "no NVIDIA GPU here")
            else:
                yield Result(name, FAILED, f"{type(error).__name__}: {error}")


def check_kernels() -> Iterator[Result]:
    """Yield what metro_edge.cuda.selftest finds; one skipped Result without a GPU or PyCUDA."""
    if first_gpu() is None:
        yield Result("kernels", SKIPPED, "no NVIDIA GPU here")
        return
    try:
        yield from importlib.import_module(KERNELS).checks()
    except MissingExtraError as error:
        yield Result("kernels", SKIPPED, str(error))
    except Exception as error:  # as above
        yield Result("kernels", FAILED, f"{type(error).__name__}: {error}")


def results_table(results: Sequence[Result]) -> str:
    """Return the table, and below it the notes of what failed or was skipped."""

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    header = ("engine", "result", "moved mm", "limit", "worst frame", "moved px", "limit", "p50 ms")
    rows = [
        [
            result.name,
            result.state,
            number(result.moved_mm, 3),
            number(result.limit_mm, 3),
            number(result.worst_mm, 3),
            number(result.moved_px, 3),
            number(result.limit_px, 3),
            number(result.p50_ms, 1),
        ]
        for result in results
    ]
    notes = [f"{result.name}: {result.note}" for result in results if result.state != PASSED and result.note]
    return "\n".join([text_table(header, rows), *notes])


def _run(bundle: Bundle, session: Session, images: NDArray[np.float32]) -> tuple[Points, Points, float]:
    parts, times_ms = [], []
    for image in images:
        start = time.perf_counter()
        parts.append(session.infer(image[None]))
        times_ms.append((time.perf_counter() - start) * 1000.0)
    alone, together = Outputs.joined(parts), session.infer(images)
    return _points(bundle, alone), _points(bundle, together), float(np.median(times_ms))


def _points(bundle: Bundle, outputs: Outputs) -> Points:
    for name, values in outputs.given.items():
        if not np.isfinite(values).all():
            raise UserError(f"its {name} have NaN or infinity")
    camera, joints, vertices = centre_on_root(outputs, bundle.spec, bundle.template)
    points = vertices if vertices.shape[1] else joints
    projected = camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])
    return Points(points * 1000.0, (projected + 1.0) * bundle.spec.image_size / 2.0 - 0.5)


def _compared(
    name: str, bundle: Bundle, precision: str, runs: Iterable[Points], reference: Points, device: str, p50_ms: float
) -> Result:
    limit_mm, limit_px = limits(bundle, precision)
    apart = [
        (
            np.linalg.norm(run.mm - reference.mm, axis=-1).mean(axis=1),
            np.linalg.norm(run.px - reference.px, axis=-1).mean(axis=1),
        )
        for run in runs
    ]
    moved_mm, moved_px = (float(max(part[i].mean() for part in apart)) for i in range(2))
    passed = moved_mm <= limit_mm and moved_px <= limit_px
    return Result(
        name=name,
        state=PASSED if passed else FAILED,
        note=device if passed else f"{device} differs from FP32 on ONNX Runtime by more than the passport lets expect",
        moved_mm=moved_mm,
        worst_mm=float(max(part[0].max() for part in apart)),
        limit_mm=limit_mm,
        moved_px=moved_px,
        limit_px=limit_px,
        p50_ms=p50_ms,
    )
