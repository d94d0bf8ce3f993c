import dataclasses

import numpy as np
import pytest
import torch

from metro_edge.errors import UserError
from training.model import EncoderBlock, Metro, preset

SMALL_BLOCKS = (EncoderBlock(hidden=16, layers=1, heads=2, ffn=16, output=3),)


@pytest.mark.parametrize("token_mode", ["grid", "global"])
@pytest.mark.parametrize("camera_from", ["vertices", "joints_vertices"])
def test_output_shapes(build_metro, tiny_config, images, token_mode, camera_from):
    config = dataclasses.replace(tiny_config, token_mode=token_mode, camera_from=camera_from)
    output = build_metro(config)(images)
    assert output.camera.shape == (3, 3)
    assert output.joints.shape == (3, 14, 3)
    assert [tuple(v.shape) for v in output.vertices] == [(3, 20, 3), (3, 40, 3), (3, 90, 3)]
    assert output.attention is None


@pytest.mark.parametrize("backbone", ["resnet18", "hrnet_w18_small", "tf_efficientnet_lite0"])
def test_backbones_of_every_family_train(build_metro, tiny_config, images, backbone):
    model = build_metro(dataclasses.replace(tiny_config, backbone=backbone, blocks=SMALL_BLOCKS)).train()
    output = model(images, model.sample_mask(3))
    (output.camera.sum() + output.joints.sum() + output.vertices[-1].sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_hrnet_w40_has_the_released_shapes():
    config = preset("metro_body_hrnet_w40")
    with torch.device("meta"):
        model = Metro(config, np.zeros((14, 3)), np.zeros((431, 3)))
        output = model(torch.zeros(2, 3, 224, 224))
    assert (model.backbone.channels, model.backbone.grid_hw) == (2048, (7, 7))
    assert model.token_mixer.weight.shape == (445, 49, 1)
    assert [tuple(v.shape) for v in output.vertices] == [(2, 431, 3), (2, 1723, 3), (2, 6890, 3)]
    assert model.backbone.model.stage4[0].branches[0][0].conv1.weight.shape[0] == 40


def test_untrained_network_predicts_the_template(tiny, images):
    output = tiny(images)
    for predicted, template in (
        (output.joints, tiny.template_joints),
        (output.vertices[0], tiny.template_vertices),
    ):
        assert (predicted - template).abs().max() < 0.15
        assert (predicted - template).abs().mean() < 0.04
    torch.testing.assert_close(output.camera, torch.tensor([[0.9, 0.0, 0.0]]).expand(3, 3), atol=0.08, rtol=0)


def test_evaluation_is_deterministic_and_per_sample(tiny, images):
    together = tiny(images)
    alone = tiny(images[1:2])
    torch.testing.assert_close(together.vertices[-1][1:2], alone.vertices[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.camera[1:2], alone.camera, atol=1e-5, rtol=1e-5)


def test_grid_tokens_see_positions_and_global_tokens_do_not(build_metro, tiny_config, images):
    for token_mode, equal in (("grid", False), ("global", True)):
        model = build_metro(dataclasses.replace(tiny_config, token_mode=token_mode))
        feature_map = model.backbone(images)
        same = torch.allclose(model._tokens(feature_map), model._tokens(feature_map.flip(3)), atol=1e-6)
        assert same is equal


def test_attention_maps_on_request(tiny, images):
    fused = tiny(images)
    output = tiny(images, return_attention=True)
    assert [tuple(a.shape) for a in output.attention] == [(3, 4, 34, 34)] * 2 + [(3, 2, 34, 34)]
    for attention in output.attention:
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    torch.testing.assert_close(output.camera, fused.camera, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.vertices[-1], fused.vertices[-1], atol=1e-5, rtol=1e-5)


class TestMaskedVertexModelling:
    def test_shares_are_uniform_and_independent(self, build_metro, tiny_config):
        config = dataclasses.replace(
            tiny_config, joint_set="freihand21", vertex_levels=(400, 500), upsampling=("dense",)
        )
        model = build_metro(config)
        mask = model.sample_mask(4000, torch.Generator().manual_seed(3))
        assert mask.shape == (4000, 421) and mask.dtype == torch.bool
        joints, vertices = mask[:, :21].float().mean(1), mask[:, 21:].float().mean(1)
        assert vertices.max() < 0.3 and joints.max() < 0.3
        assert abs(vertices.mean() - 0.15) < 0.005
        assert abs(vertices.std() - 0.3 / 12**0.5) < 0.005  # of a uniform distribution
        # floor(u * 0.3 * 21) is 0..6, all but the last equally often
        assert abs(joints.mean() * 21 - (0.3 * 21 - 1) / 2 - 0.05) < 0.15
        assert abs(np.corrcoef(joints, vertices)[0, 1]) < 0.05
        assert mask.float().mean(0)[21:].std() < 0.01  # every vertex is hidden equally often

    def test_a_seed_repeats_the_mask(self, tiny):
        first, again, other = (tiny.sample_mask(8, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_hidden_tokens_lose_every_feature(self, tiny, images):
        seen = []
        tiny.encoders[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        mask = torch.zeros(3, 34, dtype=torch.bool)
        mask[0, :2], mask[1, 20] = True, True
        tiny(images)
        tiny(images, mask)
        tiny(images, mask.float())
        plain, hidden, from_float = seen
        assert torch.all(hidden[mask] == 0.01) and hidden[mask].shape == (3, tiny.backbone.channels + 3)
        assert torch.equal(hidden[~mask], plain[~mask])
        assert torch.equal(hidden, from_float)

    def test_hiding_everything_leaves_no_trace_of_the_image(self, tiny, images):
        output = tiny(images, torch.ones(3, 34))
        torch.testing.assert_close(output.vertices[-1][0], output.vertices[-1][1])
        assert not torch.allclose(tiny(images).vertices[-1][0], tiny(images).vertices[-1][1], atol=1e-6)

    def test_fraction_zero_hides_nothing(self, build_metro, tiny_config):
        assert not build_metro(dataclasses.replace(tiny_config, mvm_fraction=0.0)).sample_mask(64).any()


class TestStateDict:
    def test_network_is_rebuilt_from_config_and_state_alone(self, tiny, images):
        config = type(tiny.config).from_dict(tiny.config.to_dict())
        again = Metro.from_state_dict(config, tiny.state_dict()).eval()
        assert torch.equal(again.template_joints, tiny.template_joints)
        torch.testing.assert_close(again(images).vertices[-1], tiny(images).vertices[-1], rtol=0, atol=0)

    def test_another_architecture_is_refused(self, tiny, tiny_config):
        with pytest.raises(UserError, match="do not fit the architecture 'tiny'"):
            Metro.from_state_dict(dataclasses.replace(tiny_config, camera_hidden=9), tiny.state_dict())
        state = tiny.state_dict()
        del state["template_joints"]
        with pytest.raises(UserError, match="template_joints"):
            Metro.from_state_dict(tiny_config, state)


def test_unfit_template_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"template_joints has shape \(17, 3\); tiny needs \(14, 3\)"):
        Metro(tiny_config, np.zeros((17, 3)), np.zeros((20, 3)))
    with pytest.raises(UserError, match=r"template_vertices has shape \(20, 2\)"):
        Metro(tiny_config, np.zeros((14, 3)), np.zeros((20, 2)))


def test_wrong_number_of_upsampling_matrices_is_refused(tiny_config):
    with pytest.raises(UserError, match="has 1 matrices; tiny has 2 steps"):
        Metro(tiny_config, np.zeros((14, 3)), np.zeros((20, 3)), [None])


def test_image_of_another_size_is_refused(tiny):
    with pytest.raises(UserError, match=r"images have shape \(1, 3, 96, 96\); tiny takes \(N, 3, 64, 64\)"):
        tiny(torch.zeros(1, 3, 96, 96))


def test_camera_image_lets_the_camera_see_the_image(tiny_config, build_metro):
    config = dataclasses.replace(tiny_config, camera_image=True)
    model = build_metro(config).eval()
    points = torch.randn(2, config.vertex_levels[0], 3)
    features = torch.randn(2, model.backbone.channels)
    before = model.camera_head(points, features)
    torch.testing.assert_close(model.camera_head(points, -features), before)  # starts without a say
    torch.nn.init.ones_(model.camera_head.image.weight)
    after = model.camera_head(points, features)
    torch.testing.assert_close(after, before + features.sum(1, keepdim=True))
