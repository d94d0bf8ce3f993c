"""Files of weights in the wrappings that users have them in."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metro_edge.errors import UserError
from training.model.weight_files import KeyReport, find_weights, listed, read_weights, refuse_shapes, state_dict_of

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.module.{name}": value for name, value in state.items()}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappings(tmp_path, wrap, zipped):
    path = tmp_path / "weights.bin"
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=zipped)  # METRO's time wrote the older format
    found = state_dict_of(read_weights(path), path)
    assert list(found) == list(STATE)
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_checkpoint_folders(tmp_path):
    folder = tmp_path / "checkpoint-200-62400"
    folder.mkdir()
    with pytest.raises(UserError, match=r"has no state_dict\.bin$"):
        find_weights(folder)
    (folder / "model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only model\.bin, a pickled network"):
        find_weights(folder)
    (folder / "state_dict.bin").write_bytes(b"")
    assert find_weights(folder) == find_weights(folder / "state_dict.bin") == folder / "state_dict.bin"
    with pytest.raises(UserError, match="holds 1 checkpoints: name one of checkpoint-200-62400"):
        find_weights(tmp_path)
    with pytest.raises(UserError, match="no checkpoint at"):
        find_weights(tmp_path / "elsewhere")


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_code_in_a_file_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bomb.bin").write_bytes(pickle.dumps(_Bomb(), protocol=2))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_weights(Path("bomb.bin"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_said_to_be_so_and_nothing_advises_to_run_them(tmp_path, zipped):
    path = tmp_path / "weights.bin"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"name: tiny\n", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.bin is not a readable checkpoint: ") as caught:
            read_weights(path)
        assert "weights_only" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 120


def test_a_pickled_network_is_refused_with_a_way_out(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.bin")
    with pytest.raises(UserError, match=r"it holds torch\.nn\.modules\.linear\.Linear.*state_dict\.bin beside it"):
        read_weights(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list, not a state dictionary"),
        ({}, "it is empty"),
        ({"a": torch.ones(1), "epoch": 3}, "no tensors are its entries epoch"),
    ],
)
def test_what_is_no_state_dictionary(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        state_dict_of(content, tmp_path / "x.bin")


def test_reports_name_entries():
    names = tuple(f"n{i}" for i in range(10))
    assert listed(names) == "n0, n1, n2, n3, n4, n5, n6, n7, and 2 more"
    assert str(KeyReport(names, ("u",), (), ("m",))) == "10 entries used, 1 known to be unused, 1 missing (m)"
    refuse_shapes({}, "net")
    with pytest.raises(
        UserError, match=r"2 entries of the wrong shape: a has shape \(1,\) where net has \(2,\), b has"
    ):
        refuse_shapes({"a": ((1,), (2,)), "b": ((3,), (4,))}, "net")
