from __future__ import annotations

import json
import os

import cv2
import pytest

from metro_edge import cli


@pytest.fixture
def command(shared_bundle, tmp_path, frame) -> list[str]:
    cv2.imwrite(str(tmp_path / "person.png"), frame)
    return ["run", str(tmp_path / "person.png"), "--bundle", str(shared_bundle.path), "-o", str(tmp_path / "out")]


def test_backends_and_cores_give_the_same_people(command, tmp_path):
    pytest.importorskip("openvino")
    core = str(max(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
    found = {}
    for backend in ("onnxruntime", "openvino"):
        assert cli.main([*command, "--backend", backend, *(["--affinity", core] if core else [])]) == 0
        document = json.loads((tmp_path / "out" / "person.json").read_text())
        found[backend] = (document["people"][0]["joints_m"], document["model"])
    assert "openvino" in json.dumps(found["openvino"][1]) and "openvino" not in json.dumps(found["onnxruntime"][1])
    for one, other in zip(found["onnxruntime"][0], found["openvino"][0], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_mistakes(command, capsys):
    assert cli.main([*command, "--backend", "abacus"]) == 2
    assert "unknown backend 'abacus'; known: onnxruntime, openvino" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--affinity", "first"])
    assert stopped.value.code == 2
    assert "'first' is not a list of core numbers such as 0,2" in capsys.readouterr().err
    if hasattr(os, "sched_getaffinity"):
        assert cli.main([*command, "--affinity", "100000"]) == 2
        assert "affinity must be different cores of" in capsys.readouterr().err
        assert cli.main([*command, "--affinity", "0,0"]) == 2
