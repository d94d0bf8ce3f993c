"""Which readers a machine has."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from benchmarks.power import choose
from benchmarks.power.choose import open_readers
from benchmarks.power.reader import NoReaderError, Reader, Reading
from metro_edge.errors import UserError
from tests.benchmarks.power.files import orin_nano, two_sockets


class Gpu(Reader):
    name, total, scope = "nvml", ("gpu",), "GPU board"
    closed = False

    def read(self) -> Reading:
        return Reading(power_w={"gpu": 1.0})

    def close(self) -> None:
        self.closed = True


def absent(root):
    raise NoReaderError("no program of that name")


@pytest.fixture(autouse=True)
def no_programs(monkeypatch):
    monkeypatch.setitem(choose.READERS, "tegrastats", absent)
    monkeypatch.setitem(choose.READERS, "nvml", absent)


def names(root, on_gpu=False, wanted=()):
    with ExitStack() as stack:
        return [reader.name for reader in open_readers(stack, wanted, on_gpu, root)]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_jetson_has_its_rails(tmp_path, on_gpu):
    assert names(orin_nano(tmp_path), on_gpu) == ["ina3221", "sysfs"]


def test_a_desktop_counts_the_processors(tmp_path):
    assert names(two_sockets(tmp_path)) == ["rapl", "sysfs"]


def test_a_gpu_is_counted_beside_them_where_the_network_runs_on_it(tmp_path, monkeypatch):
    gpu = Gpu()
    monkeypatch.setitem(choose.READERS, "nvml", lambda root: gpu)
    assert names(two_sockets(tmp_path / "a")) == ["rapl", "sysfs"]  # an idle GPU says nothing of the CPU's work
    assert names(two_sockets(tmp_path / "a"), on_gpu=True) == ["nvml", "rapl", "sysfs"]
    assert names(tmp_path, on_gpu=True) == ["nvml", "sysfs"]
    assert gpu.closed


def test_nothing_that_measures_says_what_was_looked_for(tmp_path):
    with pytest.raises(NoReaderError) as raised:
        names(tmp_path)
    for word in ("power of the CPU", "ina3221: ", "tegrastats: no program", "rapl: "):
        assert word in str(raised.value)
    with pytest.raises(NoReaderError, match="power of the GPU.*nvml: no program"):
        names(two_sockets(tmp_path), on_gpu=True)


def test_a_reader_by_name(tmp_path):
    assert names(orin_nano(two_sockets(tmp_path)), wanted=("rapl", "rapl")) == ["rapl", "sysfs"]
    with pytest.raises(NoReaderError, match="no program"):
        names(tmp_path, wanted=("nvml",))
    with pytest.raises(UserError, match="unknown reader wattmeter; known: ina3221"):
        names(tmp_path, wanted=("wattmeter",))
