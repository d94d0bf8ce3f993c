"""Where a search's samples come from, and that no two parts have one in common."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from engines.quantize.data import Wanted, samples_of
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
