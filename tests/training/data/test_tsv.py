"""TSV files and METRO's data sets: round trips, and whatever can be wrong with them named by file, row and key."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import resource
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from training.data.labelled import BadSampleError
from training.data.metro_sets import MetroTsvSet, open_rows
from training.data.tsv import TsvFile, lineidx_path, picture_of, rows_of, size_of, write_tsv

SIZE_HW = (120, 160)


def _descriptor(file: TsvFile, results: Any) -> None:
    results.put((file.row(3)[0], file._file))


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    path = tmp_path / "some.label.tsv"
    write_tsv(path, [(f"key {i}", "x" * (i + 1), json.dumps([{"a": i}])) for i in range(20)])
    return path


def test_rows_and_offsets_round_trip(tsv: Path) -> None:
    file = TsvFile(tsv)
    assert lineidx_path(tsv).name == "some.label.lineidx" and len(file) == 20
    assert file.row(7) == [b"key 7", b"xxxxxxxx", b'[{"a": 7}]'] and file.key(19) == "key 19"
    assert [row[0] for row in rows_of(tsv)] == [f"key {i}".encode() for i in range(20)]
    kept = lineidx_path(tsv).read_text()
    lineidx_path(tsv).unlink()
    assert TsvFile(tsv).row(7) == file.row(7)
    assert lineidx_path(tsv).read_text() == kept  # made anew


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert write_tsv(tmp_path / "empty.tsv", []) == 0 and len(TsvFile(tmp_path / "empty.tsv")) == 0


def test_writing_refuses_what_would_break_rows_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"new\.tsv:1: a field must not hold tabs"):
        write_tsv(tmp_path / "new.tsv", [("a", "b"), ("a\tb", "c")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:300]), r"stale, or some\.label\.tsv is cut short: it puts row 13"),
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "row 19 has no line end: the file is cut short"),
        (lambda p: p.write_bytes(p.read_bytes() + b"k\tv\n"), "row 19 is followed by lines that the index does not"),
        (lambda p: _index(p, lambda lines: lines[:-4]), "row 15 is followed by lines"),
        (lambda p: p.write_bytes(p.read_bytes().replace(b"key 2\t", b"longer 2\t")), "does not begin where"),
        (lambda p: _index(p, lambda lines: [*lines[:3], lines[2], *lines[4:]]), "no offsets of rows"),
        (lambda p: _index(p, lambda lines: [*lines[:3], "3x", *lines[4:]]), r"lineidx:3: expected 1 whole number"),
        (lambda p: _index(p, lambda lines: []), "no offsets of rows"),
        (lambda p: p.unlink(), "cannot read"),
    ],
)
def test_a_stale_or_truncated_index_is_named(tsv: Path, damage: Any, words: str) -> None:
    damage(tsv)
    with pytest.raises(UserError, match=words):
        TsvFile(tsv)


def test_a_stale_row_is_found_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "long.tsv"
    write_tsv(path, [(f"{i:04d}", "value") for i in range(17)])  # few enough that each beginning is looked at
    _index(path, lambda lines: [*lines[:5], str(int(lines[5]) + 2), *lines[6:]])
    with pytest.raises(UserError, match=r"long\.tsv:5: row 5 does not begin where the index says"):
        TsvFile(path)


def test_a_forked_process_opens_the_file_anew(tsv: Path) -> None:
    file = TsvFile(tsv)
    file.row(0)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_descriptor, args=(file, results))
    process.start()
    key, descriptor = results.get(timeout=30)
    process.join()
    assert key == b"key 3" and descriptor != file._file >= 0


def _index(path: Path, change: Any) -> None:
    index = lineidx_path(path)
    index.write_text("".join(f"{line}\n" for line in change(index.read_text().split())))


def test_a_stale_row_between_the_spot_checks_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.tsv"
    write_tsv(path, [(f"{i:04d}", "value") for i in range(200)])
    _index(path, lambda lines: [*lines[:5], str(int(lines[5]) + 2), *lines[6:]])
    file = TsvFile(path)
    with pytest.raises(BadSampleError, match=r"long\.tsv:5: row 5 does not begin where"):
        file.row(5)
    with pytest.raises(BadSampleError, match=r"long\.tsv:4: row 4 does not end there"):
        file.row(4)
    with pytest.raises(UserError, match="has rows 0 to 199"):
        file.row(200)


@pytest.mark.parametrize(("text", "size"), [(b'[{"height": 5, "width": 7}]', (5, 7)), (b"5 7", (5, 7))])
def test_sizes_come_in_two_forms(text: bytes, size: tuple[int, int]) -> None:
    assert size_of([b"k", text], "x") == size
    with pytest.raises(BadSampleError, match=r"f:3: expected height and width, got '5'"):
        size_of([b"k", b"5"], "f:3")


def test_pictures_that_do_not_decode_are_named() -> None:
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))[1].tobytes()
    assert picture_of([b"k", base64.b64encode(jpeg)], "f:1").shape == (60, 60, 3)
    for data, words in (
        (b"!!", "not base64"),
        (base64.b64encode(b"no picture"), "does not decode"),
        (b"", "does not decode"),
        (base64.b64encode(jpeg[:-40]), "cut short"),
    ):
        with pytest.raises(BadSampleError, match=f"f:1: .*{words}"):
            picture_of([b"k", data], "f:1")


# --- Sets ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return ModelSpec("test", 64, "h36m14", "anny", 13_718)


def make_set(folder: Path, count: int = 4, name: str = "train", **changes: Any) -> Path:
    """Write a set of `count` rows without meshes; `changes` replace entries of row 1's label (None removes them)."""
    rng = np.random.default_rng(0)
    keys = [f"images/{i}.jpg" for i in range(count)]
    labels = []
    for i in range(count):
        flat, joints = rng.uniform(20, 100, (24, 3)), rng.normal(size=(24, 4))
        flat[:, 2] = joints[:, 3] = 1
        joints[13, 3] = flat[13, 2] = 0  # LSP's top of the head
        label: dict[str, Any] = {
            "center": [80.0, 60.0], "scale": 0.5, "2d_joints": [flat.tolist()], "has_2d_joints": 1,
            "3d_joints": joints.tolist(), "has_3d_joints": 1, "pose": [0.0] * 72, "betas": [0.0] * 10, "has_smpl": 0,
        }  # fmt: skip
        if i == 1:
            label = {key: value for key, value in {**label, **changes}.items() if value is not None}
        labels.append(label)
    jpegs = [cv2.imencode(".jpg", rng.integers(0, 255, (*SIZE_HW, 3), np.uint8))[1].tobytes() for _ in keys]
    write_tsv(folder / f"{name}.img.tsv", [(k, base64.b64encode(j)) for k, j in zip(keys, jpegs, strict=True)])
    write_tsv(folder / f"{name}.hw.tsv", [(k, "120 160") for k in keys])
    write_tsv(folder / f"{name}.label.tsv", [(k, json.dumps([v])) for k, v in zip(keys, labels, strict=True)])
    write_tsv(folder / f"{name}.linelist.tsv", [(str(i),) for i in range(count)])
    path = folder / f"{name}.yaml"
    kinds = ("img", "hw", "label", "linelist")
    path.write_text("".join(f"{kind}: {name}.{kind}.tsv\n" for kind in kinds))
    return path


