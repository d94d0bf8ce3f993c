"""Checkpoints: what goes in comes out, and nothing in one can run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from metro_edge.errors import UserError
from tests.released_files import SMALL_HAND, made_body, released_shapes, released_state
from training.bodies import body_template
from training.checkpoint import (
    Checkpoint,
    build_model,
    load_any,
    load_checkpoint,
    load_released_checkpoint,
    save_checkpoint,
)
from training.config import FitConfig
from training.model import Metro, state_dict_from_released


@pytest.fixture
def checkpoint(tiny_config: FitConfig) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(build_model(tiny_config).eval(), tiny_config, {"samples": 3})


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint)
    again = load_checkpoint(path)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected, got = checkpoint.model(images), again.model(images)
    torch.testing.assert_close(got.vertices[-1], expected.vertices[-1], rtol=0, atol=0)
    torch.testing.assert_close(got.camera, expected.camera, rtol=0, atol=0)
    assert again.config == checkpoint.config
    assert again.metrics == {"samples": 3}
    assert len(again.sha256) == 64
    assert not list(tmp_path.glob("*.partial"))


def test_half_sized_files_hold_rounded_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "full.pt", checkpoint)
    save_checkpoint(tmp_path / "half.pt", checkpoint, half=True)
    assert (tmp_path / "half.pt").stat().st_size < 0.65 * (tmp_path / "full.pt").stat().st_size
    again = load_checkpoint(tmp_path / "half.pt").model.state_dict()
    for name, value in checkpoint.model.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(again[name], expected), name


def test_another_architecture_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    content["config"]["model"]["camera_hidden"] = 7
    torch.save(content, path)
    with pytest.raises(UserError, match="camera_head"):
        load_checkpoint(path)


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint("missing.pt")
    Path("noise.pt").write_bytes(b"\x00\x01 not a checkpoint")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint("noise.pt")
    Path("bomb.pt").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint("bomb.pt")
    assert not Path("exploded").exists()
    torch.save([1, 2], "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint("list.pt")
    torch.save({"resnet.weight": torch.zeros(1)}, "other.pt")
    with pytest.raises(UserError, match=r"resnet\.weight"):
        load_checkpoint("other.pt")


def test_later_versions_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"version": 99}, path)
    with pytest.raises(UserError, match="version 99"):
        load_checkpoint(path)


def test_unwritable_place(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(tmp_path / "no" / "folder" / "a.pt", checkpoint)


class TestReleased:
    """Networks that METRO released, by a small one of their form."""

    @pytest.fixture
    def state(self) -> dict[str, torch.Tensor]:
        return released_state(released_shapes(SMALL_HAND))

    @pytest.fixture
    def file(self, state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
        torch.save(state, tmp_path / "metro_hand_state_dict.bin")
        return tmp_path / "metro_hand_state_dict.bin"

    def test_import(self, file: Path, state: dict[str, torch.Tensor]) -> None:
        body = made_body(SMALL_HAND)
        checkpoint, report = load_released_checkpoint(file, body, "mano.npz")
        config = checkpoint.config
        assert config.model == SMALL_HAND and config.body_path == "mano.npz"
        assert (config.spec.crop_rule, config.spec.box_scale, config.spec.image_size) == ("metro_eval", 1.2, 224)
        assert report is checkpoint.entries and report.missing == report.unexpected == ()
        assert len(report.used) + len(report.unused) == len(state) and len(report.unused) == 4
        assert checkpoint.template is body and len(checkpoint.sha256) == 64
        own = checkpoint.model.state_dict()
        expected = state_dict_from_released(state, SMALL_HAND)[0]
        assert all(torch.equal(own[name], value) for name, value in expected.items())
        torch.testing.assert_close(own["template_vertices"], torch.from_numpy(body.vertices[:195]))
        torch.testing.assert_close(own["template_joints"], torch.from_numpy(body.vertices[195:216]))

    def test_it_can_be_kept_as_one_of_ours(self, file: Path, tmp_path: Path) -> None:
        body = made_body(SMALL_HAND)
        body.save(tmp_path / "mano.npz")
        checkpoint = load_any(file, body_template("mano", tmp_path / "mano.npz"), str(tmp_path / "mano.npz"))
        save_checkpoint(tmp_path / "ours.pt", checkpoint)
        again = load_any(tmp_path / "ours.pt")
        assert again.config == checkpoint.config and again.entries is None
        images = torch.randn(1, 3, 224, 224)
        with torch.inference_mode():
            torch.testing.assert_close(again.model(images).vertices[-1], checkpoint.model(images).vertices[-1])
        moved = tmp_path / "elsewhere.npz"
        (tmp_path / "mano.npz").rename(moved)
        with pytest.raises(UserError, match=r"no body template at .*mano\.npz"):
            load_any(tmp_path / "ours.pt")
        assert load_any(tmp_path / "ours.pt", body_path=str(moved)).config.body_path == str(moved)

    def test_ours_are_told_by_their_content(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "metro_3dpw_state_dict.bin", checkpoint)
        again = load_any(tmp_path / "metro_3dpw_state_dict.bin", body_path="ignored for a built-in body")
        assert again.config == checkpoint.config and again.template.name == "anny"

    def test_templates_that_do_not_fit(self, file: Path) -> None:
        with pytest.raises(UserError, match=r"released network of 'mano', whose template it needs: mano=PATH"):
            load_any(file)
        with pytest.raises(
            UserError, match=r"network of 'mano' with mesh levels \(195, 778\); the body given is 'anny'"
        ):
            load_any(file, body_template("anny"))

    def test_files_that_do_not_fit(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        body, path = made_body(SMALL_HAND), tmp_path / "x.bin"
        torch.save({k: v for k, v in state.items() if k != "backbone.4.0.bn1.bias"}, path)
        with pytest.raises(UserError, match=r"x\.bin: .*1 missing \(backbone\.4\.0\.bn1\.bias\)"):
            load_any(path, body)
        torch.save(state | {"trans_encoder.0.graph_conv.weight": torch.ones(1)}, path)
        with pytest.raises(UserError, match=r"1 unexpected \(trans_encoder\.0\.graph_conv\.weight\)"):
            load_any(path, body)
        torch.save(state | {"cam_param_fc3.weight": torch.ones(4, 150)}, path)
        with pytest.raises(UserError, match=r"cam_param_fc3\.weight has shape \(4, 150\) where .* has \(3, 150\)"):
            load_any(path, body)
        torch.save({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}, path)
        with pytest.raises(UserError, match=r"a backbone alone goes into optim\.backbone_checkpoint"):
            load_any(path, body)

    def test_types_of_other_savers(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        torch.save({"model": {f"module.{n}": v.double() for n, v in state.items()}}, tmp_path / "x.bin")
        model = load_any(tmp_path / "x.bin", made_body(SMALL_HAND)).model
        assert isinstance(model, Metro) and model.camera_head.output.weight.dtype == torch.float32
