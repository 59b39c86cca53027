"""Dense features: hidden states as maps, patches in the common space, similarity maps, and other resolutions."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import transformers
from helpers.families import IDS, SQUARE, TEXT, VISION, model, pixels, twins
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import twinlens
from twinlens.inference import encode_image_and_patches, encode_patches, similarity_map
from twinlens.toy_world import KINDS, describe_kind, draw_scene, render

GRID = VISION["image_size"] // VISION["patch_size"]


def bundled(family: str) -> tuple[twinlens.DualEncoderModel, twinlens.DualEncoderProcessor]:
    name = f"{family.lower()}-shapes"
    loaded = twinlens.DualEncoderModel.from_pretrained(name).eval()
    return loaded, twinlens.DualEncoderProcessor.from_pretrained(name)


class TestForwardFeatures:
    @pytest.mark.parametrize("family", SQUARE)
    @torch.inference_mode()
    def test_they_are_the_hidden_states_of_transformers(self, family: str) -> None:
        ours, theirs = twins(family, "VisionModel", "eager")
        images = torch.randn(2, 3, 40, 24)
        expected = theirs(images, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        layers = (-2, 0, 2, -3)
        maps = ours.forward_features(images, layers, interpolate_pos_encoding=True)
        flat = ours.forward_features(images, layers, as_map=False, interpolate_pos_encoding=True)
        normed = ours.forward_features(images, layers, norm=True, as_map=False, interpolate_pos_encoding=True)
        assert len(maps) == len(flat) == len(normed) == len(layers)
        for layer, as_map, tokens, norm in zip(layers, maps, flat, normed, strict=True):
            patches = expected[layer][:, ours.config.num_class_tokens :]
            assert torch.equal(tokens, patches)
            assert as_map.shape == (2, VISION["hidden_size"], 5, 3)
            assert torch.equal(as_map[:, :, 4, 1], patches[:, 4 * 3 + 1])
            assert torch.equal(norm, theirs.post_layernorm(patches))

    @pytest.mark.parametrize("family", SQUARE)
    def test_layers_behind_the_last_one_are_not_run(self, family: str) -> None:
        tower = model(family).vision_model
        expected = tower.forward_features(images := pixels())[0]
        calls: list[nn.Module] = []
        for layer in tower.encoder.layers:
            layer.register_forward_hook(lambda layer, *_: calls.append(layer))
        assert torch.equal(tower.forward_features(images)[0], expected)
        assert calls == [*tower.encoder.layers][:-1]

    def test_layers_that_do_not_exist_are_refused(self) -> None:
        wrong: tuple[Any, ...] = ((3,), (0, -4), (), -2, (-2.0,), "a", None)
        for layers in wrong:
            with pytest.raises(ValueError, match="indices from -3 to 2"):
                model("CLIP").forward_features(pixels(), layers=layers)


class TestEncodePatches:
    @torch.inference_mode()
    def test_siglip_is_the_value_path_of_its_head(self) -> None:
        """The head's output before its MLP is the sum of the values of patches, weighted by its attention."""
        ours, theirs = twins("Siglip")
        images = pixels()
        tower = theirs.vision_model
        head, attention = tower.head, tower.head.attention
        tokens = tower(images).last_hidden_state
        _, weights = attention(head.probe.expand(2, -1, -1), tokens, tokens, average_attn_weights=False)
        width, heads = VISION["hidden_size"], VISION["num_attention_heads"]
        values = torch.nn.functional.linear(
            tokens, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
        )

        def rest_of_head(values: torch.Tensor) -> torch.Tensor:
            pooled = attention.out_proj(values)
            return pooled + head.mlp(head.layernorm(pooled))

        expected = torch.nn.functional.normalize(rest_of_head(values), dim=-1).view(2, GRID, GRID, width)
        torch.testing.assert_close(encode_patches(ours, {"pixel_values": images}), expected, rtol=0, atol=2e-6)
        by_head = values.unflatten(-1, (heads, -1))  # (batch, patches, heads, head_dim)
        pooled = torch.einsum("bhqp,bphd->bqhd", weights, by_head).flatten(2)
        image_embeds = torch.nn.functional.normalize(rest_of_head(pooled)[:, 0], dim=-1)
        torch.testing.assert_close(ours.encode_image(images), image_embeds, rtol=0, atol=2e-6)

    @torch.inference_mode()
    def test_clip_is_the_final_norm_and_projection(self) -> None:
        ours, theirs = twins("CLIP")
        images = pixels()
        tokens = theirs.vision_model(images).last_hidden_state
        expected = theirs.visual_projection(theirs.vision_model.post_layernorm(tokens))
        expected = torch.nn.functional.normalize(expected, dim=-1)
        patches = encode_patches(ours, {"pixel_values": images})
        torch.testing.assert_close(patches, expected[:, 1:].view(2, GRID, GRID, -1), rtol=0, atol=2e-6)
        torch.testing.assert_close(ours.encode_image(images), expected[:, 0], rtol=0, atol=2e-6)

    @pytest.mark.parametrize("family", SQUARE)
    @torch.inference_mode()
    def test_of_other_sizes_and_of_low_precision(self, family: str) -> None:
        instance = model(family)
        wide = encode_patches(
            instance, {"pixel_values": torch.randn(1, 3, 17, 41), "interpolate_pos_encoding": True, "input_ids": None}
        )
        assert wide.shape[:3] == (1, 2, 5)
        half = encode_patches(instance.bfloat16(), {"pixel_values": pixels()})
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.norm(dim=-1), torch.ones(2, GRID, GRID))


