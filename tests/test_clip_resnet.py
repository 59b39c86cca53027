"""CLIP with a ResNet, against OpenAI's own code (`clip/model.py` of openai-clip), which needs nothing but torch."""

import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.builders import TINY_CLIP_JSON, resnet_tensors, write_beside
from helpers.checkpoints import assert_same
from helpers.released_files import released_module
from PIL import Image
from torch import Tensor, nn

import twinlens
from twinlens.conversion import convert, export
from twinlens.formats import FormatError, inspect_source, read_checkpoint, write_tensors
from twinlens.formats.reader import read_files
from twinlens.inference import attention_rollout, pooling_attention
from twinlens.parity import verify
from twinlens.parity.measurement import certify
from twinlens.parity.reference import reference_forward
from twinlens.training.optimization import freeze, parameter_groups

GEOMETRIES: dict[str, dict[str, Any]] = {
    "deep": {},  # stages of 2, 1, 2, 1 blocks, 64 pixels
    "wide": {"stem": 3, "stages": (1, 1, 1, 2), "grid": 3, "seed": 1},
}
INTEGERS = ("input_resolution", "context_length", "vocab_size")
RELATIVE = 1e-5  # of the largest value: float32 against the same in float32, summed in another order


@pytest.fixture(scope="module")
def official_code() -> Any:
    module = released_module("openai-clip==1.0.1", "clip/model.py")
    module.LayerNorm.forward = torch.nn.LayerNorm.forward  # the original casts to float32
    return module


def official_model(code: Any, tensors: Mapping[str, Tensor]) -> Any:
    return code.build_model(dict(tensors)).float()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save(resnet_tensors(), tmp_path / "RN.pt")
    return tmp_path / "RN.pt"


def inputs(grid: int = 2, images: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 90, (3, 12), generator=generator)
    ids[:, 7] = 98
    return torch.randn(images, 3, 32 * grid, 32 * grid, generator=generator), ids


