from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from metro_edge.body import Body
from metro_edge.video.camera import FULL_FRAME_DIAGONAL_MM, Ground, exif_focal_px
from metro_edge.video.sources import open_source


def exif(order: str, focal_35mm: int | None) -> bytes:
    """An APP1 segment with an EXIF directory that holds FocalLengthIn35mmFilm, or lacks it."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    ifd0 = struct.pack(f"{order}HHHIII", 1, 0x8769, 4, 1, 26, 0)
    entry = struct.pack(f"{order}HHIHH", 0xA405 if focal_35mm else 0xA406, 3, 1, focal_35mm or 1, 0)
    tiff = head + ifd0 + struct.pack(f"{order}H", 1) + entry + struct.pack(f"{order}I", 0)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def jpeg(segment: bytes = b"") -> bytes:
    data = cv2.imencode(".jpg", np.zeros((60, 80, 3), np.uint8))[1].tobytes()
    return data[:2] + segment + data[2:]


@pytest.mark.parametrize("order", ["<", ">"])
def test_focal_length_from_exif(tmp_path, order):
    (tmp_path / "a.jpg").write_bytes(jpeg(exif(order, 28)))
    wanted = 28 * 100 / FULL_FRAME_DIAGONAL_MM
    assert exif_focal_px(tmp_path / "a.jpg", (60, 80)) == pytest.approx(wanted)
    (frame,) = open_source(tmp_path / "a.jpg")
    assert frame.focal_px == pytest.approx(wanted)


def test_pictures_without_it(tmp_path):
    cases = {"plain.jpg": jpeg(), "other.jpg": jpeg(exif("<", None)), "cut.jpg": jpeg(exif("<", 28))[:30]}
    damaged = bytearray(exif("<", 28))
    damaged[14:18] = b"\xff\xff\xff\xff"  # a directory beyond the end
    cases |= {"damaged.jpg": jpeg(bytes(damaged)), "odd.jpg": jpeg(exif("<", 28).replace(b"II*", b"XX*"))}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        assert exif_focal_px(tmp_path / name, (60, 80)) is None, name
    assert exif_focal_px(tmp_path / "none.jpg", (60, 80)) is None


def standing(template, pitch_deg: float, place: tuple[float, float, float]) -> Body:
    """A body that stands upright before a camera that looks down by `pitch_deg`."""
    a = np.radians(pitch_deg)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    joints = template.joints("h36m14", template.vertices) @ turn.T
    return Body(
        joints=joints.astype(np.float32),
        vertices=(template.vertices @ turn.T).astype(np.float32),
        camera=np.array([1, 0, 0], np.float32),
        translation=(np.array(place) @ turn.T).astype(np.float32),
        box=np.array([0, 0, 9, 9], np.float32),
        focal_px=500.0,
        centre_px=(99.5, 99.5),
        joint_set="h36m14",
        faces=template.faces,
    )


@pytest.mark.parametrize("pitch_deg", [0.0, 20.0, -35.0])
def test_the_ground_is_level_and_the_feet_stand_on_it(template, pitch_deg):
    ground = Ground()
    bodies = [standing(template, pitch_deg, place) for place in ((-1, 0.4, 4), (0.5, 0.4, 6), (1, 0.4, 5))]
    ground.update(bodies)
    assert ground.seen == 3
    matrix = ground.matrix
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    # The made body is not quite symmetric to the front, hence degrees and centimetres.
    for body in bodies:
        placed = ground.apply(body.joints + body.translation)
        feet, neck = placed[[0, 5]], placed[12]
        assert abs(feet[:, 1]).max() < 0.05
        lean = np.degrees(np.arccos((neck - feet.mean(axis=0))[1] / np.linalg.norm(neck - feet.mean(axis=0))))
        assert lean < 3
    apart = ground.apply(bodies[0].translation) - ground.apply(bodies[1].translation)
    assert np.linalg.norm(apart) == pytest.approx(
        np.linalg.norm(bodies[0].translation - bodies[1].translation), rel=1e-5
    )


def test_people_who_lie_are_left_out_and_nobody_is_level(template):
    ground = Ground()
    np.testing.assert_array_equal(ground.matrix, np.diag([1.0, -1.0, -1.0, 1.0]))
    ground.update([standing(template, 90.0, (0, 0, 4))])
    assert ground.seen == 0
