"""The order of samples: whole steps, shared between processes, resumable anywhere."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metro_edge.errors import UserError
from training.data.order import EpochBatches, EpochLoader, Share

SIZES = {
    "count": st.integers(1, 200),
    "size": st.integers(1, 9),
    "accumulate": st.integers(1, 4),
    "world": st.integers(1, 4),
    "epoch": st.integers(0, 5),
}


@settings(deadline=None)
@given(**SIZES)
def test_processes_share_what_one_would_take(count: int, size: int, accumulate: int, world: int, epoch: int) -> None:
    if count < size * accumulate * world:
        with pytest.raises(UserError, match=f"one step takes {size * accumulate * world} samples"):
            EpochBatches(count, size, 7, epoch, accumulate, 0, world)
        return
    ranks = [list(EpochBatches(count, size, 7, epoch, accumulate, r, world)) for r in range(world)]
    together = [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]
    assert together == list(EpochBatches(count, size * world, 7, epoch, accumulate))
    seen = list(chain.from_iterable(together))
    assert len(seen) == len(set(seen)) and set(seen) <= set(range(count))
    assert count - len(seen) < size * world * accumulate
    assert len(together) % accumulate == 0


def test_the_order_changes_with_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return list(EpochBatches(64, 8, seed, epoch))

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_goes_on_within_its_epoch(workers: int) -> None:
    def loader(epoch: int = 1, size: int = 4) -> EpochLoader:
        return EpochLoader(range(30), EpochBatches(30, size, 0, epoch), lambda: 3, num_workers=workers)  # type: ignore[arg-type]

    whole = [batch.tolist() for batch in loader()]
    state = loader().state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert [batch.tolist() for batch in resumed] == whole[3:]
    assert len(resumed) == len(whole) == 7
    other = loader(epoch=2)
    other.load_state_dict(state)  # a checkpoint from the end of another epoch
    assert len(list(other)) == 7
    with pytest.raises(UserError, match=r"3 batches of 4 samples .* batches of 5"):
        loader(size=5).load_state_dict(state)


@settings(deadline=None)
@given(count=st.integers(0, 40), world=st.integers(1, 6))
def test_shares_are_each_sample_once(count: int, world: int) -> None:
    shares = [Share(count, rank, world) for rank in range(world)]
    assert sorted(chain.from_iterable(shares)) == list(range(count))
    assert [len(s) for s in shares] == [len(list(s)) for s in shares]
