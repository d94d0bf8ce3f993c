"""Energy counters of x86 packages and their memory, through the kernel's powercap files (Intel, and AMD since Zen).

Source: the kernel's Documentation/power/powercap/powercap.rst: `name`, `energy_uj` and `max_energy_range_uj` of each
zone, `intel-rapl:N` for a package and `intel-rapl:N:M` for its parts. `dram` is not part of its package, `core` and
`uncore` are; `psys` is the whole platform and contains packages. Since CVE-2020-8694 only root may read `energy_uj`.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.power.reader import NoReaderError, Reader, Reading, Unwrapped
from benchmarks.power.sysfs import number_of, text_of
from metro_edge.errors import UserError

FOLDER = "sys/class/powercap"
PERMIT = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?$")  # not intel-rapl-mmio, which counts the same package again


class RaplReader(Reader):
    """Packages and memory of this machine's sockets.

    Args:
        root: where the file system begins.

    Raises:
        NoReaderError: no such counter, or none that may be read; then with the line that permits it.
    """

    name = "rapl"

    def __init__(self, root: Path = Path("/")) -> None:
        folders = [path for path in sorted((root / FOLDER).glob("intel-rapl:*")) if _ZONE.search(path.name)]
        names = {folder: text_of(folder / "name") or "" for folder in folders}
        counted = [folder for folder, name in names.items() if name.startswith("package") or name == "dram"]
        if not counted:
            raise NoReaderError(f"no counter intel-rapl:*/energy_uj of a package under /{FOLDER}: no x86 machine with "
                                "RAPL, or a virtual one that hides it")  # fmt: skip
        self._files: dict[str, tuple[Path, Unwrapped]] = {}
        for folder in counted:
            if number_of(folder / "energy_uj") is None:
                raise NoReaderError(f"{_shown(folder, root)}/energy_uj is for root alone; until the next boot this "
                                    f"permits reading it: {PERMIT}")  # fmt: skip
            owner = names.get(folder.parent / folder.name.rsplit(":", 1)[0], "") if names[folder] == "dram" else ""
            name = f"{names[folder]} of {owner}" if owner else names[folder]
            largest = number_of(folder / "max_energy_range_uj")
            self._files[name] = (folder / "energy_uj", Unwrapped(f"{_shown(folder, root)}/energy_uj", largest))
        self.total = tuple(self._files)
        self.scope = f"processors ({' + '.join(self.total)}), without mainboard, disks and power supply"

    def read(self) -> Reading:
        """Return joules of every counter; raises UserError for one that cannot be read any more."""
        energy = {}
        for name, (path, unwrapped) in self._files.items():
            value = number_of(path)
            if value is None:
                raise UserError(f"{path} cannot be read any more")
            energy[name] = unwrapped(value) / 1e6
        return Reading(energy_j=energy)


def _shown(path: Path, root: Path) -> str:
    return f"/{path.relative_to(root).as_posix()}"
