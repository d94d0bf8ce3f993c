"""Times of the kernels: on the stand-in the numbers mean nothing, that they are taken of the right work does."""

from __future__ import annotations

import json

import pytest

from benchmarks import __main__ as cli
from benchmarks.kernels import LAUNCHES, REPLAYS, measure_kernels
from metro_edge.backends.gpu import first_gpu
from metro_edge.errors import UserError
from tests.metro_edge.cuda.conftest import device, session_device  # noqa: F401 - fixtures


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    if first_gpu() is not None:
        pytest.skip("there is a GPU")
    assert cli.main(["kernels", "-o", str(tmp_path)]) == 2
    assert "error" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("people", [[], [0], [1, 65]])
def test_people_that_are_not_usable(shipped_bundle, people):
    with pytest.raises(UserError, match="1 to 64"):
        measure_kernels(shipped_bundle, people)


@pytest.fixture(scope="module")
def shipped_bundle():
    from metro_edge.bundle import Bundle

    return Bundle.load(None)


@pytest.mark.gpu
def test_each_launcher_is_timed(device, tmp_path, monkeypatch, capsys):  # noqa: F811
    from benchmarks import kernels
    from tests.virtual_gpu.device import on_stand_in

    if on_stand_in():
        monkeypatch.setattr(kernels, "LAUNCHES", 2)
        monkeypatch.setattr(kernels, "REPLAYS", 1)
        monkeypatch.setattr(kernels, "FRAME_WH", (320, 240))
        monkeypatch.setattr(kernels, "KernelLoader", lambda: device.loader)
    before = device.count("kernel crop_boxes") if on_stand_in() else 0
    assert cli.main(["kernels", "--people", "1", "2", "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(next(tmp_path.glob("kernels-*.json")).read_text())
    assert len(report["rows"]) == 14 and {row["people"] for row in report["rows"]} == {1, 2}
    assert all(row["gpu_us"] > 0 and row["cpu_us"] > 0 for row in report["rows"])
    assert report["device"].split(",")[0] in printed and next(tmp_path.glob("*.md")).read_text() in printed + "\n"
    if on_stand_in():
        # Two formats, two numbers of people: once before, and six replays of two.
        assert device.count("kernel crop_boxes") - before == 4 * (1 + 6 * 2)
    assert (LAUNCHES, REPLAYS) == (20, 30)