class TestSimilarityMap:
    @pytest.mark.parametrize("family", SQUARE)
    def test_shows_where_a_thing_is(self, family: str) -> None:
        """The most similar patch lies nearer to the thing in the text than to the other one, in drawings of two."""
        loaded, processor = bundled(family)
        random = Random(1)
        scenes = [draw_scene(random, random.sample(KINDS, 2), "pair") for _ in range(25)]
        inputs = processor(images=[render(scene) for scene in scenes])
        image_embeds, patches = encode_image_and_patches(loaded, inputs)
        torch.testing.assert_close(image_embeds, loaded.encode_image(**inputs), rtol=0, atol=1e-6)
        right = 0
        for scene, vectors in zip(scenes, patches, strict=True):
            texts = loaded.encode_text(**processor(text=[describe_kind(thing.kind) for thing in scene.things]))
            for thing, other, text in zip(scene.things, reversed(scene.things), texts, strict=True):
                row, column = divmod(int((vectors @ text).argmax()), vectors.shape[1])
                y, x = (row + 0.5) / vectors.shape[0], (column + 0.5) / vectors.shape[1]
                distances = [(x - it.x) ** 2 + (y - it.y) ** 2 for it in (thing, other)]
                right += distances[0] < distances[1]
        assert right >= 0.85 * 2 * len(scenes)  # 0.93 for both of 400 other scenes; a wrong map has about 0.5

    def test_is_the_cosine_with_each_text(self) -> None:
        loaded, processor = bundled("CLIP")
        image, texts = render(draw_scene(Random(2))), ["a red star", "a blue ring"]
        maps = similarity_map(loaded, processor, image, texts)
        _, patches = encode_image_and_patches(loaded, processor(images=image))
        expected = patches[0] @ loaded.encode_text(**processor(text=texts)).T
        torch.testing.assert_close(maps, expected.permute(2, 0, 1).detach(), rtol=0, atol=1e-6)


