"""The shipped demonstration: the truth belongs to the clip, and people move smoothly."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from metro_edge.errors import UserError
from training.data.demo import EVERY, FRAMES, SIZE_WH, clip_poses, write_demo
from training.data.rig import rotation_vector
from training.data.storage import UNIT_M


def test_clip_moves_smoothly(rig):
    poses, headings, positions = clip_poses(rig)
    turns = [[np.linalg.norm(rotation_vector(a.T @ b)) for a, b in zip(p, q, strict=True)] for p, q in pairwise(poses)]
    assert np.degrees(np.max(turns)) < 30 and np.degrees(np.mean(turns)) > 0.1
    assert np.abs(np.diff(headings)).max() < 5
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() < 0.06


def test_written_demonstration(tmp_path, template):
    write_demo(tmp_path)
    truth = np.load(tmp_path / "truth.npz")
    assert truth["boxes"].shape == (FRAMES, 4) and truth["boxes"].dtype == np.float32
    assert truth["frame_ids"].tolist() == list(range(0, FRAMES, EVERY)) and truth["frame_ids"].dtype == np.int32
    assert truth["vertices"].shape == (10, 13718, 3) and truth["vertices"].dtype == np.int16
    root = template.root("h36m14", truth["vertices"].astype(np.float32) * UNIT_M)
    assert np.abs(root).max() < 1e-3
    heights = np.ptp(truth["vertices"][..., 1].astype(float), axis=1) * UNIT_M
    assert (heights > 1.4).all() and (heights < 2.2).all()
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == FRAMES and frames[0].shape == (SIZE_WH[1], SIZE_WH[0], 3)
    assert cv2.imread(str(tmp_path / "picture.jpg")).shape == frames[0].shape
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_600_000
    # What differs between two moments lies in the boxes of the two.
    changed = cv2.absdiff(frames[0], frames[-1]).max(axis=2) > 60
    rows, columns = np.nonzero(changed)
    first, last = truth["boxes"][[0, -1]]
    inside = np.zeros(len(rows), bool)
    for x, y, w, h in (first, last):
        inside |= (columns > x - 12) & (columns < x + w + 12) & (rows > y - 12) & (rows < y + h + 12)
    assert len(rows) > 500 and inside.mean() > 0.9


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the demonstration"):
        write_demo(tmp_path / "file" / "demo")
