"""Our models beside transformers' own with the same weights, and the promises that transformers does not make."""

import ast
import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.architecture import ROOT
from helpers.families import (
    FAMILIES,
    FLEX,
    IDS,
    SQUARE,
    TEXT,
    VISION,
    config,
    images,
    model,
    pixels,
    rows_of,
    settings,
    token_ids,
    twins,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import twinlens
from twinlens.modeling import sigmoid_loss, softmax_loss

KINDS = {
    "CLIP": (
        *("Model", "VisionModel", "TextModel", "VisionModelWithProjection", "TextModelWithProjection"),
        "ForImageClassification",
    ),
    "Siglip": ("Model", "VisionModel", "TextModel", "ForImageClassification"),
    "Siglip2": ("Model", "VisionModel", "TextModel", "ForImageClassification"),
}
ALL = [(family, kind) for family in FAMILIES for kind in KINDS[family]]


def inputs(family: str, kind: str) -> dict:
    both = {**images(family, 3), "input_ids": token_ids(family)}
    if kind == "Model":
        return {**both, "return_loss": True}
    if kind == "ForImageClassification":
        return {**images(family, 3), "labels": torch.tensor([0, 1, 1])}
    return {name: value for name, value in both.items() if (name == "input_ids") == kind.startswith("Text")}


def flat(output, prefix="") -> dict:
    """Every tensor of a model output by its path."""
    tensors = {}
    for name, value in output.items() if hasattr(output, "items") else enumerate(output):
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value
        else:
            tensors.update(flat(value, f"{prefix}{name}."))
    return tensors


def difference(ours, theirs) -> float:
    ours, theirs = flat(ours), flat(theirs)
    assert list(ours) == list(theirs)
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


# --- the same numbers as transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("family", "kind"), ALL)
@torch.inference_mode()
def test_outputs_are_those_of_transformers(family, kind, attention):
    ours, theirs = twins(family, kind, attention)
    arguments = {**inputs(family, kind), "output_hidden_states": True}
    expected, outputs = theirs(**arguments), ours(**arguments)
    assert type(outputs) is type(expected)
    # Eager is bit-equal, with three reasons where it is not: our own pooling head rounds differently from
    # torch.nn.MultiheadAttention, our one way of making unit vectors from transformers' two, and our way of resizing
    # positions for all images at once from interpolate's.
    is_exact = attention == "eager" and (
        kind == "TextModel" or (kind != "Model" and family == "CLIP") or (family, kind[:3]) == ("Siglip", "For")
    )
    assert difference(outputs, expected) <= (0 if is_exact else 5e-6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_features_have_the_v5_form(family):
    ours, theirs = twins(family)
    for name, arguments in (
        ("get_image_features", images(family)),
        ("get_text_features", {"input_ids": token_ids(family)}),
    ):
        expected, outputs = getattr(theirs, name)(**arguments), getattr(ours, name)(**arguments)
        assert isinstance(outputs, type(expected))
        assert difference(outputs, expected) <= 2e-6
        assert isinstance(getattr(ours, name)(**arguments, return_dict=False), tuple)


@pytest.mark.parametrize("size", [(48, 48), (32, 48), (40, 24), (32, 32)])
@pytest.mark.parametrize("family", SQUARE)
@torch.inference_mode()
def test_positions_are_interpolated_as_in_transformers(family, size):
    ours, theirs = twins(family, "VisionModel")
    pictures = torch.randn(2, 3, *size)
    outputs, expected = (twin(pictures, interpolate_pos_encoding=True) for twin in (ours, theirs))
    assert difference(outputs, expected) <= 2e-6


@torch.inference_mode()
def test_clip_masks_padding_as_transformers_does():
    ours, theirs = twins("CLIP")
    ids, mask = token_ids("CLIP"), torch.ones(3, TEXT["max_position_embeddings"], dtype=torch.long)
    mask[:, 8:] = 0
    mask[0, :2] = 0
    arguments = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
    assert difference(ours.get_text_features(**arguments), theirs.get_text_features(**arguments)) == 0


@torch.inference_mode()
def test_old_clip_folders_pool_at_the_highest_id():
    ours, theirs = twins("CLIP", "TextModel")
    for twin in (ours, theirs):
        twin.config.eos_token_id = 2
        twin.eos_token_id = 2
    ids = torch.randint(3, 98, (4, 12))
    assert difference(ours(ids), theirs(ids)) <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_transformers_and_of_the_papers(family):
    ours, theirs = twins(family)
    arguments = inputs(family, "Model")
    outputs, expected = ours(**arguments), theirs(**arguments)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-6, atol=1e-6)
    logits = outputs.logits_per_image.double()
    eye = torch.eye(3, dtype=torch.float64)
    if family == "CLIP":
        textbook = -(logits.log_softmax(0).diagonal().mean() + logits.log_softmax(1).diagonal().mean()) / 2
        loss = softmax_loss(outputs.image_embeds, outputs.text_embeds, ours.logit_scale)
    else:
        textbook = -((2 * eye - 1) * logits).sigmoid().log().sum() / 3
        loss = sigmoid_loss(outputs.image_embeds, outputs.text_embeds, ours.logit_scale, ours.logit_bias)
    torch.testing.assert_close(loss.double(), textbook, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs.loss, loss)


# --- attention maps and kernels ---------------------------------------------------------------------------------------


def skip_unless_sound(family, attention):
    if (family, attention) == ("Siglip2", "flex_attention"):
        pytest.skip("PyTorch 2.13's flex kernel for CPUs reads out of bounds for some masks of padding")


@pytest.mark.parametrize("attention", ["sdpa", "eager", FLEX])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_attention_maps_are_real_under_every_kernel(family, attention):
    skip_unless_sound(family, attention)
    ours, reference = model(family, attention=attention), twins(family, attention="eager")[1]
    arguments = {**images(family), "input_ids": token_ids(family), "output_attentions": True}
    if family == "CLIP":
        arguments["attention_mask"] = (token_ids(family) != 1).long()
    outputs, expected = ours(**arguments), reference(**arguments)
    for tower in ("vision_model_output", "text_model_output"):
        assert len(outputs[tower].attentions) == len(expected[tower].attentions) > 0
        for ours_map, their_map in zip(outputs[tower].attentions, expected[tower].attentions, strict=True):
            torch.testing.assert_close(ours_map, their_map, rtol=0, atol=1e-6)
    if attention == "sdpa":  # where transformers gives an empty tuple
        assert twins(family)[1](**arguments).vision_model_output.attentions == ()


@pytest.mark.parametrize("family", SQUARE)
@torch.inference_mode()
def test_kernels_come_from_the_attention_interface(family):
    """A kernel registered by its name, as flash attention and its like are, gets what it needs to be right."""
    calls = []

    def kernel(module, query, key, value, attention_mask, **kwargs):
        calls.append((query.shape[2], key.shape[2], attention_mask, kwargs["scaling"], kwargs.get("is_causal")))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)

    transformers.AttentionInterface.register("watched", kernel)
    transformers.AttentionMaskInterface.register("watched", transformers.masking_utils.sdpa_mask)
    arguments = {"pixel_values": pixels(), "input_ids": token_ids(family)}
    watched = model(family, attention="watched")
    assert difference(watched(**arguments), model(family)(**arguments)) <= 5e-6
    vision, text = VISION["num_hidden_layers"], TEXT["num_hidden_layers"]
    patches = 17 if family == "CLIP" else 16
    head = [(1, 16, None, 0.25, False)] if family == "Siglip" else []
    assert calls[: vision + len(head)] == [(patches, patches, None, 0.25, None)] * vision + head
    assert calls[vision + len(head) :] == [(12, 12, None, 8**-0.5, family == "CLIP")] * text


