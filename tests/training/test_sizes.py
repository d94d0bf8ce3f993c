"""The size table's parts; the whole table takes minutes."""

from __future__ import annotations

import pytest

from training import sizes
from training.__main__ import main


def test_variants_change_one_size_at_a_time() -> None:
    names = dict(sizes.variants())
    preset = names.pop("preset")
    assert len(names) >= 6
    for name, config in names.items():
        changed = [key for key, value in vars(config).items() if value != getattr(preset, key)]
        assert len(changed) == 1, (name, changed)


def test_more_coarse_vertices_rebuild_the_mesh_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "POPULATION", 64)
    assert sizes.coarse_floor_mm(256) < sizes.coarse_floor_mm(96) < 12


@pytest.mark.parametrize("runs", [0, 7])
def test_too_few_runs(runs: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sizes", "--runs", str(runs)]) == 2
    assert f"--runs must be at least 8, got {runs}" in capsys.readouterr().err


@pytest.mark.slow
def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "POPULATION", 48)
    monkeypatch.setattr(sizes, "COARSE_COUNTS", (146,))
    monkeypatch.setattr(sizes, "IMAGE_SIZES", (128, 160))
    monkeypatch.setattr(sizes, "WIDTHS", {})
    lines = sizes.size_table(runs=8).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| preset", "| 128 px"]
    assert all(float(cell) > 0 for line in lines[2:] for cell in line.strip("| ").split(" | ")[1:])
