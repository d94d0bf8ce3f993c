from __future__ import annotations

import os
import sys

import pytest

from metro_edge.backends.cores import check_cores, running_on
from metro_edge.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="affinity is for Linux alone")


@pytest.fixture
def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def test_what_is_taken(cores):
    assert check_cores(None, None) == (None, None)
    assert check_cores(len(cores), None) == (len(cores), None)
    assert check_cores(None, cores) == (len(cores), tuple(cores))
    assert check_cores(1, cores[-1:]) == (1, (cores[-1],))


def test_mistakes(cores, monkeypatch):
    for affinity in ((), (cores[0], cores[0]), (max(cores) + 1000,), (-1,)):
        with pytest.raises(UserError, match="affinity must be different cores of"):
            check_cores(None, affinity)
    with pytest.raises(UserError, match="one core per thread: got 1 cores for 2 threads"):
        check_cores(2, cores[:1])
    for threads in (0, -1, len(cores) + 1, 100_000):  # ONNX Runtime takes minutes with hundreds on two cores
        with pytest.raises(UserError, match=rf"threads must be 1 to {len(cores)}, the cores .*; got {threads}"):
            check_cores(threads, None)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="Linux alone; darwin"):
        check_cores(None, cores)


def test_the_thread_is_on_the_cores_inside_alone(cores):
    before = os.sched_getaffinity(0)
    with running_on(cores[-1:]):
        assert os.sched_getaffinity(0) == {cores[-1]}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ZeroDivisionError), running_on(cores[:1]):
        1 / 0  # noqa: B018
    assert os.sched_getaffinity(0) == before
    with running_on(None):
        assert os.sched_getaffinity(0) == before