@torch.inference_mode()
def test_attention_maps_can_be_asked_for_in_the_configuration():
    ours = model("Siglip", "VisionModel")
    ours.config.output_attentions = True
    assert len(ours(pixels()).attentions) == VISION["num_hidden_layers"]


@torch.inference_mode()
def test_the_pooling_head_shows_where_it_looks():
    ours = model("Siglip", "VisionModel")
    outputs = ours(pixels(), output_pooling_attentions=True)
    (weights,) = outputs.pooling_attentions
    assert weights.shape == (2, VISION["num_attention_heads"], 1, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 1))
    head = model("Siglip", "VisionModel", transformers).head.attention
    expected = head(ours.head.probe.repeat(2, 1, 1), *[outputs.last_hidden_state] * 2, average_attn_weights=False)[1]
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", FLEX])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_kernels_agree(family, attention):
    skip_unless_sound(family, attention)
    arguments = {**images(family), "input_ids": token_ids(family)}
    expected = model(family, attention="eager")(**arguments)
    assert difference(model(family, attention=attention)(**arguments), expected) <= 5e-6


# --- what callers cannot get wrong ------------------------------------------------------------------------------------


@torch.inference_mode()
def test_no_way_of_calling_changes_a_siglip_text():
    ours, theirs = twins("Siglip")
    pad, eos, length = IDS["Siglip"]["pad_token_id"], IDS["Siglip"]["eos_token_id"], TEXT["max_position_embeddings"]
    text = [5, 6, 7, eos]
    right = torch.tensor([text + [pad] * (length - 4)])
    expected = theirs.get_text_features(right).pooler_output
    short, left = torch.tensor([text]), torch.tensor([[pad] * (length - 4) + text])
    long = torch.tensor([text + [pad] * length])
    for ids in (right, short, left, long, torch.tensor([[pad, *text]])):
        for mask in (None, (ids != pad).long()):
            assert torch.equal(ours.get_text_features(ids, mask).pooler_output, expected)
    # transformers: unpadded ids and an applied mask are other embeddings, and nothing says so.
    for ids, mask in ((short, None), (right, (right != pad).long())):
        assert (theirs.get_text_features(ids, mask).pooler_output - expected).abs().max() > 0.1


