from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.gate import Budgets, gate, gate_markdown
from metro_edge.errors import UserError
from tests.benchmarks.conftest import made_report, old_report, second_report

REPORT = made_report()


def within(budgets: Budgets, *precisions: str) -> bool:
    return all(check.within for check in gate(REPORT, budgets, precisions))


def test_each_budget_is_held_against_its_own_figure() -> None:
    int8 = REPORT["precisions"]["int8"]
    checks = gate(REPORT, Budgets(1.5, 20.0, 0.4), ["int8"])
    assert [(c.figure, c.measured, c.within) for c in checks] == [
        ("MPJPE loss mm", int8["accuracy"]["against_fp32"]["mpjpe_change_mm"], True),
        ("end to end x FP32", int8["latency"]["end_to_end"]["ratio_to_fp32"]["median"], False),
        ("end to end p95 ms", int8["latency"]["end_to_end"]["p95_ms"], True),
    ]
    assert gate_markdown(checks).endswith("\n\n1 of 3 beyond budget.\n")
    (check,) = gate(REPORT, Budgets(p95_ms=1.0, stage="network"), ["int8"])
    assert check.measured == int8["latency"]["network"]["p95_ms"]


def test_jitter_is_held_against_its_budget() -> None:
    (check,) = gate(REPORT, Budgets(jitter_gain=0.05, confident=True))
    assert (check.precision, check.figure, check.within) == ("int8", "jitter gain, upper end", True)
    assert check.measured == pytest.approx(0.04)
    assert not within(Budgets(jitter_gain=0.03), "int8")
    with pytest.raises(UserError, match="the result has no jitter gain of int8"):
        gate(second_report(), Budgets(jitter_gain=0.05))


def test_fp32_is_the_reference() -> None:
    checks = gate(REPORT, Budgets(1.5, 20.0, 0.6))
    assert [c.figure for c in checks if c.precision == "fp32"] == ["end to end p95 ms"]
    with pytest.raises(UserError, match="nothing to check"):
        gate(REPORT, Budgets(ratio=1.0), ["fp32"])


BUDGET = st.none() | st.floats(0, 30)


@settings(deadline=None)
@given(st.tuples(BUDGET, BUDGET, BUDGET).filter(any), st.tuples(*[st.floats(0, 5)] * 3), st.booleans())
def test_a_larger_budget_never_fails_what_a_smaller_one_passes(budgets, more, confident: bool) -> None:
    larger = [value if value is None else value + extra for value, extra in zip(budgets, more, strict=True)]
    small = within(Budgets(*budgets, confident=confident), "int8")
    assert within(Budgets(*larger, confident=confident), "int8") >= small
    # To be sure of it asks for more.
    assert within(Budgets(*budgets), "int8") >= within(Budgets(*budgets, confident=True), "int8")


def test_exactly_the_budget_is_within_and_the_interval_is_not() -> None:
    change = REPORT["precisions"]["int8"]["accuracy"]["against_fp32"]
    budget = change["mpjpe_change_mm"]
    assert within(Budgets(budget), "int8") and not within(Budgets(budget - 1e-9), "int8")
    assert not within(Budgets(budget, confident=True), "int8")
    assert within(Budgets(change["intervals"]["mpjpe_change_mm"]["high"], confident=True), "int8")


def test_mistakes() -> None:
    with pytest.raises(UserError, match="no budget: give at least one of --max-mpjpe-loss-mm, --max-p95-ms"):
        Budgets()
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(UserError, match="--max-p95-ms must be a number of at least 0"):
            Budgets(p95_ms=bad)
    with pytest.raises(UserError, match="unknown stage 'all'; known: network, end_to_end"):
        Budgets(1.0, stage="all")
    with pytest.raises(UserError, match="fp16 was not measured; the result has fp32, int8"):
        gate(REPORT, Budgets(1.0), ["fp16"])
    alone = made_report()
    alone["precisions"]["int8"]["accuracy"]["against_fp32"] = None
    with pytest.raises(UserError, match="the result has no MPJPE loss mm of int8: measure again"):
        gate(alone, Budgets(1.0))
    for lacking in (old_report(), made_report(samples=5)):
        assert gate(lacking, Budgets(9.0))
        with pytest.raises(UserError, match="no interval of the MPJPE loss mm of int8"):
            gate(lacking, Budgets(9.0, confident=True))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--max-mpjpe-loss-mm", "1.5", "--max-p95-ms", "20", "--max-ratio", "0.6"], 0),
        (["--max-mpjpe-loss-mm", "0.5"], 1),
        (["--max-p95-ms", "8", "--precision", "int8"], 0),
        (["--max-p95-ms", "8"], 1),  # fp32 takes longer
        (["--max-jitter-gain", "0.05"], 0),
        (["--max-jitter-gain", "0.03"], 1),
        (["--max-ratio", "0.4"], 1),
        (["--max-ratio", "0.6", "--stage", "network", "--confident"], 0),
        ([], 2),
        (["--max-ratio", "nan"], 2),
        (["--max-ratio", "1", "--precision", "fp16"], 2),
    ],
)
def test_exit_codes(options: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(REPORT))
    assert main(["gate", str(path), *options]) == code
    printed = capsys.readouterr()
    assert ("BEYOND" in printed.out) == (code == 1)
    assert printed.err.startswith("error: ") == (code == 2)


def test_a_missing_result_is_a_mistake_not_a_failure(tmp_path: Path) -> None:
    assert main(["gate", str(tmp_path / "none.json"), "--max-ratio", "1"]) == 2
