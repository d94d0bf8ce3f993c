from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.compare import CHANGED, NOISE, UNKNOWN, compare, compare_markdown, same_samples
from benchmarks.report import KIND, read_report
from metro_edge.errors import UserError
from tests.benchmarks.conftest import made_report, old_report, second_report


def verdicts(a: dict[str, Any], b: dict[str, Any], *allowed: str) -> dict[str, str]:
    return {change.name: change.verdict for change in compare(a, b, allowed)}


@settings(deadline=None, max_examples=15)
@given(st.integers(6, 80), st.sampled_from([20, 60, 80]), st.floats(-5, 5), st.floats(0.1, 3), st.integers(0, 99))
def test_a_result_beside_itself_has_changed_in_nothing(
    samples: int, runs: int, loss_mm: float, ratio: float, draw: int
) -> None:
    report = made_report(samples=samples, runs=runs, loss_mm=loss_mm, ratio=ratio, draw=draw)
    changes = compare(report, report)
    assert CHANGED not in {change.verdict for change in changes}
    assert all(change.paired.low == change.paired.high == 0 for change in changes if change.paired)
    assert "Nothing of " in compare_markdown(report, report, changes)


def test_what_changed_is_found_and_what_did_not_is_not() -> None:
    a, b = made_report(), made_report(loss_mm=2.0, ratio=0.8, draw=1)
    found = verdicts(a, b)
    for name in (
        "int8 MPJPE mm",
        "int8 MPJPE change from FP32, mean mm",
        "int8 MPVPE change from FP32, p95 mm",
        "int8 network x FP32",
        "int8 frame to body p50 ms",
    ):
        assert found[name] == CHANGED, name
    for name in ("fp32 MPJPE mm", "fp32 PA-MPJPE mm", "fp32 network p50 ms", "int8 moved from FP32, mean mm"):
        assert found[name] == NOISE, name
    text = compare_markdown(a, b, compare(a, b))
    assert "| int8 MPJPE mm |" in text and " paired | changed |" in text
    assert f"of {len(found)} figures changed beyond noise: int8 MPJPE mm; " in text


def test_pairing_sees_what_separate_intervals_cannot() -> None:
    a, b = made_report(), made_report(loss_mm=1.3, draw=1)
    assert same_samples(a, b) and verdicts(a, b)["int8 MPJPE mm"] == CHANGED
    for report in (a, b):
        del report["accuracy"]["truth_sha256"]
    assert not same_samples(a, b) and verdicts(a, b)["int8 MPJPE mm"] == NOISE


def test_too_few_and_results_without_intervals_are_not_judged() -> None:
    few = made_report(samples=5, runs=20)
    judged = {name for name, word in verdicts(few, few).items() if word != UNKNOWN}
    assert judged and all("jitter" in name or "acceleration" in name for name in judged)  # there are walks enough
    assert "not judged: too few samples" in compare_markdown(few, few, compare(few, few))
    old = old_report()
    assert set(verdicts(old, old).values()) == {UNKNOWN}
    new = made_report()
    assert set(verdicts(old, new).values()) == {UNKNOWN}
    assert "| int8 network x FP32 |" in compare_markdown(old, new, compare(old, new))


def test_results_of_schema_2_and_3_are_compared_on_what_both_have() -> None:
    second, third = second_report(), made_report()
    found = verdicts(second, third)
    assert set(found) == set(verdicts(second, second)) < set(verdicts(third, third))
    assert set(found.values()) == {NOISE}


def test_the_figures_of_schema_3_are_judged() -> None:
    found = verdicts(made_report(), made_report(loss_mm=60.0))
    assert found["int8 PCK"] == found["int8 AUC"] == CHANGED
    assert found["fp32 PCK"] == found["int8 jitter gain from FP32"] == NOISE
    assert found["int8 distance on the picture, px"] == NOISE


