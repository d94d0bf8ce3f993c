"""What every reader gives, and the errors that they raise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from metro_edge.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self


class NoReaderError(UserError):
    """A reader that this machine does not have; its words say what was looked for."""


@dataclass(frozen=True)
class Reading:
    """What was read at one time; what a device does not tell is left out.

    Attributes:
        power_w: rail or device -> watts.
        energy_j: counter -> joules; counts up from anywhere, wraps taken out.
        temperature_c: sensor -> degrees Celsius.
        clock_mhz: unit -> MHz.
        load: unit -> share of the time in use, 0 to 1.
        throttled: why clocks are held down right now.
    """

    power_w: Mapping[str, float] = field(default_factory=dict)
    energy_j: Mapping[str, float] = field(default_factory=dict)
    temperature_c: Mapping[str, float] = field(default_factory=dict)
    clock_mhz: Mapping[str, float] = field(default_factory=dict)
    load: Mapping[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()


class Reader(ABC):
    """A source of readings. Use it under `with`, or call `close`.

    Attributes:
        name: such as `ina3221`.
        total: names in `power_w`, or in `energy_j`, that add up to what is counted; none for a reader of heat alone.
        scope: what that sum is, in words.
    """

    name: str
    total: tuple[str, ...] = ()
    scope: str = ""

    @abstractmethod
    def read(self) -> Reading:
        """Read all of it now; raises UserError when the device stops answering."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """End what runs for it; doing it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Unwrapped:
    """A counter that starts again at 0 after its largest value, as one that does not.

    Args:
        name: for the message.
        largest: value after which it starts again; None for one that never does.
    """

    def __init__(self, name: str, largest: int | None) -> None:
        self._name, self._largest = name, largest
        self._last: int | None = None
        self._added = 0

    def __call__(self, value: int) -> int:
        """Return the value with the wraps so far added.

        Raises UserError for one that fell and cannot wrap, or that lies beyond its largest.
        """
        if self._largest is not None and not 0 <= value <= self._largest:
            raise UserError(f"the counter {self._name} reads {value}, beyond its range of {self._largest}")
        if self._last is not None and value < self._last:
            if self._largest is None:
                raise UserError(
                    f"the counter {self._name} fell from {self._last} to {value}: the driver was loaded again; measure "
                    "again"
                )
            self._added += self._largest + 1
        self._last = value
        return value + self._added
