from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.html.kinds import KINDS
from benchmarks.html.reading import read_result
from benchmarks.html.report import html_of, write_html
from benchmarks.html.shares import least_shares
from metro_edge.errors import UserError
from tests.benchmarks.conftest import made_report, old_report, second_report
from tests.benchmarks.html.pages import RESULTS, Page, check_contained, kept, made_energy, saved

KEPT = ("stages", "load", "kernels", "roofline", "against")
HOSTILE = (
    "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&|`**$x^$ [a](javascript:b)\n- \u202e"
)


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing of plots, which is most of a page's time, where they are not what is tested."""
    monkeypatch.setattr("benchmarks.html.figures.svg", lambda name, draw: '<svg viewBox="0 0 1 1"></svg>')


def page_of(*paths: Path, mixed: bool = False) -> Page:
    return Page(html_of([read_result(path) for path in paths], mixed))


def test_a_page_of_every_kind(tmp_path: Path) -> None:
    paths = [saved(tmp_path, "run", made_report()), saved(tmp_path, "energy", made_energy())]
    paths += [kept(kind) for kind in KEPT]
    write_html(paths, tmp_path / "report.html", command="python -m benchmarks html all")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    check_contained(page)
    assert text.startswith("<!DOCTYPE html>") and "default-src &#x27;none&#x27;" in text
    assert page.tags["section"] == len(paths) == page.tags["article"] and page.tags["svg"] >= 10
    assert "python -m benchmarks html all" in page.text
    for path in paths:
        data = json.loads(path.read_text())
        assert path.name in page.text and data["command"] in page.text  # the file, and what gives it again
        assert data.get("machine", {"cpu": ""})["cpu"] in page.text
    for protocol in ("interleaved", "by METRO", "one after the other on one thread", "Open loop: frames are due"):
        assert protocol in page.text
    # All figures that are predicted stand in a section that says so, and in no table with measured ones.
    sections = dict(re.findall(r'<section id="([\w-]+)">(.*?)</section>', text, re.DOTALL))
    assert [name for name, part in sections.items() if "Prediction" in part] == ["roofline"]
    assert not any("MPJPE" in table and "GB/s" in table for table in page.tables)


def test_sections_and_results_keep_the_order_given(tmp_path: Path) -> None:
    first, second = made_report(), made_report(draw=1)
    second["bundle"]["name"] = "other_bundle"
    paths = [saved(tmp_path, name, data) for name, data in (("b", second), ("a", first))]
    page = page_of(*paths)
    check_contained(page)
    assert page.text.index("1. other_bundle on Some CPU") < page.text.index("2. metro_edge on Some CPU")
    together = next(table for table in page.tables if table.startswith("no."))
    assert together.index("other_bundle") < together.index("metro_edge")
    assert together.count("fp32") == 2 and together.count("int8") == 2
    assert "1: int8" in page.text and "2: int8" in page.text  # of the points


