"""Rails of Jetsons from files as each module has them; see files.py for the sources."""

from __future__ import annotations

import pytest

from benchmarks.power.jetson import Ina3221Reader, whole_of
from benchmarks.power.reader import NoReaderError
from metro_edge.errors import UserError
from tests.benchmarks.power.files import agx_orin, nano_jetpack4, orin_nano, write


def test_an_orin_nano_is_counted_at_its_input(tmp_path):
    reader = Ina3221Reader(orin_nano(tmp_path))
    assert reader.total == ("VDD_IN",) and "module's input" in reader.scope
    power = reader.read().power_w
    assert power == {
        "VDD_IN": pytest.approx(4.968 * 1.520),
        "VDD_CPU_GPU_CV": pytest.approx(4.960 * 1.784),
        "VDD_SOC": pytest.approx(4.960 * 0.496),
    }  # and no sum of shunt voltages


def test_an_agx_orin_is_the_sum_of_its_three_rails(tmp_path):
    reader = Ina3221Reader(agx_orin(tmp_path))
    assert reader.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    power = reader.read().power_w
    assert power["VDD_GPU_SOC"] == pytest.approx(3.576, abs=0.001)  # tegrastats says 3575 mW there
    assert "NC" not in power and "VDDQ_VDD2_1V8AO" in power


def test_the_older_driver_gives_milliwatts(tmp_path):
    reader = Ina3221Reader(nano_jetpack4(tmp_path))
    assert reader.total == ("POM_5V_IN",)
    assert reader.read().power_w["POM_5V_IN"] == pytest.approx(2.875)


def test_a_module_with_a_rail_missing_says_so():
    total, words = whole_of(["VDD_GPU_SOC", "VDD_CPU_CV"])
    assert total == ("VDD_GPU_SOC", "VDD_CPU_CV")
    assert "VIN_SYS_5V0 is missing" in words and "part of" in words


def test_unknown_rails_are_summed_with_a_warning():
    total, words = whole_of(["VDD_A", "GPU"])
    assert total == ("VDD_A", "GPU") and "not known" in words


def test_an_agx_thor_is_counted_at_the_boards_input():
    assert whole_of(["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"])[0] == ("VIN",)


def test_no_monitor_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(NoReaderError, match="ina3221"):
        Ina3221Reader(tmp_path)
    write(tmp_path, {"sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label": "VDD_IN"})  # without figures
    with pytest.raises(NoReaderError, match="no rail"):
        Ina3221Reader(tmp_path)


def test_a_rail_that_goes_away_is_an_error(tmp_path):
    reader = Ina3221Reader(orin_nano(tmp_path))
    (tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input").write_text("busy\n")
    with pytest.raises(UserError, match="VDD_IN cannot be read any more"):
        reader.read()
