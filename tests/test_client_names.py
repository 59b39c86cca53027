"""Names and calls of transformers' modules that client code uses: the same values, and the same outputs."""

from typing import Any

import pytest
import torch
from helpers import families

import twinlens

EMBEDDINGS = ("patch_size", "image_size", "num_patches", "num_positions", "embed_dim", "position_ids")
ATTENTION = ("embed_dim", "num_heads", "head_dim", "scale", "dropout", "is_causal")
MODEL = ("projection_dim", "text_embed_dim", "vision_embed_dim")


def assert_same_where_native(ours: Any, theirs: Any, *names: str) -> None:
    for name in names:
        if hasattr(theirs, name):
            found, expected = getattr(ours, name), getattr(theirs, name)
            assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected, name


@pytest.mark.parametrize("family", ["CLIP", "Siglip", pytest.param("Siglip2", marks=pytest.mark.thorough)])
class TestAsInTransformers:
    def test_names(self, family: str) -> None:
        ours, theirs = families.twins(family)
        assert_same_where_native(ours, theirs, *MODEL)
        for tower in ("vision_model", "text_model"):
            own, native = getattr(ours, tower), getattr(theirs, tower)
            assert_same_where_native(own, native, "eos_token_id")
            assert_same_where_native(own.embeddings, native.embeddings, *EMBEDDINGS)
            layer, native_layer = own.encoder.layers[0], native.encoder.layers[0]
            assert type(layer).__name__ == type(native_layer).__name__ == f"{family}EncoderLayer"
            assert_same_where_native(layer, native_layer, "embed_dim")
            assert_same_where_native(layer.self_attn, native_layer.self_attn, *ATTENTION)
        assert hasattr(ours, "projection_dim") == hasattr(theirs, "projection_dim") == (family == "CLIP")
        base = getattr(twinlens, f"{family}PreTrainedModel")
        for kind in ("Model", "VisionModel", "TextModel", "ForImageClassification"):
            assert issubclass(getattr(twinlens, f"{family}{kind}"), base)

    @torch.no_grad()
    def test_calls(self, family: str) -> None:
        ours, theirs = families.twins(family, attention="eager")
        x, mask = torch.randn(2, 5, families.VISION["hidden_size"]), torch.zeros(2, 1, 5, 5)
        mask[..., 3:] = torch.finfo(torch.float32).min

        def assert_same(call: Any) -> None:
            for tower in ("vision_model", "text_model"):
                found, expected = (call(getattr(model, tower).encoder) for model in (ours, theirs))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

        ids = families.token_ids(family)
        for given in (
            {"input_ids": ids},
            {"inputs_embeds": torch.randn(2, 12, x.shape[-1])},
        ):  # prompts that are learnt
            found, expected = (model.text_model.embeddings(**given) for model in (ours, theirs))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert_same(lambda encoder: encoder(inputs_embeds=x).last_hidden_state)
        assert_same(lambda encoder: encoder(x, mask)[0])
        assert_same(lambda encoder: encoder.layers[0](x, mask))
        assert_same(lambda encoder: encoder.layers[0].mlp(hidden_states=x))
        assert_same(lambda encoder: encoder.layers[0].self_attn(hidden_states=x, attention_mask=mask)[0])

    def test_modules_that_stay_together(self, family: str) -> None:
        """accelerate's default wrap looks for each of these names in the model, and fails for one that is not there."""
        from accelerate.utils.dataclasses import FullyShardedDataParallelPlugin

        for kind in ("Model", "VisionModel", "TextModel", "ForImageClassification"):
            model = families.model(family, kind)
            names = {type(module).__name__ for module in model.modules()}
            assert {*model._no_split_modules} <= names
            assert f"{family}EncoderLayer" in model._no_split_modules
            plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="transformer_based_wrap")
            plugin.set_auto_wrap_policy(model)
            wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
            assert {cls.__name__ for cls in wrapped} == {*model._no_split_modules}


def test_other_names_of_classes() -> None:
    for family in families.FAMILIES:
        assert getattr(twinlens, f"{family}ImageProcessorPil") is getattr(twinlens, f"{family}ImageProcessor")
    assert twinlens.Siglip2Tokenizer is twinlens.SiglipTokenizer


def test_an_end_of_text_that_is_set_is_used() -> None:
    model = families.model("CLIP", "TextModel")
    model.eos_token_id = 50
    ids = torch.full((1, 12), 7)
    ids[0, 4] = 50
    assert model.config.eos_token_id == 50
    outputs = model(ids)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 4])


def test_a_client_may_walk_the_layers() -> None:
    """As code does that takes some of a tower's layers: embeddings, norm, layer by layer with a mask by position."""
    ours, theirs = families.twins("CLIP", "VisionModel")
    images = families.pixels()

    def walk(tower: Any) -> torch.Tensor:
        x = tower.pre_layrnorm(tower.embeddings(images))
        for layer in tower.encoder.layers[:-1]:
            x = layer(x, None)
        return x

    with torch.no_grad():
        torch.testing.assert_close(walk(ours), walk(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["Siglip", pytest.param("Siglip2", marks=pytest.mark.thorough)])
@torch.no_grad()
def test_attention_of_the_pooling_head(family: str) -> None:
    ours, theirs = families.twins(family, "VisionModel")
    x, probe = torch.randn(2, 5, families.VISION["hidden_size"]), ours.head.probe.repeat(2, 1, 1)
    for head in (ours.head, theirs.head):
        assert head.probe.shape == (1, 1, families.VISION["hidden_size"])
    found, expected = (model.head.attention(probe, x, x)[0] for model in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="expected the same tensor as key and value"):
        ours.head.attention(probe, x, x.clone())


@pytest.mark.parametrize("family", families.SQUARE)
@torch.no_grad()
def test_a_tower_without_its_last_layer_and_its_head(family: str) -> None:
    """LLaVA-NeXT takes them out of SigLIP's tower, and reads the last hidden state."""
    pixels, found = families.pixels(), []
    for tower in families.twins(family, "VisionModel"):
        del tower.encoder.layers[-1:]
        tower.head = torch.nn.Identity()
        found.append(tower(pixels, output_hidden_states=True).to_tuple())
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
