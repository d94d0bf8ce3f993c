"""Data sets by path: which split is opened for training and for validation, and several of different kinds as one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from tests.own_sets_files import CAMERAS, FRAMES_3DPW, FRAMES_H36M, write_3dpw, write_human36m
from tests.smpl_files import metro_folder
from training.bodies import body_template
from training.bodies.smpl import skinned_body
from training.data.sets import open_sets

SPEC = ModelSpec("test", 64, "h36m14", "smpl", 6890, crop_rule="metro_eval")
P2_FRAMES = 3 * len(range(0, FRAMES_H36M, 5))  # three actions of the test's subjects, one camera
TRAIN_SUBJECTS = (1, 5, 6, 7, 8)


@pytest.fixture(scope="module")
def template() -> Any:
    return body_template("smpl", metro_folder())


@pytest.fixture(scope="module")
def human36m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's subjects, and one of them once more under the numbers of those to train on, in all four views."""
    folder = tmp_path_factory.mktemp("h36m")
    write_human36m(folder, ("D3_Positions_mono", "D2_Positions"), views=CAMERAS)
    for subject in TRAIN_SUBJECTS:
        shutil.copytree(folder / "S11", folder / f"S{subject}")
    return folder


@pytest.fixture(scope="module")
def three_dpw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("3dpw")
    for split in ("train", "validation"):
        write_3dpw(folder, skinned_body(metro_folder()), split)
    return folder


def test_human36m_trains_on_its_training_subjects_in_all_views(human36m: Path, template: Any) -> None:
    train = open_sets([str(human36m)], SPEC, template, train=True, augmentation="metro")
    held_out = open_sets([str(human36m)], SPEC, template)
    assert len(train) == len(TRAIN_SUBJECTS) * len(CAMERAS) * len(range(0, FRAMES_H36M, 5))
    assert {train[i]["key"][:2] for i in range(0, len(train), 3)} == {f"S{k}" for k in TRAIN_SUBJECTS}
    assert len(held_out) == P2_FRAMES and {held_out[i]["key"].split("/")[0] for i in range(9)} == {"S9", "S11"}


def test_3dpw_trains_on_its_training_split(three_dpw: Path, template: Any) -> None:
    smpl = str(metro_folder())
    train, held_out = (open_sets([str(three_dpw)], SPEC, template, smpl, train=flag) for flag in (True, False))
    assert len(train) == len(held_out) == 3 * FRAMES_3DPW
    assert train.sets[0].train and not held_out.sets[0].train
    shutil.rmtree(three_dpw / "sequenceFiles" / "validation")
    with pytest.raises(UserError, match=r"no \.pkl files in .*validation"):
        open_sets([str(three_dpw)], SPEC, template, smpl)


def test_sets_of_different_kinds_make_batches_together(
    three_dpw: Path, human36m: Path, template: Any, tmp_path: Path
) -> None:
    """Human3.6M by its folder and by the .npz has joints, 3DPW meshes too: supervision is mixed by sample."""
    labels = np.concatenate((np.random.default_rng(0).normal(0, 0.3, (2, 24, 3)), np.ones((2, 24, 1))), -1)
    names = np.array(["a.jpg", "b.jpg"])
    for name in names:
        cv2.imwrite(str(tmp_path / name), np.full((50, 50, 3), 90, np.uint8))
    np.savez(tmp_path / "h36m.npz", imgname=names, center=np.full((2, 2), 25.0), scale=np.full(2, 0.2), S=labels)
    paths = [str(human36m), str(tmp_path / "h36m.npz"), str(three_dpw)]
    people = open_sets(paths, SPEC, template, str(metro_folder()), train=True, augmentation="metro")
    sizes = [len(part) for part in people.sets]
    assert sizes[1:] == [2, 3 * FRAMES_3DPW] and len(people) == sum(sizes)
    chosen = [0, sizes[0], sizes[0] + 1, sizes[0] + 2, len(people) - 1]
    (batch,) = DataLoader([people[i] for i in chosen], batch_size=5)  # type: ignore[arg-type]
    assert batch["has_vertices"].tolist() == [0, 0, 0, 1, 1] and batch["has_joints"].tolist() == [1] * 5
    assert batch["has_joints_2d"].tolist() == [1, 0, 0, 1, 1]  # the .npz for evaluation has no `part`
    assert [key.split(":")[0] for key in batch["key"][1:4]] == ["h36m.npz", "h36m.npz", "made_walk_01.pkl"]


def test_paths_that_hold_no_data_set(template: Any, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is no data set: neither METRO's YAML file nor a folder of 3DPW or Human"):
            open_sets([str(path)], SPEC, template)