@torch.inference_mode()
def test_over_long_siglip_texts_keep_their_end():
    ours = model("Siglip")
    eos, length = IDS["Siglip"]["eos_token_id"], TEXT["max_position_embeddings"]
    cut = torch.tensor([[*range(5, 4 + length), eos]])
    long = torch.tensor([[*range(5, 25), eos]])
    assert torch.equal(ours.encode_text(long), ours.encode_text(cut))


@torch.inference_mode()
def test_padding_id_and_end_of_text_may_be_one_id():
    text_config = {**settings("Siglip")["text_config"], "pad_token_id": 1, "eos_token_id": 1}
    ours = twinlens.SiglipTextModel(twinlens.SiglipTextConfig(**text_config)).eval()
    right = torch.tensor([[5, 6, 1, *[1] * 9], [*range(5, 16), 1]])
    variants = {"short": right[:1, :3], "left": torch.tensor([[1] * 9 + [5, 6, 1]])}
    for ids in variants.values():
        assert torch.equal(ours(ids).pooler_output, ours(right[:1]).pooler_output)
    long = torch.tensor([[*range(5, 25), 1]])
    assert torch.equal(ours(long).pooler_output, ours(right[1:]).pooler_output)


@pytest.mark.parametrize("family", SQUARE)
def test_wrong_images_are_refused_with_both_sizes_and_the_way_out(family):
    ours = model(family)
    with pytest.raises(ValueError, match=r"must be 32x32 .* got 16x64\..*interpolate_pos_encoding=True"):
        ours.encode_image(torch.zeros(1, 3, 16, 64))  # as many patches as 32x32
    with pytest.raises(ValueError, match=r"shape \(batch, 3, height, width\), got \(1, 32, 32, 3\)"):
        ours.encode_image(torch.zeros(1, 32, 32, 3))
    if family == "Siglip":  # transformers takes it for a 32x32 image
        assert twins(family)[1].get_image_features(torch.zeros(1, 3, 16, 64)).pooler_output.isfinite().all()


