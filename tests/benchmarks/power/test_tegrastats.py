# ruff: noqa: E501 - recorded lines
"""Lines that tegrastats printed on each Jetson, as published.

ORIN_NANO_6 (JetPack 6) and TWO_GPCS (JetPack 5, but for the sensor that is off) stand in comments of public code for the
Orin Nano; ORIN_NX in the tests of a public .NET tool; ORIN_7 (R39, three figures) in those of a public recorder; TX2 and
AGX_XAVIER (JetPack 4) in those of DataDog's agent (datadog-agent, `tegrastats`). AGX_ORIN_5 is put together here of the
rails that public tests give for it. What the fields mean: NVIDIA's Jetson Linux Developer Guide, "tegrastats Utility".
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from benchmarks.power.reader import NoReaderError
from benchmarks.power.tegrastats import TegrastatsReader, parse_line
from metro_edge.errors import UserError

ORIN_NANO_6 = (
    "09-21-2025 15:38:17 RAM 3645/7620MB (lfb 63x4MB) SWAP 236/3810MB (cached 0MB) CPU "
    "[1%@729,1%@729,4%@729,1%@729,0%@729,0%@729] EMC_FREQ 0%@204 GR3D_FREQ 0%@[305] NVDEC off NVJPG off NVJPG1 off VIC off "
    "OFA off APE 200 cpu@44.125C soc2@43.375C soc0@42.125C gpu@44.531C tj@44.531C soc1@43.156C VDD_IN 2957mW/2957mW "
    "VDD_CPU_GPU_CV 486mW/486mW VDD_SOC 1012mW/1012mW"
)
ORIN_NX = (
    "11-23-2025 22:47:56 RAM 1729/15657MB (lfb 8x4MB) SWAP 0/7828MB (cached 0MB) CPU "
    "[1%@1420,2%@1420,4%@1420,3%@1420,off,off,off,off] GR3D_FREQ 0% cv0@43.562C cpu@46.125C soc2@43.781C soc0@44.656C "
    "cv1@43.312C gpu@43C tj@46.937C soc1@46.937C cv2@43.781C VDD_IN 6120mW/6120mW VDD_CPU_GPU_CV 436mW/436mW VDD_SOC "
    "2464mW/2464mW"
)
ORIN_7 = (
    "09-01-2026 09:25:18 RAM 5739/7546MB (lfb 1x2MB) SWAP 2047/2048MB (cached 209MB) CPU "
    "[72%@1728,75%@1728,88%@1728,79%@1728,87%@1728,78%@1728] GR3D_FREQ 33% cpu@50C/50C soc2@47.937C/47.937C "
    "gpu@48.75C/48.75C tj@50C/50C VDD_IN 9761mW/9761mW/9761mW VDD_CPU_GPU_CV 4238mW/4238mW/4238mW VDD_SOC "
    "1825mW/1825mW/1825mW"
)
TWO_GPCS = (
    "01-24-2024 09:17:09 RAM 3503/7337MB (lfb 7x1MB) SWAP 430/3668MB (cached 1MB) CPU [11%@729,13%@729,9%@729,18%@729,off,off]"
    " EMC_FREQ 0%@2133 GR3D_FREQ 0%@305 GR3D2_FREQ 0%@0 VIC_FREQ 115 APE 174 CV0@-256C CPU@44.093C GPU@41.343C tj@46.968C "
    "VDD_IN 4915mW/4915mW VDD_CPU_GPU_CV 449mW/449mW VDD_SOC 1431mW/1431mW"
)
AGX_ORIN_5 = (
    "RAM 3000/30698MB (lfb 1x1MB) SWAP 0/15349MB (cached 0MB) CPU [1%@2201,0%@2201] EMC_FREQ 1%@3199 GR3D_FREQ "
    "99%@[1300,1300] CPU@48.5C GPU@47C tj@49C VDD_GPU_SOC 4876mW/4876mW VDD_CPU_CV 975mW/975mW VIN_SYS_5V0 4461mW/4461mW NC "
    "0mW/0mW"
)
TX2 = (
    "RAM 1345/7829MB (lfb 1290x4MB) SWAP 0/512MB (cached 0MB) CPU [2%@345,off,off,off,off,off] EMC_FREQ 13%@40 GR3D_FREQ "
    "0%@114 APE 150 BCPU@35C MCPU@35C GPU@41C PLL@35C AO@35.5C Tboard@35C Tdiode@36C PMIC@100C thermal@35.5C VDD_IN "
    "2003/2658 VDD_CPU 320/518 VDD_GPU 400/735 VDD_SOC 400/415 VDD_WIFI 0/0 VDD_DDR 240/348"
)
AGX_XAVIER = (
    "RAM 1903/15692MB (lfb 3251x4MB) CPU [1%@1190,1%@1190,2%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190] EMC_FREQ 0% "
    "GR3D_FREQ 0% AO@32.5C GPU@32C Tboard@32C Tdiode@34.75C AUX@31.5C CPU@33.5C thermal@32.9C PMIC@100C GPU 0/0 CPU "
    "216/216 SOC 864/864 CV 0/0 VDDRQ 144/144 SYS5V 1889/1889"
)


def test_an_orin_nano_of_jetpack_6():
    reading = parse_line(ORIN_NANO_6)
    assert reading.power_w == {"VDD_IN": 2.957, "VDD_CPU_GPU_CV": 0.486, "VDD_SOC": 1.012}
    assert reading.temperature_c["tj"] == 44.531 and len(reading.temperature_c) == 6
    assert reading.clock_mhz == {"cpu": 729.0, "gpu": 305.0, "memory": 204.0}
    assert reading.load["cpu"] == pytest.approx(7 / 600) and reading.load["gpu"] == 0.0


@pytest.mark.parametrize(
    ("line", "watts", "rails", "hot"),
    [
        (ORIN_NX, 6.120, 3, ("tj", 46.937)),
        (ORIN_7, 9.761, 3, None),
        (TWO_GPCS, 4.915, 3, ("tj", 46.968)),
        (TX2, 2.003, 6, ("GPU", 41.0)),
    ],
)
def test_the_now_of_the_input_rail_is_taken_and_not_the_mean(line, watts, rails, hot):
    reading = parse_line(line)
    assert reading.power_w["VDD_IN"] == watts and len(reading.power_w) == rails
    assert hot is None or reading.temperature_c[hot[0]] == hot[1]


def test_cores_that_are_off_do_not_count():
    assert parse_line(ORIN_NX).load["cpu"] == pytest.approx(0.10 / 4)
    assert "gpu" not in parse_line(ORIN_NX).clock_mhz  # JetPack 6 gives no clock to users that are not root


def test_rails_without_units_on_an_agx_xavier():
    reading = parse_line(AGX_XAVIER)
    assert reading.power_w == {"GPU": 0.0, "CPU": 0.216, "SOC": 0.864, "CV": 0.0, "VDDRQ": 0.144, "SYS5V": 1.889}
    assert reading.temperature_c["CPU"] == 33.5 and "PMIC" not in reading.temperature_c


def test_two_clocks_of_an_agx_orin_and_a_sensor_that_is_off():
    reading = parse_line(AGX_ORIN_5)
    assert reading.clock_mhz["gpu"] == 1300.0 and reading.load["gpu"] == 0.99
    assert "CV0" not in parse_line(TWO_GPCS).temperature_c


@pytest.mark.parametrize("line", ["", "tegrastats: command not found", "VDD_IN 2957mW/2957mW"])
def test_other_text_is_refused(line):
    with pytest.raises(UserError, match="not a line of tegrastats"):
        parse_line(line)


@pytest.fixture
def program(tmp_path: Path):
    """Makes a program that prints what it is given, forever or once."""

    def make(*lines: str, forever: bool = True) -> str:
        path = tmp_path / "tegrastats"
        loop = "while True:\n    for line in lines: print(line, flush=True); time.sleep(0.01)\n"
        once = "for line in lines: print(line, flush=True)\n"
        path.write_text(f"#!{sys.executable}\nimport time\nlines = {list(lines)!r}\n" + (loop if forever else once))
        os.chmod(path, path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.mark.skipif(sys.platform == "win32", reason="starts a script by its first line")
class TestReader:
    def test_it_follows_the_program_and_ends_it(self, program):
        with TegrastatsReader(program=program(AGX_ORIN_5)) as reader:
            process = reader._process
            assert reader.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
            assert reader.read().power_w["VIN_SYS_5V0"] == 4.461
        assert process.poll() is not None
        reader.close()

    def test_a_line_without_rails_is_no_reader(self, program):
        with pytest.raises(NoReaderError, match="no power rail"):
            TegrastatsReader(program=program("RAM 1/2MB CPU [1%@1]"))

    def test_other_output_is_no_reader(self, program):
        with pytest.raises(NoReaderError, match="not a line"):
            TegrastatsReader(program=program("permission denied"))

    def test_a_program_that_ends_is_noticed(self, program, monkeypatch):
        monkeypatch.setattr("benchmarks.power.tegrastats.LATEST_S", 0.2)
        reader = TegrastatsReader(program=program(ORIN_NX, forever=False))
        with reader, pytest.raises(UserError, match=r"printed nothing for 0\.2 s"):
            reader.read()

    def test_no_program(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(NoReaderError, match="no tegrastats on PATH"):
            TegrastatsReader()
        with pytest.raises(NoReaderError, match="cannot run"):
            TegrastatsReader(program=str(tmp_path / "none"))
