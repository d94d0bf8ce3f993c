"""Data sets by protocol, through the readers of training, and what shards and frames tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.accuracy import BatchTruth, batch_of, measure_accuracy
from benchmarks.crops import DETECTED, TRUE, WHOLE, Crop, crops_entry, crops_for, measure_crops
from benchmarks.people import GENERATED, ScaledShards, load_material
from metro_edge.backends import open_session
from metro_edge.bundle import Bundle, write_bundle
from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from tests.metro_edge.conftest import PASSPORT, made_network
from tests.own_sets_files import FRAMES_3DPW, write_3dpw, write_human36m
from tests.smpl_files import metro_folder
from training.bodies import body_template
from training.bodies.smpl import skinned_body
from training.data.generated import GeneratedPictures
from training.data.labelled import LabelledPicture
from training.data.protocol_sets import open_protocol_set
from training.data.shards import ShardedPeople, people_shards
from training.protocol_run import run_protocol
from training.protocols import protocol


def tiny_bundle(folder: Path, body: str, body_path: str = "") -> Bundle:
    template = body_template(body, body_path)
    spec = ModelSpec(f"tiny_{body}", 64, "h36m14", body, len(template.vertices), crop_rule="box_area")
    files = {}
    for precision in ("fp32", "int8"):
        files[precision] = folder / f"{body}.{precision}.onnx"
        onnx.save(made_network(template, precision), files[precision])
    return write_bundle(folder / body, spec, template, files, PASSPORT)


@pytest.fixture(scope="module")
def smpl_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("smpl"), "smpl", str(metro_folder()))


@pytest.fixture(scope="module")
def anny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("anny"), "anny")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_3dpw(folder / "3dpw", skinned_body(metro_folder()))
    write_human36m(folder / "h36m", ("D3_Positions_mono", "D2_Positions"))
    return folder


@pytest.mark.parametrize(
    ("name", "data", "count"), [("3dpw-neutral", "3dpw", 3 * FRAMES_3DPW), ("human36m-p2", "h36m", 3)]
)
def test_a_data_set_gives_the_errors_of_its_protocol(
    name: str, data: str, count: int, home: Path, smpl_bundle: Bundle
) -> None:
    found = load_material(smpl_bundle, str(home / data), count, 0, name, str(metro_folder()))
    assert found.rules is not None and found.rules.name == name and found.frames is not None
    assert found.data.endswith(f", from {data}") and found.seed is None
    with open_session(smpl_bundle, "fp32", threads=1) as fp32, open_session(smpl_bundle, "int8", threads=1) as int8:
        sessions = {"fp32": fp32, "int8": int8}
        measured = measure_accuracy(sessions, found.people, smpl_bundle.template, rules=found.rules)
        spec, template = smpl_bundle.spec, smpl_bundle.template
        people, used = open_protocol_set(protocol(name), home / data, spec, template, smpl=metro_folder())
        (expected,) = run_protocol(used, lambda x: fp32.infer(x).mesh, people, template, count=count).values()
        crops = measure_crops(sessions, found.frames, 3, crops_for(spec, False), template, found.rules)
    values = measured["fp32"].to_dict()
    for metric, mean in expected.means().items():
        assert values[f"{metric}_mm"] == (None if mean is None else pytest.approx(mean, rel=1e-6))
    assert values["reprojection"]["px"] > 0
    against = measured["int8"].to_dict()["against_fp32"]
    assert against["moved_mm"] >= 0 and against["mpjpe_change_worst_sample"] is not None
    assert (against["mpvpe_change_mm"] is None) == (name == "human36m-p2")
    entry = crops_entry(crops, "int8", "fp32")
    assert entry["box_area/true"]["mpjpe_mm"] == pytest.approx(
        1000 * measured["int8"].errors.mpjpe[:3].mean(), rel=1e-6
    )
    assert "box_area/whole_frame" not in entry


@pytest.mark.parametrize(
    ("name", "data", "count", "message"),
    [
        ("freihand", "3dpw", 1, "protocol freihand is for mano with joints freihand21"),
        ("3dpw-neutral", "h36m", 1, "is not data for protocol 3dpw-neutral: it holds human36m"),
        ("3dpw-neutral", "none", 1, "there is no data at"),
        ("3dpw-neutral", "3dpw", 99, "cannot take the first 99 of 15 samples"),
        ("generated", "3dpw", 1, "protocol generated is for anny"),
        ("weather", "3dpw", 1, "unknown protocol 'weather'"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    name: str, data: str, count: int, message: str, home: Path, smpl_bundle: Bundle
) -> None:
    with pytest.raises(UserError, match=message):
        load_material(smpl_bundle, str(home / data), count, 0, name, str(metro_folder()))


def test_a_missing_label_is_named(home: Path, smpl_bundle: Bundle) -> None:
    found = load_material(smpl_bundle, str(home / "3dpw"), 3, 0, "3dpw-neutral", str(metro_folder()))
    for name in ("has_joints", "has_vertices"):
        items = [found.people[k] for k in range(3)]
        items[2][name] = np.float32(0)
        with pytest.raises(UserError, match=f"sample 7 has no label of its {name[4:]}, which protocol 3dpw-neutral"):
            BatchTruth(5, batch_of(items), smpl_bundle.spec, smpl_bundle.template, found.rules)
    assert protocol("freihand").metrics != ("mpjpe", "pa_mpjpe", "mpvpe")


def test_shards_tell_how_large_their_crops_were(anny: Bundle, tmp_path: Path) -> None:
    folder = people_shards(tmp_path, anny.spec, seed=5, count=2, workers=1)
    people = ShardedPeople(folder, anny.spec)
    frames = GeneratedPictures(5, 2, anny.spec, anny.template)
    scaled = ScaledShards(people)
    for k in range(2):
        assert scaled[k]["side_px"] == pytest.approx(frames.picture(k).side_px, rel=1e-6)
    (folder / "shard-00000" / "box.npy").unlink()  # as an earlier version wrote them
    old = ShardedPeople(folder, anny.spec)
    assert old.box(0) is None and "side_px" not in ScaledShards(old)[0]


@pytest.mark.slow
def test_generated_people_have_frames_of_the_same_samples(
    anny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_material(anny, GENERATED, 2, 6)
    assert found.frames is not None and len(found.people) == 2 and found.rules is None
    picture: Any = found.frames.picture(1)
    assert picture.image.shape == (320, 320, 3)
    np.testing.assert_allclose(picture.vertices, found.people[1]["vertices"], atol=1e-3)
    assert load_material(anny, GENERATED, 2, 6, crops=False).frames is None


def test_crops_from_other_boxes() -> None:
    spec = ModelSpec("one", 64, "h36m14", "anny", 10)
    picture = LabelledPicture("a:1", np.zeros((200, 300, 3), np.uint8), np.array([100.0, 90.0]), 120.0)
    draw = np.array([1.0, -2.0, 1.0])
    assert Crop("box_area", TRUE).of(picture, spec, draw) is picture
    moved = Crop("box_area", DETECTED).of(picture, spec, draw)
    np.testing.assert_allclose(moved.centre_px, [103.0, 84.0])  # 3 % and -6 % of the box, which has 100 px
    assert moved.side_px == pytest.approx(126.0)
    whole = Crop("box_area", WHOLE).of(picture, spec, draw)
    np.testing.assert_allclose(whole.centre_px, [149.5, 99.5])
    assert whole.side_px == pytest.approx(360.0)
    names = [crop.name for crop in crops_for(dataclasses.replace(spec, crop_rule="metro_eval"), True)]
    assert names[0] == "metro_eval/true" and names[-2:] == ["metro_eval/detected", "metro_eval/whole_frame"]
    assert len(set(names)) == 6


def test_losses_of_crops_are_paired() -> None:
    base, other = np.arange(8.0), np.arange(8.0) + 3.0
    errors = {"fp32": {"a": base, "b": other}, "int8": {"a": base + 1.0, "b": other + 1.5}}
    int8, fp32 = (crops_entry(errors, precision, "fp32") for precision in ("int8", "fp32"))
    assert (int8["a"]["change_mm"], int8["a"]["against_fp32_mm"]) == (None, 1.0)
    assert (int8["b"]["change_mm"], int8["b"]["against_fp32_mm"]) == (3.5, 1.5)
    assert int8["b"]["against_fp32_interval"] == {"low": 1.5, "high": 1.5}  # all alike
    assert fp32["b"]["against_fp32_mm"] is None and fp32["b"]["mpjpe_mm"] == 6.5
