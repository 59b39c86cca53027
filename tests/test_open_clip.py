"""open_clip and timm: reference, models and exports against their own code, and mistakes that must not pass."""

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import open_clip_models
from helpers.builders import TINY_CLIP_JSON, TINY_SIGLIP_JSON, TRUNK_OPTIONS
from helpers.checkpoints import TANH, TANH_JSON, read, write
from helpers.processes import finish, start
from helpers.released_files import released_package
from torch import Tensor

import twinlens
from twinlens.configuration import SiglipConfig
from twinlens.conversion import ParityError, convert, export
from twinlens.formats import Checkpoint, OpenClipLayout, read_checkpoint
from twinlens.formats.timm import TRUNKS
from twinlens.parity import certify, reference_forward

NO_HEAD_TEXT: dict[str, Any] = {
    name: value for name, value in TINY_SIGLIP_JSON["text_cfg"].items() if name != "proj_bias"
}
NO_HEAD_JSON: dict[str, Any] = {**TINY_SIGLIP_JSON, "text_cfg": {**NO_HEAD_TEXT, "width": 48, "proj_type": "none"}}
MODELS: dict[str, dict[str, Any]] = {
    "exact": TINY_CLIP_JSON,
    "quick": {**TINY_CLIP_JSON, "quick_gelu": True},
    "tanh": TANH_JSON,
    "custom-text": {**TINY_CLIP_JSON, "custom_text": True},
    "end-of-text": {**TINY_CLIP_JSON, "text_cfg": {**TINY_CLIP_JSON["text_cfg"], "pool_type": "eos", "eos_id": 90}},
    "siglip": TINY_SIGLIP_JSON,
    "siglip-no-head": NO_HEAD_JSON,
    "siglip-tanh-text": {**TINY_SIGLIP_JSON, "text_cfg": {**TINY_SIGLIP_JSON["text_cfg"], **TANH}},
}
REMEMBERED = {f"{name}, remembered": name for name in MODELS}
RELEASED = {f"{name}, forgotten": name for name in MODELS if "siglip" not in name}  # tiny towers have no name in timm
SIGLIPS = ("ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384", "ViT-B-32-SigLIP2-256", "ViT-SO400M-16-SigLIP-i18n-256")


def choices(name: str) -> dict[str, Any]:
    return TRUNK_OPTIONS if "siglip" in name else {}


@pytest.fixture(scope="module")
def packages() -> list[Path]:
    return [released_package(name) for name in ("open_clip_torch==3.3.0", "timm==1.0.31", "torchvision==0.28.0")]


def run_open_clip(packages: list[Path], *arguments: Path, log: Path) -> None:
    assert finish(start(open_clip_models.main, packages, *arguments, output=log)) == 0, log.read_text()


