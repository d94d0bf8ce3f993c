"""Heat, clocks and throttling from files; names of an Orin, see files.py."""

from __future__ import annotations

from benchmarks.power.sysfs import SysfsReader, number_of, text_of
from tests.benchmarks.power.files import orin_heat, write


def test_an_orins_sensors(tmp_path):
    reading = SysfsReader(write(tmp_path, orin_heat())).read()
    assert reading.temperature_c == {"cpu-thermal": 63.625, "gpu-thermal": 50.468}  # cv0 is off
    assert reading.clock_mhz == {"cpu": 1510.4, "gpu": 1020.0}
    assert reading.throttled == () and not reading.power_w


def test_an_alert_and_an_over_current_event_are_throttling(tmp_path):
    reader = SysfsReader(write(tmp_path, orin_heat()))
    reader.read()
    write(tmp_path, {"sys/class/thermal/cooling_device1/cur_state": 1, "sys/class/hwmon/hwmon3/oc3_event_cnt": 38})
    assert reader.read().throttled == ("cpu-throttle-alert", "instantaneous over-current")
    assert reader.read().throttled == ("cpu-throttle-alert",)  # no further event


def test_a_hot_x86_package(tmp_path):
    files = {
        f"sys/devices/system/cpu/cpu{core}/thermal_throttle/package_throttle_count": 5 for core in range(2)
    }  # as the kernel's therm_throt.c shows it: every core the same
    reader = SysfsReader(write(tmp_path, files))
    assert reader.read().throttled == ()
    write(tmp_path, dict.fromkeys(files, 6))
    assert reader.read().throttled == ("CPU package over its temperature",)


def test_zones_of_one_name_stay_apart(tmp_path):
    files = {f"sys/class/thermal/thermal_zone{n}/type": "acpitz" for n in (0, 10, 2)}
    files |= {f"sys/class/thermal/thermal_zone{n}/temp": 1000 * (20 + n) for n in (0, 10, 2)}
    assert list(SysfsReader(write(tmp_path, files)).read().temperature_c.values()) == [20.0, 22.0, 30.0]


def test_a_machine_that_shows_nothing(tmp_path):
    reading = SysfsReader(tmp_path).read()
    assert not reading.temperature_c and not reading.clock_mhz and not reading.throttled


def test_files_that_hold_no_number(tmp_path):
    write(tmp_path, {"a": "-12", "b": "12 C"})
    assert number_of(tmp_path / "a") == -12 and number_of(tmp_path / "b") is None and number_of(tmp_path / "c") is None
    assert text_of(tmp_path / "b") == "12 C" and text_of(tmp_path) is None
