"""`model.text_cache`: labels that come again are encoded once, wherever nobody can see a difference."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from helpers import families, other_families
from helpers.photographs import PHOTOGRAPHS
from helpers.versions import skip_old_peft
from peft import LoraConfig
from torch import Tensor

import twinlens
from twinlens.modeling.embeddings import TextEmbeddings
from twinlens.modeling.pooling import POOLERS
from twinlens.processing import DualEncoderProcessor
from twinlens.runtime import TextCache

close = torch.testing.assert_close


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts the text tower has been given in each call."""
    seen = []
    forward = TextEmbeddings.forward

    def watched(embeddings: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        seen.append(0 if input_ids is None else len(input_ids))
        return forward(embeddings, input_ids, *args, **kwargs)

    monkeypatch.setattr(TextEmbeddings, "forward", watched)
    return seen


@pytest.fixture(params=families.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def inputs_of(family: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {**families.images(family), "input_ids": families.token_ids(family)}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any], **more: Any) -> Tensor:
    output: Tensor = model(**inputs, **more).logits_per_image
    return output


def test_the_unchanged_pipeline_encodes_labels_once(encoded: list[int]) -> None:
    model = twinlens.DualEncoderModel.from_pretrained("clip-shapes")
    processor = DualEncoderProcessor.from_pretrained("clip-shapes")
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    pipeline = transformers.pipeline("zero-shot-image-classification", model=model, **parts)
    images, labels = [*PHOTOGRAPHS.values()][:4], ["a red star", "a blue circle", "a cat"]
    found = pipeline(images, candidate_labels=labels)
    assert encoded == [3]
    assert repr(model.text_cache) == "TextCache(1 of 4 batches, 3 hits, 1 misses)"
    model.text_cache.enabled = False
    assert found == pipeline(images, candidate_labels=labels)
    assert encoded == [3] * 5
    assert "disabled" in repr(model.text_cache)


def test_outputs_are_equal_whoever_reads_them(family: str, encoded: list[int]) -> None:
    model, inputs = families.model(family), inputs_of(family)
    with torch.no_grad():
        first, second = model(**inputs), model(**inputs)
        assert encoded == [3]
        assert list(first) == list(second)
        close(first, second, rtol=0, atol=0)
        close(first.text_model_output.last_hidden_state, second.text_model_output.last_hidden_state, rtol=0, atol=0)
        assert type(first.text_model_output) is type(second.text_model_output)
        as_tuple = model(**inputs, return_dict=False)
        close(as_tuple[0], first.logits_per_image, rtol=0, atol=0)


def test_what_callers_do_to_an_output_or_an_input_stays_theirs(family: str) -> None:
    model, inputs = families.model(family), inputs_of(family)
    expected = logits(model, inputs)
    with torch.no_grad():
        output = model(**inputs)
        output.text_embeds.zero_()
        output.text_model_output.pooler_output.zero_()
        later = model(**inputs).text_model_output
        ids = inputs["input_ids"].clone()
        inputs["input_ids"].fill_(3)
        close(later.last_hidden_state, model.text_model(ids).last_hidden_state, rtol=0, atol=1e-6)
    assert torch.equal(logits(model, {**inputs, "input_ids": ids}), expected)


def test_in_inference_mode_and_out_of_it(family: str) -> None:
    model, inputs = families.model(family), inputs_of(family)
    with torch.inference_mode():
        model(**inputs)
    with torch.no_grad():
        output = model(**inputs)
    assert model.text_cache.hits == 1
    assert not output.text_embeds.is_inference()
    (output.text_embeds * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5),
        lambda model: model.text_model.encoder.layers[0].mlp.fc1.weight[0, 1].add_(1.0),
        lambda model: model.text_model.encoder.layers[0].mlp.fc1.bias.data.mul_(9),
        lambda model: model.text_model.embeddings.token_embedding.weight.data.mul_(1.1),
        lambda model: model.load_state_dict({k: 1.1 * v for k, v in model.state_dict().items()}),
        lambda model: model.double().float().text_model.embeddings.position_embedding.weight.data.mul_(1.1),
        lambda model: setattr(model.text_model.final_layer_norm, "weight", torch.nn.Parameter(torch.rand(32))),
        lambda model: model.set_input_embeddings(torch.nn.Embedding(99, 32)),
        lambda model: step(model),
        lambda model: add_adapter(model),
    ],
    ids=[
        "in place",
        "one value",
        "data",
        "embeddings",
        "state dict",
        "dtype",
        "parameter",
        "module",
        "step",
        "adapter",
    ],
)
@torch.no_grad()
def test_no_answer_of_former_weights(family: str, change: Callable[[Any], object]) -> None:
    model, inputs = families.model(family), inputs_of(family)
    before = logits(model, inputs)
    change(model)
    fresh = logits(model, inputs)
    model.text_cache.enabled = False
    close(fresh, logits(model, inputs), rtol=0, atol=0)
    assert not torch.allclose(fresh, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.text_model.final_layer_norm, "eps", 1.0),
        lambda model: setattr(model.text_model.encoder.layers[0].mlp, "activation_fn", torch.nn.ReLU().eval()),
        lambda model: setattr(model.text_model.config, "pooling", "first"),
    ],
    ids=["epsilon", "activation", "configuration"],
)
def test_no_answer_of_former_settings(
    family: str, change: Callable[[Any], object], encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = families.model(family), inputs_of(family)
    monkeypatch.setitem(POOLERS, "first", lambda tower, hidden_states, **_: hidden_states[:, 0])
    before = logits(model, inputs)
    change(model)
    assert not torch.allclose(logits(model, inputs), before)
    assert len(encoded) == 2


def step(model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.3).step()


def add_adapter(model: Any) -> None:
    skip_old_peft()
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))


