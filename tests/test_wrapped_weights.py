"""Weights as training code and other people's tools leave them: wrapped, nested, of one tower, or of another model."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from helpers.builders import (
    TINY_CLIP,
    TINY_SIGLIP,
    TINY_TRUNK,
    TRUNK_OPTIONS,
    big_vision_tensors,
    openai_tensors,
    timm_tensors,
    trunk_tensors,
    write_npz,
)
from helpers.checkpoints import assert_same
from torch import Tensor

from twinlens.conversion import convert, export
from twinlens.formats import FormatError, LoadOptions, inspect_source, read_checkpoint, to_official
from twinlens.formats.other_models import refuse_other_models
from twinlens.modeling import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DualEncoderModel,
)
from twinlens.parity.measurement import certify
from twinlens.processing import DualEncoderProcessor

PREFIXES = [
    "model.",
    "clip.",
    "module._orig_mod.",
    *(
        pytest.param(prefix, marks=pytest.mark.thorough)
        for prefix in ("module.", "_orig_mod.", "base_model.model.", "student.backbone.")
    ),
]


@pytest.fixture(scope="module")
def openai() -> dict[str, Tensor]:
    return openai_tensors(**TINY_CLIP, integers=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers wrote, of a model with seeded weights."""
    path = tmp_path_factory.mktemp("transformers") / "clip"
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"projection_dim": 12}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 38, "eos_token_id": 39},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    transformers.CLIPModel(config).save_pretrained(path)
    return path


