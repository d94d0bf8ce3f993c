from __future__ import annotations

import json

import pytest

from metro_edge import cli, selftest
from metro_edge.errors import MissingExtraError


@pytest.fixture
def run(shared_bundle, capsys, monkeypatch):
    """Runs the command on the tiny bundle; returns code and output."""
    monkeypatch.setattr(selftest, "first_gpu", lambda: None)

    def call(*arguments: str) -> tuple[int, str]:
        code = cli.main(["selftest", "--bundle", str(shared_bundle.path), "--frames", "2", *arguments])
        return code, capsys.readouterr().out

    return call


def test_all_that_works_passes(run):
    code, out = run("--threads", "1")
    assert code == 0
    lines = out.splitlines()
    assert lines[2].startswith("onnxruntime fp32") and lines[7].startswith("openvino int8")
    assert lines[-1] == "6 passed, 0 failed, 4 skipped"
    assert "2 images: the shipped picture" in out and "kernels: no NVIDIA GPU here" in lines


def test_json(run):
    code, out = run("--json", "--backend", "onnxruntime", "--precision", "int8")
    values = json.loads(out)
    assert code == 0 and values["failed"] == 0
    assert [r["name"] for r in values["results"]] == ["onnxruntime fp32", "onnxruntime int8", "kernels"]


def test_a_failure_is_the_exit_code(run, monkeypatch):
    monkeypatch.setattr(selftest, "limits", lambda _bundle, _precision: (-1.0, 1.0))
    code, out = run("--backend", "onnxruntime")
    assert code == 1 and out.splitlines()[-1] == "0 passed, 3 failed, 1 skipped" and "FAILED" in out


def test_an_engine_that_is_not_there_fails_only_when_asked_for(run, monkeypatch):
    honest = selftest.open_session

    def without_openvino(bundle, precision, backend, **options):
        if backend == "openvino":
            raise MissingExtraError("openvino", "openvino", "run")
        return honest(bundle, precision, backend, **options)

    monkeypatch.setattr(selftest, "open_session", without_openvino)
    code, out = run("--precision", "fp32")
    assert code == 0 and out.splitlines()[-1] == "1 passed, 0 failed, 3 skipped"
    code, out = run("--precision", "fp32", "--backend", "openvino")
    assert code == 1 and out.splitlines()[-1] == "1 passed, 1 failed, 1 skipped"
    assert "pip install 'metro-edge[openvino]'" in out


def test_mistakes(capsys):
    for arguments, message in (
        (["--backend", "tvm"], "unknown backend 'tvm'"),
        (["--frames", "0"], "at least one frame"),
        (["--threads", "0"], "the number of threads must be 1 to"),
        (["--bundle", "nowhere"], "no bundle at nowhere"),
    ):
        assert cli.main(["selftest", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_bundle(capsys):
    assert cli.main(["selftest"]) == 0
    assert " 0 failed, " in capsys.readouterr().out
