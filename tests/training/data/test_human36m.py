from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
import torch

from metro_edge.errors import UserError
from metro_edge.joints import H36M14
from metro_edge.spec import ModelSpec
from tests.own_sets_files import (
    CAMERAS,
    FRAMES_H36M,
    grey,
    pinhole_with_lens,
    room_to_camera,
    write_cdf,
    write_human36m,
    write_video,
)
from training.data.human36m import Human36M, Human36MNpz
from training.data.labelled import BadSampleError

SPEC = ModelSpec("test", 64, "h36m14", "smpl", 6890)
# Names of the rows of Human3.6M's 32 joints, as its own software lists them.
ROWS_OF_32 = {
    "right_hip": 1, "right_knee": 2, "right_ankle": 3, "left_hip": 6, "left_knee": 7, "left_ankle": 8,
    "neck": 13, "head_top": 15, "left_shoulder": 17, "left_elbow": 18, "left_wrist": 19,
    "right_shoulder": 25, "right_elbow": 26, "right_wrist": 27,
}  # fmt: skip
ROWS = [ROWS_OF_32[name] for name in H36M14.names]
P2 = CAMERAS[3]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """All three kinds of pose files."""
    folder = tmp_path_factory.mktemp("h36m")
    return folder, write_human36m(folder, ("D3_Positions_mono", "D3_Positions", "D2_Positions"))


@pytest.fixture
def changed(home, tmp_path):
    """A copy that a test may damage."""
    folder = tmp_path / "h36m"
    shutil.copytree(home[0], folder)
    return folder


def expected(truth, subject, action, camera, frame):
    """(14, 3) metres and (14, 2) px by the formulas, from the numbers that were written."""
    local = room_to_camera(truth["cameras"][subject, camera], truth[f"S{subject}/{action}"][frame].astype(np.float64))
    return local[ROWS] / 1000, pinhole_with_lens(truth["cameras"][subject, camera], local)


def check_labels(data, truth, subjects, cameras, stride):
    index = 0
    for subject in subjects:
        for camera in cameras:
            for action in ("Directions 1", "Walking") if subject == 9 else ("Sitting 2",):
                for frame in range(0, FRAMES_H36M, stride):
                    picture = data.picture(index)
                    assert picture.key == f"S{subject}/{action}.{camera}:{frame}"
                    assert abs(float(picture.image.mean()) - grey(frame)) < 6
                    joints, pixels = expected(truth, subject, action, camera, frame)
                    root = joints[[2, 3]].mean(0)
                    np.testing.assert_allclose(picture.joints[:, :3], joints - root, atol=2e-5)
                    np.testing.assert_allclose(picture.joints_2d[:, :2], pixels[ROWS], atol=2e-3)
                    assert (picture.joints[:, 3] == 1).all() and (picture.joints_2d[:, 2] == 1).all()
                    low, high = pixels.min(0), pixels.max(0)
                    np.testing.assert_allclose(picture.centre_px, (low + high) / 2, atol=2e-3)
                    assert picture.side_px == pytest.approx(1.2 * (high - low).max(), abs=1e-2)
                    assert picture.vertices is None
                    index += 1
    assert index == len(data)


def test_protocol_2_has_two_subjects_one_camera_and_every_fifth_frame(home):
    folder, truth = home
    data = Human36M(folder, SPEC)
    assert len(data) == 3 * 3  # frames 0, 5, 10 of three actions; _ALL is left out
    check_labels(data, truth, (9, 11), (P2,), 5)
    assert data.skipped == 0


@pytest.mark.parametrize("gone", [("D2_Positions",), ("D3_Positions_mono",), ("D3_Positions_mono", "D2_Positions")])
def test_other_pose_files_give_the_same_labels(changed, home, gone):
    for kind in gone:
        for subject in ("S9", "S11"):
            shutil.rmtree(changed / subject / "MyPoseFeatures" / kind)
    check_labels(Human36M(changed, SPEC, stride=4), home[1], (9, 11), (P2,), 4)


