"""The losses beside textbook formulas, open_clip's and transformers' own, in one process and in several."""

import math
import re
from typing import Any

import pytest
import torch
from helpers import losses_process
from helpers.families import FAMILIES, images, model, token_ids, twins
from helpers.processes import finish, start
from helpers.released_files import released_module
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from twinlens.losses import SigmoidLoss, SoftmaxLoss, sigmoid_loss, softmax_loss, strip_size

LOSSES = {"sigmoid": SigmoidLoss, "softmax": SoftmaxLoss}


def textbook(name: str, images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """arXiv:2303.15343, algorithm 1, and arXiv:2103.00020, figure 3."""
    logits = log_scale.exp() * images @ texts.t()
    if name == "sigmoid":
        labels = 2 * torch.eye(len(images), dtype=logits.dtype) - 1
        return -nn.functional.logsigmoid(labels * (logits + bias)).sum() / len(images)
    return -(logits.log_softmax(0).diagonal().mean() + logits.log_softmax(1).diagonal().mean()) / 2


def textbook_without_equals(name: str, values: list[Tensor], ids: Tensor) -> Tensor:
    """The same without the pairs of an image and a text that belong to different pairs with an id in common.

    Where the target is smoothed (by 0.1, as ALIGN's), what such a text would get goes to the text of the image.
    """
    images, texts, log_scale, bias = values
    logits = log_scale.exp() * images @ texts.t()
    count = len(images)
    equal = (ids[:, None] == ids).any(-1) & ~torch.eye(count, dtype=torch.bool)
    if name == "sigmoid":
        labels = 2 * torch.eye(count, dtype=logits.dtype) - 1
        return -nn.functional.logsigmoid(labels * (logits + bias)).masked_fill(equal, 0).sum() / count
    compared, own, smoothing = logits.masked_fill(equal, -torch.inf), logits.diagonal(), 0.1 * (name == "smoothed")
    losses = [
        compared.logsumexp(dim) - (1 - smoothing) * own - smoothing * logits.where(~equal, instead).mean(dim)
        for dim, instead in ((0, own[None]), (1, own[:, None]))
    ]
    return torch.stack(losses).mean()


def inputs(batch: int = 12, dim: int = 5, scale: float = 2.0, dtype=torch.float64, grad: bool = True) -> list[Tensor]:
    """Images, texts, the scale's logarithm and the bias."""
    vectors = [nn.functional.normalize(torch.randn(batch, dim, dtype=torch.float64)).to(dtype) for _ in range(2)]
    scalars = [torch.tensor(scale, dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)]
    return [value.requires_grad_(grad) for value in (*vectors, *scalars)]


def ours(name: str, values: list[Tensor], **options) -> Tensor:
    return LOSSES[name](**options)(*values[: 4 if name == "sigmoid" else 3])


def gradients(loss: Tensor, values: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, values, allow_unused=True)
    return [torch.zeros_like(value) if one is None else one for one, value in zip(found, values, strict=True)]


def assert_same(name: str, values: list[Tensor], bar: float = 1e-10, **options) -> None:
    loss, expected = ours(name, values, **options), textbook(name, *values)
    torch.testing.assert_close(loss, expected.reshape(()), rtol=bar, atol=bar)
    for found, wanted in zip(gradients(3 * loss, values), gradients(3 * expected, values), strict=True):
        torch.testing.assert_close(found, wanted, rtol=bar, atol=bar)


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, math.log(100)])  # the largest spread of logits: -100 to 100
@pytest.mark.parametrize("chunk_size", [1, 2, 5, 12, 1024])  # 1 to 12 strips; more and less than are kept; rests
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_the_textbook_ones(name, chunk_size, scale):
    assert_same(name, inputs(scale=scale), chunk_size=chunk_size)


@pytest.mark.parametrize("tile", [1, 30, 2**18])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_do_not_matter(name, tile, monkeypatch):
    monkeypatch.setattr("twinlens.losses.strips.TILE_ELEMENTS", tile)
    assert_same(name, inputs(), chunk_size=7)


@pytest.mark.parametrize("name", LOSSES)
def test_one_pair_is_a_batch(name):
    assert_same(name, inputs(batch=1))


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_caption_twice_is_two_pairs(name):
    values = inputs()
    with torch.no_grad():
        values[1][7] = values[1][3]
    assert_same(name, values, chunk_size=4)


