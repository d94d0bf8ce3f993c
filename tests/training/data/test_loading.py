"""Users' mistakes come out of a loader's workers as they were raised; everything else as from a DataLoader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from metro_edge.errors import MissingExtraError, UserError
from training.data.labelled import BadSampleError
from training.data.loading import PlainLoader

ERRORS = {
    3: BadSampleError("set.tsv:3: the picture does not decode"),
    6: UserError("two\nlines"),
    9: MissingExtraError("smplfitter", "smpl", "pose bodies"),
}


class Numbers(Dataset[Any]):
    """0 to 11; some raise."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        if index in self.bad:
            raise ERRORS[index]
        return {"number": torch.tensor(index)}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_dataloaders(workers: int) -> None:
    ours, theirs = (list(kind(Numbers(), batch_size=5, num_workers=workers)) for kind in (PlainLoader, DataLoader))
    assert [b["number"].tolist() for b in ours] == [b["number"].tolist() for b in theirs]
    assert len(PlainLoader(Numbers(), batch_size=5)) == 3


def test_items_may_be_collated_otherwise() -> None:
    loader = PlainLoader(Numbers(), lambda items: sum(int(item["number"]) for item in items), batch_size=6)
    assert list(loader) == [15, 51]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("index", ERRORS)
def test_a_mistake_comes_with_its_own_words(index: int, workers: int) -> None:
    seen, error = [], ERRORS[index]
    with pytest.raises(UserError) as caught:
        for batch in PlainLoader(Numbers(index), batch_size=2, num_workers=workers):
            seen += batch["number"].tolist()
    assert str(caught.value) == str(error)
    assert isinstance(caught.value, BadSampleError) == isinstance(error, BadSampleError)
    assert seen == list(range(index - index % 2))  # what came before is not lost


def test_other_errors_keep_their_traceback() -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> Any:
            raise ZeroDivisionError("a fault of ours")

    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        list(PlainLoader(Broken(), num_workers=1, multiprocessing_context="fork"))
