"""optimize_for_inference: whatever is done to a model before, meanwhile or afterwards, results are as without it."""

import copy
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.families import images, model, pixels, token_ids
from helpers.versions import skip_old_peft
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from twinlens.inference.optimized_layers import OptimizedLayer, OptimizedLinear
from twinlens.runtime.packed import Packed

FIXED = {"linear": "onednn", "attention": "products"}
PACKED = r"have no values to compute with, .* Call model\.restore"


def inputs_of(family: str = "CLIP") -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"input_ids": token_ids(family), **images(family, 3)}


def embeds_of(model: Any, family: str = "CLIP") -> Tensor:
    inputs = inputs_of(family)
    with torch.no_grad():
        texts, pictures = model.encode_text(inputs["input_ids"]), model.encode_image(**inputs)
    return torch.cat([texts, pictures])


def assert_equal_embeds(one: Any, other: Any, family: str = "CLIP") -> None:
    assert (embeds_of(one, family) - embeds_of(other, family)).abs().max() <= 5e-6


def block_of(model: Any) -> Any:
    return model.vision_model.encoder.layers[0]


def is_optimised(model: nn.Module) -> bool:
    classes = {type(module) for module in model.modules()}
    return bool(classes & {OptimizedLayer, OptimizedLinear}) or "optimization" in vars(model)


