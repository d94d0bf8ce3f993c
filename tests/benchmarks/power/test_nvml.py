"""NVML, called through its real C interface: a library compiled here answers for the GPU.

Prototypes and units are those of nvml.h (docs.nvidia.com/deploy/nvml-api).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.power.nvml import NvmlReader, _loaded
from benchmarks.power.reader import NoReaderError
from metro_edge.errors import UserError

SOURCE = """
#include <string.h>
typedef struct device *nvmlDevice_t;
static struct device { int number; } devices[2] = {{0}, {1}};
int init_result = 0, open_count = 0, supported = 3;
unsigned long long energy_mj = 5000000000ULL, reasons = 0;  /* beyond 32 bits */
unsigned int power_mw = 71500;
int nvmlInit_v2(void) { if (!init_result) ++open_count; return init_result; }
int nvmlShutdown(void) { --open_count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *d) {
  *d = &devices[index];
  return index < 2 ? 0 : 2;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *d) {
  if (strcmp(id, "0000:65:00.0")) return 6;
  *d = &devices[1];
  return 0;
}
int nvmlDeviceGetName(nvmlDevice_t d, char *name, unsigned int length) {
  strncpy(name, d->number ? "NVIDIA L4" : "NVIDIA GeForce RTX 4090", length);
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t d, unsigned long long *mj) {
  *mj = energy_mj;
  return supported & 1 ? 0 : 3;
}
int nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned int *mw) { *mw = power_mw; return supported & 2 ? 0 : 3; }
int nvmlDeviceGetTemperature(nvmlDevice_t d, int sensor, unsigned int *c) { *c = 61; return sensor == 0 ? 0 : 2; }
int nvmlDeviceGetClockInfo(nvmlDevice_t d, int type, unsigned int *mhz) { *mhz = type == 1 ? 2040 : 6251; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t d, unsigned long long *r) { *r = reasons; return 0; }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "nvml.so"), str(folder / "nvml.c")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "nvml.so"


@pytest.fixture
def library(compiled: Path, tmp_path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(shutil.copy(compiled, tmp_path / "nvml.so"))  # a copy has variables of its own


def number(library: ctypes.CDLL, name: str, kind=ctypes.c_int):
    return kind.in_dll(library, name)


def test_what_a_gpu_tells(library):
    with NvmlReader(library) as reader:
        assert reader.total == ("gpu",) and "RTX 4090" in reader.scope
        reading = reader.read()
        assert reading.energy_j == {"gpu": 5_000_000.0} and reading.power_w == {"gpu": 71.5}
        assert reading.temperature_c == {"gpu": 61.0} and reading.throttled == ()
        assert reading.clock_mhz == {"gpu": 2040.0, "gpu memory": 6251.0}
        assert number(library, "open_count").value == 1
    assert number(library, "open_count").value == 0
    with pytest.raises(UserError, match="closed"):
        reader.read()


def test_the_gpu_at_an_address(library):
    assert "L4" in NvmlReader(library, "0000:65:00.0").scope
    with pytest.raises(NoReaderError, match="knows no GPU 0000:01"):
        NvmlReader(library, "0000:01:00.0")
    assert number(library, "open_count").value == 1


@pytest.mark.parametrize(
    ("bits", "words"),
    [(0x1, ()), (0x13, ()), (0x4, ("power cap",)), (0x68, ("hardware slowdown", "software thermal slowdown",
                                                           "hardware thermal slowdown"))],
)  # fmt: skip
def test_reasons_of_throttling(library, bits, words):
    number(library, "reasons", ctypes.c_ulonglong).value = bits
    assert NvmlReader(library).read().throttled == words


def test_a_gpu_without_an_energy_counter_gives_power(library):
    number(library, "supported").value = 2
    reading = NvmlReader(library).read()
    assert not reading.energy_j and reading.power_w == {"gpu": 71.5}


def test_a_gpu_that_tells_neither_is_no_reader(library):
    number(library, "supported").value = 0
    with pytest.raises(NoReaderError, match="neither energy nor power"):
        NvmlReader(library)
    assert number(library, "open_count").value == 0


def test_a_driver_that_was_loaded_again_is_noticed(library):
    with NvmlReader(library) as reader:
        number(library, "energy_mj", ctypes.c_ulonglong).value = 17
        with pytest.raises(UserError, match="fell from 5000000000 to 17"):
            reader.read()


def test_a_library_that_does_not_start(library):
    number(library, "init_result").value = 9
    with pytest.raises(NoReaderError, match="error 9"):
        NvmlReader(library)


def test_no_library(monkeypatch):
    monkeypatch.setattr("benchmarks.power.nvml.LIBRARY", "libnvidia-ml.so.missing")
    with pytest.raises(NoReaderError, match="no NVIDIA driver"):
        _loaded()
