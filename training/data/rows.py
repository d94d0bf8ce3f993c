"""What the readers of annotation files share: bad rows named or counted, boxes around joints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.preprocess import read_picture
from metro_edge.spec import ModelSpec
from training.data.labelled import BadSampleError, LabelledSet

Images = NDArray[np.uint8]

JOINT_SET = "h36m14"


class BadRows:
    """Bad rows of label files: the first stops the reading, or all are collected where the user asked for it.

    Args:
        skip: collect instead of raising BadSampleError.

    Attributes:
        messages: one line for each row, or file, that was left out.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.messages: list[str] = []

    def report(self, message: str) -> None:
        """Note a bad row; raises BadSampleError unless bad rows are to be skipped."""
        if not self.skip:
            raise BadSampleError(message)
        self.messages.append(message)

    def filter(
        self,
        path: Path,
        what: str,
        numbers: NDArray[np.integer],
        problems: Iterable[tuple[Any, str]],
    ) -> NDArray[np.bool_]:
        """Return (N,) which rows are good; report the others, each once, by the first problem it has.

        Args:
            path: the file that the rows come from.
            what: what a row is, "frame" or "row".
            numbers: (N,) how the user knows the rows.
            problems: pairs of (N,) mask of good rows and what is wrong with the others.
        """
        good = np.ones(len(numbers), bool)
        for mask, text in problems:
            for number in numbers[good & ~mask]:
                self.report(f"{path}, {what} {number}: {text}")
            good &= mask
        return good

    def summary(self) -> str:
        """Return " (3 bad rows left out, the first: ...)" or nothing."""
        if not self.messages:
            return ""
        return f" ({len(self.messages)} bad rows or files left out, the first: {self.messages[0]})"


class AnnotatedSet(LabelledSet):
    """A LabelledSet whose label files are read, and their bad rows found, when it is opened.

    With `skip_bad`, rows with bad labels are left out then and not counted in its length; samples whose picture proves
    unusable later are stepped over as LabelledSet does. `skipped` counts both.

    Args:
        unusable: what was left out.
        count, spec, **options: of LabelledSet.
    """

    def __init__(self, unusable: BadRows, count: int, spec: ModelSpec, **options: Any) -> None:
        super().__init__(count, spec, skip_bad=unusable.skip, **options)
        self._unusable = unusable

    @property
    def dropped(self) -> tuple[str, ...]:
        """What was wrong with each label row or file that was left out when the set was opened with `skip_bad`."""
        return tuple(self._unusable.messages)

    @property
    def skipped(self) -> int:
        """How many label rows and files were left out, and samples stepped over so far."""
        return len(self.dropped) + super().skipped

    def skipped_reasons(self, limit: int = 3) -> list[str]:
        """Return what is wrong with the first `limit` of them, those found at the opening first."""
        reasons = list(self.dropped[:limit])
        return reasons + super().skipped_reasons(limit - len(reasons))


def sample_image(key: str, read: Callable[[], Images]) -> Images:
    """Return what `read` gives; its UserError becomes a BadSampleError that names the sample."""
    try:
        return read()
    except UserError as error:
        raise BadSampleError(f"{key}: {error}") from None


def sample_picture(key: str, path: str | os.PathLike[str]) -> Images:
    """Read a picture file, (H, W, 3) uint8 BGR; raises BadSampleError naming the sample and the file."""
    return sample_image(key, lambda: read_picture(path))


def with_confidence(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return points (P, D) with a last column of ones, float32."""
    return np.column_stack((points, np.ones(len(points)))).astype(np.float32)


def check_joint_set(spec: ModelSpec, data: str) -> None:
    """Raise UserError unless the network's joints are the ones that the labels have."""
    if spec.joint_set != JOINT_SET:
        raise UserError(f"{data} gives the joints {JOINT_SET}, the network {spec.name!r} wants {spec.joint_set}")


def joints_box(
    pixels: NDArray[np.floating], factor: float, inside: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centre (N, 2) and side (N,) in px of the square around points (N, P, 2).

    The side is `factor` times the longer extent; `inside` (N, P) tells which points count, all by default. Without any
    point, or with NaN, the side is 0.
    """
    counts = np.isfinite(pixels).all(-1) if inside is None else inside & np.isfinite(pixels).all(-1)
    low = np.where(counts[..., None], pixels, np.inf).min(1)
    high = np.where(counts[..., None], pixels, -np.inf).max(1)
    some = counts.any(1)
    low, high = np.where(some[:, None], low, 0.0), np.where(some[:, None], high, 0.0)
    return (low + high) / 2, (high - low).max(1) * factor
