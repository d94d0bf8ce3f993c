from __future__ import annotations

import json

import pytest

from metro_edge.errors import UserError
from metro_edge.video.boxes import read_boxes


def test_mot(tmp_path):
    path = tmp_path / "gt.txt"
    path.write_text(
        "1,4,11,21,30,40,1,1,0.9\n1,2,1,1,5,6,1,1\n\n3,4,12,22,30,40,0.5\n2,9,1,1,5,5,0,1\n2,8,1,1,5,5,1,7\n"
    )
    table = read_boxes(path)
    assert table.has_identities and table.frames == [0, 2]
    first = table.of_frame(0)
    assert first.boxes.tolist() == [[10, 20, 30, 40], [0, 0, 5, 6]] and first.identities.tolist() == [4, 2]
    assert table.of_frame(2).scores.tolist() == [0.5] and len(table.of_frame(1).boxes) == 0


def test_mot_detections_without_identities(tmp_path):
    (tmp_path / "det.csv").write_text("1,-1,1,1,5,5,0.9\n1,-1,9,1,5,5,0.8\n")
    table = read_boxes(tmp_path / "det.csv")
    assert not table.has_identities and table.of_frame(0).identities.tolist() == [1, 2]


def test_coco_annotations_and_results(tmp_path):
    images = [{"id": 7, "file_name": "b.jpg"}, {"id": 5, "file_name": "a.jpg"}]
    annotations = [
        {"image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 1, "track_id": 3},
        {"image_id": 5, "bbox": [5, 6, 7, 8], "category_id": 1, "track_id": 3},
        {"image_id": 5, "bbox": [5, 6, 7, 8], "category_id": 2, "track_id": 4},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    table = read_boxes(tmp_path / "a.json")
    assert table.has_identities and table.of_frame(0).boxes.tolist() == [[5, 6, 7, 8]]
    assert table.of_frame(1).boxes.tolist() == [[1, 2, 3, 4]]
    images[0]["frame_id"], images[1]["frame_id"] = 10, 20
    (tmp_path / "b.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert read_boxes(tmp_path / "b.json").frames == [10, 20]
    (tmp_path / "c.json").write_text(json.dumps([{"image_id": 4, "bbox": [1, 2, 3, 4], "score": 0.25}]))
    table = read_boxes(tmp_path / "c.json")
    assert table.frames == [4] and table.of_frame(4).scores.tolist() == [0.25] and not table.has_identities


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.txt", "1,2,3", "line 1: expected frame,id"),
        ("a.txt", "1,2,3,4,x,6", "line 1: expected frame,id"),
        ("a.txt", "0,1,1,1,5,5", "MOT counts frames from 1"),
        ("a.txt", "1,1,1,1,0,5", "a box is x, y, width, height"),
        ("a.txt", "1,1,1,1,5,5\n1,1,2,2,5,5", "has an identity twice"),
        ("a.txt", "", "has no box of a person"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "is not COCO: it lacks 'images'"),
        ("a.json", "[1]", "is not COCO"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3]}]', "a box is x, y, width, height"),
        ("a.xml", "<a/>", "boxes come as MOT"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_boxes(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no boxes at"):
        read_boxes(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="cannot read boxes"):
        read_boxes(tmp_path / "a.txt")
