"""How a search is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.quantize.calibrate import METHODS
from engines.quantize.clock import check_timed
from engines.quantize.costs import QUANTISED
from engines.quantize.loss import METRICS
from engines.quantize.mixed import PRECISIONS
from metro_edge.backends import BACKENDS
from metro_edge.backends.cores import check_cores
from metro_edge.devices import device
from metro_edge.errors import UserError

BEST = "best"
DETAILS = ("auto", "layers", "groups", "coarse")


@dataclass(frozen=True)
class Settings:
    """Settings of `python -m engines quantize`.

    Attributes:
        max_loss_mm: the budget.
        metric: what it is of, of METRICS: MPJPE or MPVPE lost to FP32, or the distance moved from it.
        data: see engines.quantize.data.
        seed: of generated people that the network is tested on; None takes the bundle's held-out seed.
        samples: to search on.
        proof_samples: that the search does not see.
        calibration_samples: that set ranges.
        method: of calibration, or `best` to compare all.
        smooth: move outliers of activations into weights; None compares both.
        rounding: round INT8 weights on data, not each to its nearest level; None compares both.
        precisions: that layers may have besides fp32; one of int8 and fp8 at most.
        backend: whose times count, one of engines.quantize.clock.TIMED unless a device is given.
        threads: of the backend; None leaves it to it.
        device: name in metro_edge.devices, whose times are predicted; None measures.
        detail: `layers` measures each by itself, `groups` neighbours together first and those that matter layer by
            layer, `coarse` fewer and larger groups alone, `auto` takes layers or groups by the size of the network.
        evaluations: mixes whose loss is measured.

    Raises UserError for values that are unknown or make no sense.
    """

    max_loss_mm: float
    metric: str = "mpjpe"
    data: Path | None = None
    seed: int | None = None
    samples: int = 128
    proof_samples: int = 128
    calibration_samples: int = 256
    method: str = BEST
    smooth: bool | None = None
    rounding: bool | None = None
    precisions: tuple[str, ...] = ("int8", "fp16")
    backend: str = "onnxruntime"
    threads: int | None = None
    device: str | None = None
    detail: str = "auto"
    evaluations: int = 40

    def __post_init__(self) -> None:
        if not 0 < self.max_loss_mm < float("inf"):
            raise UserError(f"--max-loss-mm must be a positive number of mm, got {self.max_loss_mm}")
        for name, value, known in (
            ("metric", self.metric, METRICS),
            ("method", self.method, (*METHODS, BEST)),
            ("backend", self.backend, BACKENDS),
            ("detail", self.detail, DETAILS),
        ):
            if value not in known:
                raise UserError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        self._check_precisions()
        if self.device is None:
            check_timed(self.backend)
        else:
            device(self.device).check_computes(self.precisions)
        check_cores(self.threads, None)
        if self.evaluations < 1:
            raise UserError(f"--evaluations must be at least 1, got {self.evaluations}")

    def _check_precisions(self) -> None:
        lower = [precision for precision in PRECISIONS if precision != "fp32"]
        unknown = [precision for precision in self.precisions if precision not in lower]
        if unknown or not self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise UserError(
                f"--precisions takes some of {', '.join(lower)}, each once; got {' '.join(self.precisions)}"
            )
        if set(QUANTISED) <= set(self.precisions):
            raise UserError("--precisions takes int8 or fp8, not both: no device gains by mixing them")
        if "fp8" in self.precisions and self.device is None:
            raise UserError("no CPU computes in fp8: name a GPU that does by --device")

    @property
    def lowest(self) -> str | None:
        """int8 or fp8 where it is among the precisions."""
        return next((precision for precision in self.precisions if precision in QUANTISED), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them; a path is only named."""
        return {**asdict(self), "data": None if self.data is None else self.data.name}