@pytest.fixture
def rewrite(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the folder again, with other names of its weights or with other weights."""

    def rewrite(change: Callable[[dict[str, Tensor]], Any], *, container: str = "safetensors") -> Path:
        copy = tmp_path / "folder"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        tensors = change(safetensors.torch.load_file(copy / "model.safetensors"))
        (copy / "model.safetensors").unlink()
        if container == "safetensors":
            safetensors.torch.save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        else:
            torch.save(tensors, copy / "pytorch_model.bin", _use_new_zipfile_serialization=container == "torch")
        return copy

    return rewrite


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def lightning(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What Lightning's `Trainer.save_checkpoint` writes of a module whose attribute `model` is the CLIP."""
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "epoch": 1,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": below("model.", tensors),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [optimizer],
        "rng": torch.zeros(2, dtype=torch.uint8),
        "hyper_parameters": {"lr": 1e-3},
    }


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(FormatError) as caught:
        read_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFiles:
    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_prefix(
        self, prefix: str, openai: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        torch.save(openai, tmp_path / "plain.pt")
        torch.save(below(prefix, openai), tmp_path / "wrapped.pt")
        plain, wrapped = (read_checkpoint(tmp_path / f"{name}.pt") for name in ("plain", "wrapped"))
        assert_same(wrapped.state_dict(), plain.state_dict())
        assert wrapped.config == plain.config
        assert log_lines(caplog) == [f"{tmp_path}/wrapped.pt: the names of the weights are read without {prefix!r}."]
        assert_same(to_official(wrapped.state_dict(), wrapped.layout), below(prefix, openai))

    @pytest.mark.parametrize("format", ["open_clip", "big_vision", "timm"])
    def test_prefix_in_every_format(self, format: str, tmp_path: Path) -> None:
        tensors, options, suffix = {
            "open_clip": (trunk_tensors(**TINY_TRUNK), TRUNK_OPTIONS, "safetensors"),
            "big_vision": (big_vision_tensors(**TINY_SIGLIP), {}, "npz"),
            "timm": (
                timm_tensors(**{name: TINY_TRUNK[name] for name in ("grid", "patch", "width", "layers", "mlp")}),
                TRUNK_OPTIONS,
                "safetensors",
            ),
        }[format]
        separator = "/" if format == "big_vision" else "."
        states = []
        for index, prefix in enumerate(("", f"model{separator}net{separator}")):
            path = tmp_path / f"{index}.{suffix}"  # not the same: its tensors stay in the file
            write = write_npz if suffix == "npz" else lambda path, tensors: safetensors.torch.save_file(tensors, path)
            write(path, below(prefix, tensors))
            checkpoint = read_checkpoint(path, **LoadOptions(**options))  # type: ignore[typeddict-item]
            assert checkpoint.format == format
            states.append(checkpoint.state_dict())
        assert_same(states[1], states[0])

    def test_wrappers_inside(self, openai: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The image tower was compiled alone, and its layers recompute their activations."""
        torch.save(openai, tmp_path / "plain.pt")
        names = {
            name: name.replace("visual.", "visual._orig_mod.").replace(
                "resblocks.0.", "resblocks.0._checkpoint_wrapped_module."
            )
            for name in openai
        }
        torch.save(below("module.", {names[name]: tensor for name, tensor in openai.items()}), tmp_path / "inside.pt")
        inside = read_checkpoint(tmp_path / "inside.pt").state_dict()
        assert_same(inside, read_checkpoint(tmp_path / "plain.pt").state_dict())
        assert "without 'module.' and '_orig_mod.' and '_checkpoint_wrapped_module.'" in log_lines(caplog)[0]

    @pytest.mark.parametrize(
        "entry",
        [
            "model_state_dict",
            "checkpoint/model",
            *(pytest.param(name, marks=pytest.mark.thorough) for name in ("state_dict", "model", "module")),
        ],
    )
    def test_entry_of_a_training_checkpoint(self, entry: str, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save(openai, tmp_path / "plain.pt")
        content: dict[str, Any] = openai
        for name in reversed(entry.split("/")):
            content = {"epoch": 3, name: content, "scaler": {"scale": 65536.0}}
        torch.save(content, tmp_path / "nested.pt")
        nested = read_checkpoint(tmp_path / "nested.pt")
        assert_same(nested.state_dict(), read_checkpoint(tmp_path / "plain.pt").state_dict())
        assert nested.layout.container == f"torch/{entry}"

    def test_lightning(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save(openai, tmp_path / "plain.pt")
        torch.save(lightning(openai), tmp_path / "last.ckpt")
        last, plain = (read_checkpoint(tmp_path / name) for name in ("last.ckpt", "plain.pt"))
        assert_same(last.state_dict(), plain.state_dict())

    @pytest.mark.thorough
    def test_file_is_written_as_it_was(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        wrapped = {"model_state_dict": below("module._orig_mod.", openai)}
        torch.save(wrapped, tmp_path / "last.pt")
        certificate = convert(tmp_path / "last.pt", tmp_path / "folder")
        assert certificate.passed
        export(tmp_path / "folder", tmp_path / "back.pt", format="openai")
        assert_same(torch.load(tmp_path / "back.pt")["model_state_dict"], wrapped["model_state_dict"])

    @pytest.mark.parametrize("container", ["safetensors", pytest.param("torch", marks=pytest.mark.thorough)])
    def test_names_of_transformers(self, container: str, rewrite: Callable[..., Path], folder: Path) -> None:
        copy = rewrite(lambda tensors: below("model.", tensors), container=container)
        assert_same(read_checkpoint(copy).state_dict(), read_checkpoint(folder).state_dict())
        file = next(path for path in copy.iterdir() if path.suffix in (".safetensors", ".bin"))
        assert_same(read_checkpoint(file).state_dict(), read_checkpoint(folder).state_dict())


class TestNothingIsGuessed:
    def test_several_entries(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        average = {name: tensor + 1 for name, tensor in openai.items()}
        for names in (("state_dict", "state_dict_ema"), ("model", "model_ema")):
            torch.save(dict(zip(names, (openai, average), strict=True)), tmp_path / "x.pt")
            assert f"the file holds 2 models, {' and '.join(names)}; save the one" in refusal(tmp_path / "x.pt")

    @pytest.mark.parametrize("prefixes", [("model.", "ema_model."), ("", "ema.module.")])
    def test_several_prefixes(self, prefixes: tuple[str, str], openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save({k: t for prefix in prefixes for k, t in below(prefix, openai).items()}, tmp_path / "x.pt")
        message = refusal(tmp_path / "x.pt")
        assert "its names begin in 2 ways, " in message
        assert all(repr(prefix) in message for prefix in prefixes)

    def test_weights_beside(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save({**below("model.", openai), "criterion.weight": torch.ones(2)}, tmp_path / "x.pt")
        assert "begin with 'model.', and beside them criterion.weight is not expected" in refusal(tmp_path / "x.pt")

    def test_both_with_and_without_a_wrapper(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save({**openai, "visual._orig_mod.proj": torch.ones(128, 48)}, tmp_path / "x.pt")
        assert "visual._orig_mod.proj and visual.proj are both visual.proj" in refusal(tmp_path / "x.pt")

    def test_missing(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        tensors = below("module.", openai)
        del tensors["module.visual.proj"], tensors["module.ln_final.bias"]
        torch.save(tensors, tmp_path / "x.pt")
        assert refusal(tmp_path / "x.pt").endswith("module.visual.proj is missing; module.ln_final.bias is missing.")

    def test_dtypes_of_a_training_do_not_say_whose_the_weights_are(
        self, openai: dict[str, Tensor], tmp_path: Path
    ) -> None:
        """open_clip's training in float16 has OpenAI's mixture of dtypes, and computes exact GELU unless told."""
        blocks_begin_with_norm = dict(sorted(openai.items(), key=lambda item: ".attn." in item[0]))
        torch.save({"state_dict": blocks_begin_with_norm}, tmp_path / "x.pt")
        assert "does not say whether its GELU is quick_gelu" in refusal(tmp_path / "x.pt")


class TestFolders:
    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_prefix(
        self,
        prefix: str,
        rewrite: Callable[..., Path],
        folder: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        expected = transformers.CLIPModel.from_pretrained(folder).state_dict()
        container = {"model.": "torch", "clip.": "legacy"}.get(prefix, "safetensors")
        copy = rewrite(lambda tensors: below(prefix, tensors), container=container)
        loaded: Any = CLIPModel.from_pretrained(copy, output_loading_info=True)
        model, info = loaded
        assert_same(model.state_dict(), expected)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert log_lines(caplog) == [f"{copy}: the names of the weights are read without {prefix!r}."]

    def test_entry_of_a_training_checkpoint(self, rewrite: Callable[..., Path], folder: Path) -> None:
        copy = rewrite(lightning, container="torch")
        assert_same(
            DualEncoderModel.from_pretrained(copy).state_dict(),
            transformers.CLIPModel.from_pretrained(folder).state_dict(),
        )

    @pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPVisionModelWithProjection"])
    def test_tower_of_a_dual_folder(self, name: str, rewrite: Callable[..., Path], folder: Path) -> None:
        copy = rewrite(lambda tensors: below("module.", tensors))
        ours = {
            "CLIPTextModel": CLIPTextModel,
            "CLIPVisionModelWithProjection": CLIPVisionModelWithProjection,
        }[name]
        expected = getattr(transformers, name).from_pretrained(folder)
        assert_same(ours.from_pretrained(copy).state_dict(), expected.state_dict())

    def test_tower_of_its_own_folder(self, folder: Path, tmp_path: Path) -> None:
        """What IP-Adapter's image encoder is: a CLIPVisionModelWithProjection."""
        tower = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
        tower.save_pretrained(tmp_path)
        tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
        safetensors.torch.save_file(below("_orig_mod.", tensors), tmp_path / "model.safetensors", {"format": "pt"})
        ours = CLIPVisionModelWithProjection.from_pretrained(tmp_path)
        assert_same(ours.state_dict(), tower.state_dict())
        with pytest.raises(FormatError, match=r"'clip_vision_model', one tower alone.*CLIPVisionModelWithProjection"):
            convert(tmp_path, tmp_path / "new")

    def test_new_classifier(self, rewrite: Callable[..., Path]) -> None:
        copy = rewrite(lambda tensors: below("module.", tensors))
        loaded: Any = CLIPForImageClassification.from_pretrained(copy, num_labels=3, output_loading_info=True)
        model, info = loaded
        assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
        assert model.classifier.weight.shape == (3, 16)

    @pytest.mark.parametrize("prefix", ["module.", "clip."])
    def test_missing(self, prefix: str, rewrite: Callable[..., Path]) -> None:
        def without_two(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            lost = ("text_projection.weight", "vision_model.post_layernorm.bias")
            return below(prefix, {name: tensor for name, tensor in tensors.items() if name not in lost})

        message = r"folder: CLIPModel needs 2 weights .*: text_projection\.weight, vision_model\.post_layernorm\.bias\."
        with pytest.raises(ValueError, match=message):
            DualEncoderModel.from_pretrained(rewrite(without_two))

    def test_files_that_transformers_finds(self, rewrite: Callable[..., Path], folder: Path) -> None:
        """Of a variant, as of a repository on the Hub, the files are known only after transformers has read them."""
        copy = rewrite(lambda tensors: below("module.", tensors))
        (copy / "model.safetensors").rename(copy / "model.fp16.safetensors")
        model = CLIPModel.from_pretrained(copy, variant="fp16")
        assert_same(model.state_dict(), CLIPModel.from_pretrained(folder).state_dict())

    def test_several_models(self, rewrite: Callable[..., Path]) -> None:
        copy = rewrite(
            lambda tensors: {**below("model.", tensors), "ema.text_model.final_layer_norm.bias": torch.ones(2)}
        )
        with pytest.raises(FormatError, match=r"folder: its names begin in 2 ways, 'ema\.' and 'model\.'"):
            DualEncoderModel.from_pretrained(copy)
        copy = rewrite(
            lambda tensors: {"model": tensors, "model_ema": {name: t + 1 for name, t in tensors.items()}},
            container="torch",
        )
        with pytest.raises(FormatError, match="holds 2 models, model and model_ema"):
            DualEncoderModel.from_pretrained(copy)

    def test_base_model_of_another_class(self, rewrite: Callable[..., Path], folder: Path) -> None:
        """transformers itself reads a model below its `base_model_prefix`, with other weights beside."""
        copy = rewrite(lambda tensors: {**below("clip.", tensors), "head.weight": torch.ones(2)})
        assert_same(CLIPModel.from_pretrained(copy).state_dict(), CLIPModel.from_pretrained(folder).state_dict())


class TestLongCLIP:
    """beichenzbc/Long-CLIP@3966af9, model/model_longclip.py."""

    def test_positions(self, tmp_path: Path) -> None:
        tensors = openai_tensors(**{**TINY_CLIP, "text_length": 24}, half=False, integers=False)
        tensors["positional_embedding_res"] = torch.randn(24, 64)
        torch.save(tensors, tmp_path / "longclip.pt")
        checkpoint = read_checkpoint(tmp_path / "longclip.pt")
        mask1, mask2 = torch.zeros(24, 1), torch.zeros(24, 1)
        mask1[:20], mask2[20:] = 1, 1
        expected = tensors["positional_embedding"] * mask1 + tensors["positional_embedding_res"] * mask2
        state_dict = checkpoint.state_dict()
        assert torch.equal(state_dict["text_model.embeddings.position_embedding.weight"], expected)
        assert checkpoint.config.text_config.max_position_embeddings == 24
        assert checkpoint.config.text_config.hidden_act == "quick_gelu"
        assert_same(to_official(state_dict, checkpoint.layout), tensors)
        assert certify(checkpoint, CLIPModel.from_pretrained(tmp_path / "longclip.pt")).passed

    def test_trained_positions_are_written_to_both_tables(self, tmp_path: Path) -> None:
        tensors = openai_tensors(**{**TINY_CLIP, "text_length": 24}, half=False, integers=False)
        torch.save({**tensors, "positional_embedding_res": torch.randn(24, 64)}, tmp_path / "longclip.pt")
        checkpoint = read_checkpoint(tmp_path / "longclip.pt")
        trained = checkpoint.state_dict()
        trained["text_model.embeddings.position_embedding.weight"] += 1
        torch.save(to_official(trained, checkpoint.layout), tmp_path / "trained.pt")
        assert_same(read_checkpoint(tmp_path / "trained.pt").state_dict(), trained)


class TestOneTower:
    @pytest.mark.parametrize(
        "prefix",
        ["", *(pytest.param(prefix, marks=pytest.mark.thorough) for prefix in ("visual.", "module.visual.", "model."))],
    )
    def test_image_tower(self, prefix: str, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save(openai, tmp_path / "plain.pt")
        dual = CLIPModel.from_pretrained(tmp_path / "plain.pt").eval()
        tower = {prefix + k.removeprefix("visual."): t for k, t in openai.items() if k.startswith("visual.")}
        torch.save(tower, tmp_path / "tower.pt")
        pixel_values = torch.randn(2, 3, 32, 32)
        projected = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "tower.pt").eval()(pixel_values)
        assert torch.equal(projected.image_embeds, dual.get_image_features(pixel_values).pooler_output)
        bare = CLIPVisionModel.from_pretrained(tmp_path / "tower.pt")
        assert_same(bare.state_dict(), dual.vision_model.state_dict())
        assert DualEncoderProcessor.from_pretrained(tmp_path / "tower.pt").image_processor.crop_size["height"] == 32
        assert inspect_source(tmp_path / "tower.pt")["geometry"].keys() == {"vision"}
        with pytest.raises(FormatError, match="holds the vision tower of a CLIP alone"):
            convert(tmp_path / "tower.pt", tmp_path / "folder")

    @pytest.mark.parametrize("prefix", ["text.", pytest.param("", marks=pytest.mark.thorough)])
    def test_text_tower(self, prefix: str, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save(openai, tmp_path / "plain.pt")
        tower = {k: t for k, t in openai.items() if not k.startswith(("visual.", "logit"))}
        torch.save(below(prefix, tower), tmp_path / "tower.pt")
        expected = CLIPTextModelWithProjection.from_pretrained(tmp_path / "plain.pt").state_dict()
        assert_same(CLIPTextModelWithProjection.from_pretrained(tmp_path / "tower.pt").state_dict(), expected)
        assert inspect_source(tmp_path / "tower.pt")["geometry"].keys() == {"text"}

    def test_what_is_left_of_a_whole_file(self, tmp_path: Path) -> None:
        """A text tower beside the scale and the integers of OpenAI's archive, which say whose the weights are."""
        whole = openai_tensors(**TINY_CLIP)
        torch.save(whole, tmp_path / "plain.pt")
        torch.save({k: t for k, t in reversed(whole.items()) if not k.startswith("visual.")}, tmp_path / "tower.pt")
        towers = [CLIPTextModelWithProjection.from_pretrained(tmp_path / name) for name in ("plain.pt", "tower.pt")]
        assert_same(towers[1].state_dict(), towers[0].state_dict())
        assert towers[0].config.hidden_act == towers[1].config.hidden_act == "quick_gelu"

    def test_image_classifier(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save(openai, tmp_path / "plain.pt")
        torch.save({k: t for k, t in openai.items() if k.startswith("visual.")}, tmp_path / "tower.pt")
        whole, tower = (
            CLIPForImageClassification.from_pretrained(tmp_path / name, num_labels=3)
            for name in ("plain.pt", "tower.pt")
        )
        assert tower.classifier.weight.shape == whole.classifier.weight.shape
        assert_same(tower.vision_model.state_dict(), whole.vision_model.state_dict())

    def test_without_projection(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save({k: t for k, t in openai.items() if k.startswith("visual.") and k != "visual.proj"}, tmp_path / "x")
        CLIPVisionModel.from_pretrained(tmp_path / "x")
        with pytest.raises(ValueError, match=r"needs 1 weights .*: visual_projection\.weight\."):
            CLIPVisionModelWithProjection.from_pretrained(tmp_path / "x")

    def test_other_classes(self, openai: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save({k: t for k, t in openai.items() if k.startswith("visual.")}, tmp_path / "x")
        with pytest.raises(ValueError, match="takes both towers, and this checkpoint has one, a CLIPVisionConfig"):
            DualEncoderModel.from_pretrained(tmp_path / "x")
        with pytest.raises(TypeError, match="takes a CLIPTextConfig, got a CLIPVisionConfig"):
            CLIPTextModel.from_pretrained(tmp_path / "x")


# Names from open_clip_torch 3.3.0 (`model_configs`), transformers 5.23.0, salesforce-lavis, OFA-Sys/Chinese-CLIP,
# tencent-ailab/IP-Adapter, apple/ml-mobileclip, baaivision/EVA.
OTHER_MODELS = {
    "CoCa": "text.cls_emb visual.attn_pool.query visual.conv1.weight text_decoder.resblocks.0.ln_1.weight",
    "CoCa,": "visual.attn_pool.attn.q_proj_weight visual.conv1.weight text.token_embedding.weight",
    "EVA-CLIP": "visual.trunk.cls_token visual.trunk.blocks.0.attn.q_bias visual.trunk.patch_embed.proj.weight",
    "an EVA-CLIP": "visual.cls_token visual.blocks.0.attn.q_proj.weight text.token_embedding.weight",
    "MobileCLIP": "visual.trunk.stages.0.blocks.0.token_mixer.norm.identity.bias text.ln_final.weight",
    "a MobileCLIP": "visual.trunk.cls_token visual.trunk.patch_embed.backbone.0.conv.weight text.ln_final.weight",
    "ViTamin": "visual.trunk.pos_embed visual.trunk.patch_embed.backbone.stem.conv1.weight",
    "ConvNeXt": "visual.trunk.stem.0.weight visual.trunk.stages.0.blocks.0.conv_dw.weight visual.head.proj.weight",
    "Perception Encoder": "visual.trunk.norm_pre.weight visual.trunk.attn_pool.latent visual.trunk.head.weight",
    "NaFlex SigLIP 2 of timm": "visual.trunk.embeds.proj.weight visual.trunk.attn_pool.latent text.ln_final.weight",
    "a NaFlex SigLIP 2": "embeds.pos_embed embeds.proj.weight attn_pool.latent blocks.0.norm1.weight",
    "another image tower of timm": "visual.trunk.layers.0.blocks.0.norm1.weight visual.head.proj.weight",
    "XLM-RoBERTa": "visual.conv1.weight text.transformer.embeddings.word_embeddings.weight text.proj.0.weight",
    "Chinese-CLIP": "visual.conv1.weight bert.embeddings.word_embeddings.weight text_projection",
    "BLIP": "visual_encoder.blocks.0.norm1.weight text_encoder.encoder.layer.0.output.dense.weight",
    "a BLIP,": "vision_model.embeddings.class_embedding text_decoder.bert.embeddings.word_embeddings.weight",
    "BLIP-2": "vision_model.embeddings.class_embedding qformer.layernorm.weight query_tokens",
    "ALIGN": "vision_model.embeddings.convolution.weight text_model.embeddings.word_embeddings.weight",
    "IP-Adapter": "image_proj.latents ip_adapter.1.to_k_ip.weight",
    "Stable Diffusion": "model.diffusion_model.out.0.bias cond_stage_model.transformer.text_model.embeddings.weight",
    "adapter (LoRA)": "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    "vision-language model": "model.vision_tower.vision_model.embeddings.class_embedding language_model.lm_head.weight",
    "image classifier": "vision_model.embeddings.class_embedding classifier.weight",
    "Alpha-CLIP": "visual.conv1.weight visual.conv1_alpha.weight",
    "DINO": "cls_token blocks.0.norm1.weight patch_embed.proj.weight",
}


@pytest.mark.parametrize("what", OTHER_MODELS)
def test_other_models_are_refused_by_name(what: str) -> None:
    names = OTHER_MODELS[what].split()
    for prefix in ("", "module."):
        if prefix and what in ("IP-Adapter", "Stable Diffusion", "DINO"):  # told by the beginning of their names
            continue
        with pytest.raises(
            FormatError, match=f"this is .*{re.escape(what.rstrip(','))}.*; expected a CLIP or a SigLIP"
        ):
            refuse_other_models([prefix + name for name in names])


def test_ip_adapter_of_two_entries(tmp_path: Path) -> None:
    torch.save({"image_proj": {"latents": torch.ones(2)}, "ip_adapter": {"1.weight": torch.ones(2)}}, tmp_path / "x")
    assert "this is an IP-Adapter" in refusal(tmp_path / "x")


def test_what_is_ours_is_not_refused(openai: dict[str, Tensor], folder: Path) -> None:
    for tensors in (
        openai,
        trunk_tensors(**TINY_TRUNK),
        big_vision_tensors(**TINY_SIGLIP),
        safetensors.torch.load_file(folder / "model.safetensors"),
    ):
        refuse_other_models(tensors)
