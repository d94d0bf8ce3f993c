from __future__ import annotations

import warnings

import numpy as np
import pytest

from benchmarks.mot import MotScore, clear_mot
from metro_edge.video.people import overlap


def test_counts_of_a_made_clip():
    box, far = [0, 0, 10, 20], [50, 0, 10, 20]
    truth = [([1, 2], [box, far])] * 4
    found = [
        ([7, 8], [box, far]),
        ([7], [box]),  # 2 is missed
        ([9, 8, 5], [box, far, [90, 0, 10, 10]]),  # 1 is called 9, and 5 is nobody
        ([9, 8], [box, far]),
    ]
    score = clear_mot(truth, found)
    assert score == MotScore(boxes=8, missed=1, extra=1, switches=1) and score.mota == pytest.approx(1 - 3 / 8)
    assert score + score == MotScore(16, 2, 2, 2)
    assert clear_mot([([], np.zeros((0, 4)))], [([], np.zeros((0, 4)))]).mota == 1


def test_it_agrees_with_motmetrics():
    """The library that the MOT Challenge's users know, over random clips."""
    motmetrics = pytest.importorskip("motmetrics")
    rng = np.random.default_rng(4)
    for _ in range(5):
        truth, found = [], []
        accumulator = motmetrics.MOTAccumulator(auto_id=True)
        names = {1: 11, 2: 12, 3: 13}
        for frame in range(40):
            ids = [k for k in (1, 2, 3) if rng.random() > 0.2]
            boxes = np.array([(40 * k + frame, 10, 20, 40) for k in ids], float).reshape(-1, 4)
            kept = rng.random(len(ids)) > 0.15
            if rng.random() < 0.1:
                names[1], names[2] = names[2], names[1]
            given = [names[k] for k, keep in zip(ids, kept, strict=True) if keep]
            guesses = boxes[kept] + rng.normal(0, 2, (int(kept.sum()), 4))
            truth.append((ids, boxes))
            found.append((given, guesses))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                apart = 1.0 - overlap(boxes, guesses)
                accumulator.update(ids, given, np.where(apart <= 0.5, apart, np.nan))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metrics = ["mota", "num_misses", "num_false_positives", "num_switches"]
            row = motmetrics.metrics.create().compute(accumulator, metrics=metrics).iloc[0]
        score = clear_mot(truth, found)
        assert (score.missed, score.extra) == (row.num_misses, row.num_false_positives)
        assert score.switches == row.num_switches and score.mota == pytest.approx(row.mota)
