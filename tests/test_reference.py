"""The float64 reference against the official code: big_vision's recorded outputs, OpenAI's model where installed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.builders import TINY_CLIP, write_openai, write_transformers
from helpers.official_outputs import FIXED_SIZE, NAFLEX, official_outputs, official_weights
from helpers.released_files import released_module

from twinlens import parity
from twinlens.formats import read_checkpoint
from twinlens.modeling import DualEncoderModel
from twinlens.parity import reference_forward


def _load(name):
    images, ids, expected = official_outputs(name)
    return official_weights(name), (images["pixel_values"].numpy(), ids.numpy()), expected


@pytest.fixture(scope="module", params=FIXED_SIZE)
def official(request):
    return _load(request.param)


@pytest.fixture(scope="module")
def naflex() -> tuple[Any, Any, Any, Any]:
    """The weights, inputs by the reference's names, recorded outputs, and a mask of what is no padding."""
    images, ids, expected = official_outputs(NAFLEX)
    mask = images["pixel_attention_mask"].numpy() == 1
    pixels = np.where(mask[..., None], images["pixel_values"], np.nan)
    inputs = {"pixel_values": pixels, "input_ids": ids, "spatial_shapes": images["spatial_shapes"]}
    return official_weights(NAFLEX), inputs, expected, mask


@pytest.fixture
def siglip_v1():
    return _load("siglip_v1")


def _assert_same(result, expected):
    for tower in ("image", "text"):
        ours, theirs = getattr(result, tower), getattr(expected, tower)
        for state, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
            np.testing.assert_allclose(state, other, rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours.embeds, theirs.embeds, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.logits_per_image, expected.logits_per_image, rtol=0, atol=1e-12)


def test_big_vision_float64_outputs(official):
    checkpoint, inputs, expected = official
    result: Any = reference_forward(checkpoint, *inputs)
    for output, name in [
        (result.image.pooler_output, "image_pre_logits"),
        (result.text.pooler_output, "text_logits"),
        (result.image.embeds, "image_embeds_normalized"),
        (result.text.embeds, "text_embeds_normalized"),
        (result.logits_per_image, "logits_per_image"),
    ]:
        np.testing.assert_allclose(output, expected[f"f64/{name}"], rtol=0, atol=1e-12)


def test_big_vision_every_block(official):
    checkpoint, inputs, expected = official
    result: Any = reference_forward(checkpoint, *inputs)
    recorded = {"image": "image_encoded", "text": "text_transformed"}
    for name, last in recorded.items():
        tower = getattr(result, name)
        blocks = sorted(key for key in expected if key.startswith(f"{name}_block") and key.endswith("+mlp"))
        assert len(tower.hidden_states) == len(blocks) + 1
        outputs = [*tower.hidden_states[1:], tower.last_hidden_state]
        for output, key in zip(outputs, [*blocks, last], strict=True):
            # Recorded in float32, whose own error (meta.json) is up to 5e-6.
            np.testing.assert_allclose(output[:3], expected[key], rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.image.hidden_states[0][:3], expected["image_with_posemb"], rtol=0, atol=1e-5)


def test_naflex_float64_outputs(naflex):
    checkpoint, inputs, expected, mask = naflex
    result: Any = reference_forward(checkpoint, **inputs)
    for output, name in [
        (result.image.pooler_output, "image_pre_logits"),
        (result.image.embeds, "image_embeds_normalized"),
        (result.text.embeds, "text_embeds_normalized"),
        (result.logits_per_image, "logits_per_image"),
    ]:
        np.testing.assert_allclose(output, expected[f"f64/{name}"], rtol=0, atol=1e-12)
    states = [*result.image.hidden_states, result.image.last_hidden_state]
    names = ["image_with_posemb", "image_block00_+mlp", "image_block01_+mlp", "image_encoded"]
    for state, name in zip(states, names, strict=True):
        # Recorded in float32, whose own error (meta.json) is up to 5e-6.
        np.testing.assert_allclose(state[:3][mask[:3]], expected[name][mask[:3]], rtol=0, atol=1e-5)