class TestFlexibleSizes:
    """SigLIP 2 NaFlex, whose images have grids of their own, and padding."""

    @pytest.fixture
    def naflex(self) -> twinlens.Siglip2Model:
        vision = {**VISION, "num_patches": 16}
        del vision["image_size"]
        config = twinlens.Siglip2Config(text_config={**TEXT, **IDS["Siglip"]}, vision_config=vision)
        return twinlens.Siglip2Model(config).eval()

    @staticmethod
    def inputs(*sizes: tuple[int, int]) -> dict[str, torch.Tensor]:
        images = [Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)) for size in sizes]
        return dict(twinlens.Siglip2ImageProcessor(patch_size=8, max_num_patches=30)(images))

    @torch.inference_mode()
    def test_features_are_those_of_transformers(self, naflex: twinlens.Siglip2Model) -> None:
        inputs = self.inputs((24, 64), (24, 64))  # 3x8 patches, and six of padding
        tower = naflex.vision_model
        theirs = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**tower.config.to_dict())).eval()
        theirs.load_state_dict(tower.state_dict())
        expected = theirs(**inputs, output_hidden_states=True).hidden_states
        for index, features in zip((0, -2), naflex.forward_features(**inputs, layers=(0, -2)), strict=True):
            assert features.shape == (2, VISION["hidden_size"], 3, 8)
            patches = expected[index][:, :24].mT.unflatten(2, (3, 8))
            torch.testing.assert_close(features, patches, rtol=0, atol=2e-6)

    @torch.inference_mode()
    def test_padding_changes_nothing(self, naflex: twinlens.Siglip2Model) -> None:
        padded = self.inputs((24, 64))
        whole = {"pixel_values": padded["pixel_values"][:, :24], "spatial_shapes": padded["spatial_shapes"]}
        torch.testing.assert_close(encode_patches(naflex, padded), encode_patches(naflex, whole), rtol=0, atol=2e-6)
        for found, expected in zip(*(encode_image_and_patches(naflex, it) for it in (padded, whole)), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)

    def test_images_of_different_grids_have_no_common_map(self, naflex: twinlens.Siglip2Model) -> None:
        inputs = self.inputs((24, 64), (64, 24))
        with pytest.raises(ValueError, match=re.escape("got [(3, 8), (8, 3)]")):
            naflex.forward_features(**inputs)
        assert naflex.forward_features(**inputs, as_map=False)[0].shape == (2, 30, VISION["hidden_size"])
        with pytest.raises(ValueError, match="images of any size: it has no resolution"):
            naflex.resize_positions(64)


