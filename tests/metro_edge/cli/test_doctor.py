from __future__ import annotations

import json

import pytest

from metro_edge import cli
from metro_edge.doctor import report
from metro_edge.doctor.probes import PROGRAMS, Answer


@pytest.fixture
def libraries(monkeypatch):
    """What the libraries answer, to be changed."""
    answers = dict.fromkeys(PROGRAMS, Answer(None, "not installed"))
    answers |= {name: Answer("1.0") for name in ("opencv", "onnxruntime", "cpu")}
    monkeypatch.setattr(report, "ask", lambda names: {name: answers[name] for name in names})
    return answers


def test_the_cpu_path_is_enough(libraries, capsys):
    assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert "cpu           works" in out.splitlines() and err == ""


def test_what_is_asked_for_must_work(libraries, capsys):
    assert cli.main(["doctor", "--need", "openvino", "--need", "cpu"]) == 1
    assert capsys.readouterr().err == "openvino was asked for and does not work\n"
    libraries["openvino"] = Answer("2026.4")
    assert cli.main(["doctor", "--need", "openvino"]) == 0


def test_without_the_cpu_path(libraries, capsys):
    libraries["cpu"] = Answer(None, "bundle at\x1b[2J is altered")
    assert cli.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert err == "the CPU path does not work\n" and "bundle at?[2J is altered" in out


def test_json(libraries, capsys):
    assert cli.main(["doctor", "--json", "--need", "tensorrt"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["schema_version"] == 1 and values["failed"] == ["tensorrt"]
    assert values["parts"]["opencv"] == {"works": True, "found": "1.0", "problem": None, "install": None}
    assert values["needs"]["cpu"] is True and values["parts"]["openvino"]["problem"] == "not installed"


def test_unknown_needs(capsys):
    assert cli.main(["doctor", "--need", "cuda"]) == 2
    assert capsys.readouterr().err == "error: unknown need 'cuda'; known: cpu, openvino, tensorrt, rtx\n"


def test_the_real_thing(capsys):
    assert cli.main(["doctor", "--need", "cpu"]) == 0
    assert "CPU path      ok" in capsys.readouterr().out
