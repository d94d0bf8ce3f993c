"""Where a search's samples come from, and that no two parts have one in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.quantize.data import PEOPLE, PICTURES, SHARDS, Wanted, check_data, kind_of_data, samples_of
from metro_edge.errors import UserError
from training.data.shards import people_shards


def keys(images) -> set[bytes]:
    return {image.tobytes() for image in images.all()[0]}


def check_apart(samples) -> None:
    parts = [keys(part) for part in (samples.calibration, samples.search, samples.proof)]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_generated_people_of_two_seeds(converted):
    samples = samples_of(converted.bundle, converted.data, Wanted(16, 8, 8, seed=4))
    assert (samples.calibration.count, samples.search.count, samples.proof.count) == (16, 8, 8)
    check_apart(samples)
    images, truth = samples.proof.all()
    assert images.shape == (8, 3, 64, 64) and truth.shape == (8, 13718, 3)
    assert samples.search.data.endswith("seed 4, held out from training, 0 to 7")
    assert samples.proof.about["seed"] == 4 and samples.calibration.about["seed"] == 1


def test_a_folder_of_shards(converted):
    folder = people_shards(converted.data, converted.spec, seed=5, count=34, workers=1)
    samples = samples_of(converted.bundle, folder, Wanted(16, 8, 8))
    check_apart(samples)
    assert "seed 5" in samples.search.data and samples.search.all()[1] is not None
    with pytest.raises(UserError, match="has 34 samples, 40 are needed: 16 to search, 8 to prove, 16 to calibrate"):
        samples_of(converted.bundle, folder, Wanted(16, 16, 8))


@pytest.mark.parametrize("check", [check_data, samples_of])
def test_what_the_network_was_trained_on_is_no_proof(converted, check):
    """Shards are refused as --seed is, whatever the seed of the training was."""
    wanted, folder = Wanted(16, 8, 8), people_shards(converted.data, converted.spec, seed=1, count=16, workers=1)
    with pytest.raises(UserError, match="seed1-16-88px has people of seed 1, the training's: held-out samples need"):
        check(converted.bundle, folder, wanted)
    with pytest.raises(UserError, match="seed 1 is the training's: held-out samples need another one"):
        check(converted.bundle, None, replace(wanted, seed=1))
    other = replace(converted.bundle, passport={**converted.bundle.passport, "training": {"train_seed": 5}})
    with pytest.raises(UserError, match="has 16 samples, 32 are needed"):
        check(other, folder, wanted)
    with pytest.raises(UserError, match="seed 5 is the training's"):
        check(other, converted.data, replace(wanted, seed=5))


def test_what_a_folder_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kind_of_data(None) == kind_of_data(Path("runs/people")) == PEOPLE  # that is the default, made when needed
    assert kind_of_data(tmp_path) == PEOPLE
    (tmp_path / "seed2-64-224px").mkdir()
    (tmp_path / "notes.txt").write_text("people were kept here before")
    assert kind_of_data(tmp_path) == PEOPLE
    (tmp_path / "a.JPG").write_bytes(b"")
    assert kind_of_data(tmp_path) == PICTURES
    (tmp_path / "manifest.json").write_text("{}")
    assert kind_of_data(tmp_path) == SHARDS


def test_a_mistyped_folder_is_not_made(converted, tmp_path):
    with pytest.raises(UserError, match="peple does not exist; a folder of shards .* make it first"):
        samples_of(converted.bundle, tmp_path / "peple", Wanted(16, 8, 8))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(UserError, match="letters holds neither shards .*, pictures or people .* give an empty folder"):
        samples_of(converted.bundle, tmp_path / "letters", Wanted(16, 8, 8))
    assert [path.name for path in tmp_path.rglob("*")] == ["letters", "a.txt"]


def test_pictures_have_no_truth(converted, tmp_path):
    random = np.random.default_rng(0)
    for i in range(36):
        cv2.imwrite(str(tmp_path / f"{i:02}.png"), random.integers(0, 255, (70, 60, 3), np.uint8))
    samples = samples_of(converted.bundle, tmp_path, Wanted(16, 100, 50))
    check_apart(samples)
    assert samples.search.all()[1] is None
    assert (samples.calibration.count, samples.search.count, samples.proof.count) == (16, 10, 8)
    (tmp_path / "00.png").unlink()
    for i in range(1, 6):
        (tmp_path / f"{i:02}.png").unlink()
    with pytest.raises(UserError, match="has 30 pictures, at least 32 are needed"):
        samples_of(converted.bundle, tmp_path, Wanted(16, 100, 50))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((15, 8, 8), "15 calibration samples are too few: at least 16 are needed"),
        ((16, 7, 8), "7 search samples are too few: at least 8"),
        ((16, 8, 0), "0 proof samples are too few: at least 8"),
    ],
)
def test_too_few_samples(wanted, message):
    with pytest.raises(UserError, match=message):
        Wanted(*wanted)


def test_a_file_is_no_place_for_samples(converted, tmp_path):
    (tmp_path / "data.npz").write_bytes(b"")
    with pytest.raises(UserError, match="data.npz is no folder"):
        samples_of(converted.bundle, tmp_path / "data.npz", Wanted(16, 8, 8))


def test_parts_of_images(converted):
    images = samples_of(converted.bundle, converted.data, Wanted(16, 8, 8, seed=4)).search
    np.testing.assert_array_equal(images.part(2, 5).all()[0], images.all()[0][2:5])
    with pytest.raises(UserError, match=r"there are 8 images, cannot take 5..8"):
        images.part(5, 9)
