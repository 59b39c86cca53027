"""Our image towers inside transformers' vision-language models: what the native tower gives, and files for both."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import transformers
from helpers.versions import IS_OLDEST
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel

import twinlens
from twinlens.configuration import FAMILIES

IMAGE_TOKEN = 98
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}  # 16 patches
HEADLESS = {**VISION, "vision_use_head": False}
TEXT = {
    **TOWER,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 99,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The fields that folders of LLaVA 1.5 and PaliGemma state beside a tower's own.
CLIP_IN_LLAVA = {**VISION, "projection_dim": 768, "vocab_size": 32000}
SIGLIP_IN_PALIGEMMA = {**HEADLESS, "num_image_tokens": 256, "projection_dim": 32, "projector_hidden_act": "gelu_fast"}


class Case(NamedTuple):
    """A vision-language model of transformers: the names of its classes' family, tower and text model, and settings."""

    name: str
    tower: str
    vision: dict[str, Any]
    text: str
    tokens: int  # that stand for an image
    settings: dict[str, Any]
    attribute: str = "vision_tower"
    tolerance: float = 0  # of what comes from the images: 0 where the operations are the same ones


CASES = {
    "llava": Case("Llava", "CLIP", CLIP_IN_LLAVA, "Llama", 16, {"image_token_index": IMAGE_TOKEN}),
    "llava-layers": Case(
        "Llava",
        "Siglip",
        VISION,
        "Llama",
        16,
        {
            "image_token_index": IMAGE_TOKEN,
            "vision_feature_layer": [-1, -2],
            "vision_feature_select_strategy": "full",
        },
    ),
    "llava-next": Case(
        "LlavaNext",
        "CLIP",
        VISION,
        "Llama",
        56,  # of a tall picture: those of all of it, of two tiles, and an end of line for each of eight lines
        {"image_token_index": IMAGE_TOKEN, "image_grid_pinpoints": [[32, 64], [64, 32]]},
    ),
    "paligemma": Case(
        "PaliGemma",
        "Siglip",
        SIGLIP_IN_PALIGEMMA,
        "Gemma",
        16,
        {"image_token_index": IMAGE_TOKEN, "projection_dim": 32, "hidden_size": 32},
    ),
    "gemma3": Case(
        "Gemma3",
        "Siglip",
        HEADLESS,
        "Gemma3Text",
        4,
        {"image_token_index": IMAGE_TOKEN, "mm_tokens_per_image": 4, "boi_token_index": 96, "eoi_token_index": 97},
    ),
    "vip-llava": Case(
        "VipLlava", "CLIP", VISION, "Llama", 16, {"image_token_index": IMAGE_TOKEN, "vision_feature_layers": [-2, 1]}
    ),
    "aya-vision": Case(
        "AyaVision",
        "Siglip",
        VISION,
        "Cohere2",
        4,
        {
            "image_token_index": IMAGE_TOKEN,
            "vision_feature_layer": -1,
            "downsample_factor": 2,
            "adapter_layer_norm_eps": 1e-6,
        },
    ),
    "cohere2-vision": Case(
        "Cohere2Vision",
        "Siglip",
        HEADLESS,
        "Cohere2",
        4,
        {"image_token_id": IMAGE_TOKEN, "downsample_factor": 2, "alignment_intermediate_size": 32},
    ),
    "deepseek-vl": Case(
        "DeepseekVL", "Siglip", VISION, "Llama", 16, {"image_token_id": IMAGE_TOKEN}, attribute="vision_model"
    ),
    "lfm2-vl": Case(
        "Lfm2Vl",
        "Siglip2",
        {**TOWER, "num_patches": 16, "patch_size": 8, "vision_use_head": False},
        "Lfm2",
        4,
        {"image_token_id": IMAGE_TOKEN, "downsample_factor": 2, "projector_hidden_size": 32},
        tolerance=1e-5,  # positions are resized for all images at once
    ),
}


def cases(*daily: str) -> pytest.MarkDecorator:
    """Run a test for all models; by day for these."""
    return pytest.mark.parametrize(
        "name", [name if name in daily else pytest.param(name, marks=pytest.mark.thorough) for name in CASES]
    )


def model_class(case: Case) -> Any:
    return getattr(transformers, f"{case.name}ForConditionalGeneration")


