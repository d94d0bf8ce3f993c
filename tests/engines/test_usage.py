"""Time and peak memory of stages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.usage import Usage
from metro_edge.machine import peak_memory_mb

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are forgotten on Linux alone")


def gigabytes(text: str) -> float:
    found = re.fullmatch(r"\d+ s, peak memory ([\d.]+) GB", text)
    assert found, text
    return float(found[1])


@linux
def test_each_stage_has_its_own_peak_and_the_whole_the_highest():
    usage = Usage()
    before = peak_memory_mb()
    values = np.ones(100_000_000)  # 800 MB
    del values
    large = gigabytes(usage.stage())
    small = gigabytes(usage.stage())
    assert large == pytest.approx(before / 1000 + 0.8, abs=0.15)
    assert small < large - 0.5
    assert gigabytes(str(usage)) == large == round(usage.peak_mb / 1000, 1)


@linux
def test_a_process_does_not_count_what_the_one_that_started_it_held():
    values = np.ones(120_000_000)  # 960 MB
    code = "from metro_edge.machine import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert values.nbytes / 1e6 > 900 and 5 < float(done.stdout) < 300
