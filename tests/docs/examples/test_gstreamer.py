"""The GStreamer bridge runs in real pipelines: joints in metadata and JSON lines, timestamps kept, no frame copied.

PyGObject belongs to the system's Python as a rule: a Python that has it runs the example, with this environment's
packages where the version is the same.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from metro_edge import MeshEstimator

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "gstreamer" / "joints.py"
PROBE = Path(__file__).with_name("gstreamer_probe.py")
PICTURE = ROOT / "metro_edge" / "assets" / "demo" / "picture.jpg"
NEEDED = (
    "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstVideo', '1.0'); "
    "from gi.repository import Gst, GstVideo; Gst.init(None); import cv2, onnxruntime; "
    "missing = [n for n in ('videotestsrc', 'jpegdec', 'imagefreeze', 'appsink') if not Gst.ElementFactory.find(n)]; "
    "assert not missing, missing"
)


def environment() -> dict[str, str]:
    paths = [sysconfig.get_paths()["purelib"], str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@functools.cache
def python_with_gstreamer() -> str:
    """A Python of this one's version that imports GStreamer; skips with the reason where there is none."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    reasons = []
    for program in (sys.executable, f"/usr/bin/{version}"):
        if not Path(program).exists():
            reasons.append(f"no {program}")
            continue
        done = subprocess.run(
            [program, "-c", NEEDED], env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode == 0:
            return program
        reasons.append(f"{program}: {done.stderr.strip().splitlines()[-1]}")
    pytest.skip("no Python with GStreamer (docs/integration.md says what to install): " + "; ".join(reasons))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [python_with_gstreamer(), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def probe(case: str, *arguments: Any) -> Any:
    done = run(str(PROBE), case, json.dumps(arguments))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def picture_source(format: str, size: str = "width=322,height=242") -> str:
    return (
        f'filesrc location="{PICTURE}" ! jpegdec ! videoconvert ! videoscale ! imagefreeze num-buffers=3 '
        f"! video/x-raw,format={format},{size},framerate=25/1"
    )


# A JPEG's colours are of full range, which NV12 keeps; rows are of whole 4 bytes.
@pytest.mark.parametrize(("format", "kind"), [("NV12", ["nv12", "bt601-full", 324]), ("BGR", ["bgr", "bt601", 968])])
def test_joints_travel_with_the_buffers(tmp_path: Path, format: str, kind: list[Any]) -> None:
    boxes = [[20.0, 10.0, 200.0, 230.0], [-30.0, -10.0, 380.0, 262.0]]
    inside = [[20, 10, 200, 230], [0, 0, 322, 242]]  # the second reaches beyond every border
    result = probe("run", picture_source(format), "queue ! identity", boxes, str(tmp_path))
    seen = np.load(tmp_path / "seen.npy")
    assert result["count"] == len(result["after"]) == len(result["lines"]) == len(seen) == 3
    assert result["rules"][0] == kind

    expected = cv2.resize(cv2.imread(str(PICTURE)), (322, 242), interpolation=cv2.INTER_AREA)
    assert np.abs(cv2.blur(seen[0], (9, 9)).astype(float) - cv2.blur(expected, (9, 9))).mean() < 4

    with MeshEstimator.from_bundle() as estimator:
        bodies = estimator(seen[0], boxes)
    for number, (after, line) in enumerate(zip(result["after"], map(json.loads, result["lines"]), strict=True)):
        assert after["pts"] == line["pts_ns"] == number * 40_000_000
        assert after["duration"] == 40_000_000
        assert len(after["regions"]) == len(line["bodies"]) == 2
        for region, record, body, box in zip(after["regions"], line["bodies"], bodies, inside, strict=True):
            assert (region["type"], region["box"]) == ("person", box) and region["joint-set"] == body.joint_set
            np.testing.assert_allclose(np.reshape(region["joints-m"], (-1, 3)), body.joints, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(np.reshape(region["joints-px"], (-1, 2)), body.joints_px, rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(region["translation-m"], body.translation, rtol=1e-5)
            assert record == body.to_dict()


def test_converters_after_the_bridge_keep_boxes_and_timestamps(tmp_path: Path) -> None:
    """GStreamer 1.22 drops the parameters there; the line of the same time has the joints."""
    after = "videoconvert ! videoscale ! video/x-raw,format=RGB,width=161,height=121"
    result = probe("run", picture_source("NV12"), after, [[20.0, 10.0, 200.0, 230.0]], str(tmp_path))
    for arrived, line in zip(result["after"], map(json.loads, result["lines"]), strict=True):
        assert arrived["pts"] == line["pts_ns"]
        np.testing.assert_allclose(arrived["regions"][0]["box"], [10, 5, 100, 115], atol=1)


def test_no_frame_is_copied() -> None:
    """Two views of a buffer at a time, and of the buffer that goes on, lie at one address."""
    result = probe("memory")
    assert len(set(result["addresses"])) == 1
    assert result["pitch"] == result["info"] == 324


def test_strides_of_the_buffer_count_not_those_of_the_caps() -> None:
    content = np.arange(200)
    y, uv = probe("padded")["planes"]
    np.testing.assert_array_equal(y, [content[16 + 16 * i : 22 + 16 * i] for i in range(4)])
    np.testing.assert_array_equal(uv, [content[128 + 24 * i : 134 + 24 * i] for i in range(2)])


def test_colours_are_those_of_the_caps() -> None:
    rules = probe("rules")
    assert rules.pop("bt2020").startswith("error: colours by bt2020 are not supported")
    assert rules == {"bt601": "bt601", "bt709": "bt709", "1:4:0:0": "bt601-full", "1:3:0:0": "bt709-full"}


def test_the_documented_command(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^python (docs/examples/gstreamer/joints\.py .*videotestsrc.*)$", text, re.MULTILINE)
    arguments = [word.replace("joints.jsonl", str(tmp_path / "joints.jsonl")) for word in shlex.split(line)]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "joints.jsonl").read_text().splitlines()]
    assert [line["pts_ns"] for line in lines] == [round(n * 1e9 / 30 - 0.5) for n in range(len(lines))]
    assert f"{len(lines)} frames" in done.stderr and len(lines) == 30


def test_a_live_source_keeps_its_pace() -> None:
    source = "videotestsrc is-live=true num-buffers=12 ! video/x-raw,format=GRAY8,width=64,height=64,framerate=12/1"
    done = run(str(EXAMPLE), "--source", source, "--sink", "fakesink sync=true", "--jsonl", "-")
    assert done.returncode == 0, done.stderr
    times = [json.loads(line)["pts_ns"] for line in done.stdout.splitlines()]
    assert len(times) == 12 and times == sorted(times) and times[-1] - times[0] == pytest.approx(11e9 / 12, abs=5e7)


@pytest.mark.parametrize(("options", "text"), [
    (["--source", "videotestsrc ! video/x-raw(memory:NVMM),format=NV12"], "nvvidconv and nvvideoconvert is here"),
    (["--source", "nosuchelement"], "no element"),
    (["--source", "videotestsrc ! video/x-raw,format=I420"], "can't handle caps"),
    (["--source", "filesrc location=no/such/file ! jpegdec"], "filesrc0: Resource not found"),
    (["--sink", "identity error-after=2 ! fakesink"], "identity0: Failed after iterations"),
    (["--sink", "identity eos-after=3 ! fakesink"], "the sink ended before"),
    (["--source", "videotestsrc ! video/x-raw,width=64,height=64", "--box", "70,0,9,9"], "outside the 64"),
    (["--source", "videotestsrc ! video/x-raw,width=64,height=64", "--box", "nan,0,9,9"], "not finite"),
    (["--source", "videotestsrc num-buffers=2 ! video/x-raw,format=NV12,width=65,height=64"], "nv12 needs an even"),
    (["--jsonl", "no/such/folder/file"], "No such file"),
    (["--box", "1,2,3"], "invalid numbers value"),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(options: list[str], text: str) -> None:
    done = run(str(EXAMPLE), *options)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr and "Traceback" not in done.stderr
