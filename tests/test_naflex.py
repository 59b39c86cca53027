"""SigLIP 2 NaFlex: positions for every grid, padding that can hold anything, and images without padding."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers.families import FLEX, TOKENS, VISION, images, model, rows_of, token_ids, twins
from helpers.versions import IS_OLDEST, places_one_column
from numpy.typing import NDArray
from torch import Tensor

from twinlens.modeling import attention

HALF = 2e-2  # bfloat16 has 8 bits
PATCH_VALUES = 3 * VISION["patch_size"] ** 2


def resized(table: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """Return a table (side, side, width) resized to (rows, columns, width), one axis after the other, in float64.

    This is `jax.image.resize(method="bilinear", antialias=True)`, which big_vision's NaFlex model calls: the mean of an
    axis under a triangle around the centre of each output, as wide as two outputs where the axis shrinks.
    """
    for axis, size in enumerate((rows, columns)):
        side = table.shape[axis]
        scale = side / size
        outputs = []
        for index in range(size):
            center = (index + 0.5) * scale - 0.5
            weights = [max(0.0, 1 - abs(position - center) / max(scale, 1)) for position in range(side)]
            parts = [weight * table.take(position, axis) for position, weight in enumerate(weights)]
            outputs.append(sum(parts) / sum(weights))
        table = np.stack(outputs, axis)
    return table


@pytest.mark.parametrize("grid", [(4, 4), (1, 1), (2, 9), (5, 3), (12, 1), (1, 12), (2, 1), (4, 1), (1, 3), (7, 8)])
def test_positions_are_those_of_float64(grid: tuple[int, int]) -> None:
    ours, theirs = twins("Siglip2", "VisionModel")
    table = ours.embeddings.position_embedding.weight.detach().reshape(4, 4, 32)
    expected = torch.from_numpy(resized(table.double().numpy(), *grid)).flatten(0, 1).float()
    grids = torch.tensor([grid, (4, 4)])
    positions = ours.embeddings.positions(grids, 60)
    assert (positions[0, : len(expected)] - expected).abs().max() <= 5e-7
    assert torch.equal(positions[0, len(expected) :], positions[:1, 0].expand(60 - len(expected), -1))  # padding
    resize = theirs.embeddings.resize_positional_embeddings
    of_transformers = resize(table, grids, 60)[0, : len(expected)]
    # PyTorch's interpolate, which transformers before 5.24 calls, is wrong for a column without the table's height.
    is_wrong = grid[1] == 1 and grid[0] not in (1, 4) and not places_one_column()
    assert ((of_transformers - expected).abs().max() > 0.05) == is_wrong


@pytest.mark.skipif(places_one_column(), reason="this transformers is right for a single column")
@torch.inference_mode()
def test_single_columns_are_right_where_transformers_is_not() -> None:
    ours, theirs = twins("Siglip2")
    inputs: dict[str, Any] = {
        "pixel_values": torch.randn(2, 12, PATCH_VALUES),
        "pixel_attention_mask": torch.ones(2, 12, dtype=torch.long),
        "spatial_shapes": torch.tensor([(12, 1), (1, 12)]),
        "input_ids": token_ids("Siglip2", 2),
    }
    expected = theirs.double()(**{**inputs, "pixel_values": inputs["pixel_values"].double()})
    outputs = ours(**inputs)
    column, row = (outputs.logits_per_image - expected.logits_per_image).abs().amax(dim=1)
    assert row <= 1e-4
    assert column > 0.01  # transformers' positions, at any precision
    table = ours.vision_model.embeddings.position_embedding.weight.reshape(4, 4, 32)
    correct = torch.from_numpy(resized(table.double().numpy(), 12, 1)).reshape(1, 12, 32)
    theirs.vision_model.embeddings.resize_positional_embeddings = lambda *_, **__: correct
    one = {name: values[:1] for name, values in inputs.items()}
    expected = theirs(**{**one, "pixel_values": one["pixel_values"].double(), "input_ids": inputs["input_ids"]})
    assert (outputs.logits_per_image[:1] - expected.logits_per_image).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_positions_are_float32_for_any_weights(dtype: torch.dtype) -> None:
    """They are float64 for weights of float64."""
    ours = model("Siglip2", "VisionModel").to(dtype)
    grids = torch.tensor([(5, 3)])
    with torch.autocast("cpu", torch.bfloat16):
        positions = ours.embeddings.positions(grids, 15)
    table = ours.embeddings.position_embedding.weight.detach().double().reshape(4, 4, 32).numpy()
    expected = torch.from_numpy(resized(table, 5, 3)).reshape(1, 15, 32)
    is_double = dtype == torch.float64
    assert positions.dtype == (torch.float64 if is_double else torch.float32)
    assert (positions - expected).abs().max() <= (1e-14 if is_double else 5e-7)


@pytest.mark.parametrize("anything", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_can_hold_anything(attention: str, packed: bool, anything: float) -> None:
    """Outputs and gradients are those of zeros, and those of the image without padding."""
    ours, inputs, ids = model("Siglip2", attention=attention), images("Siglip2", 3), token_ids("Siglip2")
    is_padding = inputs["pixel_attention_mask"].eq(0)[..., None]
    filled = {**inputs, "pixel_values": inputs["pixel_values"].masked_fill(is_padding, anything)}
    results = []
    for given in (inputs, filled):
        ours.zero_grad()
        ours(**given, input_ids=ids, return_loss=True, packed=packed).loss.backward()
        gradients = [parameter.grad for parameter in ours.vision_model.parameters()]
        results.append([ours.encode_image(**given, packed=packed), *gradients])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert all(tensor.isfinite().all() for tensor in results[1])
    patches, grids = int(inputs["spatial_shapes"][2].prod()), inputs["spatial_shapes"][2:]
    alone = ours.encode_image(filled["pixel_values"][2:, :patches], spatial_shapes=grids)
    torch.testing.assert_close(alone[0], results[1][0][2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.inference_mode()
def test_attention_maps_leave_padding_out(attention: str) -> None:
    ours, inputs = model("Siglip2", "VisionModel", attention=attention), images("Siglip2", 3)
    outputs = ours(**inputs, output_attentions=True, output_pooling_attentions=True, packed=True)
    padding = inputs["pixel_attention_mask"].eq(0)[:, None, None]  # (images, 1, 1, tokens)
    for weights in (*outputs.attentions, *outputs.pooling_attentions):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        assert not weights.masked_select(padding).any()
    assert len(outputs.attentions) == VISION["num_hidden_layers"]


class TestPacking:
    @pytest.mark.parametrize("attention", ["eager", "sdpa", FLEX])
    @torch.inference_mode()
    def test_results_are_those_of_padded_images(self, attention: str) -> None:
        ours, inputs = model("Siglip2", attention=attention), images("Siglip2", 12)
        order = torch.randperm(12)  # of lengths, several of which are equal
        inputs = {name: values[order] for name, values in inputs.items()}
        padded, packed = (ours.encode_image(**inputs, packed=packed) for packed in (False, True))
        assert (padded - packed).abs().max() <= 1e-6
        padded, packed = (ours.vision_model(**inputs, packed=packed).last_hidden_state for packed in (False, True))
        assert ((padded - packed) * inputs["pixel_attention_mask"][..., None]).abs().max() <= 5e-6
        alone = ours.encode_image(**rows_of(inputs, slice(3, 4)))
        assert (alone - ours.encode_image(**inputs)[3]).abs().max() <= 1e-6

    def test_gradients_are_those_of_padded_images(self) -> None:
        gradients = []
        for packed in (False, True):
            torch.manual_seed(0)
            ours, inputs = model("Siglip2").train(), images("Siglip2", 3)
            if packed:  # under its name in transformers 5.23, or its former one
                getattr(ours, "activation_checkpointing_enable", ours.gradient_checkpointing_enable)()
            ours(**inputs, input_ids=token_ids("Siglip2"), return_loss=True, packed=packed).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in ours.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)

    @torch.inference_mode()
    def test_layers_see_no_padding(self) -> None:
        """By itself in inference on the CPU, where asked elsewhere, and never where hidden states are asked for."""
        ours, inputs = model("Siglip2"), images("Siglip2", 3)
        seen: list[tuple[int, ...]] = []
        ours.vision_model.encoder.layers[0].register_forward_hook(lambda *call: seen.append(tuple(call[2].shape)))
        patches = int(inputs["pixel_attention_mask"].sum())
        one_sequence, padded = (1, patches, 32), (3, TOKENS, 32)
        ours.encode_image(**inputs)
        ours(**inputs, packed=True)
        ours.encode_image(**inputs, packed=False)
        ours(**inputs)
        with torch.enable_grad():
            ours.encode_image(**inputs)
        states = ours.vision_model(**inputs, packed=True, output_hidden_states=True).hidden_states
        assert seen == [one_sequence] * 2 + [padded] * 4
        assert [tuple(state.shape) for state in states] == [padded] * 3
        ours.encode_image(inputs["pixel_values"][:1, :16], spatial_shapes=inputs["spatial_shapes"][:1])
        assert seen[-1] == (1, 16, 32)

    @torch.inference_mode()
    def test_one_kernel_for_all_lengths(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a GPU's kernel gets, checked with one that cuts the sequence at the given ends."""
        calls = []

        def varlen(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, most_q: int, most_k: int) -> Tensor:
            assert torch.equal(ends_q, ends_k)
            assert ends_q.dtype == torch.int32
            assert ends_q[0] == 0
            assert ends_q[-1] == len(q)
            assert ends_q.diff().max() == most_q == most_k
            calls.append(len(q))
            parts = [x.tensor_split(ends_q[1:-1].long()) for x in (q, k, v)]
            outputs = [
                torch.nn.functional.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part))[0]
                for part in zip(*parts, strict=True)
            ]
            return torch.cat([output.transpose(0, 1) for output in outputs])

        ours, inputs = model("Siglip2"), images("Siglip2", 7)
        expected = ours.encode_image(**inputs)
        monkeypatch.setattr(attention, "varlen_attn", varlen)
        monkeypatch.setattr(attention, "has_varlen_kernel", lambda module, x: True)
        assert (ours.encode_image(**inputs) - expected).abs().max() <= 1e-6
        assert calls == [int(inputs["pixel_attention_mask"].sum())] * VISION["num_hidden_layers"]

    def test_the_kernel_is_one_of_recent_gpus_and_16_bits(self) -> None:
        layer = model("Siglip2").vision_model.encoder.layers[0].self_attn
        assert not attention.has_varlen_kernel(layer, torch.empty(3, 2, 16, dtype=torch.bfloat16))