def test_folders_as_h36m_fetch_unpacks_them(changed, home):
    for subject in ("S9", "S11"):
        for kind in ("D3_Positions_mono", "D2_Positions"):
            (changed / subject / "MyPoseFeatures" / kind).rename(changed / subject / f"Poses_{kind}")
        shutil.rmtree(changed / subject / "MyPoseFeatures")
    (changed / "metadata.xml").unlink()  # not needed with D2_Positions and poses in the camera's frame
    check_labels(Human36M(changed, SPEC), home[1], (9, 11), (P2,), 5)


def test_subjects_cameras_and_stride_may_be_chosen(home):
    cameras = (CAMERAS[0], P2)
    check_labels(Human36M(home[0], SPEC, subjects=(9,), cameras=cameras, stride=3), home[1], (9,), cameras, 3)


def test_frame_offset_takes_later_pictures(home):
    data = Human36M(home[0], SPEC, frame_offset=1)
    assert abs(float(data.picture(1).image.mean()) - grey(6)) < 6
    np.testing.assert_array_equal(data.picture(1).joints, Human36M(home[0], SPEC).picture(1).joints)


def test_items_have_joints_but_no_mesh(home):
    data = Human36M(home[0], SPEC)
    item, picture = data[4], data.picture(4)
    assert item["key"] == picture.key
    assert [float(item[f"has_{name}"]) for name in ("vertices", "joints", "joints_2d")] == [0, 1, 1]
    np.testing.assert_allclose(item["joints"], picture.joints[:, :3])
    side = picture.side_px
    flat = (2 * (picture.joints_2d[:, :2] - picture.centre_px) + 1 - 1) / side
    np.testing.assert_allclose(item["joints_2d"][:, :2], flat, atol=1e-4)
    assert item["image"].shape == (3, 64, 64)


def test_training_items_depend_on_epoch_and_seed_alone(home):
    data = Human36M(home[0], SPEC, train=True, seed=3, augmentation="metro")
    first = [data[i]["image"] for i in (5, 0)]
    again = Human36M(home[0], SPEC, train=True, seed=3, augmentation="metro")
    assert torch.equal(again[0]["image"], first[1]) and torch.equal(again[5]["image"], first[0])
    data.set_epoch(1)
    assert not torch.equal(data[0]["joints_2d"], again[0]["joints_2d"])


def test_workers_open_the_videos_themselves(home):
    data = Human36M(home[0], SPEC)
    alone = [data[i] for i in range(len(data))]
    loaded = list(torch.utils.data.DataLoader(data, batch_size=None, num_workers=2))
    for a, b in zip(alone, loaded, strict=True):
        assert a["key"] == b["key"] and torch.equal(a["image"], b["image"])


# --- Bad input -----------------------------------------------------------------------------------------------------


def poses_of(folder, action="Walking", kind="D3_Positions_mono"):
    return folder / "S9" / "MyPoseFeatures" / kind / f"{action}.{P2}.cdf"


def test_nan_labels_are_named_and_left_out_on_request(changed, home):
    poses = room_to_camera(home[1]["cameras"][9, P2], home[1]["S9/Walking"].astype(np.float64))
    poses[5, 27, 1] = np.nan
    write_cdf(poses_of(changed), poses)
    with pytest.raises(BadSampleError, match=r"Walking.60457274.cdf, frame 5: the labels hold NaN"):
        Human36M(changed, SPEC)
    data = Human36M(changed, SPEC, skip_bad=True)
    assert len(data) == 8 and data.skipped == 1
    assert "frame 5" in data.skipped_reasons()[0]


def test_joints_behind_the_camera_and_empty_boxes(changed):
    write_cdf(poses_of(changed), np.full((6, 32, 3), -100.0))
    write_cdf(poses_of(changed, kind="D2_Positions"), np.zeros((6, 32, 2)))
    with pytest.raises(BadSampleError, match="frame 0: a joint is not in front of the camera"):
        Human36M(changed, SPEC)
    write_cdf(poses_of(changed), np.full((6, 32, 3), 100.0))
    with pytest.raises(BadSampleError, match="frame 0: the box of the joints is empty"):
        Human36M(changed, SPEC)
    assert Human36M(changed, SPEC, skip_bad=True).skipped == 2


