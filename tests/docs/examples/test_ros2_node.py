"""The ROS 2 node is typed against the real message definitions, its conversions run on messages made of them.

Where rclpy is installed the node itself runs as well, in a process of its own and over the real middleware.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from metro_edge import MeshEstimator, UserError
from metro_edge.demo import DemoAssets
from metro_edge.joints import joint_set
from tests.docs.examples import ros2_messages

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "docs" / "examples" / "ros2_node"
STUBS = Path(__file__).with_name("rclpy_stubs")


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    ros2_messages.write_stubs(folder)
    shutil.copytree(STUBS / "rclpy", folder / "rclpy")
    return folder


def mypy(package: Path, stubs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--follow-imports=silent"]
    return subprocess.run(
        [*command, "--cache-dir", str(stubs.parent / "cache"), "-p", "metro_edge_ros"],
        cwd=package,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(stubs), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_node_is_typed_against_the_message_definitions(stubs: Path, tmp_path: Path) -> None:
    """And what does not fit the definitions, or rclpy, is found."""
    done = mypy(PACKAGE, stubs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in 3 source files" in done.stdout
    for file, right, wrong, found in (
        ("conversions.py", "message.encoding in SWAPPED", "message.encodings in SWAPPED", "no attribute"),
        ("conversions.py", "Point(x=x, y=y, z=z)", "Point(x=x, y=y, w=z)", "Unexpected keyword"),
        ("conversions.py", "offset=4 * axis", 'offset=""', "incompatible type"),
        ("conversions.py", "Marker.SPHERE_LIST, JOINT_M", "Marker.SPHERES, JOINT_M", "no attribute"),
        ("node.py", "publish(markers_from_bodies", "publish(cloud_from_bodies", "incompatible type"),
        ("node.py", "(CameraInfo, ", "(Image, ", "incompatible type"),
        ("node.py", "depth=5", "deep=5", "Unexpected keyword"),
    ):
        shutil.copytree(PACKAGE, tmp_path, dirs_exist_ok=True)
        changed = tmp_path / "metro_edge_ros" / file
        text = changed.read_text(encoding="utf-8")
        assert right in text
        changed.write_text(text.replace(right, wrong), encoding="utf-8")
        done = mypy(tmp_path, stubs)
        assert done.returncode == 1 and found in done.stdout, (wrong, done.stdout)


@pytest.fixture(scope="module")
def conversions() -> Any:
    """The module beside message classes of the real definitions, where ROS itself is not installed."""
    modules: dict[str, ModuleType] = ros2_messages.make_modules()
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location(
            "ros2_example_conversions", PACKAGE / "metro_edge_ros" / "conversions.py"
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def header(conversions: Any) -> Any:
    made = conversions.Header(frame_id="camera_optical")
    made.stamp.sec, made.stamp.nanosec = 12, 345678901
    return made


def image(conversions: Any, data: bytes, width: int, height: int, encoding: str, step: int) -> Any:
    message = conversions.Image(width=width, height=height, encoding=encoding, step=step)
    message.data.frombytes(data)
    return message


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.asarray(cv2.resize(DemoAssets.load().picture, (64, 96), interpolation=cv2.INTER_AREA))


@pytest.fixture(scope="module")
def bodies(picture: np.ndarray) -> Any:
    with MeshEstimator.from_bundle() as estimator:
        return estimator(picture, [(0, 0, 64, 96), (5, 5, 50, 80)])


@pytest.mark.parametrize("encoding", ["bgr8", "rgb8", "mono8", "yuyv", "yuv422_yuy2", "nv12", "uyvy", "yuv422"])
def test_every_encoding(conversions: Any, picture: np.ndarray, encoding: str) -> None:
    """Rows have a gap, as aligned drivers leave it; what comes back is the picture, up to the format's own loss."""
    i420 = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    u, v = (plane.reshape(48, 32) for plane in (i420[96:120], i420[120:]))
    y = i420[:96]
    fours = np.stack([y[:, 0::2], u.repeat(2, axis=0), y[:, 1::2], v.repeat(2, axis=0)], axis=-1)
    rows = {
        "bgr8": picture.reshape(96, -1),
        "rgb8": picture[..., ::-1].reshape(96, -1),
        "mono8": y,
        "nv12": np.concatenate([y, np.dstack([u, v]).reshape(48, 64)]),
        "uyvy": fours[..., [1, 0, 3, 2]].reshape(96, -1),
        "yuyv": fours.reshape(96, -1),
    }[{"yuv422_yuy2": "yuyv", "yuv422": "uyvy"}.get(encoding, encoding)]
    data = np.pad(rows, ((0, 0), (0, 16)), constant_values=99)
    message = image(conversions, data.tobytes(), 64, 96, encoding, data.shape[1])
    frame = conversions.frame_from_image(message)
    got = frame.bgr()
    if encoding in ("bgr8", "rgb8"):
        np.testing.assert_array_equal(got, picture)
    elif encoding == "mono8":
        np.testing.assert_array_equal(got, y[..., None].repeat(3, axis=2))
    else:
        expected = cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420)
        assert np.abs(got.astype(int) - expected).max() <= 1
    if encoding not in ("uyvy", "yuv422"):
        assert frame.address == message.data.buffer_info()[0]  # read in place
    received = ros2_messages.wire(message, "sensor_msgs/msg/Image")
    np.testing.assert_array_equal(conversions.frame_from_image(received).bgr(), got)


