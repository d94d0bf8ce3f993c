"""Nothing grows with the length of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from metro_edge.estimator import MeshEstimator
from metro_edge.video.drawing import Style
from metro_edge.video.people import FixedPeople
from metro_edge.video.recording import open_sinks, record
from metro_edge.video.smoother import BodySmoother
from metro_edge.video.sources import Source, SourceFrame, VideoFile
from metro_edge.video.stream import Stream
from tests.metro_edge.video.clips import write_clip

FRAMES = 1200


class Looped(Source):
    def __init__(self, video: VideoFile) -> None:
        self.video, self.fps, self.notes, self.name, self.stem = video, video.fps, [], "looped", "looped"

    def __iter__(self) -> Iterator[SourceFrame]:
        for index in range(0, FRAMES, 60):
            for frame in self.video:
                number = index + frame.index
                yield dataclasses.replace(frame, index=number, time_s=number / self.fps)


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_stays_flat_and_no_frame_of_a_file_is_lost(shared_bundle, tmp_path):
    video = VideoFile(write_clip(tmp_path / "a.mp4", 60))
    resident: list[int] = []

    def watched(results, _):
        for number, result in enumerate(results):
            if number % 100 == 0:
                resident.append(resident_bytes())
            yield result

    estimator = MeshEstimator.from_bundle(shared_bundle, threads=1)
    people = FixedPeople([[0, 0, 40, 48], [20, 0, 40, 48]])
    with Stream(Looped(video), estimator, people, BodySmoother()) as stream:
        kinds = ("jsonl", "overlay", "npz", "mesh-npz", "glb", "bvh")
        done = record(stream, open_sinks(kinds, tmp_path, stream, Style()), watched)
    assert done.frames == FRAMES and stream.dropped == 0
    growth = max(resident[5:]) - resident[4]
    assert growth < 6 << 20, [value >> 10 for value in resident]
    assert (tmp_path / "looped.mesh.npz").stat().st_size > 3 << 20  # what was written is much
