"""Places for output are tried without leaving anything there."""

from __future__ import annotations

from pathlib import Path

import pytest

from metro_edge.errors import UserError
from training.files import check_writable


def test_what_is_there_stays(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.json").write_text("old")
    check_writable(tmp_path / "old.json")
    assert [p.name for p in tmp_path.iterdir()] == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path / "none" / "a.json", "No such file"),
        (tmp_path / "file" / "a.json", "Not a directory"),
        (tmp_path, "a folder is in the way"),
    ):
        with pytest.raises(UserError, match=f"cannot write {path}: {words}"):
            check_writable(path)
