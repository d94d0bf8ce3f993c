"""What a run measures on: generated people, rendered or from shards, or a data set with its protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import People
from metro_edge.bundle import Bundle
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.machine import usable_cores
from metro_edge.preprocess import Frame
from training.protocols import Protocol, protocol

if TYPE_CHECKING:
    from training.data.labelled import LabelledSet
    from training.data.shards import ShardedPeople

FRAME_WH = (640, 480)
GENERATED = "generated"
GENERATED_FOLDER = Path("runs") / "people"  # where training keeps its samples, too
# Training draws from seed 1 and chooses its checkpoint by seed 2 (training/configs).
TEST_SEED = 3
MAX_WORKERS = 4
NEEDED = ("mpjpe", "pa_mpjpe", "mpvpe")  # of a protocol; it may leave out the mesh's


@dataclass(frozen=True, eq=False)
class Material:
    """What is measured on.

    Attributes:
        people: samples with truth, for the accuracy; `data` and `seed` say which.
        frame, box: (480, 640, 3) uint8 BGR with one person and the box (4,) px, for the latency.
        rules: protocol that the data is compared by; None for the true meshes of generated people.
        frames: the same samples as whole frames, whose crops can be varied; None where there are none.
    """

    people: People
    data: str
    seed: int | None
    frame: Frame
    box: NDArray[Any]
    rules: Protocol | None = None
    frames: LabelledSet | None = None


class ScaledPeople:
    """Samples of a labelled set, each with `side_px`, how large its crop is in the full frame."""

    def __init__(self, people: LabelledSet, count: int) -> None:
        self.people, self.count, self.spec = people, count, people.spec

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        from training.data.labelled import check_picture, make_item

        picture = check_picture(self.people.picture(index), self.spec)
        return {**make_item(picture, self.spec), "side_px": picture.side_px / picture.margin}


class ScaledShards:
    """The same of shards; without `side_px` where they do not keep the boxes."""

    def __init__(self, people: ShardedPeople) -> None:
        self.people, self.spec = people, people.spec

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, box = self.people[index], self.people.box(index)
        return item if box is None else {**item, "side_px": float(box[2:].max()) * self.spec.box_scale}


def load_material(
    bundle: Bundle, data: str, samples: int, seed: int, rules: str = "", smpl: str = "", crops: bool = True
) -> Material:
    """Render, or read, what is measured on.

    Args:
        bundle: whose network it is for.
        data: `generated`, a folder of shards that training wrote or, with a protocol, a data set's files.
        samples: how many, the first ones.
        seed: of generated people and of the frame for the latency.
        rules: name of a protocol (training.protocols); empty for generated people.
        smpl: folder of the SMPL files, which the labels of some data sets need.
        crops: make frames, too.

    Raises:
        UserError: data that is missing, damaged, too small, seen by this bundle or not for it.
        MissingExtraError: without the extra `train`.
    """
    try:
        import training.data.labelled  # noqa: F401
        from training.data.generator import GeneratedPeople
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train", "make the people to measure on") from None
    with undisturbed():
        if data == GENERATED:
            check_held_out(bundle, seed)
        material = _data_set if rules else _people
        found = material(bundle, data, samples, seed, rules, smpl, crops)
        sample = GeneratedPeople(seed, 1, frame_wh=FRAME_WH).sample(0)
    return dataclasses.replace(found, frame=sample.frame, box=sample.box)


def _people(bundle: Bundle, data: str, samples: int, seed: int, rules: str, smpl: str, crops: bool) -> Material:
    from training.data.shards import ShardedPeople, people_shards
    from training.data.storage import SHARD_SIZE

    folder = Path(data)
    if data == GENERATED:
        # A worker writes whole shards and takes seconds to start.
        workers = min(usable_cores(), MAX_WORKERS, -(-samples // SHARD_SIZE))
        folder = people_shards(GENERATED_FOLDER, bundle.spec, seed=seed, count=samples, workers=workers)
    people = ShardedPeople(folder, bundle.spec, train=False).first(samples)
    seed = people.manifest.seed
    check_held_out(bundle, seed)
    words = f"rendered with seed {seed}, cached as for training"
    if data != GENERATED:
        words += f" in {folder.name}"
    frames = _frames_of(people, bundle) if crops else None
    return Material(ScaledShards(people), words, seed, *_NO_FRAME, frames=frames)


def _data_set(bundle: Bundle, data: str, samples: int, seed: int, rules: str, smpl: str, crops: bool) -> Material:
    from training.data.protocol_sets import open_protocol_set

    chosen = protocol(rules)
    chosen.check(bundle.spec)
    if tuple(chosen.metrics) != NEEDED:
        raise UserError(f"protocol {rules} has no MPJPE: `python -m training evaluate --protocol {rules}` measures it")
    generated = data == GENERATED
    people, used = open_protocol_set(
        chosen, "" if generated else data, bundle.spec, bundle.template, smpl=smpl, seed=seed, count=samples
    )
    if samples > len(people):
        raise UserError(f"cannot take the first {samples} of {len(people)} samples")
    words = f"{used.data}, seed {seed}" if generated else f"{used.data}, from {Path(data).name}"
    measured = ScaledPeople(people, samples)
    return Material(measured, words, seed if generated else None, *_NO_FRAME, used, people if crops else None)


_NO_FRAME = np.zeros((1, 1, 3), np.uint8), np.zeros(4)


def _frames_of(people: ShardedPeople, bundle: Bundle) -> LabelledSet | None:
    """Return the samples of shards as whole frames, rendered again when asked for; None of another generator's."""
    from training.data.generated import GeneratedPictures
    from training.data.generator import GENERATOR_VERSION

    manifest = people.manifest
    if manifest.generator_version != GENERATOR_VERSION:
        return None
    return GeneratedPictures(
        manifest.seed, len(people), bundle.spec, bundle.template, manifest.count, manifest.frame_wh, manifest.family
    )


# What of a passport's parts names the seed of generated people, * standing for any name.
_SEEDS = (
    ("training", "training", "train_seed"),
    ("choice of the checkpoint", "training", "seed"),
    ("calibration", "calibration", "seed"),
    ("search of precisions", "quantization", "*", "samples", "*", "seed"),
    ("calibration", "quantization", "*", "calibration", "seed"),
)


def _values(entry: Any, keys: Sequence[str]) -> list[Any]:
    """Return what lies under a path of keys."""
    if not keys:
        return [entry]
    if not isinstance(entry, dict):
        return []
    found = entry.values() if keys[0] == "*" else [entry[keys[0]]] if keys[0] in entry else []
    return [value for one in found for value in _values(one, keys[1:])]


def check_held_out(bundle: Bundle, seed: int) -> None:
    """Raise UserError when the passport says that training, calibration or a search saw people of `seed`."""
    for part, *keys in _SEEDS:
        if seed in _values(bundle.passport, keys):
            raise UserError(
                f"people of seed {seed} served the {part} of this bundle, so errors on them would flatter: "
                "take another seed"
            )


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Undo what rendering does to the process: it prints to stdout, where the table goes, and limits OpenCV."""
    threads = cv2.getNumThreads()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        cv2.setNumThreads(threads)
