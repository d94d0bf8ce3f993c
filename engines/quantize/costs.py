"""What a choice of precisions takes, added up from units; where the figures come from is the business of speed.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from engines.quantize.units import Plan

QUANTISED = ("int8", "fp8")
PLAIN = "plain"  # a unit's result as float, as against in its own precision


@dataclass(frozen=True)
class Costs:
    """Times of units and of changing the type of what lies between them, in ms for one image.

    Attributes:
        plan: the units.
        units: layer -> {(precision, PLAIN or that precision): ms}; the second is the type of what the unit makes. It
            can stay quantised where all its readers take it so.
        quantise: activation -> {int8 or fp8: ms} of quantising it where its maker does not.
        cast: activation -> ms of turning it from float32 to float16 or back, once for all readers; what a float16
            layer makes becomes float32 before it is quantised.
        base: ms of everything else.
        rest: type of what belongs to no unit, fp32 or fp16; also of what a quantised unit makes as float.
    """

    plan: Plan
    units: Mapping[str, Mapping[tuple[str, str], float]]
    quantise: Mapping[str, Mapping[str, float]]
    cast: Mapping[str, float]
    base: float
    rest: str = "fp32"

    @cached_property
    def _tensors(self) -> tuple[tuple[str, str | None, tuple[str | None, ...]], ...]:
        """Every activation that a layer makes or quantises: its name, maker and readers, None for other nodes."""
        makers = {unit.output: unit for unit in self.plan.units}
        found = []
        for name in dict.fromkeys((*self.plan.readers, *makers)):
            unit = makers.get(name)
            readers = self.plan.readers.get(name, ()) if unit is None else unit.readers
            found.append((name, None if unit is None else unit.layer, readers))
        return tuple(found)

    def ms(self, choice: Mapping[str, str]) -> float:
        """Return the time of one inference with a precision per layer."""
        return self.base + sum(self._place_ms(*place, choice) for place in self._tensors)

    def _place_ms(
        self, name: str, maker: str | None, readers: tuple[str | None, ...], choice: Mapping[str, str]
    ) -> float:
        """Return what making one activation takes, and giving it to its readers in the types that they want."""
        rest = self.rest
        kinds = {rest if reader is None else choice[reader] for reader in readers}
        precision = rest if maker is None else choice[maker]
        after = precision if precision in QUANTISED and kinds == {precision} else PLAIN
        total = 0.0 if maker is None else self.units[maker][precision, after]
        made = rest if precision in QUANTISED else precision
        types = {kind for kind in kinds if kind not in QUANTISED and after == PLAIN}
        for kind in kinds:
            if kind in QUANTISED and kind != after:
                total += self.quantise[name][kind]
                if precision == "fp16" and maker is not None:
                    types.add("fp32")  # which is all that Q takes
        return total + len(types - {made}) * self.cast.get(name, 0.0)

    def table(self, precisions: Sequence[str]) -> CostTable:
        """Return the same as a table, for choices among some precisions."""
        return CostTable(self, precisions)


class CostTable:
    """Costs.ms for thousands of choices: one look-up per activation.

    Args:
        costs: to be tabled.
        precisions: that layers may have; a choice is given as their indices, per unit of the plan in order.
    """

    def __init__(self, costs: Costs, precisions: Sequence[str]) -> None:
        places = {unit.layer: index for index, unit in enumerate(costs.plan.units)}
        entries: list[float] = []
        offsets: list[int] = []
        weights = np.zeros((len(costs._tensors), len(places)), np.int64)
        for row, (name, maker, readers) in enumerate(costs._tensors):
            layers = list(dict.fromkeys(layer for layer in (maker, *readers) if layer is not None))
            offsets.append(len(entries))
            for power, layer in enumerate(reversed(layers)):
                weights[row, places[layer]] = len(precisions) ** power
            for mix in product(precisions, repeat=len(layers)):
                entries.append(costs._place_ms(name, maker, readers, dict(zip(layers, mix, strict=True))))
        self.base = costs.base
        self._entries, self._offsets = np.array(entries), np.array(offsets, np.int64)
        rows, self._columns = np.nonzero(weights)
        self._weights = weights[rows, self._columns]
        self._starts = np.searchsorted(rows, np.arange(len(costs._tensors)))

    def ms(self, codes: NDArray[np.int64]) -> float:
        """Return the time of a choice."""
        places = np.add.reduceat(codes[self._columns] * self._weights, self._starts) + self._offsets
        return float(self.base + self._entries[places].sum())