@torch.no_grad()
def test_adapters_switched_off_and_on(family: str) -> None:
    model, inputs = families.model(family), inputs_of(family)
    before = logits(model, inputs)
    add_adapter(model)
    adapted = logits(model, inputs)
    assert not torch.allclose(adapted, before)
    model.disable_adapters()
    close(logits(model, inputs), before)
    model.enable_adapters()
    close(logits(model, inputs), adapted)


class TestPast:
    """What goes past the cache: it is neither read nor written."""

    @pytest.mark.parametrize(
        "more",
        [{"output_hidden_states": True}, {"output_attentions": True}, {"position_ids": torch.arange(12)[None]}],
        ids=lambda more: next(iter(more)),
    )
    def test_what_else_is_asked_for(self, family: str, more: dict[str, Any], encoded: list[int]) -> None:
        model, inputs = families.model(family), inputs_of(family)
        model.set_attn_implementation("eager")
        for _ in range(2):
            logits(model, inputs, **more)
        assert (encoded, len(model.text_cache)) == ([3, 3], 0)

    def test_training_and_gradients(self, family: str, encoded: list[int]) -> None:
        model, inputs = families.model(family), inputs_of(family)
        for _ in range(2):
            model(**inputs).logits_per_image.sum().backward()
        model.train()
        for _ in range(2):
            logits(model, inputs)
        model.eval()
        model.text_model.encoder.layers[0].train()
        logits(model, inputs)
        assert (encoded, len(model.text_cache)) == ([3] * 5, 0)

    def test_hooks(self, family: str) -> None:
        model, inputs, calls = families.model(family), inputs_of(family), []
        logits(model, inputs)
        layer = model.text_model.encoder.layers[0]
        handle = layer.register_forward_hook(lambda *_: calls.append(1))
        for _ in range(2):
            logits(model, inputs)
        handle.remove()
        logits(model, inputs)
        assert len(calls) == 2

    def test_foreign_modules_and_replaced_forwards(self, family: str, encoded: list[int]) -> None:
        class Positive(torch.nn.LayerNorm):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).abs()

        model, inputs = families.model(family), inputs_of(family)
        expected = logits(model, inputs)
        model.text_model.final_layer_norm.__class__ = Positive
        assert not torch.allclose(logits(model, inputs), expected)
        model.text_model.final_layer_norm.__class__ = torch.nn.LayerNorm
        model.text_model.encoder.forward = lambda x, **_: 0 * x
        assert not torch.allclose(logits(model, inputs), expected)
        assert len(encoded) == 3

    def test_foreign_ways_to_encode_texts(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, inputs = families.model(family), inputs_of(family)
        encode, factors = model.get_text_features, torch.nn.Parameter(torch.ones(model(**inputs).text_embeds.shape[1]))

        def prompted(*args: Any, **kwargs: Any) -> Any:
            output = encode(*args, **kwargs)
            output.pooler_output = output.pooler_output * factors
            return output

        class Prompted(type(model)):  # type: ignore[misc]
            def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
                return prompted(*args, **kwargs)

        for name, value in {"get_text_features": prompted, "__class__": Prompted}.items():
            with monkeypatch.context() as patch:
                patch.setattr(model, name, value)
                before = logits(model, inputs)
                factors.data = -1.5 * factors.flip(0) * torch.arange(len(factors))
                assert not torch.allclose(logits(model, inputs), before)

    def test_off_loaded_weights(self, family: str) -> None:
        model, inputs = families.model(family), inputs_of(family)
        expected = logits(model, inputs)
        cpu_offload(model)
        for _ in range(2):
            close(logits(model, inputs), expected)
        remove_hook_from_submodules(model)
        assert model.text_cache.hits == 0

    def test_autocast(self, family: str) -> None:
        model, inputs = families.model(family), inputs_of(family)
        expected = logits(model, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not torch.equal(logits(model, inputs), expected)
        assert torch.equal(logits(model, inputs), expected)

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_vmap(self, family: str) -> None:
        model, inputs = families.model(family), inputs_of(family)
        expected = logits(model, inputs)
        ids = torch.stack([inputs["input_ids"], inputs["input_ids"].flip(0)])
        images = {name: value for name, value in inputs.items() if name != "input_ids"}
        with torch.no_grad():
            embeds = torch.func.vmap(lambda ids: model(input_ids=ids).text_embeds)(ids)
            close(model.logits(model.encode_image(**images), embeds[0]), expected)
        assert len(model.text_cache) == 1


def different(ids: Tensor, number: int) -> Tensor:
    return torch.cat([ids[:, :1] * 0 + 3 + number, ids[:, 1:]], dim=1)


def test_the_last_batches_are_kept(family: str, encoded: list[int]) -> None:
    model, ids = families.model(family), families.token_ids(family)
    for number in (0, 1, 2, 3, 0, 4, 1, 0):  # 4 takes the place of 1
        with torch.no_grad():
            model(input_ids=different(ids, number))
    assert len(model.text_cache) == 4
    assert (model.text_cache.hits, model.text_cache.misses, len(encoded)) == (2, 6, 6)
    model.text_cache.clear()
    assert len(model.text_cache) == 0


def test_masks_belong_to_the_ids(encoded: list[int]) -> None:
    model, ids = families.model("CLIP"), families.token_ids("CLIP")
    mask = torch.ones_like(ids)
    with torch.no_grad():
        for given in (None, mask, mask.float(), mask):
            model(input_ids=ids, attention_mask=given)
    assert model.text_cache.hits == 1


def test_copies_and_pickles_are_empty(family: str) -> None:
    model, inputs = families.model(family), inputs_of(family)
    before = pickle.dumps(model)
    expected = logits(model, inputs)
    assert pickle.dumps(model) == before
    model.text_cache.enabled = False
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (len(other.text_cache), other.text_cache.enabled) == (0, False)
        assert torch.equal(logits(other, inputs), expected)


def test_threads_share_it(family: str) -> None:
    model = families.model(family)
    ids = families.token_ids(family)
    batches = [different(ids, number) for number in range(6)]
    with torch.no_grad():
        expected = [model(input_ids=ids).text_embeds for ids in batches]
    wrong = []

    def work(seed: int) -> None:
        with torch.no_grad():
            for number in range(60):
                place = (number * (seed + 1) + seed) % 6
                if not torch.equal(model(input_ids=batches[place]).text_embeds, expected[place]):
                    wrong.append(place)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_optimised_models(family: str, encoded: list[int]) -> None:
    model, inputs = families.model(family), inputs_of(family)
    plain = logits(model, inputs)
    model.optimize_for_inference()
    for _ in range(2):
        close(logits(model, inputs), plain, rtol=0, atol=1e-4)
    assert encoded == [3, 3]
    model.restore()
    with torch.no_grad():
        model.text_model.encoder.layers[0].mlp.fc1.weight.data.mul_(3)
    model.optimize_for_inference()
    changed = logits(model, inputs)
    model.restore().text_cache.clear()
    close(changed, logits(model, inputs), rtol=0, atol=1e-4)
    assert not torch.allclose(changed, plain)


@pytest.mark.parametrize("model_type", ["altclip", "chinese_clip"])
def test_other_families(model_type: str, tmp_path: Path) -> None:
    other_families.write_folder(model_type, tmp_path)
    model = twinlens.DualEncoderModel.from_pretrained(tmp_path)
    ids, pixels = torch.randint(3, 30, (3, 9)), torch.randn(2, 3, 16, 16)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    first = logits(model, inputs)
    assert torch.equal(logits(model, inputs), first)
    assert model.text_cache.hits == 1
    model.text_model.get_input_embeddings().weight.data.mul_(1.2)
    assert not torch.equal(logits(model, inputs), first)


def test_a_cache_alone() -> None:
    assert repr(TextCache()) == "TextCache(0 of 4 batches, 0 hits, 0 misses)"
