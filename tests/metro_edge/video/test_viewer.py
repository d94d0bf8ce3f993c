"""The page in a real headless Chromium, and what can be told without one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from metro_edge import cli
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.video.showing import Pace
from metro_edge.video.viewer import Viewer, joint_table
from tests.metro_edge.video.clips import write_clip

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Drawing without a GPU; no sandbox, as containers often have none.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_page_is_served_to_this_machine_alone(template, clip):
    port = free_port()
    with Viewer(template, port=port) as viewer:
        assert viewer.address == f"http://127.0.0.1:{port}"
        assert b"<html" in urllib.request.urlopen(viewer.address, timeout=10).read()[:2000]
        for result in clip[:12]:
            viewer.show(result)
            time.sleep(0.01)
        assert viewer.fps() > 5 and not viewer.paused
        addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
        for address in addresses - {"127.0.0.1"}:
            if not address.startswith("127."):
                with pytest.raises(OSError):
                    socket.create_connection((address, port), timeout=2)
    with pytest.raises(OSError):
        urllib.request.urlopen(viewer.address, timeout=2)


def test_mistakes(template, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another with --port"):
        Viewer(template, port=taken.getsockname()[1])
    with pytest.raises(UserError, match="a port is a number"):
        Viewer(template, port=0)
    with pytest.raises(UserError, match="cannot serve on 203.0.113.7"):
        Viewer(template, host="203.0.113.7", port=free_port())
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(MissingExtraError, match=r"metro-edge\[view\]"):
        Viewer(template)


def test_the_joint_table(clip, result_of):
    table = joint_table(clip[7])
    assert table.count("<tr>") == 15 and "person 1 (0.90), cm" in table and "person 2" in table
    body = clip[7].bodies[0]
    x, y, z = np.round(100 * (body.joints[13] + body.translation) * (1, -1, -1)).astype(int)
    row = next(line for line in table.split("<tr>") if "head top" in line)
    assert row.count(f">{x}<") and row.count(f">{y}<") and row.count(f">{z}<")
    assert joint_table(result_of(0, {})) == "<p>nobody</p>"


def test_a_file_is_shown_at_its_own_speed_and_never_in_leaps(result_of):
    pace, began = Pace(), time.monotonic()
    for index in range(6):
        pace.wait(result_of(index, {}), lambda: False)
    assert 0.18 < time.monotonic() - began < 0.6
    time.sleep(0.8)  # the machine could not keep up
    late = time.monotonic()
    for index in range(6, 12):
        pace.wait(result_of(index, {}), lambda: False)
    assert 0.15 < time.monotonic() - late < 0.6
    stopped = time.monotonic()
    pace.wait(result_of(10_000, {}), lambda: True)
    assert time.monotonic() - stopped < 0.2


def test_the_command_shows_a_loop_until_a_signal(shared_bundle, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 5)
    port = free_port()
    command = [sys.executable, "-m", "metro_edge", "view", str(clip), "--bundle", str(shared_bundle.path), "--loop"]
    command += ["--box", "0,0,64,48", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"a.mp4: open http://127.0.0.1:{port} in a browser; Ctrl-C ends it\n"
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "ended by SIGINT" in out and "Traceback" not in err, err


def test_the_command_ends_with_its_source_when_asked(shared_bundle, tmp_path, capsys):
    clip = write_clip(tmp_path / "a.mp4", 4)
    start = ["view", str(clip), "--bundle", str(shared_bundle.path), "--box", "0,0,64,48", "--exit"]
    assert cli.main([*start, "--port", str(free_port())]) == 0
    assert cli.main([*start, "--port", "0"]) == 2
    assert "a port is a number" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")
def test_the_page_in_chromium(tmp_path):
    """The default bundle and the shipped clip: video, mesh, orbit, table, charts, pause; VIEW_PICTURE keeps it."""
    api = pytest.importorskip("playwright.sync_api")
    port = free_port()
    command = [sys.executable, "-m", "metro_edge", "view", "metro_edge/assets/demo/clip.mp4", "--loop"]
    command += ["--precision", "int8", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and "open http" in server.stdout.readline()
        with api.sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector("#joints", timeout=90_000)
            assert "right ankle" in page.inner_text("#joints") and "person" in page.inner_text("#joints")
            texts: set[str] = set()
            deadline = time.monotonic() + 60
            while len(texts) < 4 and time.monotonic() < deadline:  # the joints move, once the scene is drawn
                texts.add(page.inner_text("#joints"))
                page.wait_for_timeout(400)
            assert len(texts) >= 4
            body = page.inner_text("body")
            assert "FPS" in body and "frames a second" in body and "network" in body and "smooth" in body
            assert page.locator("canvas").count() >= 3  # the scene and two charts

            page.wait_for_timeout(4000)
            boxes = "[...document.querySelectorAll('input[type=checkbox]')].filter(one => one.offsetParent !== null)"
            page.evaluate(f"{boxes}[0].click()")  # pause is the only one that shows
            page.wait_for_timeout(1500)
            still = [shot(page, tmp_path) for _ in range(2) if page.wait_for_timeout(700) is None]
            np.testing.assert_array_equal(still[0], still[1])  # paused: nothing moves
            assert mesh_pixels(still[0]) > 500  # someone is there, lighter than floor and background
            page.mouse.move(450, 300)
            page.mouse.down()
            page.mouse.move(380, 320, steps=6)
            page.mouse.up()
            page.wait_for_timeout(1500)
            turned = shot(page, tmp_path)
            assert (np.abs(turned.astype(int) - still[1]).max(axis=2) > 20).mean() > 0.01  # orbiting changes the view
            if keep := os.environ.get("VIEW_PICTURE"):
                page.screenshot(path=keep)
            assert errors == []
            browser.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 128 + signal.SIGTERM
    finally:
        server.kill()


def shot(page, folder: Path) -> np.ndarray:
    """The scene, without the notice to the left and the panel to the right."""
    page.screenshot(path=folder / "shot.png", clip={"x": 320, "y": 0, "width": 550, "height": 900})
    picture = cv2.imread(str(folder / "shot.png"))
    assert picture is not None
    return picture


def mesh_pixels(picture: np.ndarray) -> int:
    """Pixels of the mesh's colour, which is bluish; floor and background are grey."""
    blue, red = picture[..., 0].astype(int), picture[..., 2].astype(int)
    return int(((blue - red > 10) & (blue > 80)).sum())


def test_what_is_said_of_a_host_that_is_not_this_machines(template):
    for host, message in (
        ("203.0.113.7", "cannot serve on 203.0.113.7:.*; --host must be an address of this machine"),
        ("2001:db8::7", r"cannot serve on \[2001:db8::7\]:.*; --host must be an address of this machine"),
        ("ä..b", "this cannot be a host's name; --host must be"),
        ("", "the host has no name; write 0.0.0.0"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Viewer(template, host=host, port=free_port())
        assert "--port" not in str(error.value)


def test_the_page_is_served_by_ipv6(template):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            port = server.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with Viewer(template, host="::1", port=port) as viewer:
        assert viewer.address == f"http://[::1]:{port}"
        assert b"<html" in urllib.request.urlopen(viewer.address, timeout=10).read()[:2000]