def assert_relative(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= RELATIVE * theirs.abs().max()


def in_training(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as open_clip's training saves them."""
    return {f"module.{name}": tensor for name, tensor in tensors.items() if name not in INTEGERS}


def without_counts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}


def stages(official: nn.Module, pixels: Tensor) -> list[Tensor]:
    """The maps behind the stem and behind each stage of the official tower, as tokens row by row."""
    maps: list[Tensor] = []
    names = ("avgpool", "layer1", "layer2", "layer3", "layer4")
    hooks = [
        official.get_submodule(name).register_forward_hook(lambda module, args, output: maps.append(output.clone()))
        for name in names
    ]
    official(pixels)
    for hook in hooks:
        hook.remove()
    return [x.flatten(2).mT for x in maps]


class TestOfficialOutputs:
    @pytest.mark.parametrize("geometry", ["deep", pytest.param("wide", marks=pytest.mark.thorough)])
    def test_model(self, geometry: str, official_code: Any, tmp_path: Path) -> None:
        tensors = resnet_tensors(**GEOMETRIES[geometry])
        torch.save(tensors, tmp_path / "RN.pt")
        official = official_model(official_code, tensors)
        model = twinlens.DualEncoderModel.from_pretrained(tmp_path / "RN.pt")
        pixels, ids = inputs(GEOMETRIES[geometry].get("grid", 2))
        with torch.no_grad():
            theirs, logits = official.visual(pixels), official(pixels, ids)[0]
            outputs = model(pixel_values=pixels, input_ids=ids, output_hidden_states=True)
            states = stages(official.visual, pixels)
        assert type(model) is twinlens.CLIPResNetModel
        assert_relative(outputs.vision_model_output.pooler_output, theirs)
        torch.testing.assert_close(outputs.logits_per_image, logits, rtol=0, atol=1e-4)
        for ours, state in zip(outputs.vision_model_output.hidden_states, states, strict=True):
            assert_relative(ours, state)
        assert torch.equal(outputs.vision_model_output.last_hidden_state, outputs.vision_model_output.hidden_states[-1])
        channels_last = pixels.to(memory_format=torch.channels_last)
        with torch.no_grad():
            assert_relative(
                model.to(memory_format=torch.channels_last).vision_model(channels_last).pooler_output, theirs
            )

    @pytest.mark.parametrize("geometry", GEOMETRIES)
    def test_reference_in_float64(self, geometry: str, official_code: Any) -> None:
        tensors = resnet_tensors(**GEOMETRIES[geometry])
        official = official_model(official_code, tensors).double()
        pixels, ids = inputs(GEOMETRIES[geometry].get("grid", 2))
        pixels = pixels.double()
        with torch.no_grad():
            logits, states = official(pixels, ids)[0], stages(official.visual, pixels)
        reference: Any = reference_forward(tensors, pixels, ids)
        np.testing.assert_allclose(reference.logits_per_image, logits, rtol=0, atol=1e-12)
        for ours, state in zip(reference.image.hidden_states, states, strict=True):
            np.testing.assert_allclose(ours, state, rtol=0, atol=1e-12)

    def test_training_updates_statistics(self, official_code: Any, source: Path) -> None:
        official = official_model(official_code, resnet_tensors()).train()
        model = twinlens.DualEncoderModel.from_pretrained(source).train()
        pixels, _ = inputs(images=4)
        assert_relative(model.vision_model(pixels).pooler_output.detach(), official.visual(pixels).detach())
        weights = model.vision_model.state_dict()
        for name, ours in (("bn1", "embeddings.0.norm"), ("layer4.0.bn3", "layers.3.0.conv3.norm")):
            for part in ("running_mean", "running_var", "num_batches_tracked"):
                theirs = official.visual.state_dict()[f"{name}.{part}"]
                torch.testing.assert_close(weights[f"{ours}.{part}"], theirs, rtol=1e-5, atol=1e-6)

    def test_first_weights(self, official_code: Any) -> None:
        torch.manual_seed(0)
        config = twinlens.CLIPResNetVisionConfig(
            hidden_size=512, depths=[1, 1, 1, 1], num_attention_heads=8, image_size=64, projection_dim=256
        )
        ours = twinlens.CLIPResNetVisionModel(config)
        official = official_code.CLIP(256, 64, (1, 1, 1, 1), 16, None, 12, 99, 64, 1, 1).visual
        for name, theirs in (("q_proj", "q_proj"), ("out_proj", "c_proj"), ("position_embedding", "")):
            weight = getattr(official.attnpool, theirs).weight if theirs else official.attnpool.positional_embedding
            spread = getattr(ours.head, name).weight.std() / weight.std()
            assert spread.item() == pytest.approx(1, abs=0.1), name
        for name, tensor in ours.state_dict().items():
            if re.search("conv3.norm.weight|norm.bias|running_mean|num_batches", name) and name.startswith("layers"):
                assert not tensor.any(), name
            elif "norm" in name and "bias" not in name and not re.search("running_mean|num_batches", name):
                assert (tensor == 1).all(), name


class TestTower:
    @pytest.mark.parametrize(
        "prefix", ["", *(pytest.param(prefix, marks=pytest.mark.thorough) for prefix in ("visual.", "module.visual."))]
    )
    def test_tower_alone(self, prefix: str, official_code: Any, tmp_path: Path) -> None:
        """`model.visual.state_dict()`, and the same under the prefixes of wrappers."""
        tensors = resnet_tensors()
        tower = {k.removeprefix("visual."): tensor for k, tensor in tensors.items() if k.startswith("visual.")}
        torch.save({prefix + name: tensor for name, tensor in tower.items()}, tmp_path / "tower.pt")
        model = twinlens.CLIPResNetVisionModel.from_pretrained(tmp_path / "tower.pt")
        pixels, _ = inputs()
        with torch.no_grad():
            assert_relative(model(pixels).pooler_output, official_model(official_code, tensors).visual(pixels))
        assert inspect_source(tmp_path / "tower.pt")["geometry"].keys() == {"vision"}
        with pytest.raises(FormatError, match=r"holds the vision tower of a CLIP alone.* CLIPResNetVisionModel or"):
            convert(tmp_path / "tower.pt", tmp_path / "folder")
        torch.save({prefix + k: v for k, v in tower.items() if "attnpool" not in k}, tmp_path / "other.pt")
        with pytest.raises(FormatError):  # torchvision's ResNet has these names, too
            twinlens.CLIPResNetVisionModel.from_pretrained(tmp_path / "other.pt")

    def test_other_sizes(self, official_code: Any, source: Path) -> None:
        """As the official tower with a table of positions that was resized by `interpolate`, bicubic."""
        official = official_model(official_code, resnet_tensors()).visual
        model = twinlens.CLIPResNetVisionModel.from_pretrained(source)
        pixels = torch.randn(1, 3, 96, 135)  # 3x4 tokens; what fills no whole token is dropped
        with pytest.raises(
            ValueError, match=r"must be 64x64 \(config.image_size\), got 96x135\. .*interpolate_pos_enc"
        ):
            model(pixels)
        with pytest.raises(ValueError, match=r"must have shape \(batch, 3, height, width\), got \(1, 1, 64, 64\)"):
            model(torch.randn(1, 1, 64, 64))
        table = official.attnpool.positional_embedding.data
        grid = nn.functional.interpolate(table[1:].T.view(1, -1, 2, 2), (3, 4), mode="bicubic", align_corners=False)
        official.attnpool.positional_embedding.data = torch.cat([table[:1], grid.flatten(2)[0].T])
        with torch.no_grad():
            assert_relative(model(pixels, interpolate_pos_encoding=True).pooler_output, official(pixels))

    def test_image_size_of_a_file(self, official_code: Any, source: Path) -> None:
        """From 63 pixels, of which the first convolution makes 32, to 94; 95 make 48, and so 3x3 tokens."""
        tower = official_model(official_code, resnet_tensors()).visual
        assert stages(tower, torch.zeros(1, 3, 63, 94))[-1].shape[1] == 2 * 2
        for size in (63, 94):
            model = twinlens.DualEncoderModel.from_pretrained(source, image_size=size)
            assert model.config.vision_config.image_size == size
        for size in (62, 95):
            with pytest.raises(FormatError, match=f"image_size={size} makes .* from 63 to 94"):
                twinlens.DualEncoderModel.from_pretrained(source, image_size=size)
        convert(source, source.parent / "folder", image_size=63, verify=False)
        assert verify(source, source.parent / "folder").passed

    def test_attention_maps(self, source: Path) -> None:
        model = twinlens.CLIPResNetVisionModel.from_pretrained(source)
        pixels, _ = inputs()
        with torch.no_grad():
            outputs, plain = model(pixels, output_pooling_attentions=True), model(pixels)
        (attention,) = outputs.pooling_attentions  # (images, heads, 1, the mean and the tokens)
        assert attention.shape == (2, 2, 1, 5)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 1))
        torch.testing.assert_close(outputs.pooler_output, plain.pooler_output, rtol=0, atol=1e-6)

    def test_features_of_stages(self, official_code: Any, source: Path) -> None:
        official = official_model(official_code, resnet_tensors()).visual
        model = twinlens.DualEncoderModel.from_pretrained(source)
        pixels, _ = inputs()
        with torch.no_grad():
            expected = stages(official, pixels)
            maps = model.forward_features(pixels, layers=(0, -2, -1))
            tokens = model.forward_features(pixels, layers=(0, -2, -1), as_map=False)
        assert [tuple(x.shape[1:]) for x in maps] == [(4, 16, 16), (64, 4, 4), (128, 2, 2)]
        for ours, flat, theirs in zip(maps, tokens, (expected[0], expected[3], expected[4]), strict=True):
            assert_relative(flat, theirs)
            assert torch.equal(ours.flatten(2).mT, flat)

    def test_another_resolution_for_good(self, source: Path, tmp_path: Path) -> None:
        model = twinlens.DualEncoderModel.from_pretrained(source)
        pixels, _ = inputs(grid=3)
        with torch.no_grad():
            expected = model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
            model.resize_positions(96, method="transformers").save_pretrained(tmp_path / "resized")
            again = twinlens.CLIPResNetVisionModel.from_pretrained(tmp_path / "resized")
            torch.testing.assert_close(again(pixels).pooler_output, expected)
        assert again.config.image_size == model.config.vision_config.image_size == 96

    def test_maps(self, source: Path) -> None:
        model = twinlens.DualEncoderModel.from_pretrained(source)
        processor: Any = twinlens.CLIPProcessor(
            twinlens.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}), None
        )
        image = Image.new("RGB", (70, 80), "red")
        weights = pooling_attention(model, processor, image)
        with torch.no_grad():
            outputs = model.vision_model(**processor(images=image), output_pooling_attentions=True)
        torch.testing.assert_close(weights.flatten(), outputs.pooling_attentions[0].mean(dim=1)[0, 0, 1:])
        with pytest.raises(ValueError, match="A CLIPResNetVisionModel has no attention layers"):
            attention_rollout(model, processor, image)

    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # the name in older versions
    def test_gradient_checkpointing_changes_nothing(self, source: Path) -> None:
        plain = twinlens.DualEncoderModel.from_pretrained(source).train()
        pixels, ids = inputs(images=3)
        models = [copy.deepcopy(plain), copy.deepcopy(plain)]
        for model, reentrant in zip(models, (False, True), strict=True):
            model.vision_model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for model in (plain, *models):
            model(pixel_values=pixels, input_ids=ids, return_loss=True).loss.backward()
        for model in models:
            assert_same(dict(model.state_dict()), dict(plain.state_dict()))
            for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad)
        assert plain.vision_model.embeddings[0].norm.num_batches_tracked == 390_626

    def test_a_frozen_tower_keeps_its_embeddings(self, source: Path) -> None:
        model = twinlens.DualEncoderModel.from_pretrained(source)
        pixels, ids = inputs(images=3)
        before = model.encode_image(pixels).detach()
        freeze(model, "image")
        weights = copy.deepcopy(model.vision_model.state_dict())
        model.train()(pixel_values=pixels, input_ids=ids, return_loss=True).loss.backward()
        assert_same(dict(model.vision_model.state_dict()), dict(weights))
        torch.testing.assert_close(model.encode_image(pixels), before, rtol=0, atol=1e-6)

    def test_learning_rates_fall_by_stage(self, source: Path) -> None:
        model = twinlens.CLIPResNetVisionModel.from_pretrained(source)
        groups = parameter_groups(
            nn.ModuleDict({"vision_model": model}), learning_rate=1.0, weight_decay=0.1, layer_decay=0.5
        )
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        names = ["embeddings.0", *(f"layers.{stage}.0.conv1" for stage in range(4))]
        weights = [model.get_parameter(f"{name}.conv.weight") for name in names]
        assert [rates[id(weight)] for weight in weights] == [0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5]
        assert rates[id(model.get_parameter("head.q_proj.weight"))] == 1.0

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"hidden_size": 96}, "hidden_size must be a multiple of 64 .* got hidden_size=96"),
            ({"num_attention_heads": 3}, "of num_attention_heads, got hidden_size=2048 and num_attention_heads=3"),
            ({"depths": [3, 4, 6]}, r"depths must be four numbers of at least 1, got \[3, 4, 6\]"),
            ({"depths": [3, 0, 6, 3]}, r"depths must be four numbers of at least 1"),
            ({"image_size": 16}, "image_size must be at least 31, got 16"),
        ],
    )
    def test_contradictions_are_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            twinlens.CLIPResNetVisionConfig(**fields)