class TwiceMLP(type(block_of(model("CLIP")).mlp)):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class TwiceNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def zeros(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return torch.zeros_like(query).transpose(1, 2), None


def layer(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(inputs, outputs)


def set_attribute(path: str, value: Callable[[], Any]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        *parents, name = path.split(".")
        module = block_of(model) if path.split(".")[0] in ("mlp", "self_attn", "layer_norm2") else model
        for parent in parents:
            module = getattr(module, parent)
        setattr(module, name, value())

    return change


def add_adapter(model: Any) -> None:
    torch.manual_seed(1)
    skip_old_peft()
    model.add_adapter(LoraConfig(target_modules=["q_proj", "fc1"], init_lora_weights=False))
    model.eval()


def wrap_in_peft(model: Any) -> None:
    torch.manual_seed(1)
    get_peft_model(model, LoraConfig(target_modules=["v_proj", "fc2"], init_lora_weights=False)).eval()


def cut(model: Any) -> None:
    for tower in (model.vision_model, model.text_model):
        tower.encoder.layers = tower.encoder.layers[:1]


def twice(model: Any) -> None:
    for tower in (model.vision_model, model.text_model):
        tower.encoder.layers[1] = tower.encoder.layers[0]


def custom_attention(model: Any) -> None:
    ALL_ATTENTION_FUNCTIONS.register("zeros", zeros)
    model.set_attn_implementation("zeros")


def scale_biases(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.mul_(1.5)


CHANGES: dict[str, Callable[[Any], None]] = {
    "add_adapter": add_adapter,
    "get_peft_model": wrap_in_peft,
    "layer": set_attribute("mlp.fc1", lambda: layer(32, 64)),
    "activation": set_attribute("mlp.activation_fn", nn.ReLU),
    "norm": set_attribute("layer_norm2", lambda: nn.LayerNorm(32, eps=0.1)),
    "MLP subclass": set_attribute("mlp.__class__", lambda: TwiceMLP),
    "norm subclass": set_attribute("layer_norm2.__class__", lambda: TwiceNorm),
    "forward": set_attribute("mlp.forward", lambda: torch.zeros_like),
    "attend": set_attribute("self_attn.attend", lambda: lambda q, *args, **kwargs: (torch.zeros_like(q), None)),
    "parameter": set_attribute("mlp.fc1.weight", lambda: nn.Parameter(torch.ones(64, 32))),
    "pool": set_attribute("vision_model.pool", lambda: lambda x, **inputs: x.mean(dim=1)),
    "biases": scale_biases,
    "fewer layers": cut,
    "a layer twice": twice,
    "attention function": custom_attention,
}


class TestChanges:
    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
    @pytest.mark.parametrize("change", CHANGES.values(), ids=[*CHANGES])
    def test_before_and_after(self, change: Callable[[Any], None]) -> None:
        plain, before, after = model("CLIP"), model("CLIP"), model("CLIP").optimize_for_inference(**FIXED)
        unchanged = embeds_of(after)
        for changed in (plain, before, after):
            change(changed)
        before.optimize_for_inference(**FIXED)
        assert (embeds_of(plain) - unchanged).abs().max() > 1e-3
        for changed in (before, after):
            assert_equal_embeds(changed, plain)
            assert_equal_embeds(changed.restore(), plain)

    def test_what_changed_is_named_once(self, caplog: pytest.LogCaptureFixture) -> None:
        ours = model("CLIP").optimize_for_inference(**FIXED)
        block_of(ours).mlp.activation_fn = nn.ReLU()
        embeds_of(ours)
        embeds_of(ours)
        assert len(caplog.records) == 1
        assert "A change of vision_model.encoder.layers.0 undoes optimize_for_inference()" in caplog.text

    def test_sdpa_that_somebody_registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, ours = model("CLIP"), model("CLIP").optimize_for_inference(**FIXED)
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", zeros)
        assert_equal_embeds(ours, plain)

    def test_pruned(self) -> None:
        plain, ours = model("CLIP"), model("CLIP")
        for changed in (plain, ours):
            prune.l1_unstructured(block_of(changed).mlp.fc1, "weight", amount=0.5)
        assert_equal_embeds(ours.optimize_for_inference(**FIXED), plain)
        assert_equal_embeds(ours.restore(), plain)
        with pytest.raises(RuntimeError, match=PACKED):
            prune.l1_unstructured(block_of(ours.optimize_for_inference(**FIXED)).mlp.fc2, "weight", amount=0.5)

    def test_other_weights_for_one_call(self) -> None:
        plain, ours, inputs = model("CLIP"), model("CLIP").optimize_for_inference(**FIXED), inputs_of()
        weights = {name: 1.1 * parameter.detach() for name, parameter in plain.named_parameters()}

        def loss(weights: dict[str, Tensor], model: nn.Module) -> Tensor:
            return torch.func.functional_call(model, weights, (), inputs).image_embeds[:, 0].sum()

        for only in (weights, {"logit_scale": weights["logit_scale"]}):
            found, expected = (torch.func.grad(loss)(only, copy.deepcopy(either)) for either in (ours, plain))
            torch.testing.assert_close(found, expected)

    def test_hooks_of_all_modules(self) -> None:
        ours, seen = model("CLIP").optimize_for_inference(**FIXED), []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *call: seen.append(type(module)))
        embeds_of(ours)
        handle.remove()
        assert seen.count(nn.LayerNorm) == 2 * 2 + 2 + 2 * 3 + 1


class TestTraining:
    @pytest.mark.parametrize("options", [FIXED, {"linear": "default"}, {"compile": True}])
    def test_an_optimizer_made_in_between_trains_all(self, options: dict[str, Any]) -> None:
        ours, plain = model("CLIP").optimize_for_inference(**options), model("CLIP")
        optimizers = [
            torch.optim.SGD([p for p in either.parameters() if p.requires_grad], lr=1.0) for either in (ours, plain)
        ]
        for either, optimizer in zip((ours, plain), optimizers, strict=True):
            either.train()
            either(**inputs_of(), return_loss=True).loss.backward()
            optimizer.step()
        assert not is_optimised(ours)
        for found, expected in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize(
        "change", [lambda model: model.bfloat16(), lambda model: model.load_state_dict(dict(model.state_dict()))]
    )
    def test_compiled_ones_are_undone_too(self, change: Callable[[Any], Any]) -> None:
        ours = model("CLIP").optimize_for_inference(compile=True)
        change(ours)
        assert not is_optimised(ours)
        assert all(module._compiled_call_impl is None for module in ours.modules())

    def test_gradients_are_refused_or_right(self) -> None:
        ours, plain = model("CLIP").optimize_for_inference(**FIXED), model("CLIP")
        ours.requires_grad_(True)
        inputs = inputs_of()
        with pytest.raises(RuntimeError, match="does not require grad"):
            ours(**inputs, return_loss=True).loss.backward()
        embeds = [ours.encode_image(**inputs), ours.encode_text(inputs["input_ids"])]
        with pytest.raises(RuntimeError, match="does not require grad"):
            ours.loss(*embeds).backward()
        for either in (ours, plain):
            either.loss(*(x.detach().requires_grad_() for x in embeds)).backward()
        torch.testing.assert_close(ours.logit_scale.grad, plain.logit_scale.grad)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
    def test_tangents(self) -> None:
        ours, plain = model("CLIP").optimize_for_inference(**FIXED), model("CLIP")
        for either in (ours, plain):
            either.set_attn_implementation("eager")
        images = inputs_of()["pixel_values"]
        found, expected = (
            torch.func.jvp(either.encode_image, (images,), (torch.ones_like(images),))[1] for either in (ours, plain)
        )
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected)

    def test_restore_in_inference_mode(self) -> None:
        ours = model("CLIP").optimize_for_inference(**FIXED)
        with torch.inference_mode():
            ours.restore()
        assert not any(parameter.is_inference() for parameter in ours.parameters())

    def test_new_positions_can_be_trained(self) -> None:
        ours = model("CLIP").optimize_for_inference(**FIXED).resize_positions(64).restore()
        assert all(parameter.requires_grad for parameter in ours.parameters())


class TestParts:
    """Optimised models and towers inside each other, or in two models."""

    @pytest.mark.parametrize("undo", [lambda model: model.restore(), lambda model: model.vision_model.restore()])
    @pytest.mark.parametrize("begin", [lambda model: model, lambda model: model.vision_model])
    def test_tower_and_whole(self, begin: Any, undo: Any) -> None:
        ours, plain = model("Siglip"), model("Siglip")
        begin(ours).optimize_for_inference(**FIXED)
        ours.optimize_for_inference(**FIXED)
        assert_equal_embeds(ours, plain, "Siglip")
        undo(ours)
        assert not is_optimised(ours)
        assert torch.equal(embeds_of(ours, "Siglip"), embeds_of(plain, "Siglip"))

    @pytest.mark.parametrize("undo", [(0, 1), (1, 0)])
    def test_two_models_with_one_tower(self, undo: tuple[int, int]) -> None:
        pair, plain = [model("CLIP"), model("CLIP")], model("CLIP")
        pair[1].text_model = pair[0].text_model
        for one in pair:
            one.optimize_for_inference(**FIXED)
            assert_equal_embeds(pair[0], plain)
            assert_equal_embeds(pair[1], plain)
        for number in undo:
            pair[number].restore()
            assert_equal_embeds(pair[0], plain)
            assert_equal_embeds(pair[1], plain)
        assert not any(map(is_optimised, pair))

    @pytest.mark.parametrize("linear", ["onednn", "default"])
    def test_weights_of_two_layers(self, linear: str) -> None:
        ours = model("Siglip")
        for mine, yours in zip(ours.vision_model.encoder.layers, ours.text_model.encoder.layers, strict=False):
            mine.self_attn.q_proj.weight = yours.self_attn.q_proj.weight
        plain = copy.deepcopy(ours)
        assert_equal_embeds(ours.optimize_for_inference(linear=linear), plain, "Siglip")
        assert block_of(ours).self_attn.q_proj.weight is ours.text_model.encoder.layers[0].self_attn.q_proj.weight

    def test_weights_of_another_model(self) -> None:
        ours, other = model("CLIP"), model("CLIP")
        block_of(other).mlp.fc1.weight = block_of(ours).mlp.fc1.weight
        ours.optimize_for_inference(**FIXED)
        for meets in (embeds_of, lambda model: torch.nn.utils.parameters_to_vector(model.parameters())):
            with pytest.raises(RuntimeError, match=PACKED):
                meets(other)
        assert_equal_embeds(ours.restore(), other)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
    def test_a_copied_tower_can_be_restored(self, copied: Any) -> None:
        ours, plain = model("Siglip").optimize_for_inference(**FIXED), model("Siglip")
        tower, images = copied(ours.vision_model), pixels()
        assert any(isinstance(parameter, Packed) for parameter in tower.parameters())
        assert torch.equal(tower.restore()(images).pooler_output, plain.vision_model(images).pooler_output)
        assert is_optimised(ours)


class Images(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_image(pixel_values)


@pytest.mark.parametrize(
    "make_graph",
    [
        lambda module: torch.export.export(module, (pixels(),)),
        lambda module: torch.jit.trace(module.forward, (pixels(),), check_trace=False),
        lambda module: torch.compile(module, backend="eager")(pixels()),
    ],
    ids=["export", "trace", "compile"],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@torch.no_grad()
def test_graphs_are_refused(make_graph: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"Call model\.restore\(\) first"):
        make_graph(Images(model("CLIP").optimize_for_inference(**FIXED)))


def test_restore_while_others_encode() -> None:
    ours, images = model("CLIP"), pixels()
    expected = ours.encode_image(images).detach()
    errors: list[float] = []
    stops = threading.Event()

    def encode() -> None:
        while not stops.is_set():
            try:
                errors.append(float((ours.encode_image(images).detach() - expected).abs().max()))
            except Exception:
                errors.append(torch.inf)
                raise

    ours.optimize_for_inference(**FIXED)
    threads = [threading.Thread(target=encode) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        seen = len(errors)
        while len(errors) < seen + 10:
            time.sleep(0.001)
        ours.restore()
    stops.set()
    for thread in threads:
        thread.join()
    assert max(errors) <= 5e-6
