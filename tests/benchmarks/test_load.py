"""Load on a tiny real bundle, and the cells on an engine of known speed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from benchmarks import __main__ as cli
from benchmarks.load import Settings, cells
from benchmarks.report import unpack_samples
from metro_edge.errors import UserError
from tests.benchmarks.test_queueing import Engine


def simulated(**changes):
    engine = Engine()
    settings = Settings(
        **{"bundle": Path("b"), "cameras": (1, 2), "rates_hz": (10.0, 60.0), "seconds": 20.0, **changes}
    )
    return cells(settings, engine.serve, engine.clock, engine.sleep)


def test_an_engine_of_fifty_frames_a_second():
    found = simulated()
    assert [(row["cameras"], row["rate_hz"]) for row in found["open"]] == [(1, 10), (1, 60), (2, 10), (2, 60)]
    assert [row["per_s"] for row in found["closed"]] == [pytest.approx(50.0, rel=0.01)] * 2
    assert [row["p50_ms"] for row in found["closed"]] == [pytest.approx(20.0), pytest.approx(40.0)]
    calm, busy, _, crowded = found["open"]
    assert calm["share"] == 0.0 and calm["worst_ms"] == pytest.approx(20.0) and calm["frames"] == 180
    assert busy["dropped"] == pytest.approx(busy["frames"] / 6, abs=2) and busy["share"] == pytest.approx(
        1 / 6, abs=0.01
    )
    assert crowded["offered_per_s"] == 120 and crowded["per_s"] == pytest.approx(50.0, rel=0.01)
    for row in found["open"]:
        samples = unpack_samples(row["samples_ms"])
        assert len(samples) == row["frames"] - row["dropped"] and row["missed"] >= row["dropped"]
    for row in found["breaking"]:
        assert row["largest_hz"] * row["cameras"] <= 51 and row["breaks_hz"] * row["cameras"] >= 50
        assert row["breaks_hz"] - row["largest_hz"] <= 0.05 * row["breaks_hz"]


def test_a_deadline_shorter_than_a_frame_has_no_rate():
    row = simulated(cameras=(1,), deadline_ms=10.0)["breaking"][0]
    assert row["largest_hz"] is None and row["breaks_hz"] < 1 and all(p["missed"] == p["frames"] for p in row["probes"])


def test_loops_and_the_search_can_be_left_out():
    found = simulated(loops=("closed",))
    assert len(found["closed"]) == 2 and found["open"] == found["breaking"] == []
    found = simulated(loops=("open",), tolerance=None)
    assert found["closed"] == found["breaking"] == [] and len(found["open"]) == 4
    # So few frames that there is no 95th percentile, or none at all.
    few = simulated(cameras=(1,), rates_hz=(0.3,), seconds=10.0, tolerance=None)["open"][0]
    assert few["p50_ms"] == pytest.approx(20.0) and few["p95_ms"] is None
    none = simulated(cameras=(1,), rates_hz=(0.001,), seconds=1.0, tolerance=None)["open"][0]
    assert none["p50_ms"] is none["share"] is None and none["frames"] == 0


@pytest.mark.parametrize("more", [[], ["--loop", "closed"]])
def test_the_report(bundle, tmp_path, capsys, more):
    words = ["load", str(bundle.path), "--precision", "int8", "--cameras", "1", "3", "--rate", "50", "--seconds", "0.2"]
    words += ["--tolerance", "0.5", "--allowed", "0.2", "--arrivals", "poisson", *more, "-o", str(tmp_path / "out")]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    report = json.loads(next((tmp_path / "out").glob("load-*-cpu-*.json")).read_text())
    assert (report["kind"], report["schema_version"], report["precision"]) == ("metro-edge load", 1, "int8")
    assert list(report["bundle"]["onnx_sha256"]) == ["int8"] and report["device"]["processor"] == "CPU"
    assert report["settings"]["arrivals"] == "poisson" and report["settings"]["batching"] is False
    assert [row["cameras"] for row in report["closed"]] == [1, 3]
    assert len(report["open"]) == (0 if more else 2) and len(report["breaking"]) == len(report["open"])
    assert "Closed loop" in printed and ("frames are due by plan (poisson)" in printed) == (not more)
    assert cli.main(["table", str(next((tmp_path / "out").glob("*.json")))]) == 0
    assert capsys.readouterr().out == printed.rstrip("\n") + "\n"
    assert cv2.imread(str(next((tmp_path / "out").glob("*.png")))).std() > 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "fp99"}, "fp99"),
        ({"cameras": (0,)}, "--cameras must be"),
        ({"backend": "tpu"}, "unknown backend"),
        ({"loops": ("round",)}, "--loop must be of closed, open, got round"),
        ({"loops": ()}, "got none"),
        ({"arrivals": "bursts"}, "unknown arrivals"),
        ({"rates_hz": ()}, "--rate must be positive, got none"),
        ({"rates_hz": (5.0, 0.0)}, "--rate must be positive, got 5 0"),
        ({"seconds": -1.0}, "--seconds must be positive"),
        ({"deadline_ms": float("inf")}, "--deadline-ms must be positive"),
        ({"queue": 0}, "--queue must have room"),
        ({"allowed": 1.0}, "--allowed must be a share"),
        ({"tolerance": 1.0}, "--tolerance"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"rates_hz": (1e9,)}, r"at 1e\+09 Hz for .* s are more than 2,000,000 frames: take a lower rate"),
    ],
)
def test_settings_that_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        Settings(**{"bundle": Path("b"), **change})


def test_the_command_gives_the_settings_again():
    assert Settings(Path("b")).command == "python -m benchmarks load b"
    given = Settings(Path("b"), "int8", cameras=(2,), rates_hz=(7.5,), tolerance=None, seed=3)
    assert given.command == "python -m benchmarks load b --precision int8 --cameras 2 --rate 7.5 --tolerance 0 --seed 3"
