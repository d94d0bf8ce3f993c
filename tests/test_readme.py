"""The README's three lines do what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from metro_edge.demo import DemoAssets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_three_lines_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    picture = Path(__file__).parent.parent / "metro_edge" / "assets" / "demo" / "picture.jpg"
    (tmp_path / "picture.jpg").write_bytes(picture.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block.group(1), names)
    (body,) = names["bodies"]
    assert body.joints.shape == (14, 3)
    assert body.vertices.shape == (13718, 3)
    height, width = DemoAssets.load().picture.shape[:2]
    assert (body.joints_px > -0.5 * height).all() and (body.joints_px < 1.5 * width).all()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target
    for command in re.findall(r"(?<![\w/])(?:training|benchmarks)/[\w/]+\.(?:yaml|py)", text):
        assert (ROOT / command).exists(), command


def test_the_table_has_been_filled_in() -> None:
    table = README.split("<!-- table:begin -->")[1].split("<!-- table:end -->")[0]
    for word in ("fp32", "fp16", "int8", "MPJPE", "p95"):
        assert word in table