@pytest.mark.skipif(IS_OLDEST, reason="transformers 5.12 looks for padding whatever it is told")
@torch.inference_mode()
def test_no_value_is_looked_at_on_a_device() -> None:
    """The meta device has no values, as a GPU has none without waiting."""
    ours = model("Siglip2").to("meta")
    inputs = {name: values.to("meta") for name, values in images("Siglip2", 3).items()}
    outputs = ours(**inputs, input_ids=token_ids("Siglip2").to("meta"))
    assert outputs.logits_per_image.shape == (3, 3)
    assert ours.encode_image(**inputs).shape == (3, 32)


@torch.inference_mode()
def test_arguments_have_transformers_order() -> None:
    ours, theirs = twins("Siglip2")
    ids, inputs = token_ids("Siglip2", 2), images("Siglip2")
    arguments = (ids, *inputs.values(), None, None, True)
    for name, value in theirs(*arguments).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours(*arguments)[name], value, rtol=0, atol=5e-6)
    expected = theirs.get_image_features(*inputs.values()).pooler_output
    torch.testing.assert_close(ours.get_image_features(*inputs.values()).pooler_output, expected, rtol=0, atol=2e-6)
    ours, theirs = twins("Siglip2", "ForImageClassification")
    arguments = (*inputs.values(), torch.tensor([1, 0]))
    torch.testing.assert_close(ours(*arguments).loss, theirs(*arguments).loss)


