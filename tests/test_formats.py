"""Official files: what is read, what it becomes, what goes back, and what is refused."""

import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from helpers.builders import (
    TINY_CLIP,
    TINY_CLIP_JSON,
    TINY_SIGLIP,
    TINY_SIGLIP_JSON,
    TINY_TRUNK,
    TRUNK_OPTIONS,
    big_vision_tensors,
    open_clip_tensors,
    openai_tensors,
    resnet_tensors,
    trunk_tensors,
    write_beside,
    write_big_vision,
    write_npz,
    write_openai,
)
from helpers.checkpoints import (
    BIG_VISION,
    CASES,
    OPEN_CLIP,
    OPENAI,
    TANH_JSON,
    TRANSFORMERS,
    assert_same,
    bits,
    read,
    write,
)
from helpers.official_outputs import FIXED_SIZE, FIXTURES, NAFLEX, official_outputs
from torch import Tensor

from twinlens.configuration import FAMILIES, CLIPConfig, Siglip2Config
from twinlens.formats import (
    Checkpoint,
    FormatError,
    big_vision,
    inspect_source,
    is_checkpoint_file,
    layout_from_dict,
    open_clip,
    openai,
    read_checkpoint,
    read_source,
    timm,
    to_official,
    write_tensors,
)
from twinlens.modeling import DualEncoderModel

SAMPLE = 11  # every eleventh weight, where all of them take long


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"  # no suffix: files are told apart by their content


def upstream(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """transformers' own model for one of our configurations."""
    config_class, model_class = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel),
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
        "siglip2": (transformers.Siglip2Config, transformers.Siglip2Model),
        "siglip_vision_model": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
    }[config.model_type]
    return model_class(config_class(**config.to_diff_dict())).eval()


class TestReading:
    def test_names_and_shapes_are_those_of_transformers(self, case: str, source: Path) -> None:
        write(source, case)
        checkpoint = read(source, case)
        with torch.device("meta"):
            expected = upstream(checkpoint.config).state_dict()
        given = checkpoint.state_dict()
        assert {n: t.shape for n, t in given.items()} == {n: t.shape for n, t in expected.items()}

    def test_tensors_are_the_files(self, case: str, source: Path) -> None:
        written = write(source, case)
        checkpoint = read(source, case)
        integers = {name: tensor for name, tensor in written.items() if not tensor.is_floating_point()}
        assert_same(bits({**checkpoint.tensors, **integers}), bits(written))
        assert_same(dict(checkpoint.layout.integer_buffers), integers)
        assert checkpoint.path == source
        families: dict[str, Any] = {
            "openai": OPENAI,
            "big_vision": BIG_VISION,
            "open_clip": OPEN_CLIP,
            "transformers": TRANSFORMERS,
        }
        expected = next((name for name, cases in families.items() if case in cases), case)
        assert checkpoint.format == checkpoint.layout.format == expected

    def test_weights_own_their_memory(self, case: str, source: Path) -> None:
        write(source, case)
        for name, tensor in read(source, case).state_dict().items():
            assert tensor.is_contiguous(), name
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name

    @pytest.mark.parametrize("library", ["transformers", "twinlens"])
    @pytest.mark.parametrize("fixture", [*FIXED_SIZE, NAFLEX])
    def test_outputs_of_the_official_code(self, fixture: str, library: str) -> None:
        """Bars: 1e-4 for logits, 5e-6 for unit embeddings, of float32 on a CPU."""
        checkpoint = read_checkpoint(FIXTURES / fixture / "checkpoint.npz")
        images, ids, expected = official_outputs(fixture)
        if library == "twinlens":
            model = DualEncoderModel.from_pretrained(checkpoint.path)
        else:
            model = upstream(checkpoint.config)
            model.load_state_dict(checkpoint.state_dict(), strict=True)
        if library == "transformers" and "spatial_shapes" in images:  # which it has wrong for a single column
            kept = images["spatial_shapes"][:, 1] > 1
            assert (~kept).sum() == 1
            images = {name: values[kept] for name, values in images.items()}
            expected = {n: v[kept.numpy()] if len(v.shape) and len(v) == len(kept) else v for n, v in expected.items()}
        with torch.no_grad():
            outputs = model(**images, input_ids=ids, output_hidden_states=True)
        for ours, theirs, bar in (
            (outputs.logits_per_image, "logits_per_image", 1e-4),
            (outputs.image_embeds, "image_embeds_normalized", 5e-6),
            (outputs.text_embeds, "text_embeds_normalized", 5e-6),
        ):
            assert np.abs(ours.numpy() - expected[f"f64/{theirs}"]).max() < bar, theirs
        tower = outputs.vision_model_output
        mask = images.get("pixel_attention_mask", torch.ones(tower.last_hidden_state.shape[:2]))
        names = sorted(name for name in expected if name.startswith("image_block") and name.endswith("+mlp"))
        states = [*tower.hidden_states[1:], tower.last_hidden_state]
        for state, name in zip(states, [*names, "image_encoded"], strict=True):
            distance = np.abs(state[:3].numpy() - expected[name])[mask[:3] == 1]
            assert distance.max() < 3e-5, name

    def test_fused_attention_is_cut_in_the_official_order(self, source: Path) -> None:
        written = write_openai(source, **TINY_CLIP)
        weights = read_checkpoint(source).state_dict()
        fused = written["visual.transformer.resblocks.2.attn.in_proj_weight"]
        for part, rows in (("q", slice(0, 128)), ("k", slice(128, 256)), ("v", slice(256, 384))):
            name = f"vision_model.encoder.layers.2.self_attn.{part}_proj.weight"
            assert torch.equal(weights[name], fused[rows])
        assert torch.equal(weights["text_projection.weight"], written["text_projection"].T)
        assert torch.equal(weights["visual_projection.weight"], written["visual.proj"].T)

    def test_both_text_position_tables_count(self, source: Path) -> None:
        written = write(source, "old")
        weights = read_checkpoint(source).state_dict()
        both = written["txt/pos_embedding"] + written["txt/Encoder_0/pos_embedding"]
        assert torch.equal(weights["text_model.embeddings.position_embedding.weight"], both[0])

    def test_missing_head_changes_nothing(self, source: Path) -> None:
        write(source, "bfloat16-scanned-no-head")
        weights = read_checkpoint(source).state_dict()
        assert torch.equal(weights["text_model.head.weight"], torch.eye(48, dtype=torch.bfloat16))
        assert torch.equal(weights["text_model.head.bias"], torch.zeros(48, dtype=torch.bfloat16))

    @pytest.mark.parametrize("folder_in_archive", ["archive", "ViT-B-32", "a b"])
    def test_old_archives_have_other_folders_and_no_byte_order(self, source: Path, folder_in_archive: str) -> None:
        written = write_openai(source, **TINY_CLIP)
        rewrite(source, lambda name, data: None if name.endswith("byteorder") else data, folder_in_archive)
        assert_same(read_checkpoint(source).tensors, {n: t for n, t in written.items() if t.is_floating_point()})

    def test_archive_opens_in_torch(self, source: Path) -> None:
        written = write_openai(source, **TINY_CLIP)
        with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.load"):
            assert_same(dict(torch.jit.load(source).state_dict()), written)

    def test_parameters_and_tensors_that_share_memory(self, source: Path) -> None:
        written = openai_tensors(**TINY_CLIP, integers=False)
        shared = torch.cat([written["ln_final.weight"], written["ln_final.bias"]]).reshape(2, -1).T.contiguous().T
        parameters = {name: torch.nn.Parameter(tensor) for name, tensor in written.items()}
        torch.save({**parameters, "ln_final.weight": shared[0], "ln_final.bias": shared[1]}, source)
        assert_same(read_checkpoint(source).tensors, written)