@pytest.mark.parametrize("chunk_size", [1, 5, 1024])
@pytest.mark.parametrize("name", ["sigmoid", "softmax", "smoothed"])
def test_equal_pairs_are_not_compared(name, chunk_size):
    values, ids = inputs(), torch.tensor([[0, 0, 0, 1, 2, 3, 4, 1, 5, 6, 7, 8], [*range(10), 9, 10]]).t()
    losses = losses_process.losses_without_equals(None, ids)
    loss, expected = losses[f"{name}, equals"](*values), textbook_without_equals(name, values, ids)
    torch.testing.assert_close(loss, expected.reshape(()), rtol=1e-10, atol=1e-10)
    for found, wanted in zip(gradients(3 * loss, values), gradients(3 * expected, values), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_ids_that_all_differ_change_nothing_and_equal_ones_leave_each_pair_alone(name):
    values = [value.detach().float().requires_grad_() for value in inputs()]
    options: dict[str, Any] = {"chunk_size": 5}
    function: Any = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}[name]
    used = values[: 4 if name == "sigmoid" else 3]
    assert torch.equal(function(*used, pair_ids=torch.arange(12), **options), function(*used, **options))
    alone = function(*used, pair_ids=torch.zeros(12, dtype=torch.long), **options)
    if name == "softmax":
        assert alone.abs() < 1e-6
    else:
        own = values[2].exp() * (values[0] * values[1]).sum(1) + values[3]
        torch.testing.assert_close(alone, -nn.functional.logsigmoid(own).mean(), rtol=1e-5, atol=1e-6)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(alone, used))


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_passes(name):
    used = 4 if name == "sigmoid" else 3
    assert torch.autograd.gradcheck(LOSSES[name](chunk_size=3), inputs(batch=7)[:used])


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_is_computed_in_float32(name, dtype, bar):
    """The bars are the rounding of gradients to `dtype`; the loss is float32 of the very numbers that were given."""
    values = inputs(batch=40, dtype=dtype)
    loss = ours(name, values, chunk_size=16)
    exact = [value.detach().double().requires_grad_() for value in values]
    expected = textbook(name, *exact)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected.reshape(()), rtol=1e-5, atol=1e-6)
    for found, wanted, value in zip(gradients(loss, values), gradients(expected, exact), values, strict=True):
        assert found.dtype == value.dtype
        torch.testing.assert_close(found.double(), wanted, rtol=bar, atol=bar * wanted.abs().max().item())


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name):
    values = [value.detach().float().requires_grad_() for value in inputs()]
    expected = ours(name, values)
    wanted = gradients(expected, values)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(name, values)
        found = gradients(loss, values)
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("name", LOSSES)
def test_backward_can_be_repeated_only_if_the_graph_is_kept(name):
    values = inputs()
    loss = ours(name, values)
    first = torch.autograd.grad(loss, values[:3], retain_graph=True)
    second = torch.autograd.grad(loss, values[:3])
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, values[:3])


# --- memory and work --------------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Notes the largest tensor that is made, and counts products of matrices."""

    largest = products = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        self.products += function.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return result


@pytest.mark.parametrize("name", LOSSES)
def test_no_tensor_grows_with_the_square_of_the_batch(name):
    values = inputs(batch=200, dim=8)
    with Watch() as watch:
        ours(name, values, chunk_size=10).backward()
    assert watch.largest == 200 * 10
    with Watch() as watch:
        textbook(name, *values).backward()
    assert watch.largest == 200 * 200


@pytest.mark.parametrize(
    ("needed", "products"),
    [((), 1), ((0,), 2), ((1,), 2), ((2,), 2), ((0, 1, 2), 3), ((1, 2), 2)],
    ids=["nothing", "images", "texts", "scale", "all", "texts and scale"],
)
@pytest.mark.parametrize("name", LOSSES)
def test_no_product_of_matrices_is_made_in_vain(name, needed, products):
    values = inputs(grad=False)
    for index in needed:
        values[index].requires_grad_()
    with Watch() as watch:
        loss = ours(name, values, chunk_size=4)
    assert watch.products == products * 3  # strips
    if needed:
        expected = torch.autograd.grad(textbook(name, *values), [values[index] for index in needed])
        found = torch.autograd.grad(loss, [values[index] for index in needed])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradients_only_the_loss_is_computed(name):
    values = inputs()
    expected = ours(name, values, chunk_size=1).detach()
    with torch.no_grad(), Watch() as watch:
        loss = ours(name, values, chunk_size=1)
    assert (watch.products, loss.requires_grad) == (12, False)
    assert torch.equal(loss, expected)


def test_softmax_computes_again_only_the_strips_that_it_does_not_keep():
    values = inputs()
    with Watch() as watch:
        ours("softmax", values, chunk_size=1)
    assert watch.products == 12 * 3 + 12 - 3  # of four kept, the last one's memory is needed for those that are not


# --- errors -----------------------------------------------------------------------------------------------------------


def spoilt(index: int, change) -> list[Tensor]:
    values = inputs(grad=False)
    values[index] = change(values[index])
    return values


