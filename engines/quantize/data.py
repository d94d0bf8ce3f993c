"""The samples of a search: some to calibrate on, some to search on, some that the search never sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.samples import SUFFIXES, Images, Sources
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from training.config import DataConfig
from training.data.shards import ShardedPeople

LEAST_CALIBRATION, LEAST_SEARCH, LEAST_PROOF = 16, 8, 8


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
            below which generated people are cached, made if need be; None takes the training's.
        wanted: how many.

    Raises UserError when there are fewer than wanted of shards, or fewer than the least of pictures, or the folder
    holds neither.
    """
    if where is not None and (where / "manifest.json").is_file():
        return _of_shards(bundle, where, wanted)
    if where is not None and where.exists() and not where.is_dir():
        raise UserError(f"--data: {where} is no folder; shards, pictures or a place for generated people were expected")
    if where is not None and where.is_dir() and _pictures(where):
        return _of_pictures(bundle, where, wanted)
    trained = bundle.passport.get("training")
    known = trained if isinstance(trained, dict) else {}
    config = DataConfig()
    config = replace(
        config,
        train_seed=_seed(known, "train_seed", config.train_seed),
        validation_seed=_seed(known, "seed", config.validation_seed),
    )
    count = wanted.search + wanted.proof
    sources = Sources(bundle.spec, config, count, wanted.calibration, wanted.seed, where)
    held_out = sources.for_verification()
    return Samples(sources.for_calibration(), held_out.part(0, wanted.search), held_out.part(wanted.search, count))


def _seed(known: dict[str, Any], name: str, default: int) -> int:
    value = known.get(name, default)
    return value if isinstance(value, int) else default


def _of_shards(bundle: Bundle, folder: Path, wanted: Wanted) -> Samples:
    people = ShardedPeople(folder, bundle.spec)
    needed = wanted.search + wanted.proof + wanted.calibration
    if len(people) < needed:
        raise UserError(
            f"--data: {folder} has {len(people)} samples, {needed} are needed: {wanted.search} to search, "
            f"{wanted.proof} to prove, {wanted.calibration} to calibrate"
        )

    def item(index: int) -> Any:
        found = people[index]
        return found["image"].numpy(), found["vertices"].numpy()

    images = Images(f"shards {folder.name} (seed {people.manifest.seed})", needed, item, {"seed": people.manifest.seed})
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
    return [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