def native_model(case: Case, library: Any = transformers) -> Any:
    """A seeded model with the native tower, whose images change what it says; `library` makes the tower's settings."""
    vision = getattr(library, f"{case.tower}VisionConfig")(**case.vision)
    text = getattr(transformers, f"{case.text}Config")(**TEXT)
    config = getattr(transformers, f"{case.name}Config")(vision_config=vision, text_config=text, **case.settings)
    torch.manual_seed(0)
    model = model_class(case)(config).eval()
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def tower_of(model: Any, case: Case) -> Any:
    return getattr(model.model, case.attribute)


def with_our_tower(model: Any, case: Case) -> Any:
    """A copy of a model, with our tower of the same weights in it."""
    if IS_OLDEST and case.name == "Gemma3":
        pytest.skip("the configuration of Gemma 3 in transformers 5.12 holds transformers' own classes only")
    model = copy.deepcopy(model)
    theirs = tower_of(model, case)
    ours = getattr(twinlens, f"{case.tower}VisionModel")(theirs.config).to(theirs.dtype).train(theirs.training)
    ours.load_state_dict(theirs.state_dict())
    setattr(model.model, case.attribute, ours)
    model.config.vision_config = ours.config
    return model


def inputs_of(case: Case) -> dict[str, Tensor]:
    """Two pictures, each with a text behind it."""
    ids = torch.cat([torch.full((2, case.tokens), IMAGE_TOKEN), torch.randint(3, 90, (2, 5))], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 32, 32)}
    if case.name == "LlavaNext":  # all of it and two tiles, for a wide picture and a tall one
        inputs |= {"pixel_values": torch.randn(2, 3, 3, 32, 32), "image_sizes": torch.tensor([[32, 64], [64, 32]])}
        ids[0, 52:56] = 5  # a wide one has four lines fewer
    if case.name == "Lfm2Vl":  # pictures of four times four patches, and of six times two
        grids = torch.tensor([[4, 4], [6, 2]])
        mask = torch.arange(16).lt(grids.prod(dim=1, keepdim=True))
        inputs |= {"pixel_values": torch.randn(2, 16, 192), "pixel_attention_mask": mask, "spatial_shapes": grids}
        ids[1, 3] = 5
    if case.name in ("PaliGemma", "Gemma3"):
        inputs["token_type_ids"] = ids.eq(IMAGE_TOKEN).long()
    return inputs


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


def gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.train().zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    model.eval()
    return {name: x.grad for name, x in model.named_parameters() if x.grad is not None}


