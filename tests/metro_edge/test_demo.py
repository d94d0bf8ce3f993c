from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from metro_edge import cli, demo
from metro_edge.demo import DemoAssets, evaluate, passport_table, results_table
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.preprocess import read_picture
from metro_edge.video.sinks import write_video
from metro_edge.video.sources import VideoFile

FRAMES = 8


@pytest.fixture
def assets(tmp_path, template, frame) -> Path:
    """A folder as the shipped one: the truth is the template, 10 mm apart in every vertex from its rest."""
    folder = tmp_path / "assets"
    folder.mkdir()
    cv2.imwrite(str(folder / "picture.jpg"), frame)
    write_video(folder / "clip.mp4", [np.roll(frame, 3 * i, axis=1) for i in range(FRAMES)], 25)
    vertices = np.repeat(np.rint(template.vertices * 16_000)[None], 3, axis=0).astype(np.int16)
    np.savez_compressed(
        folder / "truth.npz",
        boxes=np.tile([20.0, 5, 80, 110], (FRAMES, 1)),
        frame_ids=np.array([0, 3, 7]),
        vertices=vertices,
        picture_box=np.array([10.0, 5, 60, 110]),
    )
    return folder


def change_truth(folder: Path, **changes) -> None:
    with np.load(folder / "truth.npz") as file:
        truth = {name: file[name] for name in file.files} | changes
    np.savez(folder / "truth.npz", **{k: v for k, v in truth.items() if v is not None})


def test_assets(assets, template):
    loaded = DemoAssets.load(assets)
    assert len(loaded.clip) == FRAMES and loaded.boxes.shape == (FRAMES, 4) and loaded.fps == pytest.approx(25)
    np.testing.assert_allclose(loaded.vertices[2], template.vertices, atol=1 / 32_000 + 1e-7)
    np.testing.assert_array_equal(loaded.picture_box, [[10, 5, 60, 110]])
    change_truth(assets, picture_box=None)
    np.testing.assert_array_equal(DemoAssets.load(assets).picture_box, [[0, 0, 160, 120]])


def test_assets_that_do_not_fit(assets, tmp_path):
    good = (assets / "truth.npz").read_bytes()
    vertices = np.zeros((3, 162, 3), np.int16)
    for changes, message in (
        ({"boxes": np.ones((3, 4))}, r"boxes \(3, 4\) do not fit a clip of 8"),
        ({"boxes": None}, "lacks boxes"),
        ({"frame_ids": np.array([0, 1, 8])}, "outside the clip"),
        ({"frame_ids": np.array([0, 1])}, "do not fit 2 frame_ids"),
        ({"vertices": vertices.astype(np.float32)}, "float32 do not fit"),
        ({"picture_box": np.array([900.0, 0, 5, 5])}, "outside"),
    ):
        (assets / "truth.npz").write_bytes(good)
        change_truth(assets, **changes)
        with pytest.raises(UserError, match=message):
            DemoAssets.load(assets)
    (assets / "truth.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"truth.npz is not readable"):
        DemoAssets.load(assets)
    with pytest.raises(UserError, match="has no demonstration"):
        DemoAssets.load(tmp_path / "none")


def test_errors_on_the_clip_are_the_networks(assets, shared_bundle):
    """The tiny network sways the resting body with the colour, by millimetres that NumPy knows."""
    loaded = DemoAssets.load(assets)
    with MeshEstimator.from_bundle(shared_bundle) as estimator:
        result = evaluate(estimator, loaded, calls=5)
        bodies = [estimator(loaded.clip[i], loaded.boxes[i])[0] for i in (0, 3, 7)]
    np.testing.assert_array_equal(result.vertices, [body.vertices for body in bodies])
    distance = np.linalg.norm(result.vertices - loaded.vertices, axis=-1).mean() * 1000
    # The truth is not centred again here, so the two differ by the rounding of its root.
    assert result.means_mm["mpvpe"] == pytest.approx(distance, abs=0.1)
    assert 0 < result.means_mm["pa_mpjpe"] <= result.means_mm["mpjpe"]
    assert len(result.latency.samples_ms) == 5 and result.latency.p50_ms <= result.latency.p95_ms


def test_tables(assets, shared_bundle):
    loaded = DemoAssets.load(assets)
    results = []
    for precision in ("fp32", "int8"):
        with MeshEstimator.from_bundle(shared_bundle, precision) as estimator:
            results.append(evaluate(estimator, loaded, calls=2))
    lines = results_table(results).splitlines()
    assert lines[0].split("  ")[0].strip() == "precision" and lines[2].startswith("fp32")
    assert lines[2].split()[-2:] == ["-", "-"]
    lost = results[1].means_mm["mpvpe"] - results[0].means_mm["mpvpe"]
    assert lines[3].split()[-2] == f"{lost:+.2f}"
    passport = passport_table(shared_bundle).splitlines()
    assert [line.split()[0] for line in passport[2:4]] == ["fp32", "int8"]  # fp16 has no figures
    assert passport[3].split()[1:] == ["62.50", "42.00", "73.00", "1.25"]
    assert passport[4] == "2000 samples, made-up figures for tests"


def test_a_passport_without_figures_has_no_table(tmp_path, template, spec, onnx_files, passport):
    from metro_edge.bundle import write_bundle

    del passport["accuracy"]
    assert passport_table(write_bundle(tmp_path / "b", spec, template, onnx_files, passport)) is None


def test_the_command(assets, shared_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "LATENCY_LIMIT_S", 0.05)
    out = tmp_path / "out"
    arguments = ["demo", "--bundle", str(shared_bundle.path), "--assets", str(assets), "-o", str(out)]
    assert cli.main([*arguments, "--threads", "1"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "clip.overlay.mp4", "picture.json", "picture.overlay.png", "picture.person0.glb", "picture.person0.obj",
    ]  # fmt: skip
    assert VideoFile(out / "clip.overlay.mp4").size_wh == (320, 120)
    assert len(list(VideoFile(out / "clip.overlay.mp4"))) == FRAMES
    assert read_picture(out / "picture.overlay.png").shape == (120, 320, 3)
    text = capsys.readouterr().out
    for word in ("fp32", "fp16", "int8", "PA-MPJPE mm", "onnxruntime", "Python", "2000 samples"):
        assert word in text


def test_the_command_without_assets(shared_bundle, tmp_path, capsys):
    arguments = ["demo", "--bundle", str(shared_bundle.path), "--assets", str(tmp_path / "none")]
    assert cli.main([*arguments, "-o", str(tmp_path / "out")]) == 2
    assert "has no demonstration" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


SHIPPED = Path(demo.__file__).parent / "assets" / "demo"


@pytest.mark.skipif(not (SHIPPED / "truth.npz").exists(), reason="the demonstration is not made yet")
def test_the_shipped_assets():
    assets = DemoAssets.load()
    assert len(assets.clip) >= 24 and len(assets.frame_ids) >= 2