def test_runs_of_other_data_are_refused_or_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unplotted: None
) -> None:
    other = made_report()
    other["accuracy"]["seed"] = 4
    paths = [str(saved(tmp_path, name, data)) for name, data in (("a", made_report()), ("b", other))]
    output = tmp_path / "report.html"
    assert main(["html", *paths, "-o", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "the seed of the samples is 3 and 4" in error
    assert "--mixed" in error and not output.exists()
    assert main(["html", *paths, "-o", str(output), "--mixed"]) == 0
    page = Page(output.read_text(encoding="utf-8"))
    check_contained(page)
    assert "Not comparable: a.json and b.json : the seed of the samples is 3 and 4" in page.text
    assert not any(table.startswith("no.") for table in page.tables)
    assert sum("figure-benchmark-group" in value for value in page.values("id")) == 2  # a front of each


def test_another_machine_is_the_same_measurement(tmp_path: Path, unplotted: None) -> None:
    other = made_report()
    other["device"]["name"] = other["machine"]["cpu"] = "Another CPU"
    page = page_of(saved(tmp_path, "a", made_report()), saved(tmp_path, "b", other))
    assert any(table.startswith("no.") and "Another CPU" in table for table in page.tables)


@pytest.mark.parametrize("make", [made_report, second_report, old_report])
def test_every_schema_of_a_run(tmp_path: Path, make: Any, unplotted: None) -> None:
    page = page_of(saved(tmp_path, "a", make()))
    check_contained(page)
    joints = [value for value in page.values("id") if value == "figure-benchmark-1-joints"]
    assert len(joints) == (1 if make is made_report else 0)


LEFT = {"kind", "joint_set", "samples_ms", "per_sample_mm", "per_joint", "crops"}


def poisoned(value: Any, known: set[str]) -> Any:
    """A result whose texts and unknown keys are a stranger's, but for those without which it is none."""
    if isinstance(value, dict):
        return {
            key if key in known else f"{key}{HOSTILE}": one if key in LEFT else poisoned(one, known)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [poisoned(one, known) for one in value]
    return HOSTILE if isinstance(value, str) else value


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys_of(one) for one in value.values()))
    return set().union(*(keys_of(one) for one in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("kind", ["run", "energy", *KEPT])
def test_a_strangers_words_stay_words(tmp_path: Path, kind: str) -> None:
    made = {"run": made_report, "energy": made_energy}
    data = made[kind]() if kind in made else json.loads(kept(kind).read_text())
    # Names of precisions and libraries are the file's own words, too.
    strange = {"numpy"} if kind == "roofline" else {"numpy", "int8"}  # which knows its precisions
    path = saved(tmp_path, "a", poisoned(data, keys_of(data) - strange))
    result = read_result(path)
    page = Page(html_of([result]))
    check_contained(page)
    assert page.text.count("<script>alert(1)</script>") > 3 and "onerror=alert(2)" in page.text
    assert "\u202e" not in page.text


def test_a_picture_comes_from_beside_the_result_and_nowhere_else(tmp_path: Path, unplotted: None) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    done, png = cv2.imencode(".png", np.full((60, 200, 3), 90, np.uint8))
    assert done
    (folder / "worst.png").write_bytes(png.tobytes() + b"<script>")
    (tmp_path / "secret.png").write_bytes(png.tobytes())
    (folder / "text.png").write_text("no picture")

    def shown(name: str) -> Page:
        report = made_report()
        report["precisions"]["int8"]["worst"]["picture"] = name
        return page_of(saved(folder, "a", report))

    page = shown("worst.png")
    check_contained(page)
    assert page.tags["img"] == 1 and page.values("src")[0].startswith("data:image/jpeg;base64,")
    assert (page.values("width")[-1], page.values("height")[-1]) == ("200", "60")
    for name, words in (("../secret.png", "secret.png is not beside"), ("text.png", "text.png is not a picture"),
                        ("gone.png", "gone.png is not beside"), ("a\x00b", "is not beside")):  # fmt: skip
        page = shown(name)
        assert page.tags["img"] == 0 and words in page.text


def changed(**parts: Any) -> str:
    return json.dumps(made_report() | parts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a benchmark result"),
        ("[" * 100_000, "is not a benchmark result"),
        ("[1]", "of a known kind: None; known: metro-edge benchmark, metro-edge stages"),
        (changed(kind="photo"), "of a known kind: 'photo'; known: metro-edge benchmark"),
        (changed(kind=["kernels"]), "of a known kind"),
        (
            changed(schema_version=99),
            "has schema version 99 of metro-edge benchmark, this metro-edge reads 1, 2, 3: take",
        ),
        (changed(schema_version="x"), "has schema version 'x' of metro-edge benchmark"),
        (changed(schema_version=0), "reads 1, 2, 3: measure again"),
        (changed(note=float("nan")), "holds NaN, which is no number"),
        (changed(note=-float("inf")), "holds -Infinity, which is no number"),
        (changed(note=7).replace('"note": 7', '"note": 1e999'), "holds inf, which is no number"),
        (changed(precisions={}), "incomplete"),
        (changed(device=3), "incomplete"),
        (changed(machine={}), "incomplete"),
        (changed(kind="metro-edge load", schema_version=1), "is an incomplete metro-edge load result"),
        (changed(kind="metro-edge roofline", schema_version=1), "is an incomplete metro-edge roofline result"),
        (changed(kind="kernels", schema_version=1), "is an incomplete kernels result"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(text)
    assert main(["html", str(tmp_path / "a.json"), "-o", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert words in error and not (tmp_path / "report.html").exists()


def test_files_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot read the result"):
        read_result(tmp_path / "a.json")
    path = saved(tmp_path, "a", made_report())
    with pytest.raises(UserError, match="is given twice"):
        page_of(path, path)
    with pytest.raises(UserError, match="cannot write"):
        write_html([path], tmp_path / "none" / "report.html")
    monkeypatch.setattr("benchmarks.html.reading.MAX_BYTES", 10)
    with pytest.raises(UserError, match="more than 0 MiB"):
        read_result(path)


def test_samples_that_are_none_are_an_incomplete_result(tmp_path: Path) -> None:
    report = made_report()
    report["precisions"]["int8"]["latency"]["network"]["samples_ms"] = "not base64"
    with pytest.raises(UserError, match="incomplete"):
        page_of(saved(tmp_path, "a", report))


def predicted(run: dict[str, Any]) -> dict[str, Any]:
    """A roofline of the run's network, of its processor and of a T4."""
    kept_ones = (json.loads(path.read_text()) for path in sorted(RESULTS.glob("roofline-*.json")))
    data = next(one for one in kept_ones if "t4" in one["devices"])
    data["bundle"]["onnx_sha256"] = run["bundle"]["onnx_sha256"]["fp32"]
    entry = copy.deepcopy(data["devices"]["t4"])
    entry["measured"] = {"cpu": "Some CPU", "cores": 2}
    for time in entry["precisions"].values():
        time["least_ms"] = 1.0
    data["devices"]["this-cpu"] = entry
    return data


def test_measured_times_as_a_share_of_the_least(tmp_path: Path) -> None:
    run = made_report()
    data = predicted(run)
    paths = [saved(tmp_path, "run", run), saved(tmp_path, "roof", data)]
    results = [read_result(path) for path in paths]
    found = {share.precision: share.share for share in least_shares(results)}
    for precision in ("fp32", "int8"):
        assert found[precision] == pytest.approx(1 / run["precisions"][precision]["latency"]["network"]["p50_ms"])
    page = Page(html_of(results))
    check_contained(page)
    table = next(table for table in page.tables if "predicted in" in table)
    assert f"{found['int8']:.1%}" in table and "ms" not in table.split()

    def shares(**parts: Any) -> list[float]:
        other = [read_result(saved(tmp_path, "run", run)), read_result(saved(tmp_path, "roof", data | parts))]
        return [share.share for share in least_shares(other)]

    assert shares() and not shares(batch=2)
    assert not shares(bundle={"name": "x", "onnx_sha256": "0" * 64})
    run["machine"]["cores"] = 64
    assert not shares()
    run["device"].update(processor="GPU", name="Tesla T4")
    assert shares()[0] == pytest.approx(
        data["devices"]["t4"]["precisions"]["fp32"]["least_ms"]
        / run["precisions"]["fp32"]["latency"]["network"]["p50_ms"]
    )
    run["device"]["name"] = "Orin"  # several devices have it
    assert not shares()


def test_every_kind_is_described() -> None:
    for kind in KINDS.values():
        assert kind.title and kind.about.endswith(".") and kind.slug.isalnum()
    assert len({kind.slug for kind in KINDS.values()}) == len(KINDS)
