"""Our classes as components of diffusers' pipelines: the same pictures as with transformers' classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import twinlens

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]  # diffusers warns of itself


@pytest.fixture
def folder(folders: dict[str, Path]) -> Path:
    """A converted CLIP whose tokens are those of Stable Diffusion's first text encoder, but fewer."""
    pytest.importorskip("diffusers")  # needs Python 3.11
    return folders["clip-shapes"]


def pipeline(library: Any, folder: Path) -> Any:
    """A tiny Stable Diffusion XL with both of its text encoders."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        cross_attention_dim=128,  # of both text encoders
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64 + 6 * 8,
    )
    vae = AutoencoderKL(block_out_channels=[32], norm_num_groups=8, sample_size=8)
    tokenizer = (twinlens.CLIPTokenizer if library is twinlens else transformers.AutoTokenizer).from_pretrained(folder)
    images = twinlens.CLIPImageProcessor if library is twinlens else transformers.CLIPImageProcessorPil
    made = StableDiffusionXLPipeline(
        unet=unet,
        vae=vae,
        scheduler=EulerDiscreteScheduler(),
        text_encoder=library.CLIPTextModel.from_pretrained(folder),
        text_encoder_2=library.CLIPTextModelWithProjection.from_pretrained(folder),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        image_encoder=library.CLIPVisionModelWithProjection.from_pretrained(folder),
        feature_extractor=images.from_pretrained(folder),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def picture(made: Any, **settings: Any) -> Tensor:
    settings |= {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}
    return made("a red star", generator=torch.manual_seed(1), **settings).images[0]


def kohya_name(name: str) -> str:
    """The name of a weight in the files of kohya's trainer."""
    encoder, _, rest = name.partition(".")
    layer, _, matrix = rest.removesuffix(".weight").rpartition(".")
    return f"lora_te{2 if encoder.endswith('2') else 1}_{layer.replace('.', '_')}.{matrix}.weight"


def adapters(folder: Path, form: str) -> dict[str, Tensor]:
    """A LoRA of transformers' two text encoders, under the names of today, of before 5.6, or of kohya's trainer."""
    from peft import LoraConfig, get_peft_model_state_dict

    weights = {}
    generator = torch.Generator().manual_seed(0)
    for encoder, name in (("text_encoder", "CLIPTextModel"), ("text_encoder_2", "CLIPTextModelWithProjection")):
        theirs = getattr(transformers, name).from_pretrained(folder)
        theirs.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]))
        for key, weight in get_peft_model_state_dict(theirs).items():
            prefix = "text_model." if form != "today" and not key.startswith("text_model.") else ""
            weights[f"{encoder}.{prefix}{key}"] = 0.3 * torch.randn(weight.shape, generator=generator)
    if form != "kohya":
        return weights
    matrices = {"lora_A": "lora_down", "lora_B": "lora_up"}
    return {
        kohya_name(name.replace(matrix, matrices[matrix])): weight
        for name, weight in weights.items()
        for matrix in matrices
        if matrix in name
    }


@pytest.mark.parametrize("form", ["today", "before 5.6", "kohya"])
def test_adapters_change_the_picture_as_with_transformers(folder: Path, form: str) -> None:
    ours, theirs = pipeline(twinlens, folder), pipeline(transformers, folder)
    bare = picture(ours)
    torch.testing.assert_close(bare, picture(theirs), rtol=0, atol=1e-5)
    for made in (ours, theirs):
        made.load_lora_weights(adapters(folder, form))
    expected = picture(theirs)
    assert (expected - bare).abs().max() > 0.01
    torch.testing.assert_close(picture(ours), expected, rtol=0, atol=1e-5)


def test_code_from_before_5_6_finds_the_text_tower(folder: Path) -> None:
    """diffusers itself has some of it: `clip_skip` reads `text_encoder.text_model`, which transformers' class lacks."""
    from diffusers import StableDiffusionPipeline

    def skipped(library: Any) -> Tensor:
        components = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
        tokenizer = twinlens.CLIPTokenizer.from_pretrained(folder)
        encoder = library.CLIPTextModel.from_pretrained(folder)
        made = StableDiffusionPipeline(
            **components, text_encoder=encoder, tokenizer=tokenizer, requires_safety_checker=False
        )
        return made.encode_prompt("a red star", torch.device("cpu"), 1, False, clip_skip=1)[0]

    ids = twinlens.CLIPTokenizer.from_pretrained(folder)("a red star", padding="max_length", return_tensors="pt")
    theirs = transformers.CLIPTextModel.from_pretrained(folder)
    with torch.no_grad():
        last_but_one = theirs(ids.input_ids, output_hidden_states=True).hidden_states[-2]
        expected = theirs.final_layer_norm(last_but_one)
    torch.testing.assert_close(skipped(twinlens), expected, rtol=0, atol=1e-5)
    with pytest.raises(AttributeError, match="text_model"):
        skipped(transformers)


def test_what_was_cut_from_a_prompt_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    import diffusers

    prompt, told = "red star " * 40, []
    for library in (transformers, twinlens):
        made = pipeline(library, folder)
        diffusers.logging.enable_propagation()
        caplog.clear()
        made.encode_prompt(prompt, device="cpu")
        diffusers.logging.disable_propagation()
        told.append([record.message for record in caplog.records if "was truncated" in record.message])
    assert told[0]
    assert told[0] == told[1]


def test_saved_components_load_again(folder: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    ours = pipeline(twinlens, folder)
    ours.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, add_watermarker=False)
    loaded.set_progress_bar_config(disable=True)
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder", "feature_extractor")
    for name in names:
        assert type(getattr(loaded, name)) is type(getattr(ours, name))
    for name in ("text_encoder", "text_encoder_2", "image_encoder"):
        expected = getattr(ours, name).state_dict()
        torch.testing.assert_close(getattr(loaded, name).state_dict(), expected, rtol=0, atol=0)
    # the mapped weights begin elsewhere within a cache line, which alone can change the last digit of a product
    torch.testing.assert_close(picture(loaded), picture(ours), rtol=0, atol=1e-5)


def test_components_of_siglip_load_again(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")  # needs Python 3.11
    from diffusers import DiffusionPipeline

    class ImagePipeline(DiffusionPipeline):
        def __init__(self, image_encoder: Any, model: Any, feature_extractor: Any, processor: Any) -> None:
            super().__init__()
            self.register_modules(
                image_encoder=image_encoder, model=model, feature_extractor=feature_extractor, processor=processor
            )

    classes: dict[str, Any] = {
        "image_encoder": twinlens.SiglipVisionModel,
        "model": twinlens.SiglipModel,
        "feature_extractor": twinlens.SiglipImageProcessor,
        "processor": twinlens.SiglipProcessor,
    }
    parts = {name: part.from_pretrained(folders["siglip-shapes"]) for name, part in classes.items()}
    ImagePipeline(**parts).save_pretrained(tmp_path / "pipeline")
    loaded = ImagePipeline.from_pretrained(tmp_path / "pipeline")
    assert {name: type(part) for name, part in loaded.components.items()} == classes