def test_labels_arrive_as_they_were_written(tmp_path: Path, spec: ModelSpec, template: Any) -> None:
    data = MetroTsvSet(make_set(tmp_path), spec, template)
    item, label = data[2], data.label(2)
    order = [*range(13), 18]
    joints = np.array(label["3d_joints"])[order, :3]
    np.testing.assert_allclose(item["joints"], joints - joints[2:4].mean(0), atol=1e-6)
    pixels = np.array(label["2d_joints"])[0, order, :2]
    # The square of 100 px about the corner-counted centre (80, 60); pixel centres are half a pixel further.
    expected = (pixels + 0.5 - (80, 60)) / 50
    np.testing.assert_allclose(item["joints_2d"][:, :2], expected, atol=1e-5)
    inside = (np.abs(expected) <= 1).all(1)
    np.testing.assert_array_equal(item["joints_2d"][:, 2], inside)
    assert item["key"] == "train.label.tsv:2" and data.name(2) == "images/2.jpg"
    assert (item["joints_confidence"] == 1).all() and item["joints_visible"].shape == (14,)
    assert (item["has_vertices"], item["has_joints"], item["has_joints_2d"]) == (0, 1, 1)
    assert item["vertices"].shape == (13_718, 3) and not item["vertices"].any()


def test_supervision_is_mixed_by_row(tmp_path: Path, spec: ModelSpec, template: Any) -> None:
    nothing = {"has_3d_joints": 0, "3d_joints": [float("nan")], "has_2d_joints": 0, "2d_joints": []}
    data = MetroTsvSet(make_set(tmp_path, **nothing), spec, template)
    batch = next(iter(DataLoader(data, 4)))
    assert batch["has_joints"].tolist() == [1, 0, 1, 1] == batch["has_joints_2d"].tolist()
    assert not batch["joints"][1].any() and torch.isfinite(batch["joints"]).all()