class TestConversion:
    def test_there_and_back(self, source: Path, tmp_path: Path) -> None:
        folder, tensors = tmp_path / "folder", read_files([source])[1]
        certificate = convert(source, folder)
        (comparison,) = certificate.comparisons
        assert (comparison.subject, comparison.reference) == ("twinlens", "float64")
        tolerances = {output.name: output.tolerance for output in comparison.outputs}
        assert tolerances["image.pooler_output"] == tolerances["image.hidden_states.4"] == 1e-5
        assert any("transformers has no CLIPResNetModel" in note for note in certificate.notes)
        export(folder, tmp_path / "again.pt", format="openai")
        assert_same(read_files([tmp_path / "again.pt"])[1], tensors)
        (tmp_path / "folder" / "official_layout.json").unlink()  # now as OpenAI releases them
        export(folder, tmp_path / "released.pt", format="openai")
        assert_same(read_files([tmp_path / "released.pt"])[1], tensors)

        (tmp_path / "open_clip").mkdir()
        export(folder, tmp_path / "open_clip" / "open_clip_model.safetensors", format="open_clip")
        cfg = json.loads((tmp_path / "open_clip" / "open_clip_config.json").read_text())["model_cfg"]
        assert cfg["vision_cfg"] == {
            "layers": [2, 1, 2, 1], "width": 4, "patch_size": None, "image_size": 64, "head_width": 64
        }  # fmt: skip
        assert cfg["quick_gelu"] is True
        weights = "model.safetensors"
        again = read_checkpoint(tmp_path / "open_clip").state_dict()
        assert_same(
            {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in again.items()},
            read_files([folder / weights])[1],
        )
        model = twinlens.DualEncoderModel.from_pretrained(folder)
        model.save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / weights).read_bytes() == (folder / weights).read_bytes()
        text = twinlens.CLIPTextModel.from_pretrained(folder)
        _, ids = inputs()
        assert torch.equal(text(ids).last_hidden_state, model.text_model(ids).last_hidden_state)
        transformers.utils.logging.set_verbosity_error()  # it reports the weights of the image tower
        theirs = transformers.CLIPTextModel.from_pretrained(folder)
        torch.testing.assert_close(theirs(ids).last_hidden_state, text(ids).last_hidden_state)

    @pytest.mark.thorough
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
    def test_code_of_an_archive_in_float16(self, official_code: Any, tmp_path: Path) -> None:
        """Its graphs have the dtype as a constant, as those of OpenAI's archives do."""
        tensors = resnet_tensors()
        official = official_code.build_model(dict(tensors))
        for name in INTEGERS:
            if hasattr(official, name):
                delattr(official, name)
            official.register_buffer(name, tensors[name])
        (pixels, ids), archive = inputs(), tmp_path / "RN.pt"
        methods = {"encode_image": pixels, "encode_text": ids}
        torch.jit.save(torch.jit.trace_module(official, methods, check_trace=False), archive)
        assert "prim::Constant[value=5]" in str(torch.jit.load(archive).encode_image.graph)
        convert(archive, tmp_path / "folder", verify=False)
        certificate = verify(archive, tmp_path / "folder", reference="original")
        assert certificate.passed
        assert certificate.comparisons[-1].subject == "its own TorchScript code"

    def test_half_precision_keeps_counts(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "folder", dtype="float16", verify=False)
        tensors = read_files([tmp_path / "folder" / "model.safetensors"])[1]
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int64}
        assert tensors["vision_model.layers.0.0.conv1.norm.num_batches_tracked"] == 390_625
        model = twinlens.DualEncoderModel.from_pretrained(tmp_path / "folder", dtype="auto")
        pixels, _ = inputs()
        expected = twinlens.DualEncoderModel.from_pretrained(source).encode_image(pixels)
        torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=5e-3)

    @pytest.mark.parametrize(
        ("container", "change"),
        [
            pytest.param("safetensors", dict, id="safetensors", marks=pytest.mark.thorough),
            pytest.param("torch/state_dict", in_training, id="training", marks=pytest.mark.thorough),
            pytest.param("torch", without_counts, id="without counts"),
            pytest.param("torchscript", dict, id="archive", marks=pytest.mark.thorough),
        ],
    )
    def test_forms(
        self, container: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], source: Path
    ) -> None:
        expected = read_checkpoint(source).state_dict()
        tensors = change(resnet_tensors())
        other = source.with_name("other")
        write_tensors(container, tensors, other)
        options: Any = {} if container != "torch/state_dict" else {"vision_activation": "quick_gelu"}
        checkpoint = read_checkpoint(other, **options)
        weights = checkpoint.state_dict()
        if change is without_counts:
            counts = {name for name in expected if name.endswith("num_batches_tracked")}
            assert all(weights[name] == 0 for name in counts)
            expected |= {name: torch.tensor(0) for name in counts}
        assert_same(weights, expected)
        assert checkpoint.config.to_dict() == read_checkpoint(source).config.to_dict()
        convert(other, source.with_name("folder"), verify=False, **options)
        again = source.with_name("again.safetensors" if container == "safetensors" else "again.pt")
        export(source.with_name("folder"), again, format=checkpoint.format)  # type: ignore[arg-type]
        assert_same(read_files([again])[1], tensors)

    @pytest.mark.parametrize("quick_gelu", [True, pytest.param(False, marks=pytest.mark.thorough)])
    def test_open_clip_json(self, quick_gelu: bool, official_code: Any, tmp_path: Path) -> None:
        """The JSON says what the text tower computes; the ResNet's activation is ReLU."""
        vision = {"image_size": 64, "layers": [2, 1, 2, 1], "width": 4, "patch_size": None}
        cfg = {**TINY_CLIP_JSON, "quick_gelu": quick_gelu, "vision_cfg": vision}
        tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in resnet_tensors().items()
            if name not in INTEGERS
        }
        path = tmp_path / "open_clip_pytorch_model.bin"
        write_beside(path, tensors, "torch", "open_clip_config.json", {"model_cfg": cfg})
        config = read_checkpoint(path).config
        assert config.text_config.hidden_act == ("quick_gelu" if quick_gelu else "gelu")
        assert certify(read_checkpoint(path), twinlens.DualEncoderModel.from_pretrained(path)).passed
        for field, value, message in (
            ("layers", [2, 1, 1, 1], r"vision_cfg.layers is \[2, 1, 1, 1\], but the weights have \[2, 1, 2, 1\]"),
            ("layers", 12, r"vision_cfg.layers is 12, but the weights have \[2, 1, 2, 1\]"),
            ("width", 8, "vision_cfg.width is 8, but the weights have 4"),
        ):
            cfg["vision_cfg"] = {**vision, field: value}
            write_beside(path, tensors, "torch", "open_clip_config.json", {"model_cfg": cfg})
            with pytest.raises(FormatError, match=message):
                read_checkpoint(path)
        cfg["vision_cfg"] = {**vision, "head_width": 32}
        write_beside(path, tensors, "torch", "open_clip_config.json", {"model_cfg": cfg})
        assert read_checkpoint(path).config.vision_config.num_attention_heads == 4

    def test_inspection_counts_parameters(self, official_code: Any, source: Path) -> None:
        official = official_model(official_code, resnet_tensors())
        description = inspect_source(source)
        assert description["parameters"] == sum(parameter.numel() for parameter in official.parameters())
        assert description["family"] == "clip_resnet"
        assert description["geometry"]["vision"] == {
            "image_size": 64, "patch_size": 32, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
            "depths": [2, 1, 2, 1],
        }  # fmt: skip

    def test_statistics_beyond_half_precision(self, tmp_path: Path) -> None:
        tensors = resnet_tensors()
        tensors["visual.bn1.running_var"][0] = 1e5
        torch.save(tensors, tmp_path / "RN.pt")
        with pytest.raises(
            ValueError, match=r"embeddings.0.norm.running_var has values beyond the range of torch.float16"
        ):
            convert(tmp_path / "RN.pt", tmp_path / "folder", dtype="float16")
        assert not (tmp_path / "folder").exists()


