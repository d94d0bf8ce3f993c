from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from metro_edge import cli
from metro_edge.cli.run import parse_names, unique_stems
from metro_edge.preprocess import read_picture

ROOT = Path(__file__).parents[3]


@pytest.fixture
def picture(tmp_path, frame) -> Path:
    path = tmp_path / "in" / "person.png"
    path.parent.mkdir()
    cv2.imwrite(str(path), frame)
    return path


def run(bundle, *arguments: object) -> int:
    return cli.main(["run", "--bundle", str(bundle.path), *map(str, arguments)])


def test_files_of_a_picture(shared_bundle, picture, frame, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert run(shared_bundle, picture, "--box", "10,5,50,100", "--box", "80,20,60,90", "-o", out) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "person.json", "person.overlay.png", "person.person0.glb", "person.person0.obj",
        "person.person1.glb", "person.person1.obj",
    ]  # fmt: skip
    overlay = read_picture(out / "person.overlay.png")
    assert overlay.shape == frame.shape and (overlay != frame).any()
    document = json.loads((out / "person.json").read_text())
    assert document["schema_version"] == 1
    assert (document["picture"], document["width_px"], document["height_px"]) == ("person.png", 160, 120)
    assert document["model"]["precision"] == "fp32" and len(document["model"]["onnx_sha256"]) == 64
    assert [p["box_px"] for p in document["people"]] == [[10, 5, 50, 100], [80, 20, 60, 90]]
    assert document["people"][1]["glb"] == "person.person1.glb"
    assert len(document["people"][0]["joints_m"]) == 14
    assert "2 people" in capsys.readouterr().out


def test_several_pictures_options_and_equal_names(shared_bundle, picture, tmp_path, frame, capsys):
    other = tmp_path / "person.jpg"
    cv2.imwrite(str(other), frame)
    out = tmp_path / "out"
    options = ("--precision", "int8", "--focal-px", "500", "--threads", "1", "--side-by-side")
    assert run(shared_bundle, picture, other, *options, "-o", out) == 0
    assert read_picture(out / "person-2.overlay.png").shape == (120, 320, 3)
    document = json.loads((out / "person.json").read_text())
    assert document["model"]["precision"] == "int8"
    assert document["people"][0]["focal_px"] == 500
    assert document["people"][0]["box_px"] == [0, 0, 160, 120]
    assert capsys.readouterr().out.count("1 person") == 2


def test_a_camera_matrix_places_people_by_its_focal_length_and_principal_point(
    shared_bundle, picture, tmp_path, capsys
):
    matrix = ("--camera-matrix", "400,402,70.5,61")
    assert run(shared_bundle, picture, *matrix, "-o", tmp_path) == 0
    person = json.loads((tmp_path / "person.json").read_text())["people"][0]
    assert person["focal_px"] == 401 and person["centre_px"] == [70.5, 61]
    with pytest.raises(SystemExit):
        run(shared_bundle, picture, *matrix, "--focal-px", "500")
    with pytest.raises(SystemExit):
        run(shared_bundle, picture, "--camera-matrix", "400,402")
    assert "'400,402' is not fx,fy,cx,cy" in capsys.readouterr().err


