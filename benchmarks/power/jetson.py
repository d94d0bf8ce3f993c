"""Power rails of a Jetson from its INA3221 monitors.

Sources: the kernel's Documentation/hwmon/ina3221.rst (`in[123]_label`, `in[123]_input` in mV, `curr[123]_input` in mA;
`in7` and `curr4` are sums); NVIDIA's Jetson Linux Developer Guide for the rails of each module and, up to JetPack 4,
for the older driver's `rail_name_[012]` and `in_power[012]_input` in mW.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.power.reader import NoReaderError, Reader, Reading
from benchmarks.power.sysfs import number_of, text_of
from metro_edge.errors import UserError

HWMON = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
OLD = ("sys/bus/i2c/drivers/ina3221x/*/iio:device*", "sys/bus/i2c/drivers/ina3221x/*/iio_device")
# What a module takes as a whole, by what its rails are called: one rail at its input, or all of those it is split into.
WHOLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the module's input", ("VDD_IN",)),  # Orin NX and Nano, Xavier NX, TX2
    ("the module's input", ("POM_5V_IN",)),  # Nano
    ("the board's input", ("VIN",)),  # AGX Thor
    ("all rails of the module", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),  # AGX Orin
    ("all rails of the module", ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),  # AGX Xavier
)


def whole_of(rails: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return which rails add up to what a Jetson takes, and what the sum is, in words.

    A module some of whose rails are missing is not measured as a whole, and of unknown rails it is not known whether
    one contains another: the words say so.
    """
    for words, names in WHOLE:
        if set(names) <= set(rails):
            return names, f"{words} ({' + '.join(names)})"
    for words, names in WHOLE:
        there = tuple(name for name in names if name in rails)
        # One short name in common says nothing: several modules call a rail GPU or CPU.
        if len(there) * 2 > len(names):
            lacking = ", ".join(name for name in names if name not in rails)
            return there, f"part of {words} ({' + '.join(there)}): {lacking} is missing, so it takes more"
    return tuple(rails), f"sum of the rails {', '.join(rails)}, of a module not known here: one may contain another"


class Ina3221Reader(Reader):
    """All labelled rails of all INA3221 monitors.

    Args:
        root: where the file system begins.

    Raises:
        NoReaderError: no monitor, or none with a rail that can be read.
    """

    name = "ina3221"

    def __init__(self, root: Path = Path("/")) -> None:
        self._rails: dict[str, tuple[Path, ...]] = {}
        for folder in sorted(root.glob(HWMON)):
            for channel in (1, 2, 3):
                self._add(
                    text_of(folder / f"in{channel}_label"),
                    (folder / f"in{channel}_input", folder / f"curr{channel}_input"),
                )
        for folder in sorted({found for pattern in OLD for found in root.glob(pattern)}):
            for channel in range(3):
                self._add(text_of(folder / f"rail_name_{channel}"), (folder / f"in_power{channel}_input",))
        if not self._rails:
            raise NoReaderError(f"no rail of an INA3221 under /{HWMON} or /{OLD[0]}: this is no Jetson, or a container "
                                "that hides /sys")  # fmt: skip
        self.total, self.scope = whole_of(list(self._rails))

    def _add(self, label: str | None, files: tuple[Path, ...]) -> None:
        # NC: a channel that is not connected.
        if label and label != "NC" and all(number_of(file) is not None for file in files):
            self._rails[label] = files

    def read(self) -> Reading:
        """Return the power of every rail; raises UserError when one cannot be read any more."""
        return Reading(power_w={name: _watts(name, files) for name, files in self._rails.items()})


def _watts(name: str, files: tuple[Path, ...]) -> float:
    values = [number_of(file) for file in files]
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        raise UserError(f"the rail {name} cannot be read any more: {files[0].parent}")
    return known[0] * known[1] / 1e6 if len(known) == 2 else known[0] / 1e3