def test_classifier(source: Path) -> None:
    model = twinlens.CLIPResNetForImageClassification.from_pretrained(source, num_labels=3)
    tower = twinlens.CLIPResNetVisionModel.from_pretrained(source)
    pixels, _ = inputs()
    with torch.no_grad():
        expected = model.classifier(tower(pixels).last_hidden_state.mean(dim=1))
        torch.testing.assert_close(model(pixels).logits, expected)
    assert not [name for name, _ in model.named_parameters() if "head" in name]


def test_pipelines(tmp_path: Path) -> None:
    tensors = resnet_tensors()
    torch.save(tensors, tmp_path / "RN.pt")
    model = twinlens.DualEncoderModel.from_pretrained(tmp_path / "RN.pt")
    processor = twinlens.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    image = torch.randint(0, 256, (3, 80, 70), dtype=torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(image)
    extract = transformers.pipeline(
        "image-feature-extraction", model=model.vision_model, image_processor=processor, device="cpu"
    )
    with torch.no_grad():
        outputs = model.vision_model(**processor(picture, return_tensors="pt"))
    np.testing.assert_array_equal(np.array(extract(picture)), outputs.last_hidden_state)
    np.testing.assert_array_equal(np.array(extract(picture, pool=True)), outputs.pooler_output)