def test_joints_without_their_root_are_not_used(tmp_path: Path, spec: ModelSpec, template: Any) -> None:
    joints = np.ones((24, 4))
    joints[2, 3] = 0
    item = MetroTsvSet(make_set(tmp_path, **{"3d_joints": joints.tolist()}), spec, template)[1]
    assert item["has_joints"] == 0 and not item["joints"].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 0.0}, "box of no size: scale is 0"),
        ({"scale": float("nan")}, "scale holds values that are not finite"),
        ({"center": [1.0]}, r"center must have shape \(2,\)"),
        ({"center": [9000.0, 0.0]}, "lies outside the 160 x 120 px picture"),
        ({"center": None}, "the label has no center"),
        ({"2d_joints": [[[float("nan"), 0, 1]] * 24]}, "2d_joints holds values that are not finite"),
        ({"3d_joints": [[0, 0, float("inf"), 1]] * 24}, "3d_joints holds values that are not finite"),
        ({"3d_joints": [[0, 0, 0, 1]] * 20}, r"3d_joints must be \(24 or 21, 4\), got \(20, 4\)"),
        ({"2d_joints": "none"}, "2d_joints must be numbers"),
        ({"has_3d_joints": None}, "the label has no has_3d_joints"),
        ({"vertices_int16": "AAAA"}, "vertices_int16 must be base64 of 13718 x 3"),
    ],
)
def test_bad_labels_are_named_and_skipped_only_on_demand(
    tmp_path: Path, spec: ModelSpec, template: Any, changes: dict[str, Any], words: str
) -> None:
    path = make_set(tmp_path, **changes)
    with pytest.raises(BadSampleError, match=rf"train\.label\.tsv:1: .*{words}"):
        MetroTsvSet(path, spec, template)[1]
    data = MetroTsvSet(path, spec, template, skip_bad=True)
    assert [data[i]["key"][-1] for i in range(4)] == ["0", "2", "2", "3"]
    assert data.skipped == 1 and words.split(" ")[0] in data.skipped_reasons()[0]


def test_rows_of_different_pictures_and_counts_are_refused(tmp_path: Path, spec: ModelSpec, template: Any) -> None:
    path = make_set(tmp_path)
    rows = list(rows_of(tmp_path / "train.img.tsv"))
    write_tsv(tmp_path / "train.img.tsv", [rows[0], rows[2], rows[1], rows[3]])
    with pytest.raises(BadSampleError, match=r"label\.tsv:1: the label is of 'images/1\.jpg', the picture in"):
        MetroTsvSet(path, spec, template)[1]
    write_tsv(tmp_path / "train.img.tsv", rows[:3])
    with pytest.raises(UserError, match=r"train\.label\.tsv has 4 rows, .*train\.img\.tsv has 3"):
        open_rows(path)
    write_tsv(tmp_path / "train.img.tsv", rows)
    write_tsv(tmp_path / "train.hw.tsv", [("k", "120 161")] * 4)
    with pytest.raises(BadSampleError, match=r"train\.hw\.tsv:0: height and width \(120, 161\)"):
        MetroTsvSet(path, spec, template)[0]
    (tmp_path / "train.yaml").write_text("img: train.img.tsv\nlabel: train.label.tsv\n")
    write_tsv(tmp_path / "train.label.tsv", [("images/0.jpg", "[]")] * 4)
    with pytest.raises(BadSampleError, match=r"train\.label\.tsv:0: expected a JSON list"):
        MetroTsvSet(path, spec, template)[0]


