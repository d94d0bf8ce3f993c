from __future__ import annotations

import json
import platform

import numpy as np
import pytest

from metro_edge import machine


def test_it_says_what_it_ran_on_and_not_where():
    values = machine.describe_machine(("numpy", "no-such-library"))
    assert values["versions"] == {"numpy": np.__version__, "no-such-library": None}
    assert values["cores"] >= 1 and values["python"] == platform.python_version()
    text = json.dumps(values) + machine.machine_line(values)
    assert "no-such-library" not in machine.machine_line(values)
    name = platform.node()
    assert not name or len(name) < 4 or name not in text


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/cpuinfo": "processor : 0\nmodel name\t: Fast  CPU 9\n"}, "Fast CPU 9"),
        ({"/proc/cpuinfo": "processor : 0\n", "/proc/device-tree/model": "NVIDIA Jetson Orin\0"}, "NVIDIA Jetson Orin"),
        ({}, "chip"),
    ],
)
def test_cpu_model(monkeypatch, files, expected):
    class Files:
        def __init__(self, path: str) -> None:
            self.path = path

        def read_text(self, **_kwargs) -> str:
            if self.path not in files:
                raise FileNotFoundError(self.path)
            return files[self.path]

    monkeypatch.setattr(machine, "Path", Files)
    monkeypatch.setattr(machine.platform, "processor", lambda: "chip")
    assert machine.cpu_model() == expected


def test_systems_without_the_linux_calls(monkeypatch):
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(machine.os, "sysconf", raising=False)
    values = machine.describe_machine()
    assert values["cores"] >= 1 and values["memory_gb"] is None


JETSON_CONF = """\
###########################
# < POWER_MODEL ID=2 NAME=IN_A_COMMENT >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=MODE_10W >
< POWER_MODEL ID=2 NAME=MODE_15W >
< PM_CONFIG DEFAULT=2 >
"""


@pytest.mark.parametrize(
    ("status", "conf", "expected"),
    [
        ("pmode:0002 fmode:quiet\n", JETSON_CONF, "MODE_15W"),
        ("pmode:0000", JETSON_CONF, "MAXN"),
        ("pmode:0007", JETSON_CONF, "mode 7"),
        ("pmode:0001", None, "mode 1"),
        ("fmode:quiet", JETSON_CONF, None),
        (None, JETSON_CONF, None),
    ],
)
def test_power_mode_of_a_jetson(tmp_path, status, conf, expected):
    for name, text in (("var/lib/nvpmodel/status", status), ("etc/nvpmodel.conf", conf)):
        if text is not None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    assert machine.power_mode(tmp_path) == expected
