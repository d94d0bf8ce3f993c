"""NVIDIA's tegrastats, a line per interval: rails, temperatures, clocks and loads of a Jetson.

The line is described in NVIDIA's Jetson Linux Developer Guide, appendix "tegrastats Utility". JetPack 4 prints rails as
`VDD_IN 2003/2658` (mW now/mean), JetPack 5 and 6 as `VDD_IN 2957mW/2957mW`, JetPack 7 with a third figure.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading

from benchmarks.power.jetson import whole_of
from benchmarks.power.reader import NoReaderError, Reader, Reading
from metro_edge.errors import UserError
from metro_edge.files import reason

PROGRAM = "tegrastats"
FIRST_LINE_S = 10.0
LATEST_S = 5.0  # without a line it is taken to have ended
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d+)(?:mW)?/(-?\d+)(?:mW)?(?:/-?\d+mW)?(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][A-Za-z0-9_]*)@(-?[\d.]+)C")
_CPU = re.compile(r"CPU \[([^\]]*)\]", re.IGNORECASE)
_CORE = re.compile(r"(\d+)%(?:@(\d+))?")
_ENGINE = re.compile(r"(?<!\S)(GR3D|EMC)(?:_FREQ)? (\d+)%(?:@\[?(\d+))?")
_NAMES = {"GR3D": "gpu", "EMC": "memory"}


def parse_line(line: str) -> Reading:
    """Return what a line says; raises UserError for one that is none of tegrastats'."""
    if not re.search(r"\bRAM \d+/\d+MB", line):
        raise UserError(f"not a line of tegrastats: {line.strip()[:120]!r}")
    power = {name: int(now) / 1000 for name, now, _ in _RAIL.findall(line)}
    # A sensor that is off reads -256 C; PMIC@100C is a constant of older releases.
    temperatures = {
        name: float(value)
        for name, value in _TEMPERATURE.findall(line)
        if float(value) > -55.0 and not (name == "PMIC" and float(value) in (50.0, 100.0))
    }
    clocks: dict[str, float] = {}
    load: dict[str, float] = {}
    if cores := _CPU.search(line):
        found = _CORE.findall(cores[1])  # cores that are off are not there
        shared = re.search(re.escape(cores[0]) + r"@(\d+)", line)
        mhz = [int(value) for _, value in found if value] + ([int(shared[1])] if shared else [])
        if mhz:
            clocks["cpu"] = float(max(mhz))
        if found:
            load["cpu"] = sum(int(percent) for percent, _ in found) / len(found) / 100
    for name, percent, value in _ENGINE.findall(line):
        load[_NAMES[name]] = int(percent) / 100
        if value:
            clocks[_NAMES[name]] = float(value)
    return Reading(power_w=power, temperature_c=temperatures, clock_mhz=clocks, load=load)


class TegrastatsReader(Reader):
    """The latest line of a tegrastats that runs beside.

    Args:
        interval_ms: between lines.
        program: its path; None looks for it on PATH.

    Raises:
        NoReaderError: no such program, or its first line does not come or names no rail.
    """

    name = "tegrastats"

    def __init__(self, interval_ms: int = 100, program: str | None = None) -> None:
        found = program or shutil.which(PROGRAM)
        if found is None:
            raise NoReaderError("no tegrastats on PATH: this is no Jetson, or a container without /usr/bin/tegrastats")
        command = [found, "--interval", str(interval_ms)]
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                errors="replace",
            )  # fmt: skip
        except OSError as error:
            raise NoReaderError(f"cannot run {found}: {reason(error)}") from None
        self._latest = ""
        self._arrived = threading.Event()
        threading.Thread(target=self._follow, args=(self._process,), daemon=True, name=PROGRAM).start()
        try:
            first = self._next(FIRST_LINE_S)
        except UserError as error:
            self.close()
            raise NoReaderError(str(error)) from None
        if not first.power_w:
            self.close()
            raise NoReaderError(f"{found} names no power rail: {self._latest.strip()[:200]!r}")
        self.total, self.scope = whole_of(list(first.power_w))

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._latest = line
            self._arrived.set()

    def _next(self, seconds: float) -> Reading:
        if not self._arrived.wait(seconds):
            raise UserError(f"{PROGRAM} printed nothing for {seconds:g} s")
        self._arrived.clear()
        return parse_line(self._latest)

    def read(self) -> Reading:
        """Wait for the next line and return what it says; raises UserError when none comes."""
        return self._next(LATEST_S)

    def close(self) -> None:
        """End tegrastats."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