def with_row(row: int, value: float):
    return lambda vectors: vectors.index_fill(0, torch.tensor([row]), value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (spoilt(0, with_row(3, torch.nan)), "Row 3 of image_embeds holds NaN or infinity; a unit vector was expected"),
        (spoilt(1, with_row(4, torch.inf)), "Row 4 of text_embeds holds NaN or infinity"),
        (spoilt(1, with_row(4, 2.0)), r"Row 4 of text_embeds has length 4\.472, expected 1 within 0\.001: .*normalize"),
        (spoilt(0, with_row(0, 0.0)), "Row 0 of image_embeds has length 0, expected 1"),
        (spoilt(2, lambda scale: scale * torch.nan), "logit_scale must be finite, got nan"),
        (spoilt(2, lambda scale: scale.new_tensor(100)), r"logarithm of the factor, at most 9, got 100: .*\.log\(\)"),
        (spoilt(2, lambda scale: scale.new_ones(2)), r"logit_scale must be one number, .* got shape \(2,\)"),
        (spoilt(0, lambda vectors: vectors[1:]), r"pair by pair, got \(11, 5\) and \(12, 5\)"),
        (
            spoilt(1, lambda vectors: vectors[:, 1:]),
            r"one shape \(batch, dim\), pair by pair, got \(12, 5\) and \(12, 4\)",
        ),
        (spoilt(1, lambda vectors: vectors.long()), "must be floating-point, got torch.float64 and torch.int64"),
        ([value[:0] for value in inputs(grad=False)[:2]] + inputs(grad=False)[2:], "at least one pair"),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_wrong_inputs_are_named(name, values, message):
    with pytest.raises(ValueError, match=message):
        ours(name, values)


def test_a_wrong_bias_is_named():
    with pytest.raises(ValueError, match="logit_bias must be finite, got inf"):
        ours("sigmoid", spoilt(3, lambda bias: bias + torch.inf))


@pytest.mark.parametrize("logits", [1, 40, 60, 90])  # a strip of 1, 3, 5 or 7 of 12 images
@pytest.mark.parametrize("name", LOSSES)
def test_strips_of_many_texts_are_narrow(name, logits, monkeypatch):
    monkeypatch.setattr("twinlens.losses.strips.MAX_LOGITS_ELEMENTS", logits)
    assert strip_size(12) == max(1, logits // 12)
    assert_same(name, inputs())


def test_strips_fit_in_memory():
    assert [strip_size(batch) for batch in (5, 4096, 65_536, 131_072, 2**30)] == [5, 1024, 1024, 512, 1]


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_chunk_has_images(name, chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size must be a number of images, at least 1, got {chunk_size}"):
        ours(name, inputs(), chunk_size=chunk_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_unit_vectors_of_any_precision_are_accepted(name, dtype):
    vectors = [nn.functional.normalize(torch.randn(2000, 768).to(dtype), dim=1) for _ in range(2)]
    with torch.no_grad():
        assert ours(name, [*vectors, torch.tensor(2.0), torch.tensor(-1.0)]).isfinite()
        vectors[0][5] *= 1.06
        with pytest.raises(ValueError, match=r"Row 5 of image_embeds has length 1\.0"):
            ours(name, [*vectors, torch.tensor(2.0), torch.tensor(-1.0)])


# --- other libraries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_open_clip_features_give_open_clip_losses(name):
    """open_clip's models return the factor itself."""
    module = released_module(*losses_process.OPEN_CLIP)
    images, texts, scale, bias = inputs()
    output = {"image_features": images, "text_features": texts, "logit_scale": scale.exp().detach().requires_grad_()}
    if name == "sigmoid":
        output["logit_bias"] = bias
    values = list(output.values())
    expected = {"sigmoid": module.SigLipLoss, "softmax": module.ClipLoss}[name]()(**output)
    loss = LOSSES[name]()(images, texts, output["logit_scale"].log(), *values[3:])
    torch.testing.assert_close(loss, expected.reshape(()), rtol=1e-12, atol=1e-12)
    for found, wanted in zip(gradients(loss, values), gradients(expected, values), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_learn_what_those_of_transformers_learn(family):
    own, theirs = twins(family)
    arguments = {**images(family, 5), "input_ids": token_ids(family, 5), "return_loss": True}
    outputs, expected = own.train()(**arguments), theirs.train()(**arguments)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-5, atol=1e-6)
    outputs.loss.backward()
    expected.loss.backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(gradient.abs().max() for gradient in wanted.values())
    errors = [(parameter.grad - wanted[name]).abs().max() / largest for name, parameter in own.named_parameters()]
    assert max(errors) <= 1e-4  # float32; of the largest gradient of all


@pytest.mark.parametrize("family", FAMILIES)
def test_training_makes_no_matrix_of_logits(family):
    own, theirs = model(family), twins(family)[1].train()
    arguments = {**images(family, 3), "input_ids": token_ids(family)}
    assert own(**arguments, return_loss=True).logits_per_image.shape == (3, 3)  # evaluation, as in transformers
    own.train()
    assert own(**arguments).logits_per_text.shape == (3, 3)
    outputs = own(**arguments, return_loss=True)
    assert outputs.logits_per_image is outputs.logits_per_text is None
    assert theirs(**arguments, return_loss=True).logits_per_image.shape == (3, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_computes_nan_says_so(family):
    own, theirs = twins(family)
    arguments: dict[str, Any] = {**images(family, 3), "input_ids": token_ids(family), "return_loss": True}
    arguments["pixel_values"][1].flatten()[0] = torch.nan
    assert theirs(**arguments).loss.isnan()
    with pytest.raises(ValueError, match="Row 1 of image_embeds holds NaN"):
        own(**arguments)


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What four processes found, alone and together."""
    released_module(*losses_process.OPEN_CLIP)
    folder = tmp_path_factory.mktemp("ranks")
    ranks = range(max(losses_process.WORLDS))
    for process in [start(losses_process.main, rank, str(folder), output=folder / f"log {rank}") for rank in ranks]:
        assert finish(process) == 0, [(folder / f"log {rank}").read_text() for rank in ranks]
    return [torch.load(folder / f"{rank}.pt") for rank in ranks]


def assert_as_one_process(name: str, found: list[list[Tensor]], equals: bool = False) -> None:
    """The mean over ranks of losses and, as DDP computes it, of gradients is that of one process with all pairs."""
    world = len(found)
    values = [value.requires_grad_() for value in losses_process.inputs(world)]
    if equals:
        expected = textbook_without_equals(name, values, losses_process.equal_pairs(world))
    else:
        expected = textbook(name, *values)
    wanted = gradients(expected, values)
    losses, images, texts, *scalars = zip(*found, strict=True)
    close: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(torch.stack(losses).mean(), expected.reshape(()), **close)
    for local, whole in ((images, wanted[0]), (texts, wanted[1])):
        torch.testing.assert_close(torch.cat(local), world * whole, **close)
    for local, whole in zip(scalars, wanted[2:], strict=True):
        if local[0] is not None:
            torch.testing.assert_close(torch.stack(local).mean(0), whole, **close)


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "sigmoid, bidir", "sigmoid, shift", "softmax, local"])
@pytest.mark.parametrize("world", losses_process.WORLDS)
def test_ranks_together_are_one_process(ranks, world, name):
    """Those with a way of exchange in their name are open_clip's."""
    assert_as_one_process(name.split(",")[0], [found[world, name] for found in ranks[:world]])


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "smoothed"])
@pytest.mark.parametrize("world", losses_process.WORLDS)
def test_equal_pairs_of_all_ranks_are_not_compared(ranks, world, name):
    assert_as_one_process(name, [found[world, f"{name}, equals"] for found in ranks[:world]], equals=True)


@pytest.mark.parametrize("world", losses_process.WORLDS[1:])
def test_memory_does_not_grow_with_the_ring(ranks, world):
    """Blocks are received once less than there are ranks, results as often; softmax goes around the ring twice."""
    blocks, results = min(2, world - 1), 2
    for found in ranks[:world]:
        assert sorted(found[world, "sigmoid buffers"]) == sorted([blocks, results])
        assert sorted(found[world, "softmax buffers"]) == sorted([blocks, results] * 2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_group_may_be_a_part_of_the_processes(ranks, name):
    assert_as_one_process(name, [ranks[rank]["group", name] for rank in (0, 3)])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("world", losses_process.WORLDS[1:])
def test_a_problem_of_one_rank_is_an_error_on_all(ranks, world, name):
    *others, last = [found[world, f"{name} errors"] for found in ranks[:world]]
    assert last["values"].startswith("Row 3 of image_embeds holds NaN")
    assert last["shapes"].endswith("got (4, 6) and (5, 6).")
    sizes = "of 8 bytes each with gradients"
    assert re.search(rf"rank {world - 1} has \(4, 6\) {sizes} .*, rank 0 \(5, 6\) {sizes} .*\.$", last["sizes"])
    for other in others:
        for problem in ("values", "shapes"):
            assert other[problem].startswith(f"Rank {world - 1} of the group refuses its inputs and says why")
        assert "need embeddings of one shape and type" in other["sizes"]
        assert "gradients for the same inputs" in other["gradients"]
    assert "gradients for the same inputs" in last["gradients"]
