from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.errors import MissingExtraError, UserError
from tests.own_sets_files import (
    CAMERAS,
    grey,
    pinhole_with_lens,
    room_to_camera,
    write_cdf,
    write_human36m,
    write_metadata,
    write_video,
)
from training.data.human36m_files import Camera, Video, read_cameras, read_pose


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h36m")
    return folder, write_human36m(folder)


def test_cameras_move_and_project_as_the_written_numbers_say(home):
    folder, truth = home
    cameras = read_cameras(folder / "metadata.xml")
    assert set(cameras) == {(s, c) for s in range(1, 12) for c in CAMERAS}
    points = np.random.default_rng(0).uniform(-500, 500, (7, 3)) + np.array((0, 0, 900))
    for pair, camera in cameras.items():
        numbers = truth["cameras"][pair]
        local = camera.from_room(points)
        np.testing.assert_allclose(local, room_to_camera(numbers, points), atol=1e-9)
        assert (local[:, 2] > 3000).all()
        np.testing.assert_allclose(camera.project(local), pinhole_with_lens(numbers, local), atol=1e-9)


@settings(deadline=None)
@given(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3), st.floats(1.0, 9.0))
def test_projection_is_opencvs_without_tangential_terms(x, y, depth):
    inner = [np.array(values) for values in ([1145.0, 1144.0], [512.0, 515.0], [-0.2, 0.24, -0.002], [0.0, 0.0])]
    camera = Camera(np.eye(3), np.zeros(3), *inner)
    point = np.array([x * depth, y * depth, depth])
    matrix = np.array([[1145.0, 0, 512], [0, 1144.0, 515], [0, 0, 1]])
    lens = np.array([-0.2, 0.24, 0, 0, -0.002])
    expected = cv2.projectPoints(point[None], np.zeros(3), np.zeros(3), matrix, lens)[0][0, 0]
    np.testing.assert_allclose(camera.project(point), expected, atol=1e-6)


def test_projection_of_points_in_metres_equals_that_in_millimetres(home):
    camera = read_cameras(home[0] / "metadata.xml")[9, CAMERAS[3]]
    points = np.array([[0.3, -0.2, 4.0], [0.1, 0.6, 5.0]])
    np.testing.assert_allclose(camera.project(points), camera.project(points * 1000), atol=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<database", "cannot be read as metadata.xml"),
        ("<database/>", "w0 must hold 0 finite numbers for the cameras \\(none\\)"),
        ("<database><w0>[a b]</w0></database>", "w0 does not hold numbers"),
        ("<d><dbcameras><index2id><id>1</id></index2id></dbcameras><w0>[1 2]</w0></d>", "must hold 75 .* found 2"),
    ],
)
def test_bad_metadata(tmp_path, text, message):
    path = tmp_path / "metadata.xml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_cameras(path)


def test_metadata_with_nan(tmp_path, home):
    cameras = {pair: dict(values) for pair, values in home[1]["cameras"].items()}
    cameras[9, CAMERAS[0]]["position"] = np.array([np.nan, 0, 0])
    write_metadata(tmp_path / "metadata.xml", cameras)
    with pytest.raises(UserError, match="finite"):
        read_cameras(tmp_path / "metadata.xml")


def test_missing_metadata(tmp_path):
    with pytest.raises(UserError, match="no camera file"):
        read_cameras(tmp_path / "metadata.xml")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_poses_come_back(tmp_path, dimensions):
    values = np.random.default_rng(0).normal(size=(9, 32, dimensions)).astype(np.float32)
    read = read_pose(write_cdf(tmp_path / "a.cdf", values), dimensions)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


def test_a_truncated_cdf_is_refused_or_whole(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 32, 3)).astype(np.float32)
    data = write_cdf(tmp_path / "a.cdf", values).read_bytes()
    refused = 0
    for size in range(0, len(data), 37):
        (tmp_path / "cut.cdf").write_bytes(data[:size])
        try:
            np.testing.assert_array_equal(read_pose(tmp_path / "cut.cdf"), values)
        except UserError as error:
            assert "cut.cdf" in str(error)
            refused += 1
    assert refused > 0.9 * len(data) / 37


def test_bad_cdfs(tmp_path):
    with pytest.raises(UserError, match="no pose file"):
        read_pose(tmp_path / "none.cdf")
    (tmp_path / "text.cdf").write_text("not one")
    with pytest.raises(UserError, match="not a readable .cdf"):
        read_pose(tmp_path / "text.cdf")
    write_cdf(tmp_path / "other.cdf", np.zeros((2, 32, 3)), name="Angles")
    with pytest.raises(UserError, match="variable Pose"):
        read_pose(tmp_path / "other.cdf")
    write_cdf(tmp_path / "few.cdf", np.zeros((2, 17, 3)))
    with pytest.raises(UserError, match="32 x 3 = 96 numbers"):
        read_pose(tmp_path / "few.cdf")


def test_missing_cdflib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cdflib", None)
    with pytest.raises(MissingExtraError, match="h36m"):
        read_pose(tmp_path / "a.cdf")


def test_frames_are_exact_in_any_order(tmp_path):
    video = Video(write_video(tmp_path / "a.mp4", 80, size=64))
    assert video.count == 80
    levels = {i: float(video.frame(i).mean()) for i in range(80)}
    assert all(abs(levels[i] - grey(i)) < 6 for i in range(15))
    for i in np.random.default_rng(0).permutation(80):
        assert abs(float(video.frame(int(i)).mean()) - levels[int(i)]) < 1.5


def test_a_video_travels_to_other_processes(tmp_path):
    video = Video(write_video(tmp_path / "a.mp4", 10, size=64))
    expected = video.frame(4)
    np.testing.assert_array_equal(copy.copy(video).frame(4), expected)
    video._process = -1  # as after a fork: the inherited handle may not be used
    video._next = 7
    np.testing.assert_array_equal(video.frame(4), expected)


def test_bad_videos(tmp_path):
    with pytest.raises(UserError, match="no video"):
        Video(tmp_path / "none.mp4")
    whole = write_video(tmp_path / "a.mp4", 10, size=64)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:300])
    with pytest.raises(UserError, match="not a video"):
        Video(tmp_path / "cut.mp4")
    with pytest.raises(UserError, match="frame 10 of 10 cannot be decoded"):
        Video(whole).frame(10)