def test_composite_sets_take_rows_of_several_files(tmp_path: Path, spec: ModelSpec, template: Any) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        make_set(tmp_path / name)
    write_tsv(tmp_path / "all.linelist.tsv", [("1", "3"), ("0", "2"), ("1", "0")])
    kinds = {kind: [f"{name}/train.{kind}.tsv" for name in ("first", "second")] for kind in ("img", "hw", "label")}
    path = tmp_path / "all.yaml"
    path.write_text(json.dumps({**kinds, "composite": True, "linelist": "all.linelist.tsv"}))
    data = MetroTsvSet(path, spec, template)
    assert [data[i]["key"] for i in range(3)] == [
        "second/train.label.tsv:3", "first/train.label.tsv:2", "second/train.label.tsv:0",
    ]  # fmt: skip
    assert data.name(1) == "first/train.label.tsv_images/2.jpg"
    for bad, words in (
        ({"linelist": None}, "linelist must be a file"),
        ({"img": []}, "img must be a list of files"),
        ({"hw": ["first/train.hw.tsv"]}, "different numbers of files: 2 img, 2 label, 1 hw"),
        ({"label": "nowhere.txt"}, "label names no readable list"),
    ):
        path.write_text(json.dumps({**kinds, "composite": True, "linelist": "all.linelist.tsv", **bad}))
        with pytest.raises(UserError, match=words):
            open_rows(path)
    path.write_text(json.dumps({**kinds, "composite": True, "linelist": "all.linelist.tsv"}))
    write_tsv(tmp_path / "all.linelist.tsv", [("1", "3"), ("0", "4")])
    with pytest.raises(UserError, match=r"all\.linelist\.tsv:1: file 0, row 4 is not there"):
        open_rows(path)
    write_tsv(tmp_path / "all.linelist.tsv", [("1", "3"), ("0",)])
    with pytest.raises(UserError, match=r"all\.linelist\.tsv:1: expected 2 whole numbers a line"):
        open_rows(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "expected a mapping"),
        ("img: [a", "cannot read the data set"),
        ("img: 5", "img must be a file"),
        ("img: no.tsv\nlabel: no.tsv", "cannot read .*no.tsv"),
    ],
)
def test_bad_yaml_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        open_rows(tmp_path / "set.yaml")
    with pytest.raises(UserError, match="cannot read the data set"):
        open_rows(tmp_path / "none.yaml")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_and_count_what_they_skip(
    tmp_path: Path, spec: ModelSpec, template: Any, method: str
) -> None:
    data = MetroTsvSet(make_set(tmp_path, count=8, scale=0.0), spec, template, train=True, seed=3, skip_bad=True)
    data[0]  # opens the files here, too
    loader = DataLoader(data, 2, num_workers=2, multiprocessing_context=method)
    batches = list(loader)
    assert data.skipped == 1 and "scale is 0" in data.skipped_reasons()[0]
    alone = list(DataLoader(data, 2))
    for a, b in zip(batches, alone, strict=True):
        assert a["key"] == b["key"] and torch.equal(a["image"], b["image"])


def test_a_set_whose_rows_are_all_bad(tmp_path: Path, spec: ModelSpec, template: Any) -> None:
    path = make_set(tmp_path, count=2, scale=0.0)
    rows = list(rows_of(tmp_path / "train.label.tsv"))
    write_tsv(tmp_path / "train.label.tsv", [(rows[0][0], rows[1][1]), rows[1]])
    with pytest.raises(UserError, match="all 2 samples are unusable; .*label.tsv:0: box of no size"):
        MetroTsvSet(path, spec, template, skip_bad=True)[0]


def test_a_million_rows_cost_their_offsets_only(tmp_path: Path) -> None:
    count = 1_000_000
    line = b"k\tv\n"
    for kind in ("img", "label"):
        (tmp_path / f"many.{kind}.tsv").write_bytes(line * count)
        offsets = np.arange(count) * len(line)
        (tmp_path / f"many.{kind}.lineidx").write_text("\n".join(map(str, offsets.tolist())) + "\n")
    (tmp_path / "many.yaml").write_text("img: many.img.tsv\nlabel: many.label.tsv\n")
    read, write = os.pipe()
    child = os.fork()  # the peak of a process counts from its beginning
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = open_rows(tmp_path / "many.yaml")
        good = len(rows) == count and rows.sources[0].label.row(count - 1) == [b"k", b"v"]
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(write, f"{int(good)} {after - before}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    good, kilobytes = (int(v) for v in os.read(read, 100).split())
    os.close(read)
    os.close(write)
    assert good and kilobytes < 80_000  # two files of 8 MB of offsets, and the text of one while it is read
