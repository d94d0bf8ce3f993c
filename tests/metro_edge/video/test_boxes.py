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
        ("a.txt", "nan,1,1,1,5,5", "MOT counts frames from 1, got nan"),
        ("a.txt", "inf,1,1,1,5,5", "MOT counts frames from 1, got inf"),
        ("a.txt", "1,inf,1,1,5,5", "an identity is a number, -1 if unknown, got inf"),
        ("a.txt", "1,1e300,1,1,5,5", "an identity is a number"),
        ("a.txt", "1,1,1,1,5,5,nan", "line 1: a score is a number from 0 to 1, got nan"),
        ("a.txt", "", "has no box of a person"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "is not COCO: it lacks 'images'"),
        ("a.json", "[1]", "is not COCO"),
        ("a.json", '"text"', "is not COCO: expected an object with `images`"),
        ("a.json", "[" * 100_000, "is not JSON: .*recursion"),
        ("a.json", '{"images": [{"id": [1]}], "annotations": []}', "is not COCO: expected an object"),
        ("a.json", '{"images": [{"id": 1, "frame_id": "x"}], "annotations": []}', "is not COCO: expected an object"),
        (
            "a.json",
            '{"images": [{"id": 1}], "annotations": [{"image_id": 2}]}',
            "box 0: `images` has no image of the id 2",
        ),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3]}]', "a box is x, y, width, height"),
        ("a.json", '[{"image_id": 1, "bbox": [1, [2], 3, 4]}]', "a box is x, y, width, height"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, "x", 4]}]', "box 0: a box is x, y, width, height"),
        ("a.json", '[{"image_id": "0001.jpg", "bbox": [1, 2, 3, 4]}]', "box 0: expected numbers, got .*0001.jpg"),
        ("a.json", '[{"image_id": Infinity, "bbox": [1, 2, 3, 4]}]', "box 0: expected numbers"),
        ("a.json", '[{"image_id": 1.5, "bbox": [1, 2, 3, 4]}]', "box 0: expected numbers"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "track_id": "ann"}]', "box 0: expected numbers"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "track_id": 99999999999999999999}]', "expected numbers"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": "x"}]', "box 0: expected numbers"),
        ("a.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": NaN}]', "box 0: a score is a number"),
        ("a.xml", "<a/>", "boxes come as MOT"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_boxes(tmp_path / name)


def coco(path, names, **more):
    """Write boxes at x = number of the picture; returns the path."""
    images = [{"id": number, "file_name": name, **more} for number, name in enumerate(names)]
    boxes = [{"image_id": number, "bbox": [number, 1, 2, 3]} for number in range(len(names))]
    path.write_text(json.dumps({"images": images, "annotations": boxes}), encoding="utf-8-sig")
    return path


def test_pictures_find_their_boxes_by_name(tmp_path):
    table = read_boxes(coco(tmp_path / "a.json", ["val/f10.jpg", "val/f2.jpg", "val/f1.jpg"]))
    assert [table.of_frame(9, name).boxes[0, 0] for name in ("f1.jpg", "f2.jpg", "f10.jpg")] == [2, 1, 0]
    assert len(table.of_frame(0, "f3.jpg").boxes) == 0
    # In a video their place counts, by the numbers of their names.
    assert [table.of_frame(k).boxes[0, 0] for k in range(3)] == [2, 1, 0] and table.count == 3
    # The same name in two folders says nothing.
    table = read_boxes(coco(tmp_path / "b.json", ["a/f1.jpg", "b/f1.jpg"]))
    assert table.of_frame(1, "f1.jpg").boxes[0, 0] == 1


def test_scores_of_detectors_that_go_beyond(tmp_path):
    (tmp_path / "a.txt").write_text("1,1,1,1,5,5,7.5\n1,2,1,1,5,5,-3\n")
    assert read_boxes(tmp_path / "a.txt").of_frame(0).scores.tolist() == [1, 0]
    (tmp_path / "a.json").write_text('[{"image_id": 0, "bbox": [1, 2, 3, 4], "score": 7.5}]')
    assert read_boxes(tmp_path / "a.json").of_frame(0).scores.tolist() == [1]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no boxes at"):
        read_boxes(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="cannot read boxes"):
        read_boxes(tmp_path / "a.txt")
