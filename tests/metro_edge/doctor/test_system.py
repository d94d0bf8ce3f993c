from __future__ import annotations

from pathlib import Path

import pytest

from metro_edge.doctor import system
from metro_edge.doctor.system import SMI_FIELDS, read_system

RTX = "NVIDIA GeForce RTX 4090, 560.35.03, 8.9, P2, 450.00, 2520, 3105, 10501, 10501"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def bare(tmp_path, monkeypatch) -> Path:
    """A machine without programs and driver."""
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    def no_driver(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(system.ctypes, "CDLL", no_driver)
    which = system.shutil.which
    monkeypatch.setattr(system.shutil, "which", lambda name: None if name.startswith("/usr/local") else which(name))
    return tmp_path


def program(root: Path, name: str, text: str, code: int = 0) -> None:
    write(root, {f"programs/{name}": f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n"})
    (root / "programs" / name).chmod(0o755)
    (root / "programs/cat").unlink(missing_ok=True)
    (root / "programs/cat").symlink_to("/bin/cat")


JETSON = {
    "etc/os-release": 'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="22.04"\n',
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/15480000.nvdec/cur_freq": "1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
}


def test_a_jetson(bare):
    write(bare, JETSON)
    found = read_system(bare)
    assert found.jetson == "NVIDIA Jetson Orin Nano Developer Kit, L4T R36.4.3"
    assert (found.distribution, found.power_mode, found.nvidia_device) == ("ubuntu", "MAXN_SUPER", True)
    assert found.clocks == {"CPU": "729 MHz, 729 to 1728, governor schedutil", "GPU": "306 MHz, 306 to 1020"}
    assert found.locked is False
    write(bare, {"sys/class/devfreq/17000000.gpu/min_freq": "1020000000"})
    assert read_system(bare).locked is True


def test_a_machine_without_anything(bare):
    found = read_system(bare / "nothing")
    assert (found.distribution, found.jetson, found.nvidia_device, found.driver, found.cuda) == (None,) * 5
    assert (found.toolkit, found.power_mode, found.locked) == (None,) * 3
    assert found.clocks == {} and found.smi == {}


def test_a_desktop_with_programs(bare):
    program(bare, "nvidia-smi", f"{RTX}\n{RTX.replace('4090', '3060')}")
    program(bare, "nvcc", "Cuda compilation tools, release 12.6, V12.6.85")
    found = read_system(bare)
    assert found.driver == "560.35.03" and found.toolkit == "12.6" and found.nvidia_device is True
    assert found.smi["name"] == "NVIDIA GeForce RTX 4090" and list(found.smi) == list(SMI_FIELDS)
    assert found.clocks["GPU"] == "2520 MHz of 3105, P2" and found.locked is None


@pytest.mark.parametrize(("text", "code"), [("No devices were found", 6), ("too, few", 0), ("", 0)])
def test_an_nvidia_smi_that_fails(bare, text, code):
    program(bare, "nvidia-smi", text, code)
    assert read_system(bare).smi == {}


def test_what_nvidia_smi_does_not_know_is_left_out(bare):
    for value in ("[N/A]", "[Not Supported]", "N/A"):
        program(bare, "nvidia-smi", RTX.replace("450.00", value))
        assert "power.limit" not in read_system(bare).smi


def test_another_boards_gpu_has_no_jetson_clocks(bare):
    clocks = dict.fromkeys(("cur_freq", "min_freq", "max_freq"), "800000000")
    write(bare, {f"sys/class/devfreq/fb000000.gpu/{name}": value for name, value in clocks.items()})
    found = read_system(bare)
    assert found.clocks["GPU"] == "800 MHz, 800 to 800" and found.locked is None


def test_the_kernels_driver_and_the_pci_bus(bare):
    write(
        bare,
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n",
            "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086\n",
            "sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n",
        },
    )
    assert read_system(bare).driver == "550.54.14" and read_system(bare).nvidia_device is False
    audio = {"vendor": "0x10de\n", "class": "0x040300\n"}  # sound of a graphics card that is passed on to a guest
    write(bare, {f"sys/bus/pci/devices/0000:01:00.1/{name}": text for name, text in audio.items()})
    assert read_system(bare).nvidia_device is False
    write(bare, {"sys/bus/pci/devices/0000:01:00.1/class": "0x030200\n"})
    assert read_system(bare).nvidia_device is True


@pytest.mark.parametrize(("version", "code", "expected"), [(12060, 0, "12.6"), (13000, 0, "13.0"), (0, 100, None)])
def test_cuda_of_the_driver(bare, monkeypatch, version, code, expected):
    class Driver:
        def __init__(self, _name):
            pass

        def cuDriverGetVersion(self, pointer):  # noqa: N802
            pointer._obj.value = version
            return code

    monkeypatch.setattr(system.ctypes, "CDLL", Driver)
    assert read_system(bare).cuda == expected