def test_naflex_images_do_not_see_their_padding(naflex):
    checkpoint, inputs, _, _ = naflex
    together: Any = reference_forward(checkpoint, **inputs)
    for index, (rows, columns) in enumerate(inputs["spatial_shapes"].tolist()):
        pixels = inputs["pixel_values"][index : index + 1, : rows * columns]
        alone: Any = reference_forward(checkpoint, pixels, inputs["input_ids"], spatial_shapes=[(rows, columns)])
        np.testing.assert_allclose(alone.image.embeds[0], together.image.embeds[index], rtol=0, atol=1e-12)


def test_naflex_takes_patches_with_their_grids(naflex, siglip_v1):
    checkpoint, inputs, _, _ = naflex
    with pytest.raises(ValueError, match="A NaFlex model takes patches with their spatial_shapes"):
        reference_forward(checkpoint, inputs["pixel_values"], inputs["input_ids"])
    with pytest.raises(ValueError, match="any other model takes pixels"):
        reference_forward(siglip_v1[0], **inputs)


def _without_params(weights):
    return {name.removeprefix("params/"): value for name, value in weights.items()}


def _scanned(weights, tower):
    """The same weights with the blocks of one tower stacked on a leading layer axis."""
    blocks = sorted(
        {name.split(f"{tower}/encoderblock_")[1][0] for name in weights if f"{tower}/encoderblock_" in name}
    )
    first = [name for name in weights if f"{tower}/encoderblock_0/" in name]
    rest = {name: value for name, value in weights.items() if f"{tower}/encoderblock_" not in name}
    return rest | {
        name.replace("encoderblock_0", "encoderblock"): np.stack(
            [weights[name.replace("encoderblock_0", f"encoderblock_{index}")] for index in blocks]
        )
        for name in first
    }


def _old_layout(weights):
    """No prefix, the text position table in two summands, the image table among the encoder's weights."""
    weights = _without_params(weights)
    table = weights.pop("txt/pos_embedding").astype(np.float64)
    weights["txt/pos_embedding"], weights["txt/Encoder_0/pos_embedding"] = table - 0.25, np.full_like(table, 0.25)
    weights["img/Transformer/pos_embedding"] = weights.pop("img/pos_embedding")
    return weights


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(_without_params, id="without_params"),
        pytest.param(lambda weights: _scanned(weights, "txt/Encoder_0"), id="text_scanned"),
        pytest.param(lambda weights: _scanned(weights, "img/Transformer"), id="image_scanned"),
        pytest.param(
            lambda weights: _scanned(_scanned(weights, "img/Transformer"), "txt/Encoder_0"), id="both_scanned"
        ),
        pytest.param(_old_layout, id="old"),
        pytest.param(lambda weights: {k: torch.from_numpy(v) for k, v in weights.items()}, id="torch"),
    ],
)
def test_same_weights_in_another_layout(siglip_v1, layout):
    checkpoint, inputs, _ = siglip_v1
    _assert_same(reference_forward(layout(checkpoint), *inputs), reference_forward(checkpoint, *inputs))


def test_bfloat16_as_numpy_stores_it(siglip_v1):
    checkpoint, inputs, _ = siglip_v1
    rounded = {name: torch.from_numpy(value).bfloat16() for name, value in checkpoint.items()}
    stored = {name: value.view(torch.int16).numpy().view("V2") for name, value in rounded.items()}
    _assert_same(reference_forward(stored, *inputs), reference_forward(rounded, *inputs))


def test_text_without_head(siglip_v1):
    checkpoint, inputs, _ = siglip_v1
    headless = {name: value for name, value in checkpoint.items() if "txt/head" not in name}
    identity = {"params/txt/head/kernel": np.eye(32), "params/txt/head/bias": np.zeros(32)}
    _assert_same(reference_forward(headless, *inputs), reference_forward(headless | identity, *inputs))


def test_pixels_beyond_the_last_whole_patch_are_dropped(siglip_v1):
    checkpoint, (pixels, ids), _ = siglip_v1
    wider = np.pad(pixels, ((0, 0), (0, 0), (0, 5), (0, 5)), constant_values=9.0)
    _assert_same(reference_forward(checkpoint, wider, ids), reference_forward(checkpoint, pixels, ids))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"Expected weights under OpenAI's names .* Got \['encoder.weight'\]"):
        reference_forward({"encoder.weight": np.zeros(1)}, np.zeros((1, 3, 2, 2)), np.zeros((1, 2)))