def test_more_labels_than_frames(changed):
    write_video(changed / "S9/Videos" / f"Walking.{P2}.mp4", 10)
    with pytest.raises(BadSampleError, match="frame 10: the video has 10 frames, the labels more"):
        Human36M(changed, SPEC)
    assert len(Human36M(changed, SPEC, skip_bad=True)) == 8


def test_2d_and_3d_of_different_lengths(changed):
    write_cdf(poses_of(changed, kind="D2_Positions"), np.ones((4, 32, 2)))
    with pytest.raises(BadSampleError, match="has 4 frames, the 3D poses have 12"):
        Human36M(changed, SPEC)
    data = Human36M(changed, SPEC, skip_bad=True)  # the whole video is left out
    assert len(data) == 6 and data.skipped == 1


def test_a_truncated_pose_file_and_a_missing_video(changed):
    path = poses_of(changed)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(BadSampleError, match="not a readable .cdf"):
        Human36M(changed, SPEC)
    (changed / "S9/Videos" / f"Directions 1.{P2}.mp4").unlink()
    with pytest.raises(BadSampleError, match="no video at .*Directions 1"):
        Human36M(changed, SPEC)
    data = Human36M(changed, SPEC, skip_bad=True)
    assert len(data) == 3 and data.skipped == 2


def test_a_frame_that_does_not_decode_names_the_sample(home, monkeypatch):
    data = Human36M(home[0], SPEC)

    def broken(self, index):
        raise UserError("frame cannot be decoded")

    monkeypatch.setattr("training.data.human36m_files.Video.frame", broken)
    with pytest.raises(BadSampleError, match=r"S9/Directions 1.60457274:5: frame cannot be decoded"):
        data[1]


def test_missing_folders_and_files(changed, tmp_path):
    with pytest.raises(UserError, match="no folder .*S9"):
        Human36M(tmp_path, SPEC)
    for kind in ("D2_Positions", "D3_Positions_mono"):
        shutil.rmtree(changed / "S9/MyPoseFeatures" / kind)
    (changed / "metadata.xml").unlink()
    with pytest.raises(UserError, match="in the room's frame: .*metadata.xml is needed"):
        Human36M(changed, SPEC)
    shutil.rmtree(changed / "S9/MyPoseFeatures/D3_Positions")
    with pytest.raises(UserError, match="no poses of camera 60457274"):
        Human36M(changed, SPEC)
    shutil.rmtree(changed / "S11/MyPoseFeatures/D2_Positions")
    with pytest.raises(UserError, match="no D2_Positions and .* no metadata.xml"):
        Human36M(changed, SPEC, subjects=(11,))


def test_every_frame_bad(changed):
    for video in changed.glob("S*/Videos/*.mp4"):
        video.unlink()
    with pytest.raises(UserError, match=r"no usable frame .*3 bad rows or files left out, the first: no video"):
        Human36M(changed, SPEC, skip_bad=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ("12345678",)}, "unknown camera '12345678'"),
        ({"subjects": (12,)}, "subject 12"),
        ({"subjects": ()}, "at least one subject"),
        ({"split": "test"}, "no split 'test'; it has p2, train"),
        ({"stride": 0}, "stride must be 1 or more"),
        ({"frame_offset": -1}, "frame_offset 0 or more"),
        ({"box_factor": 0.0}, "box_factor positive"),
    ],
)
def test_bad_options(home, options, message):
    with pytest.raises(UserError, match=message):
        Human36M(home[0], SPEC, **options)


def test_other_joints_than_the_labels(home):
    with pytest.raises(UserError, match="gives the joints h36m14"):
        Human36M(home[0], ModelSpec("coco", 64, "coco17", "smpl", 6890))


# --- The .npz of SPIN and GraphCMR ---------------------------------------------------------------------------------

# Their 24 joints: the first 13 are those of h36m14, the head is row 18.
ROWS_OF_24 = [*range(13), 18]


def npz_values(rows=4):
    rng = np.random.default_rng(0)
    labels = np.concatenate((rng.normal(size=(rows, 24, 3)), np.ones((rows, 24, 1))), -1)
    return {
        "imgname": np.array([f"images/S9_Walking.{P2}_{5 * i + 1:06d}.jpg" for i in range(rows)]),
        "center": rng.uniform(80, 120, (rows, 2)),
        "scale": rng.uniform(0.3, 0.6, rows),
        "S": labels,
    }


