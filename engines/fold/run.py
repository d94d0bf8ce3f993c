"""Folding a trained network: which folds there are, and what each of them saved and changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engines.fold.attention import attention_bias, attention_scale, qkv
from engines.fold.batch_norm import batch_norm
from engines.fold.dead import count_weights, dead_weights
from engines.fold.meshes import camera, mesh_joints, upsampling
from engines.fold.network import InferenceNetwork, readable
from engines.fold.tokens import grid_projection, template_constant
from engines.fold.trace import macs
from metro_edge.errors import UserError
from metro_edge.spec import OUTPUT_NAMES
from metro_edge.template import BodyTemplate
from training.model import Metro

LIMIT = 1e-5  # largest change of an output, relative to its largest value, that summing in another order makes in FP32
EXACT = 1e-11  # the same in float64
# Two networks that compute the same differ by the rounding of both, and of folded weights once more: of HRNet-W64, 2.8
# times what the trained one is from float64, on a CPU without AVX-512.
ROUNDINGS = 8.0
_IMAGES, _SEED = 2, 0  # random ones, that each fold is measured on


@dataclass(frozen=True)
class Fold:
    """A rewriting of the network that leaves its outputs as they were.

    Attributes:
        name: of FOLDS.
        description: one line.
        apply: changes a network in place and returns one line of what it found.
    """

    name: str
    description: str
    apply: Callable[[InferenceNetwork], str]


# In the order in which they run; each works with or without any other.
FOLDS = {
    fold.name: fold
    for fold in (
        Fold("batch_norm", "batch norms into the convolutions before them", batch_norm),
        Fold("grid_projection", "image features are projected before they are mixed into tokens", grid_projection),
        Fold("template_constant", "template and biases of the projections into the positions", template_constant),
        Fold("qkv", "query, key and value from one product, cut into heads together", qkv),
        Fold("attention_scale", "the scores' scale into the query's weights", attention_scale),
        Fold("attention_bias", "the key's bias dropped, the value's into the output's", attention_bias),
        Fold("upsampling", "linear upsamplings into one matrix where that is cheaper", upsampling),
        Fold("camera", "the camera's linear maps into one", camera),
        Fold("mesh_joints", "joint regression through the upsampling into one matrix", mesh_joints),
        Fold("dead_weights", "weights that no output reads dropped", dead_weights),
    )
}


@dataclass(frozen=True)
class FoldResult:
    """What one fold did, the folds before it being in place.

    Attributes:
        name: of the fold.
        macs_saved: multiply-adds for one image.
        weights_saved: numbers in parameters and buffers; negative where constants were written out.
        difference: largest change of any output on random images, relative to that output's largest value.
        note: what was found.
    """

    name: str
    macs_saved: int
    weights_saved: int
    difference: float
    note: str


@dataclass(frozen=True)
class FoldReport:
    """What folding did.

    Attributes:
        results: per fold, in the order they ran.
        macs_before, macs_after: multiply-adds for one image.
        difference: largest change of any output by all folds together, as in FoldResult.
        dtype: in which outputs were compared, such as `float32`.
        rounding: how far the network that was trained is from itself in float64, as in FoldResult; measured only where
            some difference is beyond LIMIT, which is then at most ROUNDINGS times this, and EXACT in float64.
    """

    results: tuple[FoldResult, ...]
    macs_before: int
    macs_after: int
    difference: float
    dtype: str
    rounding: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what a passport says of the folds."""
        results = [asdict(result) | {"difference": float(f"{result.difference:.2g}")} for result in self.results]
        rounding = {} if self.rounding is None else {"rounding": float(f"{self.rounding:.2g}")}
        return {
            "folds": results,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "difference": float(f"{self.difference:.2g}"),
            **rounding,
            "compared": f"{_IMAGES} random images in {self.dtype}, largest change over largest value of an output",
        }

    def __str__(self) -> str:
        rows = [("fold", "M multiply-adds saved", "difference", "")]
        rows += [(r.name, f"{r.macs_saved / 1e6:.3f}", f"{r.difference:.1e}", r.note) for r in self.results]
        saved = (self.macs_before - self.macs_after) / 1e6
        rows.append(("all", f"{saved:.3f}", f"{self.difference:.1e}", self._total()))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = (f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows)
        return "\n".join(lines)

    def _total(self) -> str:
        return f"{self.macs_before / 1e6:.1f} M became {self.macs_after / 1e6:.1f} M"