@pytest.mark.parametrize(
    ("part", "change", "kind", "message"),
    [
        ("accuracy", {"seed": 4, "truth_sha256": "c"}, "seed", "the seed of the samples is 3 and 4"),
        ("accuracy", {"protocol": "other"}, "protocol", "the protocol of the accuracy is by METRO and other"),
        ("accuracy", {"truth_sha256": "c"}, "data", "the true meshes of the samples are others"),
        ("latency", {"protocol": "else"}, "protocol", "the protocol of the latency is interleaved and else"),
        ("latency", {"people": 4}, "protocol", "people is 1 and 4"),
        ("machine", {"cores": 64}, "machine", "the machine's cores is 2 and 64"),
        ("device", {"processor": "GPU", "name": "Orin"}, "machine", "the device's processor is CPU and GPU"),
    ],
)
def test_what_is_not_comparable_is_refused_unless_allowed(
    part: str, change: dict[str, Any], kind: str, message: str
) -> None:
    a, b = made_report(), made_report()
    b[part].update(change)
    with pytest.raises(UserError, match=f"not comparable: .*{message}.*--allow {kind}$"):
        compare(a, b)
    changes = compare(a, b, [kind])
    assert f"- Not comparable, as permitted: {message}" in compare_markdown(a, b, changes, [kind])
    assert CHANGED not in {one.verdict for one in changes}
    paired = part in ("latency", "machine", "device")
    assert any(one.paired for one in changes) == paired


def test_another_number_of_samples_and_another_data_set_of_before_the_hashes() -> None:
    with pytest.raises(UserError, match="the number of samples is 60 and 50"):
        compare(made_report(), made_report(samples=50))
    a, b = old_report(), old_report()
    b["accuracy"]["data"] = "others"
    with pytest.raises(UserError, match="the data set is 'people of seed 3' and 'others'"):
        compare(a, b)
    # Where hashes tell that the samples are the same, the name of their folder does not matter.
    a, b = made_report(), made_report()
    b["accuracy"]["data"] += " in another folder"
    assert CHANGED not in verdicts(a, b).values()


def test_other_precisions_and_unknown_words() -> None:
    a, b = made_report(), made_report()
    del b["precisions"]["fp32"]
    assert all(name.startswith("int8") for name in verdicts(a, b))
    assert "- Only A has fp32." in compare_markdown(a, b, compare(a, b))
    del a["precisions"]["int8"]
    with pytest.raises(UserError, match="no precision in common: A has fp32, B has int8"):
        compare(a, b)
    with pytest.raises(UserError, match="unknown difference weather; known: data, samples, seed, protocol, machine"):
        compare(a, b, ["weather"])


def test_another_network_and_engine_are_noted_not_refused() -> None:
    a, b = made_report(), made_report()
    b["bundle"]["onnx_sha256"]["int8"] = "ef" * 32
    b["device"]["engine"] = "openvino 2026 CPU"
    text = compare_markdown(a, b, compare(a, b))
    assert "- The int8 network differs: cdcdcdcdcdcd and efefefefefef." in text
    assert "- The engine differs: onnxruntime 1.23.0 CPUExecutionProvider and openvino 2026 CPU." in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    report = made_report()
    a.write_text(json.dumps(report))
    other = copy.deepcopy(report)
    other["machine"]["cpu"] = "Another CPU"
    b.write_text(json.dumps(other))
    assert main(["compare", str(a), str(a)]) == 0
    assert "Nothing of 41 figures changed beyond noise." in capsys.readouterr().out
    assert main(["compare", str(a), str(b)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "the machine's cpu is Some CPU and Another CPU" in printed.err
    assert main(["compare", str(a), str(b), "--allow", "machine"]) == 0
    assert main(["compare", str(a), str(tmp_path / "none.json")]) == 2
    assert main(["compare", str(a), str(b), "--allow", "weather"]) == 2


def test_committed_results_are_readable() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    results = [path for path in folder.glob("*.json") if json.loads(path.read_bytes()).get("kind") == KIND]
    assert results
    for path in results:
        report = read_report(path)
        assert CHANGED not in verdicts(report, report).values()
