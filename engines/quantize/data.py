"""The samples of a search: some to calibrate on, some to search on, some that the search never sees."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.samples import LEAST_CALIBRATION, SUFFIXES, Images, Sources
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.files import kind_of_path, reason
from training.config import DataConfig
from training.data.shards import ShardedPeople

LEAST_SEARCH, LEAST_PROOF = 8, 8
SHARDS, PICTURES, PEOPLE = "shards", "pictures", "people"  # what --data names
_KEPT = re.compile(r"seed\d+-\d+-\d+px")  # a folder of training.data.shards.people_shards


@dataclass(frozen=True)
class Samples:
    """Three runs of images that have none in common.

    Attributes:
        calibration: they set ranges.
        search: losses are measured on them.
        proof: the result's loss is measured on them, and nothing is chosen by them but when to stop.
    """

    calibration: Images
    search: Images
    proof: Images


@dataclass(frozen=True)
class Wanted:
    """How many samples of each kind, and of which seed generated people are (None: the bundle's held-out seed)."""

    calibration: int
    search: int
    proof: int
    seed: int | None = None

    def __post_init__(self) -> None:
        for kind, count, least in (
            ("calibration", self.calibration, LEAST_CALIBRATION),
            ("search", self.search, LEAST_SEARCH),
            ("proof", self.proof, LEAST_PROOF),
        ):
            if count < least:
                raise UserError(f"{count} {kind} samples are too few: at least {least} are needed")


def samples_of(bundle: Bundle, where: Path | None, wanted: Wanted) -> Samples:
    """Return the samples for a bundle.

    Args:
        bundle: its network takes them.
        where: a folder of shards (with a manifest.json), a folder of pictures of one person each, or the folder
            below which generated people are kept, see kind_of_data; None takes the training's.
        wanted: how many.

    Raises UserError when there are fewer than wanted of shards, or fewer than the least of pictures, when people that
    the network was trained on were to test it, or the folder holds something else.
    """
    kind = kind_of_data(where)
    if where is not None and kind == SHARDS:
        return _of_shards(bundle, where, wanted)
    if where is not None and kind == PICTURES:
        return _of_pictures(bundle, where, wanted)
    count = wanted.search + wanted.proof
    sources = _people(bundle, where, wanted)
    held_out = sources.for_verification()
    return Samples(sources.for_calibration(), held_out.part(0, wanted.search), held_out.part(wanted.search, count))


def check_data(bundle: Bundle, where: Path | None, wanted: Wanted) -> None:
    """Raise UserError for what samples_of refuses, before anything is rendered; its arguments."""
    if kind_of_data(where) == PEOPLE:
        _people(bundle, where, wanted).held_out_seed()
    else:
        samples_of(bundle, where, wanted)  # these are read when they are asked for


def kind_of_data(where: Path | None) -> str:
    """Return what a folder holds: SHARDS, PICTURES, or generated PEOPLE, of whom an empty folder may get some.

    Raises UserError for anything else. A folder that is not there is a mistyped name rather than a place for people,
    unless it is the training's, where they are kept by default.
    """
    if where is None:
        return PEOPLE
    expected = "shards (with a manifest.json), pictures or people generated before"
    kind, training = kind_of_path(where), where.absolute() == Path(DataConfig().folder).absolute()
    if kind is None:
        if training:
            return PEOPLE
        raise UserError(
            f"--data: {where} does not exist; a folder of {expected} was expected. To have generated people kept "
            "there, make it first"
        )
    if kind != "folder":
        raise UserError(f"--data: {where} is no folder; one of {expected} was expected")
    if kind_of_path(where / "manifest.json") == "file":
        return SHARDS
    inside = _inside(where)
    if any(map(_is_picture, inside)):
        return PICTURES
    if training or not inside or any(_KEPT.fullmatch(path.name) for path in inside):
        return PEOPLE
    raise UserError(
        f"--data: {where} holds neither {expected}. To have generated people kept somewhere, give an empty folder"
    )


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"--data: cannot look into folder {folder}: {reason(error)}") from None


def _people(bundle: Bundle, where: Path | None, wanted: Wanted) -> Sources:
    config = DataConfig()
    config = replace(
        config,
        train_seed=_seed(bundle, "train_seed", config.train_seed),
        validation_seed=_seed(bundle, "seed", config.validation_seed),
    )
    return Sources(bundle.spec, config, wanted.search + wanted.proof, wanted.calibration, wanted.seed, where)


def _seed(bundle: Bundle, name: str, default: int) -> int:
    """Return a seed that the passport says of the training."""
    trained = bundle.passport.get("training")
    value = trained.get(name, default) if isinstance(trained, dict) else default
    return value if isinstance(value, int) else default


def _of_shards(bundle: Bundle, folder: Path, wanted: Wanted) -> Samples:
    people = ShardedPeople(folder, bundle.spec)
    if (seed := people.manifest.seed) == _seed(bundle, "train_seed", DataConfig().train_seed):
        raise UserError(
            f"--data: {folder} has people of seed {seed}, the training's: held-out samples need another one"
        )
    needed = wanted.search + wanted.proof + wanted.calibration
    if len(people) < needed:
        raise UserError(
            f"--data: {folder} has {len(people)} samples, {needed} are needed: {wanted.search} to search, "
            f"{wanted.proof} to prove, {wanted.calibration} to calibrate"
        )

    def item(index: int) -> Any:
        found = people[index]
        return found["image"].numpy(), found["vertices"].numpy()

    images = Images(f"shards {folder.name} (seed {seed})", needed, item, {"seed": seed})
    tested = wanted.search + wanted.proof
    return Samples(images.part(tested, needed), images.part(0, wanted.search), images.part(wanted.search, tested))


def _of_pictures(bundle: Bundle, folder: Path, wanted: Wanted) -> Samples:
    there = len(_pictures(folder))
    least = 2 * max(LEAST_SEARCH + LEAST_PROOF, LEAST_CALIBRATION)
    if there < least:
        raise UserError(f"--data: {folder} has {there} pictures, at least {least} are needed")
    tested = min(wanted.search + wanted.proof, there // 2)
    sources = Sources(bundle.spec, DataConfig(), tested, wanted.calibration, pictures=folder)
    images = sources.for_verification()
    search = max(LEAST_SEARCH, min(tested - LEAST_PROOF, tested * wanted.search // (wanted.search + wanted.proof)))
    return Samples(sources.for_calibration(), images.part(0, search), images.part(search, tested))


def _pictures(folder: Path) -> list[Path]:
    return list(filter(_is_picture, _inside(folder)))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES
