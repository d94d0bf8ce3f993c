"""Folders as devices show them under /sys: names and numbers, each from where its function says."""

from __future__ import annotations

from pathlib import Path


def write(root: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def orin_nano(root: Path) -> Path:
    """Orin Nano, JetPack 6.

    Labels as in NVIDIA's Developer Guide R36 for Orin; mV, mA and the GPU's clock as a public test of another project
    recorded them on an "Orin Nano Engineering Reference Developer Kit Super"; in7 and curr4 as in the kernel's
    Documentation/hwmon/ina3221.rst.
    """
    monitor = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    rails = {1: ("VDD_IN", 4968, 1520), 2: ("VDD_CPU_GPU_CV", 4960, 1784), 3: ("VDD_SOC", 4960, 496)}
    files: dict[str, object] = {}
    for channel, (label, mv, ma) in rails.items():
        files |= {
            f"{monitor}/in{channel}_label": label,
            f"{monitor}/in{channel}_input": mv,
            f"{monitor}/curr{channel}_input": ma,
        }
    files |= {
        f"{monitor}/in7_label": "sum of shunt voltages",
        f"{monitor}/in7_input": 7,
        f"{monitor}/curr4_input": 3800,
    }
    return write(root, files | orin_heat())


def orin_heat() -> dict[str, object]:
    """Zones, alerts and over-current counters of an Orin: names as in the Developer Guide R36; cv0 is off and fails."""
    return {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": 63625,
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone1/temp": 50468,
        "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
        "sys/class/thermal/thermal_zone2/temp": -256000,
        "sys/class/thermal/cooling_device0/type": "pwm-fan",
        "sys/class/thermal/cooling_device0/cur_state": 2,
        "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert",
        "sys/class/thermal/cooling_device1/cur_state": 0,
        "sys/class/hwmon/hwmon3/name": "soctherm_oc",
        "sys/class/hwmon/hwmon3/oc1_event_cnt": 0,
        "sys/class/hwmon/hwmon3/oc3_event_cnt": 37,
        "sys/class/devfreq/17000000.gpu/cur_freq": 1020000000,
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 729600,
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 1510400,
    }


def agx_orin(root: Path) -> Path:
    """AGX Orin: rails at two monitors, one of whose channels is not connected.

    Figures of VDD_GPU_SOC as a public project compared them with tegrastats (19864 mV, 180 mA, 3575 mW there).
    """
    first, second = (f"sys/bus/i2c/drivers/ina3221/1-004{n}/hwmon/hwmon{n}" for n in (0, 1))
    rails = (
        (first, 1, "VDD_GPU_SOC", 19864, 180),
        (first, 2, "VDD_CPU_CV", 19864, 40),
        (first, 3, "VIN_SYS_5V0", 5000, 900),
        (second, 1, "NC", 0, 0),
        (second, 2, "VDDQ_VDD2_1V8AO", 1100, 500),
    )
    files: dict[str, object] = {}
    for folder, channel, label, mv, ma in rails:
        files |= {
            f"{folder}/in{channel}_label": label,
            f"{folder}/in{channel}_input": mv,
            f"{folder}/curr{channel}_input": ma,
        }
    return write(root, files)


def nano_jetpack4(root: Path) -> Path:
    """Nano, JetPack 4: the older driver; paths and POM_5V_IN with 2875 mW as in public code for the Nano."""
    monitor = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files: dict[str, object] = {}
    for channel, (label, mw) in enumerate((("POM_5V_IN", 2875), ("POM_5V_GPU", 123), ("POM_5V_CPU", 690))):
        files |= {f"{monitor}/rail_name_{channel}": label, f"{monitor}/in_power{channel}_input": mw}
    return write(root, files)


def two_sockets(root: Path, energy_uj: int = 1_000_000) -> Path:
    """Two Intel packages with memory and cores, and the platform: zones as in the kernel's powercap.rst."""
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    files: dict[str, object] = {"sys/class/powercap/intel-rapl/enabled": 1}
    for zone, name in zones.items():
        folder = f"sys/class/powercap/{zone}"
        files |= {
            f"{folder}/name": name,
            f"{folder}/energy_uj": energy_uj,
            f"{folder}/max_energy_range_uj": 262143328850,
        }
    return write(root, files)