@pytest.fixture(scope="module")
def clip_source():
    """`clip/model.py` of openai-clip: the official model, which needs nothing but torch."""
    module = released_module("openai-clip==1.0.1", "clip/model.py")
    module.LayerNorm.forward = torch.nn.LayerNorm.forward  # the original casts to float32
    return module


@pytest.mark.filterwarnings("ignore:.*torch.jit.load")  # which is how openai-clip reads archives
def test_openai_model_in_float64(clip_source, tmp_path):
    released = write_openai(tmp_path / "clip.pt", **TINY_CLIP)  # mixed float16 and float32, as released
    official = clip_source.build_model(torch.jit.load(tmp_path / "clip.pt").state_dict()).double()
    rng = np.random.default_rng(0)
    pixels, ids = rng.uniform(-2, 2, (3, 3, 32, 32)), rng.integers(0, 98, (4, 12))
    ids[:, 9] = 98
    ids[0, 10:] = 98  # padded with the end of text
    ids[1, 10:] = 0
    with torch.no_grad():
        image, text = official.encode_image(torch.from_numpy(pixels)), official.encode_text(torch.from_numpy(ids))
        logits, _ = official(torch.from_numpy(pixels), torch.from_numpy(ids))

    result: Any = reference_forward(released, pixels, ids)
    np.testing.assert_allclose(result.image.pooler_output, image, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.text.pooler_output, text, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.logits_per_image, logits, rtol=0, atol=1e-12)

    model = DualEncoderModel.from_pretrained(tmp_path / "clip.pt")
    with torch.no_grad():
        ours = model(pixel_values=torch.from_numpy(pixels).float(), input_ids=torch.from_numpy(ids)).logits_per_image
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "old"),
    [("clip", False), ("clip", True), ("siglip", False), ("siglip2", False)],
    ids=["clip", "clip-old-ids", "siglip", "naflex"],
)
def test_transformers_in_float64(family, old, tmp_path):
    write_transformers(tmp_path / "weights", family, old=old)
    checkpoint = read_checkpoint(tmp_path / "weights")
    values = {name: value for name, value in checkpoint.layout.sidecar_json.items() if name != "torch_dtype"}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**values), attn_implementation="sdpa")
    model.load_state_dict(checkpoint.tensors)
    rng = np.random.default_rng(0)
    pixels, ids = rng.uniform(-2, 2, (3, 3, 32, 32)), rng.integers(3, 97, (4, 12))
    ids[:, 9] = 98
    images, grids = {"pixel_values": torch.from_numpy(pixels)}, None
    if family == "siglip2":  # transformers resizes positions in float32, and to their own grid not at all
        pixels, grids = rng.uniform(-2, 2, (2, 9, 768)), np.array([[3, 3], [3, 3]])
        images = {"pixel_values": torch.from_numpy(pixels), "spatial_shapes": torch.from_numpy(grids)}
        images["pixel_attention_mask"] = torch.ones(2, 9)
    with torch.no_grad():
        outputs = model.double().eval()(**images, input_ids=torch.from_numpy(ids))
    result: Any = reference_forward(
        checkpoint.tensors, pixels, ids, spatial_shapes=grids, sidecar_json=checkpoint.layout.sidecar_json
    )
    np.testing.assert_allclose(result.image.embeds, outputs.image_embeds, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.text.embeds, outputs.text_embeds, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.logits_per_image, outputs.logits_per_image, rtol=0, atol=1e-12)


def test_it_shares_no_code_with_what_it_checks():
    files = sorted(Path(parity.__file__).parent.glob("reference*.py"))
    assert len(files) == 8
    for file in files:
        imports = re.findall(r"^ *from (\.\S*|twinlens\S*)", file.read_text(), flags=re.MULTILINE)
        assert all(name.startswith(".reference") for name in imports), (file.name, imports)
