"""Data sets by path: METRO's TSV sets, 3DPW and Human3.6M as distributed; several as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.labelled import Item, LabelledSet
from training.data.metro_sets import MetroTsvSet
from training.data.own_sets import open_set, own_kind

BODIES = ("smpl", "mano")  # of which there are files that make meshes of poses
OWN_SETS = {"3dpw": "3dpw-neutral", "human36m": "human36m-p2"}
HELD_OUT = {"3dpw": "validation", "human36m": "p2"}


class MixedSet(Dataset[Item]):
    """Several data sets one after another, as one.

    Args:
        sets: at least one, of one spec.
    """

    def __init__(self, sets: Sequence[LabelledSet]) -> None:
        if not sets:
            raise UserError("there is no data set to read")
        self.sets = list(sets)
        self._ends = list(accumulate(len(part) for part in sets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        which = bisect_right(self._ends, index)
        return self.sets[which][index - (self._ends[which - 1] if which else 0)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's augmentation; call before the workers of a DataLoader start."""
        for part in self.sets:
            part.set_epoch(epoch)

    def skip_report(self) -> str:
        """Return a line per set that stepped over samples: how many, and what was wrong with the first of them."""
        return "\n".join(
            f"{part.skipped} of {len(part)} samples could not be used, such as: {'; '.join(part.skipped_reasons())}"
            for part in self.sets
            if part.skipped
        )


def open_sets(
    paths: Sequence[str], spec: ModelSpec, template: BodyTemplate, smpl: str = "", **options: Any
) -> MixedSet:
    """Open data sets.

    Args:
        paths: YAML files of TSV sets, folders of 3DPW, folders or .npz files of Human3.6M.
        spec, template: of the network and its body.
        smpl: SMPL or MANO file, or the folder where it is; may be empty where no sample has a pose.
        options: of LabelledSet (train, seed, augmentation, skip_bad).

    Raises:
        UserError: a path that holds no data set, or what is wrong with it.
        MissingExtraError: smplfitter is not installed and a mesh is to be made of poses.
    """
    sets: list[LabelledSet] = []
    for number, path in enumerate(paths):
        # Samples of one number in two sets are not to be augmented alike.
        part = {**options, "seed": int(options.get("seed", 0)) + 7_919 * number}
        kind = own_kind(path)
        if Path(path).suffix in (".yaml", ".yml"):
            sets.append(MetroTsvSet(path, spec, template, _body(spec, smpl), **part))
        elif kind:
            if Path(path).suffix != ".npz":  # which holds one split
                part["split"] = "train" if part.get("train") else HELD_OUT[kind]
            sets.append(open_set(OWN_SETS[kind], path, spec, template, smpl=smpl, **part))
        else:
            raise UserError(f"{path} is no data set: neither METRO's YAML file nor a folder of 3DPW or Human3.6M")
    return MixedSet(sets)


def _body(spec: ModelSpec, path: str) -> Any:
    if not path:
        return None
    if spec.body not in BODIES:
        raise UserError(f"the network's body is {spec.body!r}; {path} makes meshes of {' and '.join(BODIES)} only")
    from training.bodies.smpl import skinned_body

    return skinned_body(path, kind=spec.body)