class TestResNet:
    @pytest.fixture
    def resnet(self) -> twinlens.CLIPResNetModel:
        vision = {"hidden_size": 128, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
        text = {**TEXT, **IDS["CLIP"], "projection_dim": 24}
        return twinlens.CLIPResNetModel(
            twinlens.CLIPResNetConfig(
                text_config=text, vision_config={**vision, "projection_dim": 24}, projection_dim=24
            )
        ).eval()

    @pytest.mark.parametrize("size", [(64, 64), (95, 130), (63, 100)])
    @torch.inference_mode()
    def test_features_are_the_maps_of_its_stages(self, resnet: twinlens.CLIPResNetModel, size: tuple[int, int]) -> None:
        images = torch.randn(2, 3, *size)
        features = resnet.forward_features(images, layers=range(5), interpolate_pos_encoding=True)
        x = images
        tower = resnet.vision_model
        for stage, found in zip((tower.embeddings, *tower.layers), features, strict=True):
            x, _ = stage(x)
            assert torch.equal(found, x)

    @torch.inference_mode()
    def test_patches_take_the_value_path_of_its_pooling(self, resnet: twinlens.CLIPResNetModel) -> None:
        images, head = torch.randn(2, 3, 64, 64), resnet.vision_model.head
        (tokens,) = resnet.forward_features(images, layers=(-1,), as_map=False)
        expected = torch.nn.functional.normalize(head.out_proj(head.v_proj(tokens)), dim=-1).view(2, 2, 2, 24)
        _, patches = encode_image_and_patches(resnet, {"pixel_values": images})
        for found in (patches, encode_patches(resnet, {"pixel_values": images})):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    @torch.inference_mode()
    def test_another_resolution(self, resnet: twinlens.CLIPResNetModel) -> None:
        images = torch.randn(2, 3, 96, 96)
        expected = resnet.encode_image(images, interpolate_pos_encoding=True)
        found = resnet.resize_positions(96, "transformers").encode_image(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert resnet.config.vision_config.grid_size == 3


class TestWithoutPoolingHead:
    """`vision_use_head=False`, as in vision-language models."""

    def test_loads_a_whole_checkpoint_in_silence(self, tmp_path: Path) -> None:
        whole = model("Siglip")
        whole.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
        whole.vision_model.save_pretrained(tmp_path / "tower")
        both = twinlens.SiglipConfig.from_pretrained(tmp_path / "sharded")
        both.vision_config.vision_use_head = False
        for source, official in ((tmp_path / "sharded", False), (tmp_path / "tower", False), ("siglip-shapes", True)):
            tower, info = twinlens.SiglipVisionModel.from_pretrained(
                source, vision_use_head=False, dtype=torch.bfloat16, output_loading_info=True
            )
            assert not any(info.values())
            assert tower.dtype == torch.bfloat16
            assert not any(name.startswith("head.") for name in tower.state_dict())
            if not official:
                features = tower.float()(images := pixels()).last_hidden_state
                expected = whole.bfloat16().float().vision_model(images).last_hidden_state
                assert torch.equal(features, expected)
        _, info = twinlens.SiglipModel.from_pretrained(tmp_path / "sharded", config=both, output_loading_info=True)
        assert not any(info.values())

    def test_comes_back_without_its_head_and_reports_one_that_is_missing(self, tmp_path: Path) -> None:
        settings = twinlens.SiglipVisionConfig(**VISION, vision_use_head=False)
        twinlens.SiglipVisionModel(settings).save_pretrained(tmp_path)
        for library in (twinlens, transformers):
            _, info = library.SiglipVisionModel.from_pretrained(tmp_path, output_loading_info=True)
            assert not any(info.values())
        _, info = twinlens.SiglipVisionModel.from_pretrained(tmp_path, vision_use_head=True, output_loading_info=True)
        assert "head.probe" in info["missing_keys"]

    def test_embeds_nothing_and_says_why(self) -> None:
        both = twinlens.SiglipConfig(
            text_config=TEXT | IDS["Siglip"], vision_config=VISION | {"vision_use_head": False}
        )
        headless = twinlens.SiglipModel(both)
        assert headless.forward_features(pixels())[0].shape == (2, VISION["hidden_size"], GRID, GRID)
        for encode in (headless.encode_image, lambda images: encode_patches(headless, {"pixel_values": images})):
            with pytest.raises(ValueError, match="vision_use_head=False"):
                encode(pixels())


def zoom_weights(old: int, new: int) -> NDArray[np.float64]:
    """Weights (new, old) of scipy.ndimage.zoom(order=1), whose first and last samples lie on the old ones."""
    return scipy.ndimage.zoom(np.eye(old), (new / old, 1), order=1)


def cubic_weights(old: int, new: int, antialias: bool) -> NDArray[np.float64]:
    """Weights (new, old) of cubic convolution with pixel centres at halves.

    With antialias as in Pillow and torch: a = -0.5, the filter as wide as a new pixel, cut off at the border. Without
    it as in torch and OpenCV: a = -0.75, four values, of which those beyond the border are those on it.
    """
    scale, a = old / new, -0.5 if antialias else -0.75
    width = max(scale, 1.0) if antialias else 1.0
    weights = np.zeros((new, old))
    for place in range(new):
        center = (place + 0.5) * scale
        for other in (
            range(old) if antialias else range(int(np.floor(center - 0.5)) - 1, int(np.floor(center - 0.5)) + 3)
        ):
            x = abs(other + 0.5 - center) / width
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[place, min(max(other, 0), old - 1)] += near if x <= 1 else far if x < 2 else 0
    return weights / weights.sum(axis=1, keepdims=True)


RESAMPLINGS: dict[str, Callable[[int, int], NDArray[np.float64]]] = {
    "big_vision": zoom_weights,
    "open_clip": partial(cubic_weights, antialias=True),
    "transformers": partial(cubic_weights, antialias=False),
}
OFFICIAL = {"CLIP": "open_clip", "Siglip": "big_vision"}


class TestResizePositions:
    @pytest.mark.parametrize("side", [7, 3, 1])
    @pytest.mark.parametrize("method", [*RESAMPLINGS, None])
    @pytest.mark.parametrize("family", SQUARE)
    def test_values_are_those_of_the_formulas(self, family: str, method: str | None, side: int) -> None:
        instance = model(family)
        embedding = instance.vision_model.embeddings.position_embedding
        old = embedding.weight.detach().clone()
        size = side * VISION["patch_size"] + 5  # pixels that fill no patch are dropped
        assert instance.resize_positions(size, method) is instance
        assert instance.config.vision_config.image_size == instance.vision_model.config.image_size == size
        classes = instance.config.vision_config.num_class_tokens
        weights = RESAMPLINGS[method or OFFICIAL[family]](GRID, side)
        grid = old[classes:].double().numpy().reshape(GRID, GRID, -1)
        expected = np.einsum("ia,jb,abw->ijw", weights, weights, grid).reshape(side * side, -1)
        assert torch.equal(embedding.weight[:classes], old[:classes])
        np.testing.assert_allclose(embedding.weight[classes:].detach(), expected, rtol=0, atol=1e-6)  # of float32
        assert instance.encode_image(pixels(2, size)).shape[0] == 2

    @pytest.mark.parametrize("family", SQUARE)
    def test_loads_in_transformers_at_the_new_size(self, family: str, tmp_path: Path) -> None:
        ours = model(family)
        expected = ours.vision_model(images := pixels(2, 56), interpolate_pos_encoding=True).last_hidden_state
        ours.resize_positions(56, "transformers").save_pretrained(tmp_path)
        theirs, info = getattr(transformers, f"{family}Model").from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] | info["mismatched_keys"]
        for outputs in (theirs.vision_model(images), ours.vision_model(images)):
            torch.testing.assert_close(outputs.last_hidden_state, expected, rtol=0, atol=2e-6)

    def test_of_a_model_whose_configuration_another_one_has_changed(self) -> None:
        first = model("CLIP")
        type(first)(first.config).resize_positions(2 * VISION["image_size"])
        size = first.resize_positions(2 * VISION["image_size"]).config.vision_config.image_size
        assert first.encode_image(torch.zeros(1, 3, size, size)).shape[0] == 1

    @pytest.mark.parametrize("family", SQUARE)
    def test_same_grid_changes_no_bit(self, family: str) -> None:
        instance = model(family)
        before = {name: weight.clone() for name, weight in instance.state_dict().items()}
        after = instance.resize_positions(VISION["image_size"] + 3).state_dict()
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        assert instance.config.vision_config.image_size == VISION["image_size"] + 3

    def test_keeps_dtype_and_freezing_and_trains(self) -> None:
        exact, half = model("CLIP"), model("CLIP").bfloat16()
        half.vision_model.embeddings.requires_grad_(False)
        positions = [it.resize_positions(56).vision_model.embeddings.position_embedding for it in (exact, half)]
        assert positions[1].weight.dtype == torch.bfloat16
        assert not positions[1].weight.requires_grad
        rounded = model("CLIP").bfloat16().float().resize_positions(56).vision_model.embeddings.position_embedding
        assert torch.equal(positions[1].weight, rounded.weight.bfloat16())  # computed in float32, then rounded once
        exact.encode_image(pixels(2, 56)).sum().backward()
        assert positions[0].weight.grad is not None
        assert positions[0].weight.grad.shape == (50, VISION["hidden_size"])

    @pytest.mark.parametrize("kind", ["VisionModel", "VisionModelWithProjection", "ForImageClassification"])
    def test_of_models_with_one_tower(self, kind: str) -> None:
        instance = model("CLIP", kind).resize_positions(48)
        config = instance.config if kind != "ForImageClassification" else instance.config.vision_config
        assert config.image_size == 48
        instance(pixels(1, 48))

    def test_refuses_what_it_cannot_do(self) -> None:
        instance = model("Siglip")
        weights = {name: weight.clone() for name, weight in instance.state_dict().items()}
        for size in (7, 0, -8, 32.0, "32", (32, 32)):
            with pytest.raises(ValueError, match=re.escape("a whole number of at least 8 (one patch)")):
                instance.resize_positions(size)
        with pytest.raises(
            ValueError, match="method must be one of big_vision, open_clip, transformers, got 'bicubic'"
        ):
            instance.resize_positions(64, "bicubic")
        assert instance.config.vision_config.image_size == VISION["image_size"]
        assert all(torch.equal(weight, weights[name]) for name, weight in instance.state_dict().items())
