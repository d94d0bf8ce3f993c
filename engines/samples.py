"""The images that conversion calibrates and verifies on: people with true meshes, or pictures without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.preprocess import network_input, read_picture, whole_frame_box
from metro_edge.spec import ModelSpec
from training.config import DataConfig
from training.data.shards import ShardedPeople, people_shards

FloatArray = NDArray[np.float32]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TRUTH_BODY = "anny"  # the body of the generated people
LEAST_CALIBRATION = 16  # samples: ranges of fewer hang on chance


def check_calibration_samples(count: int) -> None:
    """Raise UserError for fewer than LEAST_CALIBRATION samples."""
    if count < LEAST_CALIBRATION:
        raise UserError(f"{count} calibration samples are too few: at least {LEAST_CALIBRATION} are needed")


@dataclass(frozen=True)
class Images:
    """A run of images, made when they are asked for.

    Attributes:
        data: what they are, for the passport.
        count: how many.
        item: index -> one image (3, S, S) float32 as the network takes it, and the true mesh (V, 3) in metres or None.
        about: more for the passport, such as the seed.
    """

    data: str
    count: int
    item: Callable[[int], tuple[FloatArray, FloatArray | None]]
    about: dict[str, Any]

    def batches(self, size: int) -> Iterator[FloatArray]:
        """Yield images (n, 3, S, S), n at most `size`, in order."""
        for start in range(0, self.count, size):
            yield np.stack([self.item(i)[0] for i in range(start, min(start + size, self.count))])

    def part(self, start: int, stop: int) -> Images:
        """Return the images from `start` to before `stop`; raises UserError for a range that is not there."""
        if not 0 <= start < stop <= self.count:
            raise UserError(f"there are {self.count} images, cannot take {start}..{stop - 1}")
        data = f"{self.data}, {start} to {stop - 1}"
        return Images(data, stop - start, lambda index: self.item(start + index), dict(self.about))

    def all(self) -> tuple[FloatArray, FloatArray | None]:
        """Return the images (N, 3, S, S), and the true meshes (N, V, 3) where there are any."""
        items = [self.item(i) for i in range(self.count)]
        meshes = [mesh for _, mesh in items if mesh is not None]
        return np.stack([image for image, _ in items]), np.stack(meshes) if len(meshes) == len(items) else None


@dataclass(frozen=True)
class Sources:
    """Where images come from: people of seeds, or a folder of pictures. Verification never sees calibration's.

    Attributes:
        spec: of the network.
        data: of its training; a released network was trained elsewhere, on other data.
        verify_count, calibrate_count: images wanted.
        seed: of the people for verification, None for the training's validation seed.
        folder: cache of generated samples, None for the training's.
        pictures: folder of the user's pictures, one person each, which then serve for both.
    """

    spec: ModelSpec
    data: DataConfig
    verify_count: int
    calibrate_count: int
    seed: int | None = None
    folder: Path | None = None
    pictures: Path | None = None

    def for_verification(self) -> Images:
        """Return the images that every precision is compared on; raises UserError for unusable ones."""
        if self.pictures is not None:
            return self._pictures(self._files[: self._split])
        return self._people(self.held_out_seed(), self.verify_count, "held out from training")

    def held_out_seed(self) -> int:
        """Return the seed of the people for verification; raises UserError for the training's."""
        seed = self.data.validation_seed if self.seed is None else self.seed
        if seed == self.data.train_seed:
            raise UserError(f"seed {seed} is the training's: held-out samples need another one")
        return seed

    def for_calibration(self) -> Images:
        """Return the images that set the INT8 ranges; raises UserError for unusable ones."""
        if self.pictures is not None:
            files = self._files[self._split :][: self.calibrate_count]
            if not files:
                raise UserError(f"folder {self.pictures} has one picture: INT8 needs a second one to calibrate on")
            return self._pictures(files)
        return self._people(self.data.train_seed, self.calibrate_count, "of the training seed")

    def _people(self, seed: int, count: int, role: str) -> Images:
        if self.spec.body == TRUTH_BODY:
            folder = self.folder or Path(self.data.folder)
            people = ShardedPeople(people_shards(folder, self.spec, seed=seed, count=count, workers=1), self.spec)

            def stored(index: int) -> tuple[FloatArray, FloatArray | None]:
                item = people[index]
                return item["image"].numpy(), item["vertices"].numpy()

            return Images(f"generated people, seed {seed}, {role}", count, stored, {"seed": seed})
        # Their meshes are Anny's, which says nothing of another body; their pictures serve all the same.
        from training.data.generator import GeneratedPeople

        generated = GeneratedPeople(seed, count)

        def rendered(index: int) -> tuple[FloatArray, FloatArray | None]:
            sample = generated[index]
            return network_input(sample.frame, sample.box, self.spec)[0], None

        data = f"pictures of generated people (Anny bodies), seed {seed}, without true meshes of this body"
        return Images(data, count, rendered, {"seed": seed})

    def _pictures(self, files: tuple[Path, ...]) -> Images:
        def read(index: int) -> tuple[FloatArray, FloatArray | None]:
            frame = read_picture(files[index])
            return network_input(frame, whole_frame_box(frame), self.spec)[0], None

        return Images("the user's pictures, each as a whole, without true meshes", len(files), read, {})

    @property
    def _split(self) -> int:
        return max(1, min(self.verify_count, len(self._files) // 2))

    @cached_property
    def _files(self) -> tuple[Path, ...]:
        assert self.pictures is not None
        if not self.pictures.is_dir():
            raise UserError(f"--pictures: {self.pictures} is no folder")
        files = sorted(path for path in self.pictures.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"--pictures: no picture in {self.pictures}; known: {', '.join(SUFFIXES)}")
        # Neighbours by name are often frames of one clip: every other file keeps both parts alike.
        return tuple(files[::2] + files[1::2])
