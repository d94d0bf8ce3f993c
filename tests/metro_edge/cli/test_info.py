from __future__ import annotations

import json
import shutil

from metro_edge.bundle import Bundle
from metro_edge.cli import main


def test_table_of_a_bundle(shared_bundle, capsys):
    assert main(["info", str(shared_bundle.path)]) == 0
    text = capsys.readouterr().out
    assert "tiny, 64 px, crop rule box_area" in text and "egg, 162 vertices, joints h36m14" in text
    assert "camera, joints, vertices" in text and "of the weights: Apache-2.0" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line[:4] in ("fp32", "fp16", "int8")}
    assert rows.keys() == {"fp32", "fp16", "int8"}
    assert rows["int8"][2] == shared_bundle.onnx_sha256("int8")[:12]
    assert rows["int8"][3:] == ["1.250", "62.500", "-", "73.000", "-"]
    assert rows["fp16"][3:] == ["-"] * 5  # nothing was measured of it


def test_the_shipped_bundle_says_what_it_was_calibrated_and_measured_on(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    passport = Bundle.load().passport
    assert passport["calibration"]["images_sha256"] in text
    assert f"{passport['accuracy']['samples']} samples, {passport['accuracy']['data']}" in text
    assert f"{passport['accuracy']['precisions']['int8']['mpjpe_lost_mm']:.3f}" in text


def test_json_is_spec_and_passport(shared_bundle, capsys):
    assert main(["info", str(shared_bundle.path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["passport"] == shared_bundle.passport and values["spec"]["name"] == "tiny"


def test_a_damaged_network_is_found(shared_bundle, tmp_path, capsys):
    shutil.copytree(shared_bundle.path, tmp_path / "b")
    (tmp_path / "b" / "model.int8.onnx").write_bytes(b"damaged")
    assert main(["info", str(tmp_path / "b")]) == 2
    assert "model.int8.onnx" in capsys.readouterr().err


def test_a_strangers_text_does_not_steer_the_terminal(shared_bundle, tmp_path, capsys):
    shutil.copytree(shared_bundle.path, tmp_path / "b")
    licences = {"weights": "free\x1b[2J\nlicence      of the body: free"}
    (tmp_path / "b" / "passport.json").write_text(json.dumps(shared_bundle.passport | {"licences": licences}))
    assert main(["info", str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "free?[2J?licence" in text