def assert_near(tensors: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(tensors, expected, rtol=0, atol=tolerance)


@contextmanager
def registered_towers() -> Iterator[None]:
    """Register all towers, as docs/vlm.md shows."""
    with patch.dict(CONFIG_MAPPING._extra_content), patch.dict(MODEL_MAPPING._extra_content):
        for family in FAMILIES.values():
            config = family.config.sub_configs["vision_config"]
            AutoConfig.register(config.model_type, config, exist_ok=True)
            AutoModel.register(config, getattr(twinlens, family.vision_model), exist_ok=True)
        yield


@cases("llava", "llava-next", "paligemma", "gemma3", "lfm2-vl")
def test_logits_tokens_and_gradients(name: str) -> None:
    case = CASES[name]
    theirs, inputs = native_model(case), inputs_of(case)
    ours = with_our_tower(theirs, case)
    expected = logits(theirs, inputs)
    others = inputs | {"pixel_values": torch.randn_like(inputs["pixel_values"])}
    assert (logits(theirs, others) - expected).abs().max() > 1e-3
    assert_near(logits(ours, inputs), expected, case.tolerance)
    generation = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(ours.generate(**inputs, **generation), theirs.generate(**inputs, **generation))
    found = gradients(ours, inputs)
    assert any("vision" in name for name in found)
    assert_near(found, gradients(theirs, inputs), case.tolerance)


@cases("llava")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_what_is_set_on_the_model_reaches_the_tower(name: str) -> None:
    case = CASES[name]
    theirs, inputs = native_model(case), inputs_of(case)
    ours = with_our_tower(theirs, case)
    for implementation in ("eager", {"vision_config": "sdpa", "text_config": "eager"}):
        for model in (theirs, ours):
            model.set_attn_implementation(implementation)
        kernels = {tower_of(model, case).config._attn_implementation for model in (theirs, ours)}
        assert kernels == {"eager" if implementation == "eager" else "sdpa"}
        assert_near(logits(ours, inputs), logits(theirs, inputs), case.tolerance)
    expected = gradients(ours, inputs)
    calls: list[int] = []
    tower_of(ours, case).encoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    ours.gradient_checkpointing_enable()
    assert_near(gradients(ours, inputs), expected, 0)
    assert len(calls) == 2  # once for the loss, once more for the gradient
    ours.gradient_checkpointing_disable()
    assert tower_of(ours.bfloat16(), case).dtype == torch.bfloat16
    assert_near(logits(ours, inputs), logits(theirs.bfloat16(), inputs), 0.05 if case.tolerance else 0)
    for parameter in tower_of(ours, case).parameters():
        parameter.requires_grad_(False)
    assert not any(case.attribute in found for found in gradients(ours, inputs))


def write_former_names(folder: Path, case: Case, target: Path) -> None:
    """Write the files of a folder as transformers before 4.52 did, and most folders on the Hub are."""
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.replace(f"{case.attribute}.", f"{case.attribute}.vision_model.", 1)
        weights[name] = tensor
    target.mkdir()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((folder / "config.json").read_text())


@cases("llava")
def test_files_are_those_of_the_native_tower(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    theirs, inputs = native_model(case), inputs_of(case)
    expected = logits(theirs, inputs)
    theirs.save_pretrained(tmp_path / "theirs")
    with_our_tower(theirs, case).save_pretrained(tmp_path / "ours")
    ours, expected_file = (load_file(tmp_path / of / "model.safetensors") for of in ("ours", "theirs"))
    assert_near(ours, expected_file, 0)
    loaded, info = model_class(case).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert type(tower_of(loaded, case)) is getattr(transformers, f"{case.tower}VisionModel")
    torch.testing.assert_close(logits(loaded, inputs), expected, rtol=0, atol=1e-5)


@cases("paligemma")
def test_a_registered_tower_is_loaded_from_any_folder(
    name: str, thorough: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also from one with the former names of weights, to other dtypes and kernels, and with weights on the disk."""
    case = CASES[name]
    native_model(case).save_pretrained(tmp_path / "today")
    write_former_names(tmp_path / "today", case, tmp_path / "former")
    inputs = inputs_of(case)
    offload = {"device_map": "auto", "max_memory": {"cpu": 300_000}, "offload_folder": str(tmp_path)}
    all_options: list[dict[str, Any]] = [{}, {"dtype": "bfloat16"}, {"attn_implementation": "eager"}, offload]
    for options in all_options if thorough else all_options[:1]:
        expected = logits(model_class(case).from_pretrained(tmp_path / "today", **options), inputs)
        for folder in ("today", "former"):
            with registered_towers():
                model, info = model_class(case).from_pretrained(tmp_path / folder, output_loading_info=True, **options)
            assert not any(info.values())
            tower = tower_of(model, case)
            assert type(tower) is getattr(twinlens, f"{case.tower}VisionModel")
            assert model.config.vision_config is tower.config
            assert str(tower.dtype) == f"torch.{options.get('dtype', 'float32')}"
            assert tower.config._attn_implementation == options.get("attn_implementation", "sdpa")
            tolerance = 0.05 if case.tolerance and "dtype" in options else case.tolerance
            assert_near(logits(model, inputs), expected, tolerance)
    assert "without a meaning" not in caplog.text


def test_settings_of_ours_inside_a_configuration() -> None:
    """transformers' models read them as they read their own, and write the same `config.json`."""
    for name in ("llava", "paligemma"):
        case = CASES[name]
        made = native_model(case, twinlens).config
        assert type(made.vision_config) is getattr(twinlens, f"{case.tower}VisionConfig")
        written = json.loads(made.to_json_string())
        again = type(made).from_dict(written)
        assert again.vision_config.to_dict() == native_model(case).config.vision_config.to_dict()


def test_a_resnet_takes_the_place_of_a_tower(tmp_path: Path) -> None:
    """transformers has none: what the model takes from it are the positions of the last stage."""
    vision = twinlens.CLIPResNetVisionConfig(
        hidden_size=64, depths=(1, 1, 1, 1), num_attention_heads=2, image_size=64, projection_dim=24
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    with registered_towers():
        model = transformers.LlavaForConditionalGeneration(config).eval()
        ids = torch.tensor([[*[IMAGE_TOKEN] * 4, 7, 8]])
        inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 64, 64)}
        expected = model.model.multi_modal_projector(model.model.vision_tower(inputs["pixel_values"])[0])
        assert torch.equal(model.get_image_features(inputs["pixel_values"]).pooler_output[0], expected[0])
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape == (1, 8)
        model.save_pretrained(tmp_path)
        loaded = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert type(loaded.model.vision_tower) is twinlens.CLIPResNetVisionModel
    torch.testing.assert_close(logits(loaded, inputs), logits(model, inputs), rtol=0, atol=1e-5)
