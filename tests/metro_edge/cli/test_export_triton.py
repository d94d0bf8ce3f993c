from __future__ import annotations

import pytest

from metro_edge import cli


def test_the_command(tmp_path, shared_bundle, capsys):
    out = tmp_path / "models"
    arguments = ["export-triton", str(shared_bundle.path), "-o", str(out), "--precision", "int8", "--name", "body"]
    assert cli.main([*arguments, "--gpus", "0,1", "--instances", "2", "--delay-us", "100", "--max-people", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(out / "body") and len(lines) == 6
    assert lines[5] == "ask body_frame with frame and boxes, or body_picture with picture and boxes"
    text = (out / "body/config.pbtxt").read_text()
    for line in ("gpus: [0, 1]", "count: 2", "max_queue_delay_microseconds: 100", "max_batch_size: 3"):
        assert line in text


def test_the_shipped_bundle_has_a_name_of_its_own(tmp_path, capsys):
    assert cli.main(["export-triton", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "metro_edge_frame/config.pbtxt").is_file()


def test_mistakes(tmp_path, shared_bundle, capsys):
    out = str(tmp_path / "models")
    for arguments, message in (
        (["nowhere", "-o", out], "no bundle at nowhere"),
        ([str(shared_bundle.path), "-o", out, "--kind", "tpu"], "unknown kind 'tpu'"),
        ([str(shared_bundle.path), "-o", out, "--plan", "none.plan"], "none.plan does not exist"),
        ([str(shared_bundle.path), "-o", out, "--precision", "fp8"], "has no fp8 network"),
    ):
        assert cli.main(["export-triton", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["export-triton", "-o", out, "--gpus", "all"])
    assert "'all' is not a list of numbers such as 0,1" in capsys.readouterr().err
