import pytest
import torch

from training.model import EncoderBlock
from training.model.encoder import Encoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = Encoder(10, EncoderBlock(hidden=24, layers=3, heads=4, ffn=48, output=5), max_tokens=16, dropout=0.1)
    torch.nn.init.normal_(encoder.positions)
    return encoder.eval()


def test_layer_equals_torch_reference_layer(encoder):
    """torch's own post-norm layer, given the same weights, is the independent truth."""
    ours = encoder.layers[0]
    theirs = torch.nn.TransformerEncoderLayer(
        24, 4, 48, activation="gelu", layer_norm_eps=1e-12, batch_first=True, norm_first=False
    ).eval()
    pairs = {
        "self_attn.in_proj_": ours.qkv,
        "self_attn.out_proj.": ours.attention_output,
        "linear1.": ours.ffn_input,
        "linear2.": ours.ffn_output,
        "norm1.": ours.attention_norm,
        "norm2.": ours.ffn_norm,
    }
    theirs.load_state_dict(
        {prefix + kind: getattr(layer, kind) for prefix, layer in pairs.items() for kind in ("weight", "bias")}
    )
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x)[0], theirs(x))


def test_attention_maps_are_probabilities_and_change_nothing(encoder):
    x = torch.randn(2, 7, 10)
    fused, none = encoder(x)
    explicit, maps = encoder(x, return_attention=True)
    assert none == [] and len(maps) == 3
    torch.testing.assert_close(explicit, fused, atol=1e-5, rtol=1e-5)
    for attention in maps:
        assert attention.shape == (2, 4, 7, 7)
        assert attention.min() >= 0
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 7))


def test_residual_is_linear_from_the_block_input(encoder):
    x = torch.randn(2, 7, 10)
    with_residual = encoder(x)[0]
    expected = encoder.residual(x)
    torch.nn.init.zeros_(encoder.residual.weight)
    torch.nn.init.zeros_(encoder.residual.bias)
    torch.testing.assert_close(with_residual - encoder(x)[0], expected)


def test_only_positions_tell_equal_tokens_apart(encoder):
    x = torch.randn(2, 1, 10).expand(2, 7, 10)
    assert encoder(x)[0].std(dim=1).max() > 1e-3
    torch.nn.init.zeros_(encoder.positions)
    assert encoder(x)[0].std(dim=1).max() < 1e-6


def test_dropout_acts_in_training_only(encoder):
    x = torch.randn(2, 7, 10)
    torch.testing.assert_close(encoder(x)[0], encoder(x)[0], rtol=0, atol=0)
    encoder.train()
    assert not torch.equal(encoder(x)[0], encoder(x)[0])
    assert not torch.equal(encoder(x, True)[0], encoder(x, True)[0])
