"""CLIP's texts are encoded as far as the last one of the batch ends, and as a whole where somebody reads their states.

The reference is transformers' classes with the same weights, which encode all tokens at once.
"""

import copy
import dataclasses
import operator
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from helpers.families import IDS, TEXT, images, token_ids, twins
from torch.utils import _pytree
from transformers.modeling_outputs import BaseModelOutputWithPooling

import twinlens
from twinlens.modeling.encoder import Encoder

FULL = TEXT["max_position_embeddings"]
CUT = 8  # `token_ids` ends its texts at position 7
PAD, EOS = IDS["CLIP"]["pad_token_id"], IDS["CLIP"]["eos_token_id"]
KINDS = ("TextModel", "TextModelWithProjection")
close = partial(torch.testing.assert_close, atol=3e-5, rtol=0)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tokens that the encoder of any tower has been given, in the order of the calls."""
    seen = []
    forward = Encoder.forward

    def watched(encoder: Encoder, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if type(encoder).__module__ == Encoder.__module__:
            seen.append(hidden_states.shape[1])
        return forward(encoder, hidden_states, **kwargs)

    monkeypatch.setattr(Encoder, "forward", watched)
    return seen


@pytest.fixture(params=[torch.no_grad, torch.inference_mode])
def without_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with request.param():
        yield


def compare(ours: Any, theirs: Any) -> None:
    """Compare plain outputs: the same names in the same order, and values within 3e-5."""
    assert list(ours) == list(theirs)
    for name in theirs:
        close(ours[name], theirs[name])


READERS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda output: output.last_hidden_state,
    "getattr": lambda output: getattr(output, "last_hidden_state", None),
    "name": lambda output: output["last_hidden_state"],
    "get": lambda output: output.get("last_hidden_state"),
    "index": lambda output: output[[*output].index("last_hidden_state")],
    "negative index": lambda output: output[[*output].index("last_hidden_state") - len(output)],
    "slice": lambda output: output[:][[*output].index("last_hidden_state")],
    "tuple": lambda output: dict(zip(output, output.to_tuple(), strict=True))["last_hidden_state"],
    "items": lambda output: dict(output.items())["last_hidden_state"],
    "values": lambda output: dict(zip(output.keys(), output.values(), strict=True))["last_hidden_state"],
    "dict": lambda output: dict(output)["last_hidden_state"],
    "double star": lambda output: {**output}["last_hidden_state"],
    "call": lambda output: dict(**output)["last_hidden_state"],
    "union": lambda output: ({} | output)["last_hidden_state"],
    "OrderedDict": lambda output: OrderedDict(output)["last_hidden_state"],
    "iteration": lambda output: {name: output[name] for name in output}["last_hidden_state"],
    "vars": lambda output: vars(output)["last_hidden_state"],
    "pickle": lambda output: pickle.loads(pickle.dumps(output)).last_hidden_state,
    "old pickle": lambda output: pickle.loads(pickle.dumps(output, 2))[[*output].index("last_hidden_state")],
    "copy": lambda output: copy.copy(output).last_hidden_state,
    "deepcopy": lambda output: copy.deepcopy(output)["last_hidden_state"],
    "copy method": lambda output: output.copy()["last_hidden_state"],
    "replace": lambda output: dataclasses.replace(output, attentions=()).last_hidden_state,
    "asdict": lambda output: dataclasses.asdict(output)["last_hidden_state"],
    "flatten": lambda output: dict(zip(output, _pytree.tree_flatten(output)[0], strict=True))["last_hidden_state"],
    "map": lambda output: _pytree.tree_map(torch.clone, output).last_hidden_state,
    # as DataParallel makes one output of several
    "gather": lambda output: type(output)((name, output[name]) for name in output)["last_hidden_state"],
    # as accelerate converts outputs
    "convert": lambda output: type(output)(dict(output.items())).last_hidden_state,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_finds_the_states_of_all_tokens(kind: str, reader: str, lengths: list[int]) -> None:
    ours, theirs = twins("CLIP", kind)
    ids = token_ids("CLIP")
    with torch.inference_mode():
        output, expected = ours(input_ids=ids), theirs(input_ids=ids)
    assert lengths == [CUT]
    states = READERS[reader](output)
    close(states, expected.last_hidden_state)
    assert lengths == [CUT, FULL]
    assert states.shape[1] == FULL
    assert not states.requires_grad
    assert type(output) is type(expected)  # a plain output, from then on
    compare(output, expected)
    assert vars(output).keys() == vars(expected).keys()
    assert lengths == [CUT, FULL]  # computed once


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_reading_computes_nothing(kind: str, lengths: list[int], without_gradients: None) -> None:
    ours, theirs = twins("CLIP", kind)
    ids = token_ids("CLIP")
    output, expected = ours(input_ids=ids), theirs(input_ids=ids)
    pooled = "pooler_output" if kind == "TextModel" else "text_embeds"
    assert (len(output), list(output), bool(output)) == (len(expected), list(expected), True)
    assert "last_hidden_state" in output
    assert "hidden_states" not in output
    assert isinstance(output, type(expected))
    assert output.hidden_states is None
    assert output.attentions is None
    for value in (getattr(output, pooled), output[pooled], output[[*output].index(pooled)]):
        close(value, expected[pooled])
    assert lengths == [CUT]
    assert repr(output) == repr(output)
    assert lengths == [CUT, FULL]


def test_outputs_compare_as_plain_ones() -> None:
    tower, _ = twins("CLIP", "TextModel")
    with torch.no_grad():
        output = tower(token_ids("CLIP", 1))
        plain = BaseModelOutputWithPooling(tower(token_ids("CLIP", 1)).last_hidden_state, output.pooler_output)
    with pytest.raises(RuntimeError, match="ambiguous"):  # as for two plain outputs
        _ = plain == output
    states = output.last_hidden_state
    same = BaseModelOutputWithPooling(states, output.pooler_output)
    assert output == same
    with torch.no_grad():
        assert (tower(token_ids("CLIP")) == 1, tower(token_ids("CLIP")) != 1) == (False, True)


def test_tuples_and_other_entry_points(without_gradients: None) -> None:
    ids, pictures = token_ids("CLIP"), images("CLIP")
    for kind in KINDS:
        ours, theirs = twins("CLIP", kind)
        for mine, expected in zip(ours(ids, return_dict=False), theirs(ids, return_dict=False), strict=True):
            close(mine, expected)
        ours.config.return_dict = False
        assert [x.shape for x in ours(ids)] == [x.shape for x in theirs(ids, return_dict=False)]
    ours, theirs = twins("CLIP")
    output, expected = ours(input_ids=ids, **pictures), theirs(input_ids=ids, **pictures)
    close(output.logits_per_text, expected.logits_per_text)
    compare(output.text_model_output, expected.text_model_output)
    features = ours.get_text_features(ids), theirs.get_text_features(ids)
    compare(*features)
    nested = ours(input_ids=ids, **pictures).to_tuple(), expected.to_tuple()
    assert _pytree.tree_structure(nested[0]) == _pytree.tree_structure(nested[1])
    for mine, other in zip(*map(_pytree.tree_leaves, nested), strict=True):
        close(mine, other, atol=1e-4)


def test_accelerate_converts_outputs() -> None:
    operations = pytest.importorskip("accelerate.utils.operations")
    tower, theirs = twins("CLIP", "TextModel")
    ids = token_ids("CLIP")
    with torch.no_grad():
        expected = theirs(ids)
        for convert in (
            operations.convert_to_fp32,
            partial(operations.recursively_apply, torch.clone),
            partial(operations.send_to_device, device="cpu"),
        ):
            compare(convert(tower(ids)), expected)


def test_new_values_before_reading(lengths: list[int], without_gradients: None) -> None:
    tower, _ = twins("CLIP", "TextModel")
    new = torch.zeros(1)
    for write in (setattr, operator.setitem):
        output = tower(token_ids("CLIP"))
        write(output, "last_hidden_state", new)
        write(output, "pooler_output", new)
        assert output.last_hidden_state is output["last_hidden_state"] is output[0] is output.to_tuple()[1] is new
    assert set(lengths) == {CUT}


def rows(*texts: list[int]) -> torch.Tensor:
    return torch.tensor(texts)


def right(*lengths: int) -> torch.Tensor:
    """Texts with that many tokens, the last of which is the end, and padding behind it."""
    return rows(*([97, *range(3, length + 1), EOS] + [PAD] * (FULL - length) for length in lengths))


LEFT = rows([PAD] * 6 + [97, 3, 4, 5, 6, EOS], [PAD] * 9 + [97, 3, EOS])
INNER = rows([PAD] * 3 + [97, 3, EOS] + [PAD] * 6, [PAD] * 2 + [97, EOS] + [PAD] * 8)
CASES: dict[str, tuple[torch.Tensor, torch.Tensor | None, int]] = {
    "one text": (right(4), None, 4),
    "lengths": (right(3, 9, 5), None, 9),
    "mask": (right(3, 6), right(3, 6).ne(PAD).int(), 6),
    "mask of booleans": (right(3, 6), right(3, 6).ne(PAD), 6),
    "full": (right(3, FULL), None, FULL),
    "hardly shorter": (right(3, FULL - 1), None, FULL),
    "left": (LEFT, LEFT.ne(PAD).int(), FULL),
    "left and right": (INNER, INNER.ne(PAD).int(), 6),
    "two ends": (rows([97, EOS, 4, EOS, 5, 6, 7, 8, 9, 10, 11, EOS]), None, 2),
    "ids behind the end": (rows([97, 3, EOS, *range(4, 13)], [97, EOS, *range(4, 14)]), None, 3),
    "nothing hidden": (right(3, 6), torch.ones(2, FULL, dtype=torch.int64), 6),
}


@pytest.mark.parametrize("case", CASES)
def test_texts_of_all_kinds(case: str, lengths: list[int], without_gradients: None) -> None:
    ids, mask, length = CASES[case]
    ours, theirs = twins("CLIP", "TextModel")
    output, expected = ours(ids, mask), theirs(ids, mask)
    close(output.pooler_output, expected.pooler_output)
    assert lengths == [length]
    close(output.last_hidden_state, expected.last_hidden_state)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ids", "mask", "length"),
    [
        (rows([97, 3, 4] + [PAD] * 9, [97, EOS] + [PAD] * 10), None, 3),  # no end: pooled at the last token
        (rows([97, *range(3, 14)], [97, EOS] + [PAD] * 10), None, FULL),
        (rows([97, 3, 4] + [7] * 9), torch.tensor([[1] * 3 + [0] * 9]), 3),
        (rows([EOS] * 4 + [97, 3, EOS, EOS, 7, 7, 7, 7]), torch.tensor([[0] * 4 + [1] * 3 + [0] * 5]), 7),  # EOS pads
    ],
)
@pytest.mark.parametrize("end", [EOS, 2])  # 2: the highest id is the end
def test_pooled_where_whole_texts_are(
    ids: torch.Tensor, mask: torch.Tensor | None, length: int, end: int, lengths: list[int]
) -> None:
    """Where transformers pools elsewhere (see docs/differences.md), positions keep the texts whole."""
    tower, _ = twins("CLIP", "TextModel")
    tower.config.eos_token_id = end
    with torch.no_grad():
        output, whole = tower(ids, mask), tower(ids, mask, torch.arange(FULL)[None])
    close(output.pooler_output, whole.pooler_output)
    if end == EOS:
        assert lengths == [length, FULL]
    assert torch.equal(output.last_hidden_state, whole.last_hidden_state)


def test_no_texts_and_single_dimensions(without_gradients: None) -> None:
    model, theirs = twins("CLIP")
    ids = token_ids("CLIP")
    assert model.encode_text(ids[:0]).shape == (0, 24)
    assert model.text_model(ids[:0]).last_hidden_state.shape == (0, FULL, TEXT["hidden_size"])
    assert model.text_model(ids[0]).last_hidden_state.shape == (1, FULL, TEXT["hidden_size"])
    several = model.text_model(ids.reshape(3, 1, FULL), torch.ones(3, 1, FULL))
    compare(several, theirs.text_model(ids))


def test_ids_that_are_too_long_stay_an_error() -> None:
    tower, _ = twins("CLIP", "TextModel")
    with torch.no_grad(), pytest.raises(ValueError, match=f"at most {FULL} tokens"):
        tower(torch.cat([right(3), right(3)], dim=1))


class TestWhole:
    """Where something else than the pooled output may depend on the later tokens, all are encoded at once."""

    @pytest.mark.parametrize(
        "options",
        [
            {"output_hidden_states": True},
            {"output_hidden_states": [-2]},
            {"output_attentions": True},
            {"position_ids": torch.arange(FULL)[None]},
            {"inputs_embeds": torch.zeros(3, FULL, TEXT["hidden_size"])},
            {"attention_mask": torch.ones(3, 1, FULL, FULL).tril().bool()},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_options(self, options: dict[str, Any], lengths: list[int], without_gradients: None) -> None:
        tower, _ = twins("CLIP", "TextModel")
        output = tower(token_ids("CLIP"), **options)
        assert lengths == [FULL]
        assert type(output) is BaseModelOutputWithPooling
        assert all(states.shape[1] == FULL for states in output.hidden_states or () if states is not None)

    def test_options_of_the_configuration(self, lengths: list[int], without_gradients: None) -> None:
        tower, _ = twins("CLIP", "TextModel")
        tower.config.output_hidden_states = True
        assert len(tower(token_ids("CLIP")).hidden_states) == TEXT["num_hidden_layers"] + 1
        assert lengths == [FULL]
        tower.config.output_hidden_states = False
        tower(token_ids("CLIP"))
        assert lengths == [FULL, CUT]  # the hooks that capture hidden states are installed, but are nobody's

    def test_gradients_and_training(self, lengths: list[int]) -> None:
        tower, _ = twins("CLIP", "TextModel")
        ids = token_ids("CLIP")
        assert tower(ids).last_hidden_state.requires_grad
        with torch.no_grad():
            tower.train()(ids)
        assert lengths == [FULL, FULL]
        frozen = tower.eval().requires_grad_(False)
        assert not frozen(ids).last_hidden_state.requires_grad
        assert lengths == [FULL, FULL, CUT, FULL]
        next(iter(tower.encoder.layers[-1].parameters())).requires_grad_(True)
        tower(ids).pooler_output.sum().backward()
        assert lengths[4:] == [FULL]

    @pytest.mark.parametrize("method", ["register_forward_hook", "register_forward_pre_hook"])
    def test_hooks(self, method: str, lengths: list[int], without_gradients: None) -> None:
        tower, _ = twins("CLIP", "TextModel")
        seen: list[tuple[int, ...]] = []
        handle = getattr(tower.encoder.layers[1].mlp.fc1, method)(lambda module, args, *_: seen.append(args[0].shape))
        tower(token_ids("CLIP"))
        assert seen == [(3, FULL, TEXT["hidden_size"])]
        handle.remove()
        tower(token_ids("CLIP"))
        assert lengths == [FULL, CUT]
        assert len(seen) == 1

    def test_autocast_and_other_kernels(self, lengths: list[int], without_gradients: None) -> None:
        tower, _ = twins("CLIP", "TextModel")
        with torch.autocast("cpu", torch.bfloat16):
            tower(token_ids("CLIP"))
        tower.set_attn_implementation("eager")
        tower(token_ids("CLIP"))
        assert lengths == [FULL, FULL]

    def test_bidirectional_texts(self, lengths: list[int], without_gradients: None) -> None:
        for family in ("Siglip", "Siglip2"):
            tower, _ = twins(family, "TextModel")
            assert type(tower(token_ids(family))) is BaseModelOutputWithPooling
        assert lengths == [FULL, FULL]

    @pytest.mark.filterwarnings("ignore")
    def test_graphs(self, lengths: list[int], without_gradients: None) -> None:
        tower, theirs = twins("CLIP", "TextModel")
        ids = token_ids("CLIP")
        compiled = torch.compile(tower, backend="eager", fullgraph=True)
        compare(compiled(ids), theirs(ids))
        tower.requires_grad_(False)  # the trace has weights as constants
        traced = torch.jit.trace(lambda ids: tower(ids)[0], ids, check_trace=False)
        close(traced(right(4, 10, 12)), theirs(right(4, 10, 12))[0])

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_vmap(self) -> None:
        tower, theirs = twins("CLIP", "TextModel")
        ids = token_ids("CLIP")
        with torch.no_grad():
            states = torch.func.vmap(lambda ids: tower(ids[None], return_dict=True).pooler_output[0])(ids)
            close(states, theirs(ids).pooler_output)


class TestReadLater:
    def test_in_the_mode_of_the_call(self) -> None:
        tower, theirs = twins("CLIP", "TextModel")
        ids = token_ids("CLIP")
        with torch.no_grad():
            output, expected = tower(ids), theirs(ids).last_hidden_state
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            states = output.last_hidden_state
        assert states.dtype == torch.float32
        assert not states.is_inference()
        assert not states.requires_grad
        close(states, expected)
        with torch.inference_mode():
            output = tower(ids)
        assert output.last_hidden_state.is_inference()

    def test_of_the_inputs_of_the_call(self) -> None:
        tower, theirs = twins("CLIP", "TextModel")
        ids, mask = right(3, 6), right(3, 6).ne(PAD).int()
        with torch.no_grad():
            output, expected = tower(ids, mask), theirs(ids, mask)
            ids.zero_()
            mask.zero_()
        compare(output, expected)

    def test_while_another_model_captures(self) -> None:
        """Reading inside a call that captures hidden states adds none of the tower's."""
        tower, _ = twins("CLIP", "TextModel")
        outer, _ = twins("CLIP", "TextModel")
        ids = token_ids("CLIP")
        with torch.no_grad():
            tower(ids, output_hidden_states=True)  # installs its hooks
            output = tower(ids)
            outer.encoder.layers[0].register_forward_pre_hook(lambda *_: (output.to_tuple(), None)[1])
            assert len(outer(ids, output_hidden_states=True).hidden_states) == TEXT["num_hidden_layers"] + 1

    def test_by_many_threads(self) -> None:
        tower, theirs = twins("CLIP", "TextModel")
        ids = token_ids("CLIP")
        with torch.no_grad():
            expected = theirs(ids)
            outputs = [tower(ids) for _ in range(20)]
        found: list[Any] = []
        start = threading.Barrier(4)

        def read(reader: Callable[[Any], Any]) -> None:
            start.wait()
            found.extend(reader(output) for output in outputs)

        readers = [READERS[name] for name in ("attribute", "name", "items", "pickle")]
        threads = [threading.Thread(target=read, args=(reader,)) for reader in readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == len(readers) * len(outputs)
        for states in found:
            close(states, expected.last_hidden_state)
        for output in outputs:
            compare(output, expected)

    def test_keeps_no_activations(self) -> None:
        """What an unread output holds, beside its pooled output and the tower: ids, mask and positions."""
        tower, _ = twins("CLIP", "TextModel")
        ids = right(3, 6)
        with torch.no_grad():
            output = tower(ids, ids.ne(PAD).int())
        read: Any = OrderedDict.get(output, "last_hidden_state")
        compute = next(cell.cell_contents for cell in read.__closure__ if isinstance(cell.cell_contents, partial))
        held = [*compute.args, *compute.keywords.values()]
        assert {x.shape for x in held if isinstance(x, torch.Tensor)} == {(2, FULL), (1, FULL)}
        assert all(isinstance(x, torch.Tensor | bool | twinlens.CLIPTextModel) for x in held)


def test_pipelines_gain(lengths: list[int]) -> None:
    """transformers' own call of a dual encoder encodes fewer tokens, too."""
    model, theirs = twins("CLIP")
    inputs = {"input_ids": token_ids("CLIP"), **images("CLIP")}
    assert isinstance(theirs, transformers.CLIPModel)
    with torch.inference_mode():
        close(model(**inputs).logits_per_image, theirs(**inputs).logits_per_image)
        features = theirs.get_text_features(inputs["input_ids"]).pooler_output
        close(model.encode_text(inputs["input_ids"]), torch.nn.functional.normalize(features))
    assert lengths.count(CUT) == 2
    assert FULL not in lengths