def fold(
    model: Metro,
    template: BodyTemplate,
    names: Iterable[str] | None = None,
    outputs: Sequence[str] = OUTPUT_NAMES,
) -> tuple[InferenceNetwork, FoldReport]:
    """Make an inference network of a trained one and fold it; the trained one stays as it is.

    Args:
        model: in evaluation mode, on the CPU; the folds are computed in float64 and stored in its type.
        template: its body, for the outputs `mesh_joints` and `joints_px`.
        names: of FOLDS, in any order; None takes all, an empty one none.
        outputs: what the network returns, of KNOWN_OUTPUTS.

    Raises:
        UserError: an unknown fold or output, a template without the regressor that an output needs, a network in
            training mode, or a fold that changes an output by more than LIMIT, and not by rounding alone.
    """
    chosen = list(FOLDS) if names is None else list(names)
    if unknown := [name for name in chosen if name not in FOLDS]:
        raise UserError(f"unknown fold {unknown[0]!r}; known: {', '.join(FOLDS)}")
    results: list[FoldResult] = []
    done: list[Fold] = []
    with torch.no_grad():
        network = InferenceNetwork(model, template, outputs)
        dtype = next(model.parameters()).dtype
        generator = torch.Generator().manual_seed(_SEED)
        shape = (_IMAGES, 3, network.image_size, network.image_size)
        images = torch.randn(shape, generator=generator).to(dtype)
        original = before = network(images)
        limit = _Limit(model, template, images, original, tuple(network.outputs))
        cost = first_cost = macs(network, network.image_size)
        for step in tqdm([f for f in FOLDS.values() if f.name in chosen], desc="fold", leave=False):
            weights = count_weights(network)
            note = step.apply(network)
            after, cost_after = network(images), macs(network, network.image_size)
            saved = (cost - cost_after, weights - count_weights(network))
            results.append(FoldResult(step.name, *saved, relative_difference(before, after), note))
            limit.check(f"the fold {step.name}", results[-1].difference, done, [step])
            done.append(step)
            before, cost = after, cost_after
        readable(network)
    total = relative_difference(original, before)
    limit.check("all folds together", total, [], done)
    name = str(dtype).removeprefix("torch.")
    return network, FoldReport(tuple(results), first_cost, cost, total, name, limit.rounding)


class _Limit:
    """How much folds may change: LIMIT; where that is not kept, EXACT in float64 and what rounding explains in FP32.

    Attributes:
        rounding: how far the trained network is from itself in float64; None until a difference asks for it.
    """

    def __init__(
        self, model: Metro, template: BodyTemplate, images: Tensor, found: Sequence[Tensor], outputs: tuple[str, ...]
    ) -> None:
        self.model, self.template, self.images, self.found, self.outputs = model, template, images, found, outputs
        self.rounding: float | None = None

    def check(self, what: str, difference: float, before: Sequence[Fold], steps: Sequence[Fold]) -> None:
        """Raise UserError for a difference that is too large, or outputs that are not finite.

        Args:
            what: made it.
            difference: as in FoldResult.
            before: folds that were in place.
            steps: folds that made it.
        """
        if difference <= LIMIT:
            return
        exact = self._in_float64(before, steps)
        assert self.rounding is not None
        if isnan(self.rounding):
            raise UserError("nothing was written: the network's outputs are not finite on random images")
        if not (exact <= EXACT and difference <= ROUNDINGS * self.rounding):
            raise UserError(
                f"{what} changed an output by {difference:.1e} of its largest value, {LIMIT:.0e} is allowed; in "
                f"float64 by {exact:.1e}, and rounding alone makes {self.rounding:.1e} in this network. Nothing was "
                "written. Folds are exact, so this is a fault to report; --no-fold converts without them"
            )

    @torch.no_grad()
    def _in_float64(self, before: Sequence[Fold], steps: Sequence[Fold]) -> float:
        """Return what folds change in float64, and take note of the network's own rounding."""
        images = self.images.double()
        network = InferenceNetwork(copy.deepcopy(self.model).double(), self.template, self.outputs)
        old = network(images)
        self.rounding = relative_difference(old, [values.double() for values in self.found])
        for step in before:
            step.apply(network)
        old = network(images) if before else old
        for step in steps:
            step.apply(network)
        return relative_difference(old, network(images))


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest |found - expected| over the largest |expected|, of the output where that is worst.

    NaN where some output is not finite.
    """
    ratios = [
        float((b - a).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny))
        for a, b in zip(expected, found, strict=True)
    ]
    return nan if any(map(isnan, ratios)) else max(ratios)