def test_same_input_same_files(shared_bundle, picture, tmp_path):
    for out in ("a", "b"):
        run(shared_bundle, picture, "-o", tmp_path / out)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def bad_cases(tmp_path: Path, picture: Path) -> dict[str, tuple[list[object], str]]:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (tmp_path / "file").write_text("x")
    whole = cv2.imencode(".jpg", cv2.imread(str(picture)))[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return {
        "missing picture": ([tmp_path / "none.jpg"], "no picture at"),
        "corrupt picture": ([tmp_path / "broken.jpg"], "broken.jpg"),
        "second picture missing": ([picture, tmp_path / "none.jpg"], "no picture at"),
        "picture cut short": ([tmp_path / "cut.jpg"], "cut.jpg is a picture that is cut short"),
        "empty box": ([picture, "--box", "5,5,0,10"], "empty"),
        "box of less than a pixel": ([picture, "--box", "5,5,0.5,10"], "must be at least 1 px"),
        "box of negative size": ([picture, "--box=50,50,-5,10"], "must be at least 1 px"),
        "boundless box": ([picture, "--box", "0,0,1e9,1e9"], "over 100 times as long as the 160 x 120 px frame"),
        "box outside": ([picture, "--box=-50,0,20,20"], "outside the 160 x 120 px frame"),
        "NaN box": ([picture, "--box", "nan,0,20,20"], "not finite"),
        "box with two pictures": ([picture, picture, "--box", "0,0,9,9"], "--box goes with one picture"),
        "precision": ([picture, "--precision", "fp64"], "unknown precision 'fp64'; known: fp32, fp16, int8"),
        "bundle": ([picture, "--bundle", tmp_path / "none"], "no bundle at"),
        "a file for a bundle": ([picture, "--bundle", tmp_path / "file"], "neither a folder nor a readable .zip"),
        "backend": ([picture, "--backend", "tpu"], "unknown backend 'tpu'; known: onnxruntime, openvino"),
        "focal length": ([picture, "--focal-px", "0"], "focal length"),
        "camera matrix": ([picture, "--camera-matrix", "400,500,80,60"], "two alike positive focal lengths"),
        "threads": ([picture, "--threads", "0"], "threads"),
        "name too long": ([tmp_path / ("a" * 300 + ".jpg")], "File name too long"),
        "bundle's name too long": ([picture, "--bundle", "a" * 300], "File name too long"),
    }


def test_mistakes_are_one_line_and_leave_nothing(shared_bundle, picture, tmp_path, capsys):
    for name, (arguments, message) in bad_cases(tmp_path, picture).items():
        before = sorted(tmp_path.rglob("*"))
        assert run(shared_bundle, *arguments, "-o", tmp_path / "out") == 2, name
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, name
        assert message in captured.err, name
        assert captured.out == "", name
        assert sorted(tmp_path.rglob("*")) == before, name


def test_unwritable_output(shared_bundle, picture, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run(shared_bundle, picture, "-o", out) == 2
        assert "cannot write into folder" in capsys.readouterr().err
    assert run(shared_bundle, picture, "-o", tmp_path / "new" / ("a" * 300)) == 2
    assert "File name too long" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert run(shared_bundle, picture, "-o", "") == 2
    assert "the output folder has no name" in capsys.readouterr().err
    (tmp_path / "out" / "person.overlay.png").mkdir(parents=True)  # in the way
    assert run(shared_bundle, picture, "-o", tmp_path / "out") == 2
    assert "a folder is in the way" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["person.overlay.png"]


def test_a_move_that_fails_is_one_line(shared_bundle, picture, tmp_path, capsys, monkeypatch):
    real = os.replace

    def refuse(source, target):
        if Path(target).parent.name == "out":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("metro_edge.results.os.replace", refuse)
    assert run(shared_bundle, picture, "-o", tmp_path / "out") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bundle_with_an_altered_file(shared_bundle, picture, tmp_path, capsys):
    shutil.copytree(shared_bundle.path, tmp_path / "b")
    (tmp_path / "b" / "model.fp32.onnx").write_bytes(b"other")
    assert cli.main(["run", str(picture), "--bundle", str(tmp_path / "b"), "-o", str(tmp_path / "out")]) == 2
    assert "model.fp32.onnx in bundle" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["spec.json", "body.npz", "model.fp32.onnx", "passport.json"])
def test_a_bundle_with_a_missing_file(shared_bundle, picture, tmp_path, capsys, name):
    shutil.copytree(shared_bundle.path, tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    assert cli.main(["run", str(picture), "--bundle", str(tmp_path / "b"), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and name in error
    assert not (tmp_path / "out").exists()


def test_a_network_that_fails_leaves_no_files(bundle_of, network, picture, tmp_path, capsys):
    bundle = bundle_of(network(camera=(-0.5, 0, 0)))
    assert run(bundle, picture, "-o", tmp_path / "out") == 2
    assert "not positive" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_grey_deep_and_transparent_pictures_give_what_their_colours_give(shared_bundle, tmp_path, frame):
    """The overlay, which shows the picture that was taken, and the joints are those of the 8-bit colour picture."""
    clear = np.dstack([frame, frame[..., 0]])
    share = clear[..., 3:] / np.float32(255)
    for name, image, meant in (
        ("grey", frame[..., 0], np.repeat(frame[..., :1], 3, 2)),
        ("deep", frame.astype(np.uint16) * 257, frame),
        ("deep-grey", frame[..., 1].astype(np.uint16) * 257, np.repeat(frame[..., 1:2], 3, 2)),
        ("clear", clear, np.rint(frame * share + 128 * (1 - share)).astype(np.uint8)),
    ):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
        cv2.imwrite(str(tmp_path / name / f"{name}.png"), meant)
        assert run(shared_bundle, tmp_path / f"{name}.png", "-o", tmp_path / "out") == 0
        assert run(shared_bundle, tmp_path / name / f"{name}.png", "-o", tmp_path / "meant") == 0
        for kind in ("overlay.png", "json", "person0.obj"):
            assert (tmp_path / "out" / f"{name}.{kind}").read_bytes() == (
                tmp_path / "meant" / f"{name}.{kind}"
            ).read_bytes(), (name, kind)


def keys_of(value: object) -> set[str]:
    """All keys of nested JSON."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_the_json_has_the_keys_that_its_page_documents(shared_bundle, picture, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "run.md").read_text(encoding="utf-8")
    schema = page.split("## JSON, schema version 1\n")[1].split("## Mistakes")[0]
    rows = [line for line in schema.splitlines() if line.startswith("| `")]
    documented = set(re.findall(r"`([a-z][a-z0-9_]*)`", "".join(rows)))
    assert run(shared_bundle, picture, "--box", "10,5,50,100", "-o", tmp_path / "out") == 0
    found = keys_of(json.loads((tmp_path / "out" / "person.json").read_text()))
    with_smpl = {"smpl", "file", "gender", "model_sha256", "pose", "betas", "error_mm"}
    assert documented - with_smpl == found and with_smpl <= documented


def test_unique_stems():
    paths = [Path(p) for p in ("a/x.jpg", "b/x.png", "y.png", "x-2.jpg", "c/x.jpg")]
    assert unique_stems(paths) == ["x", "x-2", "y", "x-2-2", "x-3"]


def test_the_crop_rule_is_chosen_by_name_and_recorded(shared_bundle, picture, tmp_path, capsys):
    box = "--box=10,10,80,60"
    assert run(shared_bundle, picture, box, "--crop-rule", "metro_demo", "-o", tmp_path / "demo") == 0
    assert run(shared_bundle, picture, box, "-o", tmp_path / "own") == 0
    demo, own = (json.loads(next((tmp_path / name).glob("*.json")).read_text()) for name in ("demo", "own"))
    assert demo["model"]["crop_rule"] == "metro_demo" and own["model"]["crop_rule"] == "box_area"
    assert demo["people"][0]["translation_m"] != own["people"][0]["translation_m"]
    assert run(shared_bundle, picture, "--crop-rule", "demo", "-o", tmp_path / "none") == 2
    assert "unknown crop rule 'demo'" in capsys.readouterr().err


def test_names_that_the_terminal_or_utf8_cannot_hold(shared_bundle, picture, tmp_path, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    for name, stem in (("ünï.png", "ünï"), (os.fsdecode(b"b\xe9.png"), os.fsdecode(b"b\xe9"))):
        shutil.copy(picture, tmp_path / name)
        assert run(shared_bundle, tmp_path / name, "-o", tmp_path / "out") == 0
        document = json.loads((tmp_path / "out" / f"{stem}.json").read_text(encoding="utf-8"))
        assert document["picture"] == name
        assert (tmp_path / "out" / document["people"][0]["glb"]).is_file()
    assert b"\\xfcn\\xef.png: 1 person" in screen.buffer.getvalue()
    assert b"b\\udce9.png: 1 person" in screen.buffer.getvalue()


def test_options_of_videos_are_refused_by_their_own_names(shared_bundle, picture, tmp_path, capsys):
    ones = ("--start", "--end", "--fps", "--in-flight", "--detect-every")
    others = {"--boxes": "x.txt", "--stride": "2", "--write": "jsonl", "--draw": "mesh,"}
    for option, value in (dict.fromkeys(ones, "1") | others).items():
        assert run(shared_bundle, picture, option, value, "-o", tmp_path / "out") == 2
        assert capsys.readouterr().err.startswith(f"error: {option} goes with a video"), option
    assert run(shared_bundle, picture, "--no-smoothing", "-o", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_lists_of_names_and_numbers(shared_bundle, picture, capsys):
    assert parse_names("jsonl, overlay,") == ("jsonl", "overlay")
    for option, value, message in (
        ("--write", ",", "',' names nothing"),
        ("--camera-matrix", "nan,1,1,1", "'nan,1,1,1' is not fx,fy,cx,cy in pixels: they must be finite"),
    ):
        with pytest.raises(SystemExit):
            run(shared_bundle, picture, option, value)
        assert message in capsys.readouterr().err


def test_sigterm_ends_a_run_of_pictures_in_good_order(shared_bundle, picture, tmp_path):
    """A real process and a real signal, twice, as `timeout` sends it: nothing hidden is left."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "metro_edge", "run", "--bundle", str(shared_bundle.path), *[str(picture)] * 500]
    process = subprocess.Popen([*command, "-o", str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(out.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert err.decode().replace("\r", "\n").splitlines()[-1] == "interrupted by SIGTERM"
    names = [path.name for path in out.iterdir()]
    assert 4 <= len(names) < 2000 and not [name for name in names if name.startswith(".")]
