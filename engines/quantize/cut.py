"""The cheapest division of a graph's nodes into two sides: a minimum cut, by shortest augmenting paths.

Edmonds and Karp, 1972. A network has some hundreds of nodes, so plain dictionaries are fast enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence

_ENDLESS = 1 << 60
_SOURCE, _SINK = ("source",), ("sink",)
_Point = tuple
_Capacities = dict[_Point, dict[_Point, int]]


def minimum_cut(
    nodes: Iterable[str],
    first: Collection[str],
    second: Collection[str],
    edges: Sequence[tuple[str, Sequence[str], int]],
) -> set[str]:
    """Return the largest first side among the cheapest divisions.

    Args:
        nodes: names to divide.
        first: names that are on the first side.
        second: names that are on the second side.
        edges: (maker, readers, cost): paid once if any reader is on another side than the maker, as one cast serves
            all of its readers.
    """
    capacities: _Capacities = {_SOURCE: {}, _SINK: {}}
    for name in first:
        _connect(capacities, _SOURCE, (name,), _ENDLESS)
    for name in second:
        _connect(capacities, (name,), _SINK, _ENDLESS)
    for index, (maker, readers, cost) in enumerate(edges):
        down, up = ("down", index), ("up", index)
        _connect(capacities, (maker,), down, cost)
        _connect(capacities, up, (maker,), cost)
        for reader in readers:
            _connect(capacities, down, (reader,), _ENDLESS)
            _connect(capacities, (reader,), up, _ENDLESS)
    while path := _shortest_path(capacities):
        flow = min(capacities[a][b] for a, b in path)
        for a, b in path:
            capacities[a][b] -= flow
            capacities[b][a] += flow
    late = _reaching(capacities)
    return {name for name in nodes if (name,) not in late}


def _connect(capacities: _Capacities, start: _Point, end: _Point, capacity: int) -> None:
    capacities.setdefault(start, {})
    capacities.setdefault(end, {}).setdefault(start, 0)
    capacities[start][end] = min(_ENDLESS, capacities[start].get(end, 0) + capacity)


def _shortest_path(capacities: _Capacities) -> list[tuple[_Point, _Point]]:
    """Return the links of a shortest path with capacity left from source to sink, [] when there is none."""
    before: dict[_Point, _Point] = {_SOURCE: _SOURCE}
    queue = deque([_SOURCE])
    while queue:
        point = queue.popleft()
        for after, left in capacities[point].items():
            if left > 0 and after not in before:
                before[after] = point
                if after == _SINK:
                    path = [(point, after)]
                    while path[-1][0] != _SOURCE:
                        path.append((before[path[-1][0]], path[-1][0]))
                    return path
                queue.append(after)
    return []


def _reaching(capacities: _Capacities) -> set[_Point]:
    """Return the points from which the sink can be reached with capacity left."""
    found = {_SINK}
    queue = deque([_SINK])
    while queue:
        point = queue.popleft()
        for before in capacities[point]:  # every link is stored with its reverse
            if before not in found and capacities[before][point] > 0:
                found.add(before)
                queue.append(before)
    return found
