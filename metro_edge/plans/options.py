"""What can be asked of a plan besides its precision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from metro_edge.errors import UserError

COMPATIBILITIES = ("none", "same-capability", "ampere+")
LEVELS = range(6)
MOST_WORKSPACE_MB = 1 << 20  # 1 TiB; the libraries take 64 bits of bytes
MOST_BATCH = 1 << 16


class BatchProfile(NamedTuple):
    """Range of batches that a plan accepts, and the one that its kernels are chosen for."""

    smallest: int
    best: int
    largest: int

    def __str__(self) -> str:
        return f"{self.smallest}" if self.smallest == self.largest else f"{self.smallest},{self.best},{self.largest}"


DEFAULT_PROFILES = (BatchProfile(1, 1, 8),)


def parse_profile(text: str) -> BatchProfile:
    """Return the profile that `4` (that batch alone) or `1,4,16` (smallest, best, largest) says; raises UserError."""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9},\d{1,9})?", text.strip()):
        raise UserError(f"batch {text!r} is neither one number nor three: smallest,best,largest such as 1,4,16")
    numbers = [int(number) for number in text.split(",")]
    return BatchProfile(*numbers) if len(numbers) == 3 else BatchProfile(numbers[0], numbers[0], numbers[0])


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built. Which of it a library has, metro_edge.plans.versions knows and checks.

    Attributes:
        profiles: ranges of batches; a plan picks among several when it runs, and is larger for each.
        workspace_mb: limit of scratch memory in MiB; None is the library's own.
        level: 0 (quickest build) to 5 (fastest plan), how long kernels are searched; None is the library's own, 3.
        timing_cache: file in which measured kernel times are kept between builds; TensorRT alone.
        refit: the weights of the plan can be replaced later.
        strip_weights: leave the weights out of the plan; they come from the ONNX graph when it is loaded.
        compatibility: which other GPUs the plan must run on: `none`, `same-capability` or `ampere+`, every one from
            compute capability 8.0 on, at some loss of speed; TensorRT alone.
        version_compatible: the plan must run with newer versions of TensorRT too; TensorRT alone.
        capabilities: compute capabilities to build for ahead of time, such as `("8.6", "8.9")`; TensorRT-RTX alone.
        dla: number of the DLA core to build for, with the GPU for what that cannot do; TensorRT on a Jetson alone.
    """

    profiles: tuple[BatchProfile, ...] = DEFAULT_PROFILES
    workspace_mb: int | None = None
    level: int | None = None
    timing_cache: Path | None = None
    refit: bool = False
    strip_weights: bool = False
    compatibility: str = "none"
    version_compatible: bool = False
    capabilities: tuple[str, ...] = ()
    dla: int | None = None

    def __post_init__(self) -> None:
        _check_profiles(self.profiles)
        if self.workspace_mb is not None and not 1 <= self.workspace_mb <= MOST_WORKSPACE_MB:
            raise UserError(f"workspace of {self.workspace_mb} MB: a number from 1 to {MOST_WORKSPACE_MB} was expected")
        if self.level is not None and self.level not in LEVELS:
            raise UserError(f"optimisation level {self.level}: 0 (quick build) to 5 (fast plan) was expected")
        if self.compatibility not in COMPATIBILITIES:
            raise UserError(f"unknown compatibility {self.compatibility!r}; known: {', '.join(COMPATIBILITIES)}")
        if self.dla is not None and self.dla < 0:
            raise UserError(f"DLA core {self.dla}: 0 or more was expected")
        if self.dla is not None and any(profile.smallest != profile.largest for profile in self.profiles):
            raise UserError("a DLA runs one batch alone: ask for it with a profile of one number, such as --batch 1")

    def settings(self) -> dict[str, Any]:
        """Return what was asked for and changes the plan, other than its profiles and GPUs; keys are sorted."""
        values = {
            "compatibility": None if self.compatibility == "none" else self.compatibility,
            "dla": self.dla,
            "level": self.level,
            "refit": self.refit or None,
            "strip_weights": self.strip_weights or None,
            "version_compatible": self.version_compatible or None,
            "workspace_mb": self.workspace_mb,
        }
        return {name: value for name, value in values.items() if value is not None}


def _check_profiles(profiles: Iterable[BatchProfile]) -> None:
    profiles = tuple(profiles)
    if not profiles:
        raise UserError("a plan needs at least one range of batches")
    for profile in profiles:
        if not 1 <= profile.smallest <= profile.best <= profile.largest <= MOST_BATCH:
            raise UserError(
                f"batches {','.join(map(str, profile))}: 1 <= smallest <= best <= largest <= {MOST_BATCH} was "
                "expected, such as 1,4,16"
            )
    if len(set(profiles)) < len(profiles):
        raise UserError(f"the same batches twice: {' '.join(map(str, profiles))}")