@pytest.mark.parametrize(("encoding", "step", "text"), [
    ("bayer_rggb8", 64, "'bayer_rggb8' is not supported; known: bgr8"), ("16UC1", 128, "not supported"),
    ("bgr8", 100, "pitch 100 is below"), ("bgr8", 200, "the buffer has"),
])  # fmt: skip
def test_pictures_that_cannot_be_used(conversions: Any, encoding: str, step: int, text: str) -> None:
    with pytest.raises(UserError, match=text):
        conversions.frame_from_image(image(conversions, bytes(64 * 96 * 3), 64, 96, encoding, step))


def test_markers_are_the_bodies_under_the_images_header(conversions: Any, bodies: Any, header: Any) -> None:
    received = ros2_messages.wire(conversions.markers_from_bodies(bodies, header), "visualization_msgs/msg/MarkerArray")
    clear, *markers = received.markers
    assert clear.action == clear.DELETEALL and len(markers) == 4
    for marker in received.markers:
        assert marker.header.frame_id == "camera_optical"
        assert (marker.header.stamp.sec, marker.header.stamp.nanosec) == (12, 345678901)
    assert len({(marker.ns, marker.id) for marker in markers}) == 4
    for body, (spheres, lines) in zip(bodies, (markers[:2], markers[2:]), strict=True):
        assert (spheres.type, lines.type) == (spheres.SPHERE_LIST, lines.LINE_LIST)
        points = np.array([(p.x, p.y, p.z) for p in spheres.points])
        np.testing.assert_allclose(points, body.joints + body.translation, rtol=1e-6)
        ends = np.array([(p.x, p.y, p.z) for p in lines.points]).reshape(-1, 2, 3)
        length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        assert len(length) == len(joint_set(body.joint_set).bones)
        assert length.min() > 0.03 and length.max() < 1.0
        for marker in (spheres, lines):
            assert marker.pose.orientation.w == 1.0 and marker.color.a == 1.0 and marker.scale.x > 0
    empty = conversions.markers_from_bodies([], header)
    assert len(empty.markers) == 1  # people who left disappear


def test_the_cloud_is_the_vertices(conversions: Any, bodies: Any, header: Any) -> None:
    received = ros2_messages.wire(conversions.cloud_from_bodies(bodies, header), "sensor_msgs/msg/PointCloud2")
    assert (received.height, received.width) == (2, 13718) and received.header.frame_id == "camera_optical"
    assert received.row_step * received.height == len(received.data)
    kind = np.dtype({"names": [f.name for f in received.fields], "formats": ["<f4"] * 3,
                     "offsets": [f.offset for f in received.fields], "itemsize": received.point_step})  # fmt: skip
    points = received.data.view(kind).reshape(2, -1)
    for row, body in zip(points, bodies, strict=True):
        np.testing.assert_array_equal(np.stack([row[c] for c in "xyz"], axis=1), body.vertices + body.translation)
    empty = ros2_messages.wire(conversions.cloud_from_bodies([], header), "sensor_msgs/msg/PointCloud2")
    assert (empty.height, empty.width, len(empty.data)) == (0, 0, 0)


def test_the_cameras_matrix(conversions: Any) -> None:
    info = conversions.CameraInfo()
    assert conversions.camera_matrix(info) is None
    info.k[:] = [500, 0, 320, 0, 510, 240, 0, 0, 1]
    np.testing.assert_array_equal(conversions.camera_matrix(info), [[500, 0, 320], [0, 510, 240], [0, 0, 1]])


def test_the_package_names_what_it_imports() -> None:
    named = {node.text for node in ElementTree.parse(PACKAGE / "package.xml").getroot().iter("exec_depend")}
    for file in ("conversions.py", "node.py"):
        text = (PACKAGE / "metro_edge_ros" / file).read_text(encoding="utf-8")
        imported = set(re.findall(r"^(?:from|import) (\w+_msgs|rclpy)", text, re.MULTILINE))
        assert imported and imported <= named


@functools.cache
def python_with_ros() -> str:
    """A Python that imports rclpy: METRO_EDGE_ROS_PYTHON, else this one; skips where there is none."""
    program = os.environ.get("METRO_EDGE_ROS_PYTHON", sys.executable)
    code = "import rclpy, visualization_msgs.msg, cv2, onnxruntime; rclpy.init()"
    done = subprocess.run([program, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no rclpy in {program} (docs/integration.md): {done.stderr.strip().splitlines()[-1]}")
    return program


@pytest.mark.slow
def test_the_node_runs() -> None:
    """A picture is published, its markers and vertices arrive under its stamp."""
    path = os.pathsep.join([str(PACKAGE), str(ROOT)])
    done = subprocess.run(
        [python_with_ros(), str(Path(__file__).with_name("ros2_live.py"))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "ROS_DOMAIN_ID": "87", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "markers under stamp 12.345678901: 3, points 1 x 13718" in done.stdout
    assert "'bayer_rggb8' is not supported" in done.stderr
