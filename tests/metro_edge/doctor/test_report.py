from __future__ import annotations

import dataclasses

import pytest

from metro_edge.doctor import NEEDS, examine, report, text_of
from metro_edge.doctor.probes import PROGRAMS, Answer
from metro_edge.doctor.report import TITLES, install_line
from metro_edge.doctor.system import System
from metro_edge.errors import UserError

NOTHING = System(None, None, None, None, None, None, None, {}, None, {})
UBUNTU = dataclasses.replace(NOTHING, distribution="ubuntu", nvidia_device=True)
JETSON = dataclasses.replace(
    UBUNTU,
    jetson="NVIDIA Jetson Orin Nano, L4T R36.4.3",
    driver=None,
    cuda="12.6",
    power_mode="15W",
    clocks={"GPU": "306 MHz, 306 to 1020"},
    locked=False,
)


@pytest.fixture
def told(monkeypatch):
    """Examines a machine whose system and libraries are as given."""

    def make(system: System, **found: str):
        answers = {name: Answer(found[name]) if name in found else Answer(None, "not installed") for name in PROGRAMS}
        monkeypatch.setattr(report, "read_system", lambda _root: system)
        monkeypatch.setattr(report, "ask", lambda names: {name: answers[name] for name in names})
        return examine()

    return make


CPU = {"opencv": "5.0.0", "onnxruntime": "1.32.0", "cpu": "metro_edge"}


def test_a_machine_without_anything(told):
    found = told(NOTHING)
    assert [part.name for part in found.parts] == list(TITLES)
    assert not any(part.works for part in found.parts)
    assert found.to_dict()["needs"] == dict.fromkeys(NEEDS, False)
    assert "pip install --force-reinstall metro-edge" in text_of(found)


def test_a_laptop_without_a_gpu(told):
    found = told(dataclasses.replace(NOTHING, nvidia_device=False), **CPU)
    needs = found.to_dict()["needs"]
    assert needs == {"cpu": True, "openvino": False, "tensorrt": False, "rtx": False}
    rows = {part.name: part for part in found.parts}
    assert rows["driver"].problem == rows["gpu"].problem == "no NVIDIA GPU in this machine"
    assert rows["driver"].install is None
    assert rows["openvino"].install == "pip install 'metro-edge[openvino]'"


def test_a_jetson_that_lacks_tensorrt(told):
    found = told(JETSON, **CPU, gpu="Orin, compute capability 8.7", pycuda="2026.1")
    assert [part.name for part in found.missing("tensorrt")] == ["tensorrt"]
    text = text_of(found)
    assert "sudo apt install python3-libnvinfer" in text and "--system-site-packages" in text
    assert "driver        ok       version unknown, CUDA 12.6" in text
    assert "15W" in text and "306 MHz, 306 to 1020" in text and "sudo jetson_clocks" in text
    assert "tensorrt      lacks TensorRT" in text.splitlines()
    whole = told(dataclasses.replace(JETSON, locked=True), **CPU, gpu="Orin", pycuda="1", tensorrt="10.3.0")
    assert "tensorrt      works" in text_of(whole).splitlines()
    assert "--system-site-packages" not in text_of(whole) and "sudo jetson_clocks" not in text_of(whole)


@pytest.mark.parametrize(
    ("name", "system", "line"),
    [
        ("driver", UBUNTU, "sudo ubuntu-drivers install"),
        ("driver", dataclasses.replace(UBUNTU, distribution="debian"), "sudo apt install nvidia-driver"),
        ("driver", dataclasses.replace(UBUNTU, distribution="arch"), None),
        ("driver", JETSON, "sudo apt install nvidia-l4t-cuda"),
        ("tensorrt", UBUNTU, "pip install 'metro-edge[tensorrt]'"),
        ("toolkit", UBUNTU, "sudo apt install nvidia-cuda-toolkit"),
        ("toolkit", NOTHING, None),
        ("pycuda", UBUNTU, "sudo apt install nvidia-cuda-toolkit && pip install pycuda"),
        ("pycuda", JETSON, "sudo apt install nvidia-jetpack && pip install pycuda"),
        ("pycuda", dataclasses.replace(JETSON, toolkit="12.6"), "pip install pycuda"),
    ],
)
def test_lines_that_install(name, system, line):
    assert install_line(name, system) == line


def test_rtx_has_wheels_for_one_platform(monkeypatch):
    for machine, line in (("x86_64", "pip install 'metro-edge[rtx]'"), ("aarch64", None)):
        monkeypatch.setattr(report.platform, "system", lambda: "Linux")
        monkeypatch.setattr(report.platform, "machine", lambda machine=machine: machine)
        assert install_line("tensorrt_rtx", UBUNTU) == line


def test_an_unknown_need(told):
    with pytest.raises(UserError, match="unknown need 'cuda'; known: cpu, openvino"):
        told(NOTHING).missing("cuda")


def test_every_extra_that_is_named_exists():
    setup = (report.Path(__file__).parents[3] / "setup.py").read_text()
    for extra in ("openvino", "rtx", "tensorrt"):
        assert f'"{extra}": [' in setup
