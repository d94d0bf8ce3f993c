"""Options of a build: what is usable, and what of it changes a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from metro_edge.backends.gpu import Gpu
from metro_edge.devices import device
from metro_edge.errors import UserError
from metro_edge.plans import BatchProfile, BuildOptions, targets
from metro_edge.plans.options import parse_profile
from metro_edge.plans.targets import capabilities_of, for_device
from metro_edge.plans.versions import features_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", BatchProfile(1, 1, 1)), ("1,4,16", BatchProfile(1, 4, 16)), (" 2,2,2", BatchProfile(2, 2, 2))],
)
def test_profiles(text: str, expected: BatchProfile) -> None:
    assert parse_profile(text) == expected
    assert parse_profile(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "one", "1,8", "1,2,3,4", "-1", "1.5", "9" * 30])
def test_not_a_profile(text: str) -> None:
    with pytest.raises(UserError, match="is neither one number nor three"):
        parse_profile(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profiles": ()}, "at least one range of batches"),
        ({"profiles": (BatchProfile(1, 9, 8),)}, "batches 1,9,8: 1 <= smallest <= best <= largest"),
        ({"profiles": (BatchProfile(0, 0, 0),)}, "1 <= smallest"),
        ({"profiles": (BatchProfile(1, 1, 2),) * 2}, "the same batches twice: 1,1,2 1,1,2"),
        ({"profiles": (BatchProfile(1, 1, 10**6),)}, "largest <= 65536 was expected"),
        ({"workspace_mb": 0}, "workspace of 0 MB: a number from 1 to 1048576"),
        ({"workspace_mb": 10**15}, "workspace of 1000000000000000 MB"),  # more bytes than the library's 64 bits
        ({"level": 6}, "optimisation level 6: 0 "),
        ({"level": -1}, "optimisation level -1"),
        ({"compatibility": "all"}, "unknown compatibility 'all'; known: none, same-capability, ampere"),
        ({"dla": -1}, "DLA core -1: 0 or more"),
        ({"dla": 0}, "a DLA runs one batch alone"),
    ],
)
def test_unusable_options(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        BuildOptions(**settings)


def test_settings_are_what_changes_a_plan() -> None:
    assert BuildOptions(timing_cache=Path("a"), capabilities=("8.6",)).settings() == {}
    options = BuildOptions(workspace_mb=1, level=0, strip_weights=True, compatibility="ampere+")
    expected = {"compatibility": "ampere+", "level": 0, "strip_weights": True, "workspace_mb": 1}
    assert options.settings() == expected and list(options.settings()) == sorted(expected)


def test_capabilities_of_names() -> None:
    assert capabilities_of(["sm86,rtx-4090", "8.9"]) == ("8.6", "8.9")
    with pytest.raises(UserError, match="no GPU is named"):
        capabilities_of([" ,"])
    with pytest.raises(UserError, match="'gtx-1' is neither a compute capability"):
        capabilities_of(["sm86,gtx-1"])


class TestForDevice:
    @pytest.fixture
    def library(self, monkeypatch: pytest.MonkeyPatch):
        def use(name: str, version: str, gpu: Gpu | None = None) -> None:
            monkeypatch.setattr(targets, "load_library", lambda library: None)
            monkeypatch.setattr(targets, "features", lambda _: features_of(name, version))
            monkeypatch.setattr(targets, "first_gpu", lambda: gpu)

        return use

    def test_ahead_of_time(self, library) -> None:
        library("tensorrt_rtx", "1.7")
        assert for_device(BuildOptions(level=1), device("rtx-4090"), "auto") == BuildOptions(
            level=1, capabilities=("8.9",)
        )

    def test_on_the_device(self, library) -> None:
        library("tensorrt", "10.3", Gpu("Orin", "8.7"))
        assert for_device(BuildOptions(), device("orin-nano"), "auto") == BuildOptions()

    @pytest.mark.parametrize(
        ("gpu", "here"), [(None, "this machine has none"), (Gpu("NVIDIA L4", "8.9"), r"has NVIDIA L4 \(8\.9\)")]
    )
    def test_elsewhere(self, library, gpu: Gpu | None, here: str) -> None:
        library("tensorrt", "10.3", gpu)
        with pytest.raises(UserError, match=rf"a plan for Jetson Orin Nano 8 GB \(8\.7\) is built on it, and .*{here}"):
            for_device(BuildOptions(), device("orin-nano"), "auto")

    def test_both_ways(self) -> None:
        with pytest.raises(UserError, match="by its device or by compute capabilities, not both"):
            for_device(BuildOptions(capabilities=("8.6",)), device("l4"), "auto")