def test_wrong_texts_are_refused():
    clip, siglip = model("CLIP"), model("Siglip")
    with pytest.raises(ValueError, match=r"at most 12 tokens .* got 13"):
        clip.encode_text(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="name all 12 positions, got 3"):
        siglip.get_text_features(torch.ones(1, 3, dtype=torch.long), position_ids=torch.arange(3)[None])
    with pytest.raises(ValueError, match=r"needs input_ids \(batch, length\) or inputs_embeds, got neither"):
        siglip.get_text_features()
    with pytest.raises(ValueError, match="pixel_values, input_ids or both, got neither"):
        siglip()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_one_side_is_enough(family):
    ours = model(family)
    pictures, texts = ours(**images(family)), ours(input_ids=token_ids(family))
    assert pictures.image_embeds.shape == (2, 24 if family == "CLIP" else 32)
    assert pictures.logits_per_image is pictures.text_embeds is None
    assert texts.text_embeds.shape[0] == 3
    assert texts.image_embeds is None
    with pytest.raises((TypeError, ValueError, AttributeError)):
        twins(family)[1](**images(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_needs_pairs(family):
    with pytest.raises(ValueError, match="as many images as texts, pair by pair, got 2 and 3"):
        model(family)(**images(family), input_ids=token_ids(family, 3), return_loss=True)
    with pytest.raises(ValueError, match="got 2 and 0"):
        model(family)(**images(family), return_loss=True)


# --- the stable surface -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_embeddings_are_float32_unit_vectors_and_logits_their_similarity(family, dtype):
    ours = model(family).to(dtype)
    ids, pictures = token_ids(family), images(family)
    image_embeds = ours.encode_image(**pictures)
    text_embeds = ours.encode_text(input_ids=ids, attention_mask=torch.ones_like(ids))
    both = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **pictures,
    }  # as a processor gives them
    assert torch.equal(ours.encode_image(**both), image_embeds)
    assert torch.equal(ours.encode_text(**both), text_embeds)
    for embeds in (image_embeds, text_embeds):
        assert embeds.dtype == torch.float32
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
    logits = ours.logits(image_embeds, text_embeds)
    expected = math.exp(ours.logit_scale.item()) * image_embeds.double() @ text_embeds.double().t()
    if family != "CLIP":
        expected = expected + ours.logit_bias.double()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    outputs = ours(input_ids=ids, **pictures)
    assert outputs.logits_per_image.dtype == torch.float32
    torch.testing.assert_close(outputs.logits_per_image, logits)
    theirs = twins(family)[1].to(dtype)
    assert theirs(input_ids=ids, **pictures).logits_per_image.dtype == dtype  # bfloat16 has 8 bits for them


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_similarity_is_float32_under_autocast(family):
    ours = model(family)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = ours(**images(family), input_ids=token_ids(family))
    expected = ours.logits(outputs.image_embeds, outputs.text_embeds)
    assert torch.equal(outputs.logits_per_image, expected)
    assert not torch.equal(expected, expected.bfloat16().float())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hooks_see_whole_batches(family):
    ours, seen = model(family, "VisionModel"), []
    ours.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *call: seen.append(call[2].shape))
    ours(**images(family, 200), **({"packed": False} if family == "Siglip2" else {}))
    assert [shape[0] for shape in seen] == [200]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_row_does_not_depend_on_its_batch(family):
    ours, pictures, ids = model(family), images(family, 4), token_ids(family, 4)
    alone = ours.encode_image(**rows_of(pictures, slice(1, 2)))
    torch.testing.assert_close(alone[0], ours.encode_image(**pictures)[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.encode_text(ids[1:2])[0], ours.encode_text(ids)[1], rtol=0, atol=1e-6)


@torch.inference_mode()
def test_what_follows_the_end_of_a_clip_text_does_not_matter():
    ours, ids = model("CLIP"), token_ids("CLIP")
    noisy = ids.clone()
    noisy[:, 8:] = torch.randint(3, 98, (3, 4))
    assert torch.equal(ours.encode_text(noisy), ours.encode_text(ids))
    torch.testing.assert_close(ours.encode_text(ids[:, :8]), ours.encode_text(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_embeddings_can_stand_in_for_ids(family):
    ours, ids = model(family), token_ids(family)
    embeds = ours.get_input_embeddings()(ids)
    expected = ours.get_text_features(ids).pooler_output
    whole = ours.get_text_features(ids, inputs_embeds=embeds).pooler_output
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-6)
    short = ours.get_text_features(inputs_embeds=embeds[:, :8], attention_mask=torch.ones(3, 8)).pooler_output
    torch.testing.assert_close(short, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(12,), (2, 3, 12), (1, 2, 3, 12)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_ids_of_any_number_of_dimensions_are_texts(family, shape):
    ours, theirs = twins(family)
    ids = token_ids(family, 6)[: math.prod(shape) // 12].reshape(shape)
    outputs, expected = ours.get_text_features(ids), theirs.get_text_features(ids)
    assert difference(outputs, expected) <= 2e-6
    mask = torch.ones_like(ids)
    mask[..., 3:5] = 0  # transformers fails at a mask like this with the ids' shape
    flat_ids, flat_mask = ids.view(-1, 12), mask.view(-1, 12)
    assert torch.equal(ours.encode_text(ids, mask), ours.encode_text(flat_ids, flat_mask))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_without_a_token_is_refused(family, shape):
    with pytest.raises(ValueError, match="at least one token"):
        model(family).encode_text(torch.ones(shape, dtype=torch.long))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_no_images_and_no_texts_are_a_batch_too(family, attention):
    ours, theirs = twins(family, attention=attention)
    with pytest.raises(RuntimeError, match="0 elements"):
        theirs.get_image_features(**images(family, 0))
    dim = ours.encode_text(token_ids(family)).shape[1]
    for count, texts in ((0, 3), (2, 0), (0, 0)):
        outputs = ours(token_ids(family)[:texts], **images(family, count), attention_mask=torch.ones(texts, 12))
        assert (outputs.image_embeds.shape, outputs.text_embeds.shape) == ((count, dim), (texts, dim))
        assert (outputs.logits_per_image.shape, outputs.logits_per_text.shape) == ((count, texts), (texts, count))
    nothing = (ours.encode_image(**images(family, 0)), ours.encode_text(token_ids(family)[:0]))
    assert [(embeds.shape, embeds.dtype) for embeds in nothing] == [((0, dim), torch.float32)] * 2
    assert ours.text_model(token_ids(family)[:0], output_hidden_states=True).hidden_states[-1].shape == (0, 12, 32)
    assert model(family, "ForImageClassification")(**images(family, 0)).logits.shape == (0, 2)


@pytest.mark.parametrize("kind", ["VisionModel", "TextModel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_towers_answer_to_their_old_names(family, kind):
    tower = model(family, kind)
    assert getattr(tower, "vision_model" if kind == "VisionModel" else "text_model") is tower


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_gradients_reach_every_parameter(family, kind):
    ours = model(family, kind).train()
    outputs = ours(**inputs(family, kind))
    loss = outputs.loss if "loss" in outputs else outputs[next(iter(outputs))].sum() + outputs[1].pow(2).sum()
    loss.backward()
    assert [name for name, parameter in ours.named_parameters() if parameter.grad is None] == []


def test_first_scale_and_bias_are_those_of_the_papers():
    siglip, clip = twinlens.SiglipModel(config("Siglip")), twinlens.CLIPModel(config("CLIP"))
    assert (siglip.logit_scale.item(), siglip.logit_bias.item()) == (pytest.approx(math.log(10)), -10)
    assert clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-4)
    theirs = transformers.SiglipModel(config("Siglip", transformers))
    assert (theirs.logit_scale.item(), theirs.logit_bias.item()) == (0, 0)
    assert (siglip.logit_scale.shape, siglip.logit_bias.shape, clip.logit_scale.shape) == ((1,), (1,), ())


def test_first_weights_of_clip_are_those_of_openai():
    """openai/CLIP `initialize_parameters`: output projections start small; transformers has it the other way round."""
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4}
    ours = twinlens.CLIPVisionModel(twinlens.CLIPVisionConfig(**wide)).encoder.layers[0]
    theirs = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**wide)).encoder.layers[0]
    width, small = 256**-0.5, 256**-0.5 * 16**-0.5
    layer: Any
    for layer, inside, outside in ((ours, width, small), (theirs, small, width)):
        assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(inside, rel=0.03)
        assert layer.self_attn.out_proj.weight.std().item() == pytest.approx(outside, rel=0.03)
        assert layer.mlp.fc1.weight.std().item() == pytest.approx(width * 2**-0.5, rel=0.03)
        assert layer.mlp.fc2.weight.std().item() == pytest.approx(small, rel=0.03)


@pytest.mark.parametrize(("family", "std"), [("CLIP", 0.02), ("Siglip", 32**-0.5), ("Siglip2", 32**-0.5)])
def test_new_tokens_begin_like_the_first_ones(family, std):
    """openai/CLIP `initialize_parameters` has 0.02, big_vision's `nn.Embed` the width to the power of -1/2."""
    ours = model(family)
    ours.resize_token_embeddings(TEXT["vocab_size"] + 200, mean_resizing=False)
    assert ours.get_input_embeddings().weight[-200:].std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(("family", "kind"), ALL)
@torch.inference_mode()
def test_models_survive_copying_and_pickling(family, kind):
    ours, arguments = model(family, kind, attention="eager"), inputs(family, kind)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert difference(twin(**arguments), ours(**arguments)) <= 5e-6


# --- loading ----------------------------------------------------------------------------------------------------------


def assert_same_weights(one, other) -> None:
    one, other = one.state_dict(), other.state_dict()
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_folders_interoperate_bitwise(family, kind, tmp_path):
    ours, theirs = twins(family, kind)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_weights(type(ours).from_pretrained(tmp_path / "ours"), ours)
    assert_same_weights(type(ours).from_pretrained(tmp_path / "theirs"), ours)
    loaded = type(theirs).from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_entry_point_finds_the_family(family, tmp_path):
    ours = model(family)
    ours.save_pretrained(tmp_path)
    loaded, info = twinlens.DualEncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(ours)
    assert not any(info.values())
    assert_same_weights(loaded, ours)
    half = twinlens.DualEncoderModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert half.dtype == torch.bfloat16
    assert half.vision_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", FAMILIES)
def test_old_folders_load(family, tmp_path):
    """As transformers 4 wrote them: pickled weights, position ids among them, `torch_dtype`, towers with a prefix."""
    ours, theirs = twins(family)
    weights = dict(theirs.state_dict())
    weights["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(16)[None]
    theirs.config.save_pretrained(tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    old.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps({**old, "torch_dtype": "float32", "torchscript": False}))
    torch.save(weights, tmp_path / "pytorch_model.bin")
    loaded, info = twinlens.DualEncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(loaded, ours)
    tower = getattr(twinlens, f"{family}VisionModel").from_pretrained(tmp_path)
    assert_same_weights(tower, ours.vision_model)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_folders_load(family, tmp_path):
    ours = model(family)
    ours.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(twinlens.DualEncoderModel.from_pretrained(tmp_path), ours)


@pytest.mark.parametrize(
    ("family", "kind"), [pair for pair in ALL if pair[1] not in ("Model", "ForImageClassification")]
)
def test_towers_come_out_of_dual_checkpoints(family, kind, tmp_path):
    ours = model(family)
    ours.save_pretrained(tmp_path)
    tower, info = getattr(twinlens, f"{family}{kind}").from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    weights = ours.state_dict()
    prefix = "" if kind.endswith("Projection") else f"{tower.base_model_prefix}."
    assert all(torch.equal(value, weights[f"{prefix}{name}"]) for name, value in tower.state_dict().items())


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("family", "kind"), ALL)
@torch.inference_mode()
def test_nothing_is_read_from_fresh_memory(family, kind, tmp_path):
    ours = model(family, kind)
    ours.save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path)
    arguments = inputs(family, kind)
    assert difference(loaded(**arguments), ours(**arguments)) <= 5e-6
    assert list(loaded.named_non_persistent_buffers()) == []


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("family", FAMILIES)
def test_missing_weights_are_initialised_and_reported(family, tmp_path):
    ours = model(family)
    names = [
        "logit_scale",
        "vision_model.embeddings.position_embedding.weight",
        "text_model.encoder.layers.0.mlp.fc1.bias",
    ]
    if family != "CLIP":
        names += ["vision_model.head.attention.in_proj_weight", "vision_model.head.probe", "logit_bias"]
    weights = {name: value for name, value in ours.state_dict().items() if name not in names}
    ours.save_pretrained(tmp_path, state_dict=dict(weights))
    loaded, info = type(ours).from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(names)
    fresh = type(ours)(config(family))
    for name, value in loaded.state_dict().items():
        if name not in names:
            assert torch.equal(value, weights[name])
        else:
            assert value.isfinite().all()
            torch.testing.assert_close(
                value.float().std(unbiased=False), fresh.state_dict()[name].std(unbiased=False), rtol=0.3, atol=1e-6
            )
    assert loaded.logit_scale.item() == fresh.logit_scale.item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_classifier_is_normal_and_quiet_about_the_rest(family, tmp_path):
    ours = model(family)
    ours.save_pretrained(tmp_path)
    classifier, info = getattr(twinlens, f"{family}ForImageClassification").from_pretrained(
        tmp_path, num_labels=5, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    assert classifier(**images(family)).logits.shape == (2, 5)


def test_an_unexpected_weight_is_reported(tmp_path):
    ours = model("Siglip")
    ours.save_pretrained(tmp_path, state_dict={**ours.state_dict(), "text_model.bogus": torch.ones(1)})
    _, info = twinlens.DualEncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["unexpected_keys"] == {"text_model.bogus"}


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_configurations_of_transformers_are_understood(family, kind):
    part = next((part for part in ("Vision", "Text") if kind.startswith(part)), "")
    theirs = config(family, transformers, part)
    ours = getattr(twinlens, f"{family}{kind}")(theirs)
    assert ours.config.to_json_string() == type(ours)(config(family, twinlens, part)).config.to_json_string()
    other = "Siglip" if family == "CLIP" else "CLIP"
    with pytest.raises(TypeError, match=f"takes a {family}"):
        getattr(twinlens, f"{family}{kind}")(config(other, transformers, part))


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "most"), [("CLIP", 7), ("Siglip", 9), ("Siglip2", 9)])
@torch.inference_mode()
def test_few_classes_lie_between_pixels_and_logits(family, most):
    """Counted: the model classes of twinlens, each once, whose `forward` runs on the way from `pixel_values` to logits.

    These are the dual encoder and what lies in its image tower; the text tower adds its own class and its embeddings.
    """
    ours, classes = model(family), set()
    for module in (ours, *ours.vision_model.modules()):
        if type(module).__module__.startswith("twinlens."):
            module.register_forward_hook(lambda module, *_: classes.add(type(module).__name__))
    ours(**images(family), input_ids=token_ids(family))
    embeddings = "VisionEmbeddings" if family in SQUARE else "PatchEmbeddings"
    assert {f"{family}Model", f"{family}VisionModel", embeddings, f"{family}EncoderLayer", "MLP"} <= classes
    assert len(classes) <= most


@pytest.mark.parametrize(("room", "most"), [("modeling", 1400), ("losses", 430)])
def test_the_rooms_of_a_training_step_stay_small(room, most):
    """`modeling/` holds the models of all families and how they load; `losses/` is a room of its own, with its own bar.

    A family that does not fit has a difference that is not yet a trait.
    """

    def code_lines(path: Path) -> int:
        """Lines with code: no comments, no blank lines, no docstrings."""
        tree = ast.parse(path.read_text())
        skipped: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
                docstring = node.body[0]
                skipped.update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
        lines = enumerate(path.read_text().splitlines(), 1)
        return sum(1 for number, line in lines if number not in skipped and line.strip() and line.strip()[0] != "#")

    sizes = {path: code_lines(path) for path in (ROOT / room).glob("*.py")}
    assert sum(sizes.values()) <= most
    assert max(sizes.values()) <= 250
