"""Results that somebody damaged: whatever is missing or changed in them, they are read, or refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import main
from tests.benchmarks.conftest import made_report
from tests.benchmarks.html.pages import RESULTS

DAMAGE = (None, "text", -1, 0, 1e308, 10**400, float("nan"), [], {}, True, ["a"], {"a": 1})
KEPT = {kind: next(iter(sorted(RESULTS.glob(f"{kind}-*.json")))) for kind in ("stages", "load", "against", "kernels")}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every part of a JSON value, of lists that of the first parts."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, one in value.items():
            yield from places(one, (*at, key))
    elif isinstance(value, list):
        for number, one in enumerate(value[:2]):
            yield from places(one, (*at, number))


def damaged(report: dict[str, Any], place: tuple[Any, ...], damage: Any) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    part: Any = changed
    for key in place[:-1]:
        part = part[key]
    if damage == "gone":
        del part[place[-1]]
    else:
        part[place[-1]] = damage
    return changed


def check(code: int, printed: Any, codes: tuple[int, ...]) -> None:
    assert code in codes, printed
    assert (code == 2) == printed.err.startswith("error: ") and "Traceback" not in printed.err


RUN = made_report(samples=12)
# Files and terminals of one test are shared by its examples.
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(st.sampled_from(list(places(RUN))), st.sampled_from([*DAMAGE, "gone"]))
def test_gate_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: Any, damage: Any) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(RUN))
    bad.write_text(json.dumps(damaged(RUN, place, damage)))
    budgets = ["--max-p95-ms", "20", "--max-mpjpe-loss-mm", "1", "--max-jitter-gain", "0.1", "--confident"]
    check(main(["gate", str(bad), *budgets]), capsys.readouterr(), (0, 1, 2))
    check(main(["compare", str(good), str(bad)]), capsys.readouterr(), (0, 2))


@pytest.mark.parametrize("kind", KEPT)
@settings(parent=many, max_examples=40)
@given(st.data())
def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, data: st.DataObject) -> None:
    report = json.loads(KEPT[kind].read_bytes())
    place = data.draw(st.sampled_from(list(places(report))))
    changed = damaged(report, place, data.draw(st.sampled_from([*DAMAGE, "gone"])))
    (tmp_path / "bad.json").write_text(json.dumps(changed))
    check(main(["table", str(tmp_path / "bad.json")]), capsys.readouterr(), (0, 2))


@pytest.mark.parametrize(
    ("place", "damage", "words"),
    [
        (("device", "threads"), "gone", "incomplete metro-edge benchmark result"),
        (("latency", "runs"), float("nan"), "holds NaN"),
        (("latency", "runs"), 10**400, "a whole number of more than 18 digits"),
        (("precisions", "int8", "latency", "end_to_end", "p95_ms"), -5, "a time of int8 is not positive"),
        (("precisions", "int8", "accuracy", "shares", "pck_interval", "low"), None, "incomplete"),
        (("kind",), "metro-edge load", "metro-edge load"),
    ],
)
def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: Any, damage: Any, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(damaged(RUN, place, damage)))
    assert main(["compare", str(path), str(path)]) == 2
    assert words in capsys.readouterr().err


def test_other_kinds_are_no_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(KEPT["stages"]), "--max-p95-ms", "1"]) == 2
    assert "is a metro-edge stages: expected a result of `python -m benchmarks run`" in capsys.readouterr().err


def test_a_file_of_deep_brackets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    assert main(["gate", str(tmp_path / "deep.json"), "--max-p95-ms", "1"]) == 2
    assert "is not a benchmark result" in capsys.readouterr().err