class TestGeometry:
    def test_clip(self, source: Path) -> None:
        write_openai(source, **TINY_CLIP)
        config = read_checkpoint(source).config
        assert config.model_type == "clip"
        assert config.projection_dim == config.text_config.projection_dim == config.vision_config.projection_dim == 48
        vision: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 512}
        vision |= {"num_hidden_layers": 3, "num_attention_heads": 2}
        vision |= {"patch_size": 16, "image_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
        assert config.vision_config.to_dict().items() >= vision.items()
        text: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256}
        text |= {"num_hidden_layers": 2, "num_attention_heads": 1}
        text |= {"vocab_size": 99, "max_position_embeddings": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
        text |= {"pad_token_id": 0, "bos_token_id": 97, "eos_token_id": 2}  # the highest id: 98 may be an added token
        assert config.text_config.to_dict().items() >= text.items()

    def test_siglip(self, source: Path) -> None:
        write(source, "unequal-widths")
        config = read_checkpoint(source).config
        assert config.model_type == "siglip"
        vision: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 72}
        vision |= {"num_hidden_layers": 3, "num_attention_heads": 3}
        vision |= {"patch_size": 16, "image_size": 48, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
        assert config.vision_config.to_dict().items() >= vision.items()
        text: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 80}
        text |= {"num_hidden_layers": 2, "num_attention_heads": 2}
        text |= {"vocab_size": 101, "max_position_embeddings": 16, "projection_size": 48}
        text |= {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 1}
        text |= {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
        assert config.text_config.to_dict().items() >= text.items()

    @pytest.mark.parametrize(
        ("geometry", "pad"),
        [
            pytest.param({}, 1, id="v1"),
            pytest.param({"scan_image": True, "scan_text": True}, 0, id="v2"),
            pytest.param({"vocabulary": 256_000}, 0, id="v2-unscanned"),
            pytest.param({"vocabulary": 250_000}, 1, id="v1-multilingual"),
            pytest.param({"naflex": True}, 0, id="naflex"),
        ],
    )
    def test_padding(self, geometry: dict[str, int], pad: int, source: Path) -> None:
        tiny = {**TINY_SIGLIP, "text_width": 8}
        write_big_vision(source, **{**tiny, **geometry})
        assert read_checkpoint(source).config.text_config.pad_token_id == pad

    def test_naflex(self, source: Path) -> None:
        write_big_vision(source, **{**TINY_SIGLIP, "grid": 5, "patch": 14, "naflex": True})
        config = read_checkpoint(source).config
        assert type(config) is Siglip2Config
        assert (config.vision_config.patch_size, config.vision_config.num_patches) == (14, 25)
        assert config.text_config.projection_size == 48
        with pytest.raises(FormatError, match=r"--image-size 224 was given, but .* takes images of any size"):
            read_checkpoint(source, image_size=224)

    def test_full_size_shapes(self, source: Path) -> None:
        """So400m/14 at 384 with text length 16 beside unequal towers: only the shapes, at one layer."""
        write_big_vision(
            source, grid=27, patch=14, width=1536, layers=1, heads=16, mlp=6144, text_width=1152, text_layers=1,
            text_heads=16, text_mlp=4304, text_length=16, vocabulary=200, dtype=torch.bfloat16,
        )  # fmt: skip
        config = read_checkpoint(source, image_size=384).config
        assert (config.vision_config.image_size, config.vision_config.num_attention_heads) == (384, 16)
        assert (config.text_config.hidden_size, config.text_config.projection_size) == (1152, 1536)
        assert config.text_config.intermediate_size == 4304

    @pytest.mark.parametrize(("image_size", "result"), [(None, 42), (42, 42), (50, 50), (55, 55)])
    def test_image_size_may_add_what_fills_no_patch(self, image_size: int | None, result: int, source: Path) -> None:
        write(source, "patch-14")
        assert read_checkpoint(source, image_size=image_size).config.vision_config.image_size == result

    @pytest.mark.parametrize("image_size", [41, 56, 224])
    def test_image_size_must_fit_the_grid(self, image_size: int, source: Path) -> None:
        write(source, "patch-14")
        with pytest.raises(FormatError, match=f"image_size={image_size} makes .* positions for 3; .* from 42 to 55"):
            read_checkpoint(source, image_size=image_size)


class TestRoundTrip:
    def test_file_to_transformers_to_file(self, case: str, source: Path) -> None:
        """By way of a float32 folder, which remembers the layout as JSON."""
        written = write(source, case)
        checkpoint = read(source, case)
        weights = {name: tensor.float() for name, tensor in checkpoint.state_dict().items()}
        layout = layout_from_dict(json.loads(json.dumps(checkpoint.layout.to_dict())))
        assert layout == checkpoint.layout
        assert_same(bits(to_official(weights, layout)), bits(written))

    def test_sums_whose_parts_no_longer_fit(self, source: Path) -> None:
        """The text positions were trained on: all of them go into the first table."""
        write(source, "old")
        checkpoint = read_checkpoint(source)
        weights = checkpoint.state_dict()
        name = "text_model.embeddings.position_embedding.weight"
        weights[name] = weights[name] + 1
        official = to_official(weights, checkpoint.layout)
        assert_same({"": official["txt/pos_embedding"][0]}, {"": weights[name]})
        assert not official["txt/Encoder_0/pos_embedding"].any()

    @pytest.mark.parametrize("fault", [{"format": "flax"}, {"sizes": 3, "depth": 1}, {"merged_sources": {"t": {}}}])
    def test_layouts_that_are_not_sound(self, fault: dict, source: Path) -> None:
        write(source, "old")
        with pytest.raises(FormatError, match="the layout is not sound"):
            layout_from_dict({**read_checkpoint(source).layout.to_dict(), **fault})

    def test_transformers_to_file_to_transformers(self, case: str, source: Path, tmp_path: Path) -> None:
        write(source, case)
        checkpoint = read(source, case)
        weights = checkpoint.state_dict()
        next(tensor for name, tensor in weights.items() if "position_embedding" in name)[0] = -0.0
        again = tmp_path / "again"
        write_tensors(checkpoint.layout.container, to_official(weights, checkpoint.layout), again)
        assert_same(bits(read(again, case).state_dict()), bits(weights))

    def test_every_row_is_used(self, tmp_path: Path) -> None:
        used = set()
        for case in CASES:
            (tmp_path / case).mkdir()
            write(tmp_path / case / "file", case)
            for row in read(tmp_path / case / "file", case).layout.rules():
                used |= {(re.sub(r"_?\d+", "#", s), row.operation.name.removeprefix("stacked ")) for s in row.sources}
        tables: tuple[Any, ...] = (
            openai.VISION,
            openai.TEXT,
            openai.BLOCK,
            big_vision.BLOCK,
            big_vision.PATCH_EMBEDDING,
        )
        tables += ([openai.VISION_PROJECTION, openai.TEXT_PROJECTION, openai.LOGIT_SCALE, open_clip.SCALE_AND_ZERO],)
        tables += (openai.TEXT_NORM, [open_clip.NO_TEXT_HEAD], big_vision.NAFLEX_EMBEDDING)
        tables += (open_clip.TEXT_HEAD, open_clip.SCALE_AND_BIAS, timm.VISION, timm.BLOCK)
        tables += (big_vision.IMAGE_POOLING, big_vision.TEXT_NORM, big_vision.HEAD, big_vision.LOGITS)
        tables += ([big_vision.IMAGE_POSITIONS, big_vision.OLD_IMAGE_POSITIONS, big_vision.TOKENS],)
        tables += ([big_vision.TEXT_POSITIONS, big_vision.TEXT_POSITIONS_TWICE, big_vision.TEXT_NORM_WITHOUT_HEAD],)
        for row in (row for rows in tables for row in rows):
            for name in row.sources:
                end = re.sub(r"_?\d+", "#", name)
                pattern = rf"(.*[/.])?{re.escape(end)}"
                assert any(re.fullmatch(pattern, s) and op == row.operation.name for s, op in used), name

    def test_rows_do_not_overlap(self, case: str, source: Path) -> None:
        write(source, case)
        table = read(source, case).layout.rules()
        for names in ([n for row in table for n in row.sources], [n for row in table for n in row.targets]):
            assert len(names) == len(set(names))

    def test_all_faults_of_the_weights_are_named(self, source: Path) -> None:
        write(source, "no-head")
        checkpoint = read_checkpoint(source)
        weights = checkpoint.state_dict()
        with pytest.raises(FormatError, match="has no text head, so the head must be the identity"):
            to_official({**weights, "text_model.head.bias": torch.ones(48)}, checkpoint.layout)
        weights["extra"] = weights.pop("logit_bias")
        weights["logit_scale"] = torch.zeros(())
        with pytest.raises(FormatError) as error:
            to_official(weights, checkpoint.layout)
        for fault in ("logit_bias is missing", "extra is not expected", r"logit_scale has shape (), expected (1,)"):
            assert fault in str(error.value)


class TestWhatFilesDoNotSay:
    """Activation, heads and resolution: from the file where it says them, else from the caller, never guessed."""

    @pytest.mark.parametrize("container", ["safetensors", "torch"])
    def test_one_dtype_may_be_of_openai_or_open_clip(self, container: str, source: Path) -> None:
        """But for the order of a state dict: blocks of open_clip begin with a norm, of OpenAI with the attention."""
        tensors = openai_tensors(**TINY_CLIP, half=False, integers=False)
        if container == "torch":
            torch.save(dict(sorted(tensors.items(), key=lambda item: "ln_1" not in item[0])), source)
        else:
            safetensors.torch.save_file(tensors, source)
        assert_refused(source, r"whether its GELU is quick_gelu \(OpenAI's\) or gelu .* --vision-activation")
        for activation in ("quick_gelu", "gelu"):
            config = read_checkpoint(source, vision_activation=activation).config
            assert config.vision_config.hidden_act == config.text_config.hidden_act == activation

    def test_order_of_openai(self, source: Path) -> None:
        torch.save(openai_tensors(**TINY_CLIP, half=False, integers=False), source)
        checkpoint = read_checkpoint(source)
        assert (checkpoint.format, checkpoint.config.vision_config.hidden_act) == ("openai", "quick_gelu")
        for activation in ("quick_gelu", "gelu"):
            config = read_checkpoint(source, vision_activation=activation).config
            assert config.vision_config.hidden_act == config.text_config.hidden_act == activation

    @pytest.mark.parametrize(
        "marks", [{"half": True, "integers": False}, {"half": False, "integers": True}], ids=["dtypes", "integers"]
    )
    def test_marks_of_openai(self, marks: dict[str, bool], source: Path) -> None:
        torch.save(openai_tensors(**TINY_CLIP, **marks), source)
        checkpoint = read_checkpoint(source)
        assert checkpoint.format == "openai"
        assert checkpoint.config.text_config.hidden_act == "quick_gelu"
        with pytest.raises(
            FormatError, match="--vision-activation gelu was given, but the activation can only be quick"
        ):
            read_checkpoint(source, vision_activation="gelu")

    def test_json_beside_decides(self, source: Path) -> None:
        """Over the mixture of dtypes, which open_clip's own half precision has too, but not over an archive."""
        half = openai_tensors(**TINY_CLIP, integers=False)
        write_beside(source, half, "torch", "open_clip_config.json", {"model_cfg": TANH_JSON})
        checkpoint = read_checkpoint(source)
        assert checkpoint.format == "open_clip"
        vision, text = checkpoint.config.vision_config, checkpoint.config.text_config
        assert (vision.hidden_act, vision.num_attention_heads, vision.layer_norm_eps) == ("gelu_pytorch_tanh", 4, 1e-6)
        assert (text.hidden_act, text.num_attention_heads, text.layer_norm_eps) == ("gelu_pytorch_tanh", 4, 1e-6)
        write_openai(source, **TINY_CLIP)
        assert read_checkpoint(source).format == "openai"

    @pytest.mark.parametrize(("width", "heads"), [(1024, 16), (1280, None)])
    def test_heads_of_wide_towers(self, width: int, heads: int | None, source: Path) -> None:
        """Up to 1024 every published tower of open_clip has heads of 64; then 80, 88, 104 or 112."""
        sizes = {**TINY_CLIP, "width": width, "layers": 1, "image_size": 16}
        write_tensors("safetensors", open_clip_tensors(**sizes), source)
        if heads is None:
            with pytest.raises(FormatError, match="the number of heads of its image tower; pass --vision-heads"):
                read_checkpoint(source, vision_activation="gelu")
        config = read_checkpoint(source, vision_activation="gelu", vision_heads=heads or 16).config
        assert config.vision_config.num_attention_heads == 16
        with pytest.raises(FormatError, match=r"cannot be cut into 7 heads|--vision-heads 7 was given"):
            read_checkpoint(source, vision_activation="gelu", vision_heads=7)

    @pytest.mark.parametrize("case", ["timm", "open_clip-siglip"])
    def test_towers_of_timm(self, case: str, source: Path) -> None:
        write(source, case)
        named = "named vit_tiny_patch16_siglip_test" if case != "timm" else "without its name"
        assert_refused(source, f"the activation of a timm model {named}; pass --vision-activation")
        with pytest.raises(FormatError, match=f"the number of heads of a timm model {named}; .* --vision-heads"):
            read_checkpoint(source, vision_activation="gelu")

    @pytest.mark.parametrize("case", ["timm", "open_clip-siglip"])
    def test_names_of_timm(self, case: str, source: Path) -> None:
        """B/32 of SigLIP 2 computes tanh with 12 heads."""
        written = write(source, case)
        name = "vit_base_patch32_siglip_256"
        json_text = {"architecture": name} if case == "timm" else {
            "model_cfg": {**TINY_SIGLIP_JSON, "vision_cfg": {**TINY_SIGLIP_JSON["vision_cfg"], "timm_model_name": name}}
        }  # fmt: skip
        json_name = "config.json" if case == "timm" else "open_clip_config.json"
        write_beside(source, written, "safetensors", json_name, json_text)
        config = read_checkpoint(source, image_size=48).config
        vision: Any = getattr(config, "vision_config", config)
        assert (vision.hidden_act, vision.num_attention_heads) == ("gelu_pytorch_tanh", 12)
        with pytest.raises(FormatError, match=r"--vision-heads 3 was given, but .* can only be 12"):
            read_checkpoint(source, image_size=48, vision_heads=3)

    def test_text_tower_of_siglip_without_json(self, source: Path) -> None:
        for vocabulary, width, act, heads, pad in (
            (99, 64, "gelu", 1, 1),
            (256_000, 64, "gelu_pytorch_tanh", 1, 0),
            (99, 1152, "gelu", 16, 1),
        ):
            sizes = {**TINY_TRUNK, "vocabulary": vocabulary, "text_width": width, "text_layers": 1}
            write_tensors("safetensors", trunk_tensors(**sizes), source)
            text = read_checkpoint(source, **TRUNK_OPTIONS).config.text_config
            assert (text.hidden_act, text.num_attention_heads, text.pad_token_id) == (act, heads, pad)
            assert text.layer_norm_eps == 1e-6

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("image_szie", "Did you mean image_size"), ("colour", "The options are image_size, vi")],
    )
    @pytest.mark.parametrize("function", [read_checkpoint, read_source, inspect_source])
    def test_unknown_options(self, function: Callable, name: str, hint: str, source: Path) -> None:
        write(source, "v1")
        with pytest.raises(TypeError, match=f"no option called '{name}'. {hint}"):
            function(source, **{name: 1})

    def test_names_of_activations(self, source: Path) -> None:
        with pytest.raises(ValueError, match=r"vision_activation must be one of quick_gelu, gelu, .*, got 'relu'"):
            read_checkpoint(source, vision_activation="relu")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("case", "change", "message"),
        [
            ("open_clip", {"embed_dim": 40}, "embed_dim is 40, but the weights have 48"),
            ("open_clip", {"vision_cfg": {"layers": 4}}, "vision_cfg.layers is 4, but the weights have 3"),
            ("open_clip", {"vision_cfg": {"mlp_ratio": 2.0}}, "mlp_ratio times width is 256, but the weights have 512"),
            ("open_clip", {"vision_cfg": {"pool_type": "avg"}}, "vision_cfg.pool_type is 'avg', expected 'tok'"),
            ("open_clip", {"vision_cfg": {"qk_norm": True}}, "vision_cfg.qk_norm is True, which this version does not"),
            (
                "open_clip",
                {"text_cfg": {"context_length": 77}},
                "text_cfg.context_length is 77, but the weights have 12",
            ),
            ("open_clip", {"text_cfg": {"pool_type": "eos"}}, "text_cfg.pool_type is 'eos', expected 'argmax'"),
            (
                "open_clip",
                {"text_cfg": {"no_causal_mask": True}},
                "text_cfg.no_causal_mask is True, which this version",
            ),
            (
                "open_clip",
                {"text_cfg": {"act_kwargs": {"a": 1}}},
                "text_cfg.act_kwargs is {'a': 1}, which this version",
            ),
            ("open_clip", {"text_cfg": {"heads": "8"}}, "its configuration is not sound"),
            ("open_clip", {"text_cfg": None}, "its configuration is not sound"),
            ("open_clip", {"vision_cfg": {"image_size": 48}}, "image_size=48 makes 3 patches"),
            ("open_clip-siglip", {"vision_cfg": {"timm_pool": "avg"}}, "vision_cfg.timm_pool is 'avg', expected 'map'"),
            ("open_clip-siglip", {"text_cfg": {"proj_bias": False}}, "text_cfg.proj_bias is False, expected True"),
            ("open_clip-siglip", {"text_cfg": {"no_causal_mask": False}}, "text_cfg.no_causal_mask is False, expected"),
        ],
    )
    def test_json_of_another_model(self, case: str, change: dict, message: str, source: Path) -> None:
        write(source, case)
        file = source.parent / "open_clip_config.json"
        model = json.loads(file.read_text())["model_cfg"]
        for name, value in change.items():
            model[name] = {**model[name], **value} if isinstance(value, dict) else value
        file.write_text(json.dumps({"model_cfg": model}))
        with pytest.raises(FormatError, match=re.escape(message)):
            read(source, case)

    @pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000])
    @pytest.mark.parametrize("case", ["open_clip", "transformers-clip"])
    def test_json_that_is_none(self, case: str, content: str, source: Path) -> None:
        write(source, case)
        file = "config.json" if case == "transformers-clip" else "open_clip_config.json"
        (source.parent / file).write_text(content)
        assert_refused(source, rf"{file} (cannot be read|holds a list, expected an object)")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "bert"}, "config.json has model_type 'bert', expected clip or .*siglip"),
            ({"projection_dim": 40}, r"visual_projection.weight has shape \(48, 64\), expected \(40, 64\)"),
            ({"projection_dim": "40"}, "its configuration is not sound"),
        ],
    )
    def test_config_of_transformers(self, change: dict, message: str, source: Path) -> None:
        write(source, "transformers-clip")
        config = json.loads((source.parent / "config.json").read_text())
        (source.parent / "config.json").write_text(json.dumps({**config, **change}))
        assert_refused(source, message)

    def test_old_ids_are_left_alone(self, source: Path) -> None:
        write(source, "transformers-old")
        assert read_checkpoint(source).config.text_config.eos_token_id == 2

    def test_bias_that_clip_has_no_place_for(self, source: Path) -> None:
        tensors = {**open_clip_tensors(**TINY_CLIP), "logit_bias": torch.tensor(-9.5)}
        write_tensors("torch", tensors, source)
        assert_refused(source, "transformers' CLIP has no place for its logit_bias of -9.5")

    def test_pixels(self, source: Path) -> None:
        tensors = write(source, "open_clip")
        pixels = {
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.2],
            "interpolation": "bilinear",
            "resize_mode": "shortest",
        }
        content = {"model_cfg": TINY_CLIP_JSON, "preprocess_cfg": pixels}
        write_beside(source, tensors, "safetensors", "open_clip_config.json", content)
        settings = read_checkpoint(source).image_settings
        assert settings.items() >= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "resample": 2}.items()
        write(source, "v1")
        assert read_checkpoint(source).image_settings == {}


