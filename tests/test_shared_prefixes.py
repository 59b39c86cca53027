"""Texts that begin alike, in an optimised causal tower: each token goes through the layers once."""

from typing import Any

import pytest
import torch
from helpers.families import model, twins
from torch import Tensor
from torch.nn.functional import normalize

from twinlens.inference import products
from twinlens.inference.shared_prefixes import STEP, SharedPrefixes

BOS, EOS = 97, 98
TEXTS = [[5, 6, 7, 8], [5, 6, 9], [5, 6], [5, 6, 7, 8], [4, 6, 7, 8], [5], [5, 6, 7, 8, 9, 10, 11, 12, 13]]
ROWS = [(BOS, *text, EOS) for text in TEXTS]
DISTINCT = len({row[:end] for row in ROWS for end in range(1, len(row) + 1)})  # 21 of 41


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Return ids and mask (texts, length); on the right the padding is the token that ends texts, as CLIP's is."""
    longest = max(map(len, ROWS))
    ids = torch.full((len(ROWS), longest), EOS if side == "right" else 1)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(ROWS):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return ids, mask


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every product."""
    seen: list[int] = []
    compute = products.Product.__call__

    def watch(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(x.shape[:-1].numel())
        return compute(self, x, *args, **kwargs)

    monkeypatch.setattr(products.Product, "__call__", watch)
    return seen


@pytest.mark.parametrize("rows", [2048, 25])  # all at once, and in parts
@pytest.mark.parametrize("padding", ["right", "right, without a mask", "left"])
@torch.no_grad()
def test_embeddings_are_those_of_float64(
    padding: str, rows: int, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "ROWS", rows)
    ours, theirs = twins("CLIP")
    ids, mask = padded(padding.partition(",")[0])
    inputs = {"input_ids": ids} if "without" in padding else {"input_ids": ids, "attention_mask": mask}
    expected = normalize(theirs.double().get_text_features(**inputs).pooler_output, dim=-1)
    found = ours.optimize_for_inference(linear="onednn").encode_text(**inputs)
    assert (found - expected).abs().max() <= 5e-6
    if padding != "left" and rows == 2048:
        assert max(widths) == -(-DISTINCT // STEP) * STEP < mask.sum()


@pytest.mark.parametrize("mask", [True, False])
def test_the_sequence_has_every_beginning_once(mask: bool) -> None:
    ids, used = padded("right")
    ends = used.sum(dim=1) - 1
    shared = SharedPrefixes(ids, used if mask else None, ends)
    sequence = ids[shared.rows]
    assert len(sequence) % STEP == 0
    assert int(shared.place[used.bool()].max()) + 1 == DISTINCT == round(shared.share * int(used.sum()))
    beginnings: dict[int, tuple[int, ...]] = {}
    for number, row in enumerate(ROWS):
        for end in range(1, len(row) + 1):
            place = int(shared.place[number, end - 1])
            assert sequence[place] == row[end - 1]
            assert beginnings.setdefault(place, row[:end]) == row[:end]
    assert len(beginnings) == DISTINCT


def test_a_hidden_token_makes_another_beginning() -> None:
    ids, mask = torch.tensor([[BOS, 5, 6, EOS]] * 2), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])
    place = SharedPrefixes(ids, mask, torch.tensor([3, 3])).place
    assert place[0, 0] == place[1, 0]
    assert (place[0, 1:] != place[1, 1:]).all()


@pytest.mark.parametrize("inputs", ["inputs_embeds", "position_ids"])
@torch.no_grad()
def test_tokens_that_differ_where_ids_do_not(inputs: str) -> None:
    ours, ids = model("CLIP"), torch.tensor([[BOS, 5, 6, EOS]] * 3)
    positions = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3]])
    embeds = ours.text_model.embeddings.token_embedding(ids) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    options = {"inputs_embeds": embeds} if inputs == "inputs_embeds" else {"position_ids": positions}
    expected = ours.text_model(ids, **options).pooler_output
    assert not torch.allclose(expected[0], expected[1])
    found = ours.optimize_for_inference(linear="onednn").text_model(ids, **options).pooler_output
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


@torch.no_grad()
def test_states_are_those_of_all_tokens() -> None:
    ours, (ids, mask) = model("CLIP"), padded("right")
    expected = ours.text_model(ids, mask).last_hidden_state
    found = ours.optimize_for_inference(linear="onednn").text_model(ids, mask).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@torch.no_grad()
def test_inside_vmap() -> None:
    ours, (ids, _) = model("CLIP"), padded("right")
    expected = ours.encode_text(ids)
    ours.optimize_for_inference(linear="onednn")
    found = torch.func.vmap(lambda row: ours.encode_text(row[None], check_finite=False))(ids)
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=5e-6)


@torch.no_grad()
def test_a_family_whose_texts_attend_to_all_shares_nothing(widths: list[int]) -> None:
    ours, theirs = twins("Siglip")
    ids = torch.tensor([[5, 6, 7, *[1] * 9], [5, 6, 8, *[1] * 9], [5, 6, 7, *[1] * 9]])
    expected = normalize(theirs.double().get_text_features(ids).pooler_output, dim=-1)
    assert (ours.optimize_for_inference(linear="onednn").encode_text(ids) - expected).abs().max() <= 5e-6
    assert max(widths) == ids.numel()