def write_npz(folder, values):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(npz_values()["imgname"]):
        cv2.imwrite(str(folder / name), np.full((200, 200, 3), grey(i), np.uint8))
    np.savez(folder / "h36m_valid_protocol2.npz", **values)
    return folder / "h36m_valid_protocol2.npz"


@pytest.mark.parametrize("as_bytes", [False, True])
def test_npz_labels_come_back(tmp_path, as_bytes):
    values = npz_values()
    part = np.random.default_rng(1).uniform(0, 200, (4, 24, 3))
    written = values | {"part": part}
    if as_bytes:  # as Python 2 wrote names
        written["imgname"] = values["imgname"].astype("S")
    data = Human36MNpz(write_npz(tmp_path, written), SPEC)
    assert len(data) == 4
    for i in range(4):
        picture = data.picture(i)
        assert picture.key == f"h36m_valid_protocol2.npz:{i}"
        assert abs(float(picture.image.mean()) - grey(i)) < 3
        np.testing.assert_allclose(picture.centre_px, values["center"][i] - 0.5)
        assert picture.side_px == pytest.approx(200 * values["scale"][i])
        joints = values["S"][i, ROWS_OF_24, :3]
        np.testing.assert_allclose(picture.joints[:, :3], joints - joints[[2, 3]].mean(0), atol=1e-6)
        np.testing.assert_allclose(picture.joints_2d, part[i, ROWS_OF_24], atol=1e-4)


def test_npz_without_2d_labels_and_with_another_scale(tmp_path):
    values = npz_values()
    data = Human36MNpz(write_npz(tmp_path, values), SPEC, scale_factor=1.25)
    assert data.picture(0).joints_2d is None
    assert data.picture(0).side_px == pytest.approx(250 * values["scale"][0])
    assert float(data[0]["has_joints_2d"]) == 0


def test_npz_with_bad_rows(tmp_path):
    values = npz_values()
    path = write_npz(tmp_path, values)
    values["S"][0, 3, 1] = np.nan
    values["scale"][1] = 0
    (tmp_path / values["imgname"][2]).unlink()
    np.savez(path, **values)
    with pytest.raises(BadSampleError, match="npz, row 0: S holds NaN"):
        Human36MNpz(path, SPEC)
    data = Human36MNpz(path, SPEC, skip_bad=True)
    assert len(data) == 1 and data.skipped == 3
    assert data.picture(0).key.endswith(":3")
    reasons = data.skipped_reasons()
    assert "row 1: scale gives an empty box" in reasons[1] and "row 2: imgname is no file" in reasons[2]
    with pytest.raises(UserError, match="no usable row"):
        Human36MNpz(path, SPEC, images=tmp_path / "elsewhere", skip_bad=True)


def test_npz_whose_picture_does_not_decode(tmp_path):
    values = npz_values()
    path = write_npz(tmp_path, values)
    whole = (tmp_path / values["imgname"][1]).read_bytes()
    (tmp_path / values["imgname"][1]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadSampleError, match="npz:1: .*cut short"):
        Human36MNpz(path, SPEC)[1]
    data = Human36MNpz(path, SPEC, skip_bad=True)
    assert data[1]["key"].endswith(":2") and data.skipped == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"S": None}, "lacks S"),
        ({"S": np.zeros((4, 17, 4))}, r"S must be \(4, 24, 4\)"),
        ({"scale": np.ones(3)}, "scale must be .* imgname has 4 rows"),
        ({"center": np.array([["a", "b"]] * 4)}, "center must be"),
        ({"scale": np.array([None] * 4, object)}, "not a readable .npz of plain arrays"),
    ],
)
def test_npz_of_another_layout(tmp_path, change, message):
    values = {key: value for key, value in (npz_values() | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        Human36MNpz(write_npz(tmp_path, values), SPEC)


def test_npz_missing_or_damaged(tmp_path):
    with pytest.raises(UserError, match="no file"):
        Human36MNpz(tmp_path / "none.npz", SPEC)
    path = write_npz(tmp_path, npz_values())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not a readable .npz"):
        Human36MNpz(path, SPEC)
