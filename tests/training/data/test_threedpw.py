from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.smpl.files import find_smpl, read_smpl
from metro_edge.smpl.model import SkinnedBody
from metro_edge.spec import ModelSpec
from tests.own_sets_files import FRAMES_3DPW, HEIGHT, WIDTH, grey, sequence_values, write_3dpw, write_sequence
from tests.smpl_files import metro_folder, python2_pickle
from training.bodies import body_template
from training.data.augment import Change
from training.data.human36m import Human36M, Human36MNpz
from training.data.labelled import BadSampleError, make_item
from training.data.own_sets import open_set, own_kind
from training.data.threedpw import ThreeDPW
from training.data.threedpw_files import read_sequence

SPEC = ModelSpec("test", 64, "h36m14", "smpl", 6890, crop_rule="metro_eval")
GENDERS = {"m": "male", "f": "female"}


@pytest.fixture(scope="module")
def smpl():
    return metro_folder()


@pytest.fixture(scope="module")
def bodies(smpl):
    return {gender: SkinnedBody(read_smpl(find_smpl(smpl, gender))) for gender in ("neutral", "male", "female")}


@pytest.fixture(scope="module")
def template(smpl):
    return body_template("smpl", smpl)


@pytest.fixture(scope="module")
def home(bodies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("3dpw")
    return folder, write_3dpw(folder, bodies["neutral"])


@pytest.fixture
def open_changed(bodies, template, tmp_path):
    """Write one sequence of two people, changed, and open it."""

    def opened(change=None, **options):
        values = sequence_values(bodies["neutral"], people=2, seed=3)
        if change is not None:
            change(values)
        shutil.rmtree(tmp_path / "sequenceFiles", ignore_errors=True)
        write_sequence(tmp_path, values, name="made_walk_03")
        return ThreeDPW(tmp_path, SPEC, template, bodies, **options)

    return opened


def world_to_camera(values, frame, points):
    matrix = values["cam_poses"][frame]
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def pixels_of(values, points):
    k = values["cam_intrinsics"]
    return np.stack(
        (k[0, 0] * points[..., 0] / points[..., 2] + k[0, 2], k[1, 1] * points[..., 1] / points[..., 2] + k[1, 2]), -1
    )


@pytest.mark.parametrize("ground_truth", ["neutral", "gendered"])
def test_labels_come_back(home, bodies, template, ground_truth):
    folder, sequences = home
    data = ThreeDPW(folder, SPEC, template, bodies, ground_truth=ground_truth)
    assert len(data) == 3 * FRAMES_3DPW and data.skipped == 0
    index = 0
    for values in sequences:
        for p in range(len(values["poses"])):
            body = bodies["neutral" if ground_truth == "neutral" else GENDERS[values["genders"][p]]]
            for f in range(FRAMES_3DPW):
                picture = data.picture(index)
                assert picture.key == f"{values['sequence']}.pkl:person {p} frame {f}"
                assert abs(float(picture.image.mean()) - grey(f)) < 3
                mesh = body.vertices(values["poses"][p][f][None], values["betas"][p][None])[0] + values["trans"][p][f]
                mesh = world_to_camera(values, f, mesh)
                joints = template.joints("h36m14", mesh)
                root = joints[[2, 3]].mean(0)
                np.testing.assert_allclose(picture.vertices, mesh - root, atol=1e-5)
                np.testing.assert_allclose(picture.joints[:, :3], joints - root, atol=1e-5)
                np.testing.assert_allclose(picture.joints_2d[:, :2], pixels_of(values, joints), atol=1e-2)
                index += 1


def test_the_skinned_body_lies_on_the_joints_of_the_file(home, bodies, template):
    """The root handling: SMPL's own joints, regressed from our camera-frame mesh, are the file's jointPositions."""
    folder, sequences = home
    data, values = ThreeDPW(folder, SPEC, template, bodies), sequences[0]
    regressor = bodies["neutral"].file.joint_regressor
    for f in range(FRAMES_3DPW):
        joints = world_to_camera(values, f, values["jointPositions"][0][f].reshape(24, 3))
        mesh = data.picture(f).vertices
        shift = joints[0] - regressor[0] @ mesh  # the picture's mesh is centred
        # A joint is where its regressor puts it in the rest pose; skinning blends there, so centimetres are left.
        assert np.linalg.norm(regressor @ mesh + shift - joints, axis=1).mean() < 0.03


def test_boxes_are_metros(home, bodies, template):
    """1.44 times the extent of the SMPL joints in the picture, METRO counting from the picture's corner."""
    folder, sequences = home
    data, values = ThreeDPW(folder, SPEC, template, bodies), sequences[0]
    for f in range(FRAMES_3DPW):
        pixels = pixels_of(values, world_to_camera(values, f, values["jointPositions"][0][f].reshape(24, 3)))
        inside = (pixels >= 0).all(1) & (pixels[:, 0] < WIDTH) & (pixels[:, 1] < HEIGHT)
        low, high = pixels[inside].min(0), pixels[inside].max(0)
        picture = data.picture(f)
        np.testing.assert_allclose(picture.centre_px, (low + high) / 2 - 0.5, atol=1e-6)
        assert picture.side_px == pytest.approx(1.44 * (high - low).max())


def test_boxes_may_be_of_detections(home, bodies, template):
    folder, sequences = home
    picture = ThreeDPW(folder, SPEC, template, bodies, box="detections").picture(2)
    found = sequences[0]["poses2d"][0][2, :2].T
    np.testing.assert_allclose(picture.centre_px, (found.min(0) + found.max(0)) / 2 - 0.5)
    assert picture.side_px == pytest.approx(1.2 * np.ptp(found, axis=0).max())


def test_only_detections_that_were_found_count(open_changed):
    def change(values):
        values["poses2d"][0][1, :, 4] = (900, 900, 0)

    low_high = open_changed(change, box="detections").picture(1)
    assert low_high.side_px < 1.2 * 200


def test_frames_without_camera_or_out_of_the_picture_are_left_out(open_changed):
    def change(values):
        values["campose_valid"][0][[1, 3]] = 0
        values["trans"][1][2] += (50, 0, 0)
        values["jointPositions"][1][2] += np.tile((50, 0, 0), 24)

    data = open_changed(change)
    assert len(data) == 2 * FRAMES_3DPW - 3 and data.skipped == 0
    assert data.left_out == {"camera pose not valid": 2, "no joint in the picture": 1}
    assert [data.picture(i).key.split(":")[1] for i in range(3)] == [f"person 0 frame {f}" for f in (0, 2, 4)]


def test_stride_and_split(home, bodies, template, tmp_path):
    assert len(ThreeDPW(home[0], SPEC, template, bodies, stride=2)) == 3 * 3
    with pytest.raises(UserError, match="no .pkl files in .*validation"):
        ThreeDPW(home[0], SPEC, template, bodies, split="validation")
    write_3dpw(tmp_path, bodies["neutral"], split="train")
    assert len(ThreeDPW(tmp_path, SPEC, template, bodies, split="train")) == 3 * FRAMES_3DPW


def test_a_flipped_item_is_the_mirrored_person(home, bodies, template):
    data = ThreeDPW(home[0], SPEC, template, bodies)
    picture = data.picture(0)
    straight, flipped = make_item(picture, SPEC), make_item(picture, SPEC, Change(1, flip=True))
    order = [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13]
    np.testing.assert_allclose(flipped["joints"], straight["joints"].numpy()[order] * (-1, 1, 1), atol=1e-6)
    np.testing.assert_allclose(flipped["joints_2d"][:, 0], -straight["joints_2d"][order, 0], atol=1e-5)
    # The mesh is skinned from the mirrored pose: its joints are the flipped ones up to the body's own asymmetry.
    joints = template.joints("h36m14", flipped["vertices"].numpy())
    assert np.linalg.norm(joints - flipped["joints"].numpy(), axis=1).max() < 0.03


def test_betas_of_three_hundred_numbers(open_changed):
    def change(values):
        values["betas"] = [np.append(b, np.ones(290)) for b in values["betas"]]

    np.testing.assert_array_equal(open_changed(change).picture(0).vertices, open_changed().picture(0).vertices)


# --- Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "where"),
    [("poses", (1, 3)), ("trans", (1, 0)), ("jointPositions", (1, 5)), ("cam_poses", (0, 1)), ("betas", None)],
)
def test_nan_labels_are_named_and_left_out_on_request(open_changed, key, where):
    def change(values):
        array = values[key][0] if key != "cam_poses" else values[key]
        array[where if where else 2] = np.nan

    frame = where[0] if where else 0
    with pytest.raises(BadSampleError, match=rf"made_walk_03.pkl, person 0, frame {frame}: {key} holds NaN"):
        open_changed(change)
    data = open_changed(change, skip_bad=True)
    bad = {"betas": FRAMES_3DPW, "cam_poses": 2}.get(key, 1)
    assert len(data) == 2 * FRAMES_3DPW - bad and data.skipped == bad
    assert key in data.skipped_reasons()[0]


