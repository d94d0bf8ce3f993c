"""The page in a real headless Chromium, opened from disk without a network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.html.report import write_html
from tests.benchmarks.conftest import made_report
from tests.benchmarks.html.pages import kept, made_energy, saved
from tests.metro_edge.video.test_viewer import CHROMIUM, FLAGS

KEPT = ("stages", "load", "kernels", "roofline", "against")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of every kind, with a hostile name and a picture."""
    folder = tmp_path_factory.mktemp("report")
    run = made_report()
    run["bundle"]["name"] = "<script>document.title = 'run'</script>"
    picture = np.zeros((60, 400, 3), np.uint8)
    picture[:, ::8] = 255
    assert cv2.imwrite(str(folder / "worst.png"), picture)
    run["precisions"]["int8"]["worst"]["picture"] = "worst.png"
    made = [saved(folder, "run", run), saved(folder, "energy", made_energy())]
    write_html([*made, *(kept(kind) for kind in KEPT)], folder / "report.html")
    return folder / "report.html"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_the_page_in_chromium(report: Path, tmp_path: Path, width: int, scheme: str) -> None:
    """Every plot is drawn, nothing is loaded or complained about; REPORT_PICTURES names a folder for the pictures."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        page = context.new_page()
        trouble: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert trouble == [] and page.title() == "metro-edge benchmarks"
        assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables and plots scroll by themselves
        background = cv2.imread(str(tmp_path / "page.png"))[5, 5]
        assert (background > 240).all() if scheme == "light" else (background < 40).all()
        plots = page.locator("figure.plot svg")
        assert plots.count() >= 7
        for index in range(plots.count()):
            plots.nth(index).screenshot(path=tmp_path / f"plot{index}.png")
            check_drawn(tmp_path / f"plot{index}.png", background)
        assert page.evaluate("document.querySelector('.picture img').naturalWidth") == 400
        page.locator("nav a").last.click()
        assert page.evaluate("window.scrollY") > 1000
        if folder := os.environ.get("REPORT_PICTURES"):
            for path in tmp_path.glob("*.png"):
                shutil.copy(path, Path(folder) / f"{width}-{scheme}-{path.name}")
        browser.close()


def check_drawn(path: Path, background: np.ndarray) -> None:
    """A plot has text that stands out from the page and colours of its own."""
    picture = cv2.imread(str(path)).astype(int)
    assert picture.std() > 8 and picture.shape[0] > 80
    far = np.abs(picture - background).max(axis=2)
    assert (far > 120).mean() > 0.002  # ink
    coloured = np.ptp(picture, axis=2) > 60
    assert coloured.mean() > 0.0005
    assert len(np.unique(picture[coloured] // 48, axis=0)) >= 2