class TestFolders:
    @pytest.mark.parametrize(
        ("case", "name"),
        [
            ("open_clip", "open_clip_model.safetensors"),
            ("open_clip-quick", "open_clip_pytorch_model.bin"),
            ("transformers-siglip", "model.safetensors"),
            ("transformers-old", "pytorch_model.bin"),
        ],
    )
    def test_weights_are_found(self, case: str, name: str, tmp_path: Path) -> None:
        written = write(tmp_path / name, case)
        checkpoint = read(tmp_path, case)
        assert (checkpoint.path, checkpoint.files) == (tmp_path, (tmp_path / name,))
        assert_same(bits({**checkpoint.tensors, **checkpoint.layout.integer_buffers}), bits(written))
        assert is_checkpoint_file(tmp_path) == case.startswith("open_clip")

    def test_open_clip_comes_before_transformers(self, tmp_path: Path) -> None:
        write(tmp_path / "model.safetensors", "transformers-clip")
        write(tmp_path / "open_clip_model.safetensors", "open_clip")
        assert read_checkpoint(tmp_path).format == "open_clip"
        assert not is_checkpoint_file(tmp_path)  # transformers' own loading has its way with such a folder

    def test_several_files(self, tmp_path: Path) -> None:
        written = write(tmp_path / "all", "transformers-siglip")
        parts = {f"model-{n}.safetensors": dict(list(written.items())[n::3]) for n in range(3)}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
        for file, part in parts.items():
            write_tensors("safetensors", part, tmp_path / file)
        assert_same(read_checkpoint(tmp_path).tensors, written)
        write_tensors("safetensors", written, tmp_path / "model-0.safetensors")
        assert_refused(tmp_path, "is in two of the files")
        bad: dict[str, Any]
        for bad in ({}, {"weight_map": {"a": "../all"}}, {"weight_map": {"a": 3}}, {"weight_map": []}):
            index.write_text(json.dumps(bad))
            assert_refused(tmp_path, "has no weight_map from weights to files of the folder")

    def test_of_a_further_family(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is read by the rules of the first of its `official_formats`; without one the message says so."""

        class OtherConfig(CLIPConfig):
            model_type = "other_clip"

        written = write(tmp_path / "model.safetensors", "transformers-clip")
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(values | {"model_type": "other_clip"}))
        other = replace(FAMILIES["clip"], title="Other CLIP", config=OtherConfig)
        monkeypatch.setitem(FAMILIES, "other_clip", other)
        checkpoint = read_checkpoint(tmp_path)
        assert type(checkpoint.config) is OtherConfig
        assert_same(checkpoint.state_dict(), written)
        for formats in ((), ("open_clip", "openai")):
            monkeypatch.setitem(FAMILIES, "other_clip", replace(other, official_formats=formats))
            assert_refused(tmp_path, f"no table of the weights' names of Other CLIP; .*got {(*formats, None)[0]}")


class TestResNet:
    def test_every_key_is_needed_and_none_besides(self, source: Path, thorough: bool) -> None:
        tensors = resnet_tensors(stem=1, stages=(1, 1, 1, 1))
        for name in list(tensors)[:: 1 if thorough else SAMPLE]:
            if not re.search(r"layer\d\.0\.conv1|input_res|context_|vocab_size", name):
                torch.save({n: t for n, t in tensors.items() if n != name}, source)
                assert_refused(source, f"{re.escape(name)} is missing")
        torch.save({**tensors, "visual.layer9.bias": torch.ones(3)}, source)
        assert_refused(source, "visual.layer9.bias is not expected")

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("layer2.0.downsample.0.weight", torch.ones(4, 4), r"has shape \(4, 4\), expected \(16\*vision.stem=32"),
            ("layer3.1.bn2.running_var", torch.ones(15), r"has shape \(15,\), expected \(8\*vision.stem=16\)"),
            ("layer4.0.bn3.running_mean", torch.full((128,), torch.nan), "has NaN or infinite values"),
            ("bn1.num_batches_tracked", torch.tensor(7.0), "has dtype torch.float32, expected torch.int64"),
            ("bn1.num_batches_tracked", torch.ones(2, dtype=torch.int64), r"has shape \(2,\), expected \(\)"),
            ("attnpool.positional_embedding", torch.ones(7, 128), "positions on a square grid, got 6"),
        ],
    )
    def test_what_is_wrong_is_named(self, name: str, tensor: Tensor, message: str, source: Path) -> None:
        torch.save({**resnet_tensors(), f"visual.{name}": tensor}, source)
        assert_refused(source, message if "square" in message else f"visual.{re.escape(name)} {message}")


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], folder: str = "archive") -> None:
    """Change the entries of a zip archive; `change` gets their names without the folder, None drops one."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if (changed := change(name, data)) is not None:
                archive.writestr(f"{folder}/{name}", changed)


def assert_refused(path: Path, message: str) -> None:
    """One line that names the file and says `message`."""
    with pytest.raises(FormatError, match=message) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


class TestRefusedWeights:
    """Files that are sound in themselves, but not what they should hold."""

    @pytest.mark.parametrize(
        "case",
        [
            *("archive", "state-dict", "v1", "v2-scanned", "old", "open_clip", "open_clip-training"),
            *("open_clip-siglip", "timm", "transformers-siglip", "transformers-old", "naflex"),
        ],
    )
    def test_every_key_is_needed_and_none_besides(self, case: str, source: Path, thorough: bool) -> None:
        written = write(source, case)
        checkpoint = read(source, case)
        for name in list(written)[:: 1 if thorough else SAMPLE]:
            if name in checkpoint.layout.integer_buffers or re.search(
                r"MAPHead|head/|(Encoder_0|Transformer)/pos|(^|/)(t|b)$|attn_pool.latent|conv1.weight|text_projection",
                name,
            ):
                continue  # not a weight, or its absence makes another layout or another model
            with pytest.raises(FormatError, match=f"{re.escape(name)} is missing"):
                self.read_again(checkpoint, {n: t for n, t in written.items() if n != name}, case)
        extra = f"{checkpoint.layout.prefix}something/else"
        with pytest.raises(FormatError, match=f"{extra} is not expected"):
            self.read_again(checkpoint, {**written, extra: torch.ones(3)}, case)

    @staticmethod
    def read_again(checkpoint: Checkpoint, tensors: dict[str, Tensor], case: str) -> None:
        container = checkpoint.layout.container
        write_tensors("torch" if container == "torchscript" else container, tensors, checkpoint.path)
        read(checkpoint.path, case)

    def test_all_faults_in_one_line(self, source: Path) -> None:
        tensors = big_vision_tensors(**TINY_SIGLIP)
        tensors["params/left/over"] = tensors.pop("params/txt/head/bias")
        tensors["params/img/embedding/bias"] = torch.ones(7)
        tensors["params/img/Transformer/encoderblock_1/LayerNorm_0/bias"][3] = torch.nan
        tensors["params/txt/Embed_0/embedding"][0, 0] = -torch.inf
        tensors["params/t"] = torch.ones(1, dtype=torch.int64)
        write_npz(source, tensors)
        assert_refused(source, "not a sound big_vision checkpoint")
        for fault in (
            "params/txt/head/bias is missing",
            "params/left/over is not expected",
            r"params/img/embedding/bias has shape \(7,\), expected \(vision.width=48\)",
            "params/img/Transformer/encoderblock_1/LayerNorm_0/bias has NaN or infinite values",
            "params/txt/Embed_0/embedding has NaN or infinite values",
            "params/t has dtype torch.int64, expected floating point",
        ):
            assert_refused(source, fault)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"visual.positional_embedding": torch.ones(8, 128)}, "positions on a square grid, got 7 of them"),
            ({"visual.positional_embedding": torch.ones(1, 128)}, "positions on a square grid, got 0 of them"),
            ({"visual.conv1.weight": torch.ones(128, 3, 16, 15)}, r"expected \(vision.width=128, 3, vision.patch=16, "),
            ({"visual.conv1.weight": torch.ones(128, 4, 16, 16)}, r"shape \(128, 4, 16, 16\), expected \(vision.width"),
            ({"text_projection": torch.ones(64, 40)}, r"\(64, 40\), expected \(text.width=64, embed=48\)"),
            ({"ln_final.bias": torch.ones(64, 1)}, r"ln_final.bias has shape \(64, 1\), expected \(text.width=64\)"),
            ({"visual.transformer.resblocks.9.ln_1.bias": torch.ones(128)}, "resblocks.3.ln_1.weight is missing"),
        ],
    )
    def test_openai_geometry(self, change: dict[str, Tensor], message: str, source: Path) -> None:
        torch.save({**openai_tensors(**TINY_CLIP), **change}, source)
        assert_refused(source, message)

    @pytest.mark.parametrize("geometry", [{"width": 48}, {"text_width": 200}], ids=["below-64", "does-not-divide"])
    def test_openai_heads(self, geometry: dict[str, int], source: Path) -> None:
        write_openai(source, **{**TINY_CLIP, **geometry})
        assert_refused(source, "cannot be cut into . heads")

    @pytest.mark.parametrize(
        ("geometry", "message"),
        [
            ({"head": False, "text_width": 32}, "text embeddings have 32 values, but image embeddings 48"),
            ({"heads": 5}, "vision tower has 5 heads of 9, expected them to fill its width 48"),
            ({"text_length": 0}, r"pos_embedding has shape \(1, 0, 48\), expected"),
        ],
        ids=["no-head-unequal", "heads", "no-text"],
    )
    def test_big_vision_geometry(self, geometry: dict[str, int], message: str, source: Path) -> None:
        write_big_vision(source, **{**TINY_SIGLIP, **geometry})
        assert_refused(source, message)

    @pytest.mark.parametrize(
        ("without", "extra", "message"),
        [
            ("img/MAPHead_0", {}, "has no attention pooling of images"),
            ("img/MAPHead_0", {"img/cls": (1, 1, 48)}, "no attention pooling of images .* a class token"),
            ("img/MAPHead_0", {"img/head/kernel": (48, 8)}, "an image projection"),
            ("nothing", {"txt/MAPHead_0/probe": (1, 1, 48)}, "attention pooling of texts"),
            ("nothing", {"img/cls": (1, 1, 48)}, "a class token"),
            ("nothing", {"txt/cls": (1, 1, 48)}, "params/txt/cls is not expected"),
            ("b", {}, "no bias of the sigmoid loss"),
            ("t", {}, "no temperature"),
            ("txt/", {}, "no text tower"),
            ("img/", {}, "no attention pooling of images"),
        ],
    )
    def test_models_of_big_vision_that_are_not_siglip(
        self, without: str, extra: dict[str, tuple[int, ...]], message: str, source: Path
    ) -> None:
        tensors = big_vision_tensors(**TINY_SIGLIP)
        left = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"params/{without}")}
        write_npz(source, {**left, **{f"params/{name}": torch.ones(shape) for name, shape in extra.items()}})
        assert_refused(source, message)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("embedding/kernel", (770, 48), r"patches of 770 values, expected 3 \* patch_size\*\*2, such as 768"),
            ("pos_embedding", (3, 4, 48), r"pos_embedding has shape \(3, 4, 48\), expected \(vision.grid=3, vision.g"),
            ("pos_embedding", (1, 9, 48), r"pos_embedding has shape \(1, 9, 48\), expected \(vision.grid=1, vision.g"),
            ("pos_embedding", None, "params/img/pos_embedding is missing"),
            ("embedding/bias", None, "params/img/embedding/bias is missing"),
            ("embedding/kernel", None, "params/img/embedding/kernel is missing"),
            ("patchln_pre/scale", (768,), "params/img/patchln_pre/scale is not expected"),
        ],
    )
    def test_naflex(self, name: str, shape: tuple[int, ...] | None, message: str, source: Path) -> None:
        tensors = big_vision_tensors(**TINY_SIGLIP, naflex=True)
        tensors.pop(f"params/img/{name}", None)
        write_npz(source, tensors if shape is None else {**tensors, f"params/img/{name}": torch.ones(shape)})
        assert_refused(source, message)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["visual.layer1.0.conv1.weight", "visual.attnpool.q_proj.weight"], "visual.conv1.weight is missing"),
            (["visual.trunk.pos_embed", "text.text_projection.weight"], "visual.trunk.attn_pool.kv.weight is missing"),
            (["visual.conv1.weight", "text.transformer.resblocks.0.ln_1.bias"], "visual.ln_pre.weight is missing"),
            (["module.visual.conv1.weight", "logit_scale"], "logit_scale is not expected"),
            (["vision_model.embeddings.class_embedding"], "without the config.json of their folder"),
            (["conv1.weight", "bn1.weight", "fc.bias", "fc.weight"], "a CLIP or SigLIP as OpenAI, .* got 4 tensors"),
        ],
    )
    def test_other_models(self, names: list[str], message: str, source: Path) -> None:
        torch.save({name: torch.ones(2) for name in names}, source)
        assert_refused(source, message)


