"""Progress of nested phases, as one bar."""

from __future__ import annotations

from metro_edge.plans.log import Progress


def test_progress_counts_nested_phases() -> None:
    progress = Progress("test", show=False)
    shown = []
    progress.bar.update = shown.append
    progress.phase_start("build", None, 2)
    progress.phase_start("optimise", "build", 4)
    assert progress.step_complete("optimise", 0)
    progress.phase_finish("optimise")
    progress.step_complete("build", 0)
    progress.step_complete("never started", 0)
    progress.phase_finish("build")
    assert shown == [12, 50, 50, 100]
