"""Counters of x86 processors; zones as in the kernel's powercap.rst, see files.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.power.rapl import PERMIT, RaplReader
from benchmarks.power.reader import NoReaderError, Unwrapped
from metro_edge.errors import UserError
from tests.benchmarks.power.files import two_sockets, write

RANGE = 262143328850


def test_packages_and_memory_are_counted_once(tmp_path):
    reader = RaplReader(two_sockets(tmp_path))
    assert reader.total == ("package-0", "dram of package-0", "package-1", "dram of package-1")
    first = reader.read().energy_j
    write(tmp_path, {"sys/class/powercap/intel-rapl:1/energy_uj": 3_500_000})
    second = reader.read().energy_j
    assert {name: second[name] - first[name] for name in first} == {
        "package-0": 0.0, "dram of package-0": 0.0, "package-1": 2.5, "dram of package-1": 0.0,
    }  # fmt: skip


def test_a_counter_that_wraps(tmp_path):
    reader = RaplReader(two_sockets(tmp_path, RANGE - 1_000_000))
    before = reader.read().energy_j["package-0"]
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 499_999})
    assert reader.read().energy_j["package-0"] - before == pytest.approx(1.5)


@given(st.integers(10, 1000), st.lists(st.integers(0, 9), min_size=1, max_size=50))
def test_unwrapping_gives_what_was_added(largest, steps):
    unwrapped, real = Unwrapped("c", largest), 0
    assert unwrapped(0) == 0
    for step in steps:
        real += step
        assert unwrapped(real % (largest + 1)) == real


def test_a_counter_that_cannot_wrap_is_refused_when_it_falls():
    unwrapped = Unwrapped("c", None)
    assert unwrapped(7) == 7
    with pytest.raises(UserError, match="fell from 7 to 3"):
        unwrapped(3)
    with pytest.raises(UserError, match="beyond its range"):
        Unwrapped("c", 10)(11)


def test_what_only_root_may_read_names_the_line_that_permits_it(tmp_path):
    two_sockets(tmp_path)
    file = tmp_path / "sys/class/powercap/intel-rapl:0:1/energy_uj"
    file.unlink()
    file.mkdir()  # cannot be read as a file, whoever runs the test
    with pytest.raises(NoReaderError, match="root alone") as raised:
        RaplReader(tmp_path)
    assert PERMIT in str(raised.value) and "/sys/class/powercap/intel-rapl:0:1/energy_uj" in str(raised.value)


def test_no_counters(tmp_path):
    with pytest.raises(NoReaderError, match="virtual"):
        RaplReader(tmp_path)
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "psys", "sys/class/powercap/intel-rapl:0/energy_uj": 1})
    with pytest.raises(NoReaderError, match="of a package"):
        RaplReader(tmp_path)


def test_a_counter_that_goes_away(tmp_path):
    reader = RaplReader(two_sockets(tmp_path))
    (tmp_path / "sys/class/powercap/intel-rapl:1:0/energy_uj").unlink()
    with pytest.raises(UserError, match="cannot be read any more"):
        reader.read()