class Touch:
    """A pickle of this would create a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


class TestRefusedFiles:
    """Damaged and hostile files."""

    def test_not_a_checkpoint(self, tmp_path: Path) -> None:
        for name, content, message in (
            ("empty", b"", "is empty"),
            ("text", b"a photo of a cat\n", "not a checkpoint"),
            ("one-byte", b"P", "not a checkpoint"),
            ("json", b'{"model_type": "clip"}', "not a checkpoint"),
            ("zip-magic", b"PK\x03\x04", "damaged or forged"),
            ("pickle-magic", b"\x80\x02", "damaged or forged"),
            ("safetensors-magic", struct.pack("<Q", 40) + b"{}", "damaged or forged"),
        ):
            path = tmp_path / name
            path.write_bytes(content)
            assert is_checkpoint_file(path)
            assert_refused(path, message)

    def test_paths(self, tmp_path: Path, source: Path) -> None:
        assert_refused(tmp_path, "expected a file, or a folder with config.json .* This one holds nothing")
        with pytest.raises(FileNotFoundError, match=r"nowhere.pt: no such file"):
            read_checkpoint(tmp_path / "nowhere.pt")
        for other in (tmp_path, tmp_path / "nowhere.pt", "google/siglip-base-patch16-224", None, 3):
            assert not is_checkpoint_file(other)
        write(source, "v1")
        assert is_checkpoint_file(source)
        assert is_checkpoint_file(str(source))

    def test_other_zip(self, source: Path) -> None:
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("document.xml", "<xml/>")
        assert_refused(source, "this zip archive is no checkpoint")

    @pytest.mark.parametrize("case", ["archive", "state-dict", "state-dict-legacy", "state-dict-safetensors", "v1"])
    def test_truncated(self, case: str, source: Path) -> None:
        write(source, case)
        content = source.read_bytes()
        for part in (0.01, 0.3, 0.9, 0.999):
            source.write_bytes(content[: int(len(content) * part)])
            assert_refused(source, "damaged or forged|is empty|values for it")

    @pytest.mark.parametrize("case", ["archive", "state-dict", "v1"])
    def test_flipped_bit(self, case: str, source: Path) -> None:
        write(source, case)
        content = bytearray(source.read_bytes())
        content[len(content) // 2] ^= 1
        source.write_bytes(content)
        assert_refused(source, "damaged or forged: Bad CRC-32")

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_pickle_is_not_executed(self, protocol: int, source: Path, tmp_path: Path) -> None:
        marker = tmp_path / "executed"
        source.write_bytes(pickle.dumps(Touch(marker), protocol))
        assert_refused(source, "the file asks for .* it was not executed" if protocol else "not a checkpoint")
        assert not marker.exists()

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_foreign_object_beside_the_weights(self, zipped: bool, source: Path, tmp_path: Path) -> None:
        marker = tmp_path / "executed"
        weights = openai_tensors(**TINY_CLIP, integers=False)
        for foreign in (Touch(marker), PurePosixPath("a"), np.ones(3), torch.nn.Linear(2, 2), print):
            torch.save({**weights, "foreign": foreign}, source, _use_new_zipfile_serialization=zipped)
            assert_refused(source, "the file asks for .* was not executed")
        assert not marker.exists()

    @pytest.mark.parametrize("case", ["archive", "state-dict"])
    def test_foreign_object_that_is_dropped_at_once(self, case: str, source: Path) -> None:
        """The pickle makes the object and pops it, so that the state dict itself is spotless."""
        write(source, case)
        evil = b"cos\nsystem\nX\x04\x00\x00\x00true\x85R0"
        rewrite(source, lambda name, data: data[:2] + evil + data[2:] if name == "data.pkl" else data)
        assert_refused(source, "the file asks for os.system, expected nothing but tensors; it was not executed")

    @pytest.mark.parametrize(
        "evil",
        [
            pytest.param(b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb0", id="set-on-rebuild"),
            pytest.param(b"c__torch__\nClip\n}X\x01\x00\x00\x00aK\x01sb0", id="set-on-module-class"),
            pytest.param(b"c__torch__\nClip\nN}X\x01\x00\x00\x00aK\x01s\x86b0", id="set-slot-on-module-class"),
            pytest.param(b"ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsK\x01s\x86b0", id="set-on-ordered-dict"),
            pytest.param(b"ctorch\nFloatStorage\nN}X\x01\x00\x00\x00aK\x01s\x86b0", id="set-on-dtype"),
            pytest.param(b"ctorch\nFloatStorage\n)R0", id="call-dtype"),
            pytest.param(b"X\x03\x00\x00\x00abcQ0", id="persistent-id"),
        ],
    )
    def test_pickle_cannot_change_the_reader(self, evil: bytes, source: Path) -> None:
        write(source, "state-dict")
        rewrite(source, lambda name, data: data[:2] + evil + data[2:] if name == "data.pkl" else data)
        assert_refused(source, "forged")

    def test_entries_that_are_not_tensors(self, source: Path) -> None:
        weights = openai_tensors(**TINY_CLIP, integers=False)
        torch.save({**weights, "epoch": 3}, source)
        assert_refused(source, "entry 'epoch' is a int, expected a tensor; of a training checkpoint, save the model's")
        torch.save({"state_dict": {**weights, "epoch": 3}}, source)
        assert_refused(source, "entry 'epoch' is a int, expected a tensor")
        torch.save(list(weights.values()), source)
        assert_refused(source, "the file holds a list, expected a state dict")
        torch.save({0: torch.ones(1)}, source)
        assert_refused(source, "entry 0 is a Stored")

    def test_module_tree_that_contains_itself(self, source: Path) -> None:
        write(source, "archive")
        endless = b"\x80\x02c__torch__\nClip\nq\x00)\x81q\x01}X\x01\x00\x00\x00aq\x02h\x01sb."
        rewrite(source, lambda name, data: endless if name == "data.pkl" else data)
        assert_refused(source, "modules of the archive contain themselves")

    def test_storages(self, source: Path) -> None:
        write(source, "state-dict")
        sound = source.read_bytes()
        for change, message in (
            (lambda name, data: data[:-4] if name == "data/3" else data, "has shape .* but the file holds"),
            (lambda name, data: data[:-1] if name == "data/3" else data, "damaged or forged"),
            (lambda name, data: None if name == "data/3" else data, "damaged or forged: .*no item named.*data/3"),
            (lambda name, data: b"big" if name == "byteorder" else data, "big-endian"),
        ):
            source.write_bytes(sound)
            rewrite(source, change)
            assert_refused(source, message)

    @pytest.mark.parametrize(
        ("offset", "size", "stride"),
        [
            pytest.param(1, (4,), (1,), id="begins-late"),
            pytest.param(0, (5,), (1,), id="too-long"),
            pytest.param(0, (4,), (2,), id="too-wide"),
            pytest.param(0, (1 << 40, 1 << 20), (0, 0), id="one-value-repeated"),
            pytest.param(0, (0,), (1,), id="nothing"),
            pytest.param(-1, (4,), (1,), id="negative-offset"),
            pytest.param(0, (4,), (-1,), id="negative-stride"),
            pytest.param(0, (4,), (1, 1), id="two-strides"),
            pytest.param(0, (2.0,), (1,), id="not-an-integer"),
        ],
    )
    def test_tensors_outside_their_storage(self, offset: int, size: tuple, stride: tuple, source: Path) -> None:
        class Forged:
            def __reduce__(self) -> tuple:
                storage = torch.ones(4).untyped_storage()
                return torch._utils._rebuild_tensor_v2, (Storage(storage), offset, size, stride, False, {})

        class Storage:
            def __init__(self, storage: torch.UntypedStorage) -> None:
                self.storage = storage

        class Pickler(pickle.Pickler):
            def persistent_id(self, value: object) -> tuple | None:
                return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, Storage) else None

        buffer = io.BytesIO()
        Pickler(buffer, 2).dump({"visual.proj": Forged()})
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("archive/data.pkl", buffer.getvalue())
            archive.writestr("archive/data/0", np.ones(4, np.float32).tobytes())
        assert_refused(source, "visual.proj has (shape|the impossible offset)")

    def test_entries_of_one_name(self, source: Path) -> None:
        write(source, "v1")
        with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(source, "a") as archive:
            archive.writestr("params/t.npy", archive.read("params/t.npy"))
        assert_refused(source, "two entries of one name")

    def test_compressed_storage(self, source: Path) -> None:
        write(source, "state-dict")
        with zipfile.ZipFile(source) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        assert_refused(source, "is compressed")

    def test_object_arrays(self, source: Path) -> None:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in big_vision_tensors(**TINY_SIGLIP).items()}
        with source.open("wb") as file:
            np.savez(file, **{**arrays, "params/t": np.array([Touch(source)], dtype=object)}, allow_pickle=True)
        assert_refused(source, "Object arrays cannot be loaded")

    @pytest.mark.parametrize("array", [np.ones(1, ">f4"), np.array(["a"]), np.ones(1, "V3")], ids=["big", "text", "V3"])
    def test_arrays_of_other_types(self, array: np.ndarray, source: Path) -> None:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in big_vision_tensors(**TINY_SIGLIP).items()}
        with source.open("wb") as file:
            np.savez(file, **{**arrays, "params/t": array})
        assert_refused(source, "damaged or forged")

    def test_entry_that_is_no_array(self, source: Path) -> None:
        write(source, "v1")
        with zipfile.ZipFile(source, "a") as archive:
            archive.writestr("params/notes.txt", "hello")
        assert_refused(source, "params/notes.txt is not a NumPy array")


def test_compressed_npz(source: Path) -> None:
    tensors = big_vision_tensors(**TINY_SIGLIP)
    with source.open("wb") as file:
        np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]
    assert_same(read_checkpoint(source).tensors, tensors)


def test_fortran_order(source: Path) -> None:
    tensors = big_vision_tensors(**TINY_SIGLIP)
    with source.open("wb") as file:
        arrays: dict[str, Any] = {name: np.asfortranarray(tensor.numpy()) for name, tensor in tensors.items()}
        np.savez(file, **arrays)
    checkpoint = read_checkpoint(source)
    assert_same(to_official(checkpoint.state_dict(), checkpoint.layout), tensors)