@pytest.mark.parametrize(
    ("key", "cut", "message"),
    [
        ("poses", 4, "poses, person 0 must be 5 x 72, got 4 x 72"),
        ("trans", 3, "trans, person 0 must be 5 x 3, got 3 x 3"),
        ("campose_valid", 2, "campose_valid, person 0 must be 5, got 2"),
        ("jointPositions", 1, "jointPositions, person 0 must be 5 x 72"),
        ("poses2d", 4, "poses2d, person 0 must be 5 x 3 x 18"),
    ],
)
def test_label_arrays_of_different_lengths(open_changed, key, cut, message):
    def change(values):
        values[key][0] = values[key][0][:cut]

    with pytest.raises(BadSampleError, match=f"made_walk_03.pkl: {message}"):
        open_changed(change)


@pytest.mark.parametrize("key", ["poses", "betas", "trans", "cam_poses", "cam_intrinsics", "campose_valid", "sequence"])
def test_missing_keys(open_changed, key):
    with pytest.raises(BadSampleError, match=f"made_walk_03.pkl has no key '{key}'"):
        open_changed(lambda values: values.pop(key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": [np.zeros(4), np.zeros(10)]}, "betas, person 0 must have 10 numbers or more, got 4"),
        ({"trans": [np.zeros((5, 3))]}, "trans must be a list of 2, got list of 1"),
        ({"cam_intrinsics": np.zeros((3, 3))}, "cam_intrinsics must hold positive focal lengths"),
        ({"cam_poses": np.zeros((5, 3, 4))}, "cam_poses must be frames x 4 x 4, got 5 x 3 x 4"),
        ({"cam_poses": ["a"]}, "cam_poses does not hold numbers"),
        ({"genders": ["m", "x"]}, "genders, person 1 is 'x', expected 'm' or 'f'"),
    ],
)
def test_wrong_values(open_changed, change, message):
    with pytest.raises(BadSampleError, match=message):
        open_changed(lambda values: values.update(change))