@torch.inference_mode()
def test_half_precision_is_near() -> None:
    inputs = images("Siglip2", 5)
    expected = model("Siglip2").encode_image(**inputs)
    half = model("Siglip2").to(torch.bfloat16)
    for packed in (False, True):
        assert (half.encode_image(**inputs, packed=packed) - expected).abs().max() <= HALF


GRIDS = torch.tensor([(4, 4), (2, 8)])
PATCHES = torch.zeros(2, TOKENS, PATCH_VALUES)
MASK = torch.arange(TOKENS).expand(2, -1) < 16


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pixel_values": torch.zeros(2, 3, 224, 224)}, r"Expected patches .* got \(2, 3, 224, 224\), None and None"),
        ({"pixel_values": torch.zeros(2, 3)}, r"got \(2, 3\), None and None"),
        ({"pixel_values": PATCHES}, r"the rows and columns of each image as spatial_shapes .* None and None"),
        ({"pixel_values": PATCHES[..., :5], "spatial_shapes": GRIDS}, r"\(images, tokens, 192\).* got \(2, 18, 5\)"),
        ({"pixel_values": PATCHES, "spatial_shapes": GRIDS[:1]}, r"\(1, 2\) and None"),
        ({"pixel_values": PATCHES, "spatial_shapes": GRIDS, "pixel_attention_mask": MASK[:1]}, r"and \(1, 18\)"),
        ({"pixel_values": PATCHES, "spatial_shapes": GRIDS}, r"Image 0 has \[4, 4\] .* but 18 of its 18 tokens"),
        (
            {"pixel_values": PATCHES, "spatial_shapes": GRIDS * torch.tensor([[1], [3]]), "pixel_attention_mask": MASK},
            r"Image 1 has \[6, 24\] .* but 16 of its 18 tokens",
        ),
        (
            {"pixel_values": PATCHES, "spatial_shapes": GRIDS, "pixel_attention_mask": MASK * torch.tensor([[1], [0]])},
            "Image 1 .* but 0 of its 18 tokens are no padding",
        ),
        (
            {"pixel_values": PATCHES, "spatial_shapes": GRIDS - 2, "pixel_attention_mask": MASK},
            r"Image 0 has \[2, 2\] .* but 16 of its 18 tokens",
        ),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value)[:40] if isinstance(value, str) else "",
)
def test_wrong_inputs_are_refused(given: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words}.*Use the checkpoint's processor"):
        model("Siglip2").encode_image(**given)


def test_grids_of_any_type_are_grids() -> None:
    """More than 256 tokens are not counted in bfloat16."""
    ours = model("Siglip2")
    grids = torch.tensor([(20, 15), (300, 1)])
    patches = torch.randn(2, 300, PATCH_VALUES)
    expected = ours.encode_image(patches, spatial_shapes=grids)
    for dtype in (torch.int32, torch.float64, torch.float32, torch.bfloat16):
        assert torch.equal(ours.encode_image(patches, spatial_shapes=grids.to(dtype)), expected)
    assert torch.equal(ours.encode_image(patches, spatial_shapes=grids.numpy()), expected)


def test_masks_of_any_type_are_masks() -> None:
    ours, inputs = model("Siglip2"), images("Siglip2", 3)
    expected = ours.encode_image(**inputs)
    for dtype in (torch.bool, torch.float32, torch.int64, torch.uint8):
        given = {**inputs, "pixel_attention_mask": inputs["pixel_attention_mask"].to(dtype)}
        assert torch.equal(ours.encode_image(**given), expected)