@pytest.fixture(scope="module")
def official(packages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder of folders that open_clip filled with random models, what they were given, and what they computed."""
    root = tmp_path_factory.mktemp("open_clip")
    for name, model in MODELS.items():
        (root / name).mkdir()
        model = json.loads(json.dumps(model))
        model["vision_cfg"]["image_size"] = 48  # all take the same images
        (root / name / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 98, (4, 12))
    ids[:, 9] = 98
    ids[0, 10:] = 98
    ids[1, 10:] = 0
    ids[3, 6], ids[:3, 8], ids[3, 9] = 90, 90, 97  # an end of text with added tokens behind it; without the highest id
    np.savez(root / "inputs.npz", pixels=rng.uniform(-2, 2, (3, 3, 48, 48)), ids=ids)
    files = (root / name for name in ("inputs.npz", "outputs.npz", "trunks.json"))
    run_open_clip(packages, *files, *(root / name for name in MODELS), log=root / "log")
    outputs = np.load(root / "outputs.npz")
    named = {
        name: {part: outputs[f"{number}/{part}"] for part in ("images", "texts", "logits")}
        for number, name in enumerate(MODELS)
    }
    return root, np.load(root / "inputs.npz"), named


@pytest.mark.parametrize("name", MODELS)
def test_reference_and_models(name: str, official: tuple[Path, Any, Any]) -> None:
    """float64 against float64; then our float32 model, by the tolerances of every conversion."""
    root, inputs, outputs = official
    checkpoint = read_checkpoint(root / name, **choices(name))
    assert checkpoint.format == "open_clip"
    result: Any = reference_forward(
        checkpoint.tensors,
        inputs["pixels"],
        inputs["ids"],
        sidecar_json=checkpoint.layout.sidecar_json,
        **choices(name),
    )
    np.testing.assert_allclose(result.image.embeds, outputs[name]["images"], rtol=0, atol=1e-13)
    np.testing.assert_allclose(result.text.embeds, outputs[name]["texts"], rtol=0, atol=1e-13)
    np.testing.assert_allclose(result.logits_per_image, outputs[name]["logits"], rtol=0, atol=1e-12)

    model = twinlens.DualEncoderModel.from_pretrained(root / name, **choices(name))
    pixels, ids = torch.from_numpy(inputs["pixels"]).float(), torch.from_numpy(inputs["ids"])
    with torch.no_grad():
        images, texts = model.encode_image(pixels), model.encode_text(ids)
        np.testing.assert_allclose(images, outputs[name]["images"], rtol=0, atol=5e-6)
        np.testing.assert_allclose(texts, outputs[name]["texts"], rtol=0, atol=5e-6)
        np.testing.assert_allclose(model.logits(images, texts), outputs[name]["logits"], rtol=0, atol=1e-4)


@pytest.mark.thorough
def test_open_clip_loads_what_is_exported(
    official: tuple[Path, Any, Any], packages: list[Path], tmp_path: Path, thorough: bool
) -> None:
    """With the memory of where a folder came from, and as released where that is forgotten."""
    root, _, outputs = official
    cases = {**REMEMBERED, **RELEASED}
    if not thorough:
        cases = {case: name for case, name in cases.items() if name in ("exact", "siglip", "siglip-no-head")}
    for case, name in cases.items():
        folder = tmp_path / "converted" / case
        convert(root / name, folder, verify=False, **choices(name))
        if case in RELEASED:
            (folder / "official_layout.json").unlink()
        (tmp_path / case).mkdir()
        export(folder, tmp_path / case / "open_clip_model.safetensors", format="open_clip")
    files = (root / "inputs.npz", tmp_path / "outputs.npz", root / "trunks.json")
    run_open_clip(packages, *files, *(tmp_path / case for case in cases), log=tmp_path / "log")
    exported = np.load(tmp_path / "outputs.npz")
    for number, name in enumerate(cases.values()):
        np.testing.assert_allclose(exported[f"{number}/logits"], outputs[name]["logits"], rtol=0, atol=1e-4)


def test_names_of_timm(official: tuple[Path, Any, Any]) -> None:
    found = json.loads((official[0] / "trunks.json").read_text())
    assert found == {name: list(trunk) for name, trunk in TRUNKS.items()}


@pytest.mark.parametrize("name", SIGLIPS)
def test_json_is_that_of_open_clip(name: str, packages: list[Path]) -> None:
    released = json.loads((packages[0] / "open_clip" / "model_configs" / f"{name}.json").read_text())
    text, trunk = released["text_cfg"], TRUNKS[released["vision_cfg"]["timm_model_name"]]
    config = SiglipConfig(
        vision_config=trunk._asdict(),
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "hidden_act": "gelu_pytorch_tanh" if "act_kwargs" in text else "gelu",
            "vocab_size": text["vocab_size"],
            "projection_size": released["embed_dim"],
        },
    )
    layout = OpenClipLayout.from_config(config)
    if text.get("proj_type") == "none":
        layout = dataclasses.replace(layout, text_head=False).with_model_cfg(config)
    written = layout.sidecar_json["model_cfg"]
    for model in (written, released):
        ratio = model["text_cfg"].pop("mlp_ratio", 4)
        model["text_cfg"]["mlp"] = int(model["text_cfg"]["width"] * ratio)
        model["text_cfg"].pop("hf_tokenizer_name")  # some name one with the same vocabulary in another folder
    assert written == released


def test_image_tower_alone(tmp_path: Path) -> None:
    """timm's weights become transformers' image tower, which loads without the text tower that is not there."""
    write(tmp_path / "timm.safetensors", "timm")
    certificate = convert(tmp_path / "timm.safetensors", tmp_path / "folder", **TRUNK_OPTIONS)
    assert certificate.passed
    outputs = [output for comparison in certificate.comparisons for output in comparison.outputs]
    assert {output.name.split(".")[0] for output in outputs} == {"image"}
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        ours = twinlens.SiglipVisionModel.from_pretrained(tmp_path / "timm.safetensors", **TRUNK_OPTIONS)(pixels)
        theirs = importlib.import_module("transformers").AutoModel.from_pretrained(tmp_path / "folder")(pixels)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"takes both towers, and this checkpoint has one.*with SiglipVisionModel"):
        twinlens.DualEncoderModel.from_pretrained(tmp_path / "timm.safetensors", **TRUNK_OPTIONS)


def swapped(first: str, second: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: weights | {first: weights[second], second: weights[first]}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: weights | {name: change(weights[name]).contiguous()}


def pooling_parts(order: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda fused: torch.cat([fused.chunk(3)[part] for part in order])


LAYER, HEAD = "vision_model.encoder.layers.1.self_attn", "vision_model.head.attention"
MISTAKES = {
    "swapped query and key": swapped(f"{LAYER}.q_proj.weight", f"{LAYER}.k_proj.weight"),
    "transposed kernel": changed(f"{LAYER}.out_proj.weight", torch.t),
    "missing query bias": changed(f"{LAYER}.q_proj.bias", torch.zeros_like),
    "transposed projection": changed("text_projection.weight", lambda weight: weight.T.reshape(weight.shape)),
}
POOLING_MISTAKES = {
    "swapped key and value of pooling": changed(f"{HEAD}.in_proj_weight", pooling_parts([0, 2, 1])),
    "query of pooling in the wrong place": changed(f"{HEAD}.in_proj_weight", pooling_parts([1, 2, 0])),
    "missing bias of pooling": changed(f"{HEAD}.in_proj_bias", torch.zeros_like),
    "missing bias of the text head": changed("text_model.head.bias", torch.zeros_like),
}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("layer_norm_eps", {"open_clip": 1e-6, "open_clip-siglip": 1e-5, "transformers-siglip": 1e-5}),
    ("hidden_act", {"open_clip": "quick_gelu", "open_clip-siglip": "gelu_pytorch_tanh", "transformers-siglip": "gelu"}),
    ("num_attention_heads", {"open_clip": 4, "open_clip-siglip": 2, "transformers-siglip": 8}),
]


# By day every mistake is made in one of the formats, and every setting is changed in one tower of each.
DAILY_MISTAKES = ["swapped query and key", "transposed projection"]
DAILY_SETTINGS = {
    ("open_clip", "layer_norm_eps", "vision_config"),
    ("open_clip", "hidden_act", "text_config"),
    ("open_clip", "num_attention_heads", "vision_config"),
    ("open_clip-siglip", "layer_norm_eps", "text_config"),
    ("open_clip-siglip", "hidden_act", "vision_config"),
    ("open_clip-siglip", "num_attention_heads", "text_config"),
}


def daily(chosen: bool, *parameters: Any) -> Any:
    return pytest.param(*parameters, marks=[] if chosen else pytest.mark.thorough)


class TestMistakes:
    """Deliberate mistakes in otherwise sound conversions: none may become a folder."""

    @staticmethod
    def assert_refused(source: Path, case: str) -> None:
        with pytest.raises(ParityError, match="The conversion is wrong"):
            convert(source, source.parent / "folder", **read(source, case).options)
        assert not (source.parent / "folder").exists()

    @pytest.mark.parametrize(
        ("case", "mistake"),
        [
            *(daily(mistake in DAILY_MISTAKES, "open_clip", mistake) for mistake in MISTAKES),
            *(daily(False, "transformers-clip", mistake) for mistake in MISTAKES),
            *(
                daily(case == "open_clip-siglip" and mistake not in DAILY_MISTAKES, case, mistake)
                for case in ("open_clip-siglip", "transformers-siglip")
                for mistake in (*list(MISTAKES)[:3], *POOLING_MISTAKES)
            ),
        ],
    )
    def test_in_the_weights(self, case: str, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "source", case)
        sound, mistaken = Checkpoint.weights, {**MISTAKES, **POOLING_MISTAKES}[mistake]
        monkeypatch.setattr(Checkpoint, "weights", lambda self: iter(mistaken(dict(sound(self))).items()))
        self.assert_refused(tmp_path / "source", case)

    @pytest.mark.parametrize(
        ("case", "name", "value", "tower"),
        [
            daily((case, name, tower) in DAILY_SETTINGS, case, name, value, tower)
            for name, values in SETTINGS
            for case, value in values.items()
            for tower in ("vision_config", "text_config")
        ],
    )
    def test_in_the_settings(
        self, case: str, name: str, value: Any, tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def mistaken(path: Path, **options: Any) -> Checkpoint:
            checkpoint = read_checkpoint(path, **options)
            setattr(getattr(checkpoint.config, tower), name, value)
            return checkpoint

        write(tmp_path / "source", case)
        monkeypatch.setattr(importlib.import_module("twinlens.formats.source"), "read_checkpoint", mistaken)
        self.assert_refused(tmp_path / "source", case)

    @pytest.mark.parametrize(
        ("case", "tower", "pooling"),
        [
            ("open_clip", "CLIPTextConfig", "last_token"),
            ("open_clip", "CLIPVisionConfig", "last_token"),
            ("open_clip-siglip", "SiglipTextConfig", "class_token"),
            ("open_clip-siglip", "SiglipVisionConfig", "class_token"),
        ],
    )
    def test_in_the_pooling(
        self, case: str, tower: str, pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "source", case)
        checkpoint = read(tmp_path / "source", case)
        load = functools.partial(twinlens.DualEncoderModel.from_pretrained, checkpoint.path, **checkpoint.options)
        assert certify(checkpoint, load()).passed
        monkeypatch.setattr(getattr(twinlens, tower), "pooling", pooling)
        assert not certify(checkpoint, load()).passed
