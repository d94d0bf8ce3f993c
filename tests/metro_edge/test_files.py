from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.files import (
    json_bytes,
    kind_of_path,
    output_folder,
    replacing,
    sha256_of,
    staging_folder,
    write_bytes,
    write_json,
)


def test_files_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failure_leaves_the_older_file(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"one")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_bytes(b"tw")
        raise ZeroDivisionError
    with pytest.raises(UserError, match=r"cannot write .*a.bin: No space left"), replacing(path):
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"one"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "clip.mp4") as partial:
        assert partial.suffix == ".mp4" and partial.parent == tmp_path


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"value": np.nan})


def test_output_folder_is_made_and_checked(tmp_path):
    assert output_folder(tmp_path / "a" / "b").is_dir()
    assert output_folder(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write into folder"):
            output_folder(bad)


def test_an_output_folder_that_cannot_be_written_is_not_left_behind(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("metro_edge.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        output_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_staging_folder_vanishes(tmp_path):
    with staging_folder(tmp_path) as folder:
        (folder / "a").write_text("x")
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="cannot write into folder"), staging_folder(tmp_path / "missing"):
        pass


def test_sha256():
    assert sha256_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_kind_of_a_path(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    kinds = {name: kind_of_path(tmp_path / name) for name in ("", "file", "link", "pipe", "none", "file/below")}
    assert kinds == {"": "folder", "file": "file", "link": "folder", "pipe": "other", "none": None, "file/below": None}
    with pytest.raises(UserError, match="cannot look at .*File name too long"):
        kind_of_path(tmp_path / ("a" * 300))
    for name in ("a\0b", "\ud800"):
        with pytest.raises(UserError, match="is not a file name"):
            kind_of_path(name)

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("metro_edge.files.os.stat", refuse)  # root, as who the tests may run, may look anywhere
    with pytest.raises(UserError, match="Permission denied; check its name and its folders' rights"):
        kind_of_path("private/a.jpg")


def test_names_of_folders_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="has no name; write . for the current folder"):
        output_folder("")
    with pytest.raises(UserError, match="File name too long"):
        output_folder(tmp_path / "new" / ("a" * 300) / "below")
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf8_are_escaped_in_json():
    name = os.fsdecode(b"b\xe9.jpg")
    assert json.loads(json_bytes({"picture": name}).decode()) == {"picture": name}
