from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.motion import Walk, find_walks, motion_entry, motion_facts, scenes, unbroken
from metro_edge.backends import open_session
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.joints import H36M14
from tests.benchmarks.conftest import made_walks
from training.data import scenes as generated
from training.data.scenes import SceneFrame, Walker


def made_clip(frames: int, away: tuple[int, ...] = ()) -> list[SceneFrame]:
    """One person whose true joints stand still, in frames of noise; away in some."""
    rng, clip = np.random.default_rng(0), []
    for number in range(frames):
        there = 0 if number in away else 1
        image = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        boxes = np.tile([40.0, 20.0, 60.0, 80.0], (there, 1))
        clip.append(SceneFrame(image, np.arange(there), boxes, np.ones((there, len(H36M14), 3))))
    return clip


def test_unbroken_walks() -> None:
    walk = [(k, None) for k in (*range(12), *range(20, 24), *range(30, 41))]
    assert [len(part) for part in unbroken(walk)] == [12, 11]
    assert unbroken([]) == []


def test_gains_are_exact_and_have_intervals() -> None:
    walks = made_walks()
    fp32, int8 = (motion_entry(walks, precision, "fp32") for precision in ("fp32", "int8"))
    for figure in ("acceleration_error", "jitter"):
        assert int8[f"{figure}_gain"] == pytest.approx(0.04)
        assert int8[f"{figure}_mm"] == pytest.approx(1.04 * fp32[f"{figure}_mm"])
        assert fp32[f"{figure}_gain"] is None and fp32[f"{figure}_gain_interval"] is None
        assert fp32[f"{figure}_interval"]["low"] < fp32[f"{figure}_mm"] < fp32[f"{figure}_interval"]["high"]
    assert motion_facts(walks, 3) | {"protocol": ""} == {
        "data": "generated walkers of training/data/scenes.py",
        "walks": 7, "frames": 84, "missed": 3, "fps": 25.0, "true_jitter_mm": 0.0, "protocol": "",
    }  # fmt: skip
    assert motion_entry(walks[:5], "int8", "fp32")["jitter_gain_interval"] is None  # too few walks
    assert motion_entry(walks, "int8", None)["jitter_gain"] is None


def test_walks_count_by_their_frames() -> None:
    still, shaking = np.zeros((10, 1, 3)), np.zeros((40, 1, 3))
    shaking[1::2, 0, 0] = 0.001
    walks = [Walk(np.zeros_like(one), {"fp32": one}) for one in (still, shaking)]
    entry = motion_entry(walks, "fp32", None)
    assert entry["acceleration_error_mm"] == pytest.approx(2.0 * 38 / (8 + 38))  # second differences of 0, 1, 0 mm
    assert entry["jitter_mm"] == pytest.approx(4.0 * 37 / (7 + 37))


def test_a_reference_that_stands_still_gives_no_gain() -> None:
    walk = made_walks()[0]
    walks = [Walk(walk.truth, {"fp32": walk.truth, "int8": walk.predicted["int8"]})]
    assert motion_entry(walks, "int8", "fp32")["jitter_gain"] is None


def test_walks_are_found_by_every_precision(bundle: Bundle) -> None:
    clips = {"one": made_clip(12), "two": made_clip(24, away=(11, 12))}
    with open_session(bundle, "fp32", threads=1) as fp32, open_session(bundle, "int8", threads=1) as int8:
        walks, missed = find_walks({"fp32": fp32, "int8": int8}, bundle, clips)
        with pytest.raises(UserError, match="nobody was found in 10 frames in a row: --no-motion"):
            find_walks({"fp32": fp32}, bundle, {"short": made_clip(9)})
        spec = dataclasses.replace(bundle.spec, joint_set="coco17")
        with pytest.raises(UserError, match="the walkers have joints h36m14, the network coco17: --no-motion"):
            find_walks({"fp32": fp32}, dataclasses.replace(bundle, spec=spec), clips)
    assert [len(walk.truth) for walk in walks] == [12, 11, 11] and missed == 0
    for walk in walks:
        assert set(walk.predicted) == {"fp32", "int8"}
        assert np.abs(H36M14.root_of(walk.predicted["int8"])).max() < 1e-12
        assert np.abs(walk.truth).max() == 0.0
    # The frames are noise of one mean colour, so the tiny networks hardly sway.
    assert motion_entry(walks, "fp32", "fp32")["jitter_mm"] < 5.0


def test_scenes_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walker = Walker(1, (-0.4, 4.0), (0.4, 4.0), 0.0, 0.08, 3)
    monkeypatch.setattr(generated, "SCENES", {"short": (walker,)})
    first = scenes(tmp_path / "scenes")
    monkeypatch.setattr(generated, "render_scene", lambda *_: pytest.fail("rendered again"))
    again = scenes(tmp_path / "scenes")
    assert [len(frames) for frames in first.values()] == [2]
    for a, b in zip(first["short"], again["short"], strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.joints, b.joints)
    assert [path.name for path in (tmp_path / "scenes").iterdir()] == ["short.npz"]