@pytest.mark.parametrize("genders", [[], ["m"], ["m", ""]])
def test_gender_matters_to_gendered_ground_truth_alone(open_changed, genders):
    def change(values):
        values["genders"] = genders

    assert len(open_changed(change)) == 2 * FRAMES_3DPW
    with pytest.raises(BadSampleError, match=r"made_walk_03.pkl: genders has no entry for person"):
        open_changed(change, ground_truth="gendered")


def test_missing_pictures(open_changed, tmp_path):
    data = open_changed()
    picture = tmp_path / "imageFiles/made_walk_03/image_00002.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadSampleError, match=r"made_walk_03.pkl:person 0 frame 2: .*image_00002.jpg .*cut short"):
        data[2]
    skipping = open_changed(skip_bad=True)
    (tmp_path / "imageFiles/made_walk_03/image_00002.jpg").write_bytes(whole[: len(whole) // 2])
    assert skipping[2]["key"].endswith("person 0 frame 3") and skipping.skipped == 1


def test_fewer_pictures_than_labels(home, bodies, template, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(home[0], folder)
    (folder / "imageFiles/made_walk_01/image_00004.jpg").unlink()
    with pytest.raises(BadSampleError, match=r"made_walk_01.pkl, person 0, frame 4: no picture in .*made_walk_01"):
        ThreeDPW(folder, SPEC, template, bodies)
    assert ThreeDPW(folder, SPEC, template, bodies, skip_bad=True).skipped == 1
    shutil.rmtree(folder / "imageFiles/made_walk_01")
    with pytest.raises(BadSampleError, match="no picture folder"):
        ThreeDPW(folder, SPEC, template, bodies)
    (folder / "imageFiles/made_walk_01").mkdir()
    with pytest.raises(BadSampleError, match="no picture image_00000.jpg"):
        ThreeDPW(folder, SPEC, template, bodies)


def test_empty_boxes(open_changed):
    def change(values):
        values["poses2d"][1][3, 2] = 0

    with pytest.raises(BadSampleError, match="person 1, frame 3: the box of the detections is empty"):
        open_changed(change, box="detections")
    with pytest.raises(BadSampleError, match="has no key 'poses2d'"):
        open_changed(lambda values: values.pop("poses2d"), box="detections")


def test_truncated_foreign_and_malicious_files(home, bodies, template, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(home[0], folder)
    path = folder / "sequenceFiles/test/made_walk_01.pkl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadSampleError, match="made_walk_01.pkl"):
        ThreeDPW(folder, SPEC, template, bodies)
    data = ThreeDPW(folder, SPEC, template, bodies, skip_bad=True)
    assert len(data) == 2 * FRAMES_3DPW and data.skipped == 1
    path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(BadSampleError, match=r"system"):
        ThreeDPW(folder, SPEC, template, bodies)
    assert not list(tmp_path.rglob("ran"))
    path.write_bytes(python2_pickle([1, 2]))
    with pytest.raises(UserError, match="holds a list, expected 3DPW's dictionary"):
        read_sequence(path)
    with pytest.raises(UserError, match="no sequence file"):
        read_sequence(tmp_path / "none.pkl")
    for file in path.parent.glob("*.pkl"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="no usable row of 3DPW test .2 bad rows or files"):
        ThreeDPW(folder, SPEC, template, bodies, skip_bad=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "no split 'val'; known: train, validation, test"),
        ({"ground_truth": "male"}, "no ground truth 'male'"),
        ({"box": "mask"}, "no box 'mask'"),
        ({"stride": 0}, "stride must be 1 or more"),
        ({"box_factor": -1.0}, "box_factor positive"),
    ],
)
def test_bad_options(home, bodies, template, options, message):
    with pytest.raises(UserError, match=message):
        ThreeDPW(home[0], SPEC, template, bodies, **options)


def test_bodies_that_are_not_there_or_do_not_fit(home, bodies, template):
    with pytest.raises(UserError, match="gendered ground truth of 3DPW needs the SMPL body female"):
        ThreeDPW(home[0], SPEC, template, {"male": bodies["male"]}, ground_truth="gendered")
    with pytest.raises(UserError, match="neutral SMPL body has 6890 vertices, the network's body 'anny'"):
        ThreeDPW(home[0], SPEC, body_template("anny"), bodies)
    with pytest.raises(UserError, match="gives the joints h36m14"):
        ThreeDPW(home[0], ModelSpec("coco", 64, "coco17", "smpl", 6890), template, bodies)


# --- By name -------------------------------------------------------------------------------------------------------


def test_sets_open_by_name(home, smpl, template, tmp_path):
    data = open_set("3dpw-gendered", home[0], SPEC, template, smpl=smpl, stride=4)
    assert isinstance(data, ThreeDPW) and data.ground_truth == "gendered" and len(data) == 6
    assert own_kind(home[0]) == "3dpw" and own_kind(tmp_path) == ""
    with pytest.raises(UserError, match="name the folder with your SMPL model files"):
        open_set("3dpw-neutral", home[0], SPEC, template)
    with pytest.raises(UserError, match="unknown data set 'coco'; known: 3dpw-neutral"):
        open_set("coco", home[0], SPEC, template)


def test_human36m_opens_by_name(template, tmp_path):
    from tests.own_sets_files import CAMERAS, write_human36m

    write_human36m(tmp_path / "h36m", views=(CAMERAS[3],))
    assert own_kind(tmp_path / "h36m") == "human36m" == own_kind("h36m_valid_protocol2.npz")
    assert isinstance(open_set("human36m-p2", tmp_path / "h36m", SPEC, template, stride=6), Human36M)
    values = {
        "imgname": np.array(["a.jpg"]),
        "center": np.full((1, 2), 9.0),
        "scale": np.ones(1),
        "S": np.ones((1, 24, 4)),
    }
    np.savez(tmp_path / "a.npz", **values)
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    assert isinstance(open_set("human36m-p2", tmp_path / "a.npz", SPEC, template), Human36MNpz)
