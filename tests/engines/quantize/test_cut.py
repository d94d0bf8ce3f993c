"""The minimum cut against every division there is."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.quantize.cut import minimum_cut

NAMES = "abcdef"


def cost(first: set[str], edges: list[tuple[str, list[str], int]]) -> int:
    """Return what a division costs: once per maker with a reader on the other side."""
    return sum(price for maker, readers, price in edges if any((r in first) != (maker in first) for r in readers))


@st.composite
def problems(draw):
    nodes = NAMES[: draw(st.integers(1, 6))]
    sides = draw(st.lists(st.sampled_from([None, None, 1, 2]), min_size=len(nodes), max_size=len(nodes)))
    first, second = ({n for n, side in zip(nodes, sides, strict=True) if side == want} for want in (1, 2))
    readers = st.lists(st.sampled_from(nodes), min_size=1, max_size=3)
    edges = draw(st.lists(st.tuples(st.sampled_from(nodes), readers, st.integers(0, 9)), max_size=8))
    return nodes, first, second, edges


@settings(max_examples=300, deadline=None)
@given(problems())
def test_no_division_is_cheaper_and_none_as_cheap_has_a_larger_first_side(problem):
    nodes, first, second, edges = problem
    found = minimum_cut(nodes, first, second, edges)
    assert first <= found <= set(nodes) - second
    every = [{n for n, side in zip(nodes, sides, strict=True) if side} for sides in product([0, 1], repeat=len(nodes))]
    every = [one for one in every if first <= one and not one & second]
    least = min(cost(one, edges) for one in every)
    assert cost(found, edges) == least
    assert all(one <= found for one in every if cost(one, edges) == least)


def test_one_cast_serves_all_readers():
    """a must be in, both of its readers out: 5 once; to take b over would cost 2 + 2 for what it makes."""
    edges = [("a", ["b", "c"], 5), ("b", ["d"], 2), ("c", ["d"], 2)]
    assert minimum_cut("abcd", {"a"}, {"d"}, edges) == {"a", "b", "c"}
    edges[1:] = [("b", ["d"], 3), ("c", ["d"], 3)]
    assert minimum_cut("abcd", {"a"}, {"d"}, edges) == {"a"}


def test_nobody_wants_anything():
    assert minimum_cut("ab", (), (), [("a", ["b"], 1)]) == {"a", "b"}
    assert minimum_cut("ab", (), "ab", [("a", ["b"], 1)]) == set()
    assert minimum_cut("", (), (), []) == set()


def test_what_is_outside_of_the_graph_counts_too():
    """As mixed() does it: "" makes the inputs and reads the outputs, and is no node."""
    edges = [("", ["a"], 4), ("a", ["b"], 9), ("b", [""], 4)]
    assert minimum_cut("ab", "a", [""], edges) == {"a", "b"}
    assert minimum_cut("ab", "", [""], edges) == set()
