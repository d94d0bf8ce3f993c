"""A loader whose workers hand over users' mistakes as they are; PyTorch's wraps them in a traceback of the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from metro_edge.errors import UserError
from training.data.labelled import BadSampleError


@dataclass(frozen=True)
class _Mistake:
    """A UserError on its way from a worker."""

    bad_sample: bool
    message: str


class _Handed(Dataset[Any]):
    """The items of a data set; in a worker, a UserError takes its item's place."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is None:
            return self.data[index]
        try:
            return self.data[index]
        except UserError as error:
            return _Mistake(isinstance(error, BadSampleError), str(error))


class _Collated:
    """Collates a batch; the first mistake in it takes its place."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        mistakes = (item for item in items if isinstance(item, _Mistake))
        return next(mistakes, None) or self.collate(items)


class PlainLoader(DataLoader[Any]):
    """A DataLoader that raises a worker's UserError with its own message and type, as without workers.

    Args:
        dataset: a map-style data set.
        collate: makes a batch of items.
        options: of DataLoader.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any] = default_collate, **options: Any) -> None:
        super().__init__(_Handed(dataset), collate_fn=_Collated(collate), **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, _Mistake):
                raise (BadSampleError if batch.bad_sample else UserError)(batch.message)
            yield batch
