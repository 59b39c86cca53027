"""optimize_for_inference: the same numbers by other products, everything as before around them, and the way back."""

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.families import FAMILIES, IDS, images, model, pixels, token_ids, twins
from helpers.versions import IS_OLDEST
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import twinlens
from twinlens.inference import optimized, products
from twinlens.inference.optimized_layers import OptimizedEncoder, OptimizedLayer, OptimizedLinear
from twinlens.inference.optimized_pooling import OptimizedAttentionPooling
from twinlens.inference.optimized_resnet import OptimizedBottleneck, OptimizedConvolution
from twinlens.modeling.encoder import EncoderLayer

FIXED = {"linear": "onednn", "attention": "products"}  # by measurement, tiny models would differ from run to run


def inputs_of(family: str, count: int = 3) -> dict[str, Tensor]:
    return {**images(family, count), "input_ids": token_ids(family, count)}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in model.state_dict().items()}


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def classes_in(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()}


class TestNumbers:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("attention", optimized.CHOICES["attention"])
    @torch.no_grad()
    def test_are_those_of_transformers(self, family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(products, "ROWS", 32)  # two images at a time
        ours, theirs = twins(family)
        ours.optimize_for_inference(linear="onednn", attention=attention)
        assert {OptimizedLayer, OptimizedLinear, OptimizedEncoder} <= classes_in(ours)
        inputs = inputs_of(family, 5)
        found, expected = ours(**inputs), theirs(**inputs)
        assert (found.logits_per_image - expected.logits_per_image).abs().max() <= 1e-4
        assert (found.image_embeds - expected.image_embeds).abs().max() <= 5e-6
        assert (found.text_embeds - expected.text_embeds).abs().max() <= 5e-6
        states = [output.text_model_output.last_hidden_state for output in (found, expected)]
        torch.testing.assert_close(*states, rtol=0, atol=3e-5)

    @pytest.mark.parametrize("activation", [*products.FUSED, "gelu_new"])
    @torch.no_grad()
    def test_of_every_activation(self, activation: str) -> None:
        config = twinlens.CLIPVisionConfig(**{**model("CLIP").config.vision_config.to_dict(), "hidden_act": activation})
        torch.manual_seed(0)
        tower = twinlens.CLIPVisionModel(config).eval()
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        same = pixels()
        before = tower(same).last_hidden_state
        found = tower.optimize_for_inference(**FIXED)(same).last_hidden_state
        torch.testing.assert_close(found, before, rtol=0, atol=3e-5)

    @torch.no_grad()
    def test_of_bfloat16(self) -> None:
        ours, inputs = model("Siglip"), inputs_of("Siglip", 8)
        expected = ours.double()(**inputs)
        found = ours.bfloat16().optimize_for_inference(**FIXED)(**inputs)
        for name in ("image_embeds", "text_embeds"):
            cosines = nn.functional.cosine_similarity(found[name].double(), expected[name], dim=-1)
            assert cosines.min() >= 0.999  # 8 bits, with weights far from those of a trained model

    @pytest.mark.parametrize("padding", ["left", "right", "none"])
    @torch.no_grad()
    def test_of_texts_with_a_mask(self, padding: str) -> None:
        ours, ids = model("CLIP"), token_ids("CLIP", 4)
        mask = {"none": torch.ones_like(ids), "right": torch.ones_like(ids), "left": torch.ones_like(ids)}[padding]
        mask[1:, :3] = 0 if padding == "left" else 1
        mask[1:, 9:] = 0 if padding == "right" else 1
        expected = ours.encode_text(ids, mask)
        assert (ours.optimize_for_inference(**FIXED).encode_text(ids, mask) - expected).abs().max() <= 5e-6

    @torch.no_grad()
    def test_of_other_peoples_towers(self) -> None:
        vision = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32)
        text = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
        towers = transformers.ViTModel(vision), transformers.BertModel(text)
        ours: Any = twinlens.DualEncoderModel.from_towers(*towers, projection_dim=16).eval()
        ids, images = torch.randint(3, 99, (3, 7)), pixels(3)
        expected = ours(input_ids=ids, pixel_values=images).logits_per_image
        ours.optimize_for_inference(linear="onednn")
        assert OptimizedLinear in classes_in(ours)
        torch.testing.assert_close(
            ours(input_ids=ids, pixel_values=images).logits_per_image, expected, rtol=0, atol=1e-4
        )

    def test_of_a_batch_of_none_and_of_gradients_for_pixels(self) -> None:
        tower = model("Siglip", "VisionModel")
        images = pixels().requires_grad_()
        (expected,) = torch.autograd.grad(tower(images).pooler_output.sum(), images)
        tower.optimize_for_inference(**FIXED)
        (found,) = torch.autograd.grad(tower(images).pooler_output.sum(), images)
        torch.testing.assert_close(found, expected)
        assert tower(pixels(0)).pooler_output.shape == (0, 32)


class TestPooledPosition:
    """The last block of a tower computes one position, until somebody reads or watches more."""

    CLASSES = ("CLIPVisionModel", "CLIPTextModel", "SiglipTextModel", "Siglip2TextModel")

    @pytest.fixture
    def whole(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The batches that went through a whole block of the plain class: the last one alone may be such a block."""
        seen: list[int] = []
        forward = EncoderLayer.forward

        def watched(layer: EncoderLayer, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            seen.append(len(hidden_states))
            return forward(layer, hidden_states, **kwargs)

        monkeypatch.setattr(EncoderLayer, "forward", watched)
        return seen

    @staticmethod
    def tower_and_inputs(name: str, count: int = 5) -> tuple[Any, dict[str, Tensor]]:
        kind = "VisionModel" if name.endswith("VisionModel") else "TextModel"
        family = name.removesuffix(kind)
        tower = model(family, kind)
        if kind == "VisionModel":
            return tower, {"pixel_values": pixels(count)}
        ids = token_ids(family, count)
        for row in range(count):  # ends at different positions
            ids[row, row % 9 + 2] = IDS[family]["eos_token_id"]
        return tower, {"input_ids": ids}

    @pytest.mark.parametrize("name", CLASSES)
    @pytest.mark.parametrize("linear", optimized.CHOICES["linear"])
    @torch.no_grad()
    def test_is_that_of_float64(
        self, name: str, linear: str, whole: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(products, "ROWS", 32)  # two at a time
        tower, inputs = self.tower_and_inputs(name)
        reference = copy.deepcopy(tower).double()
        expected = reference(**{key: x.double() if x.is_floating_point() else x for key, x in inputs.items()})
        pooled, states = expected.pooler_output, expected.last_hidden_state
        tower.optimize_for_inference(linear=linear)
        whole.clear()
        output = tower(**inputs)
        found = nn.functional.normalize(output.pooler_output.double(), dim=-1)
        assert (found - nn.functional.normalize(pooled, dim=-1)).abs().max() <= 5e-6
        assert linear == "default" or not whole
        whole.clear()
        torch.testing.assert_close(output.last_hidden_state.double(), states, rtol=0, atol=3e-5)
        assert whole
        whole.clear()
        torch.testing.assert_close(tower(**inputs, return_dict=False)[0].double(), states, rtol=0, atol=3e-5)

    @pytest.mark.parametrize("name", CLASSES)
    @pytest.mark.parametrize(
        ("watch", "asked"),
        [
            (None, {"output_hidden_states": True}),
            (None, {"output_attentions": True}),
            (lambda tower: tower.encoder.layers[-1].mlp.register_forward_hook(lambda *call: None), {}),
            (lambda tower: tower.encoder.layers[-1].register_forward_pre_hook(lambda *call: None), {}),
            (lambda tower: tower.set_attn_implementation("eager"), {}),
            (lambda tower: setattr(tower.config, "output_hidden_states", True), {}),
        ],
        ids=["hidden states", "attentions", "hook", "hook before", "eager", "configured"],
    )
    @torch.no_grad()
    def test_the_whole_block_runs_where_it_is_seen(
        self, name: str, watch: Any, asked: dict[str, bool], whole: list[int]
    ) -> None:
        tower, inputs = self.tower_and_inputs(name)
        expected = copy.deepcopy(tower)(**inputs, **asked)
        tower.optimize_for_inference(**FIXED)
        if watch is not None:
            watch(tower)
        whole.clear()
        found = tower(**inputs, **asked)
        assert whole
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=3e-5)
        for key in {"hidden_states", "attentions"} & set(expected):
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=3e-5)

    @torch.no_grad()
    def test_states_can_be_read_after_restore(self) -> None:
        tower, images = model("CLIP", "VisionModel"), pixels(3)
        expected = tower(images).last_hidden_state
        output = tower.optimize_for_inference(**FIXED)(images)
        tower.restore()
        torch.testing.assert_close(output.last_hidden_state, expected, rtol=0, atol=3e-5)

    @torch.no_grad()
    def test_a_single_block(self) -> None:
        torch.manual_seed(0)
        config = twinlens.CLIPVisionConfig(**{**model("CLIP").config.vision_config.to_dict(), "num_hidden_layers": 1})
        tower = twinlens.CLIPVisionModel(config).eval()
        images = pixels(3)
        expected = tower(images)
        found = tower.optimize_for_inference(**FIXED)(images)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=3e-5)
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=3e-5)

    @torch.no_grad()
    def test_bfloat16_is_as_near_to_float64_as_the_plain_tower(self) -> None:
        for name in self.CLASSES[:3]:
            tower, inputs = self.tower_and_inputs(name, 8)
            reference = copy.deepcopy(tower).double()
            expected = reference(**{key: x.double() if x.is_floating_point() else x for key, x in inputs.items()})

            def error(tower: Any, expected: Any = expected, inputs: Any = inputs) -> float:
                found = tower(**inputs).pooler_output.double()
                return float(1 - nn.functional.cosine_similarity(found, expected.pooler_output).min())

            plain = error(tower.bfloat16())
            assert error(tower.optimize_for_inference(**FIXED)) <= 2 * plain + 1e-5


class TestResNet:
    """Convolutions with their batch norm in them."""

    @pytest.fixture
    def tower(self) -> Any:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 64, "depths": (1, 2, 1, 1), "num_attention_heads": 2, "image_size": 32}
        tower = twinlens.CLIPResNetVisionModel(twinlens.CLIPResNetVisionConfig(**sizes, projection_dim=24)).eval()
        for module in tower.modules():
            if isinstance(module, nn.BatchNorm2d):
                statistics: dict[str, Any] = dict(module.named_buffers())
                for values in (module.weight.data, statistics["running_var"]):
                    values.uniform_(0.5, 1.5)
                for values in (module.bias.data, statistics["running_mean"]):
                    values.normal_(std=0.2)
        return tower

    @pytest.mark.parametrize("size", [32, 45])
    @torch.no_grad()
    def test_numbers_are_those_of_float64(self, tower: Any, size: int) -> None:
        images, options = pixels(5, size), {"interpolate_pos_encoding": size != 32}
        expected = copy.deepcopy(tower).double()(images.double(), **options)
        found = tower.optimize_for_inference(linear="onednn")(images, **options)
        assert {OptimizedConvolution, OptimizedBottleneck, OptimizedAttentionPooling} <= classes_in(tower)
        embeds = [nn.functional.normalize(output.pooler_output.double(), dim=-1) for output in (found, expected)]
        assert (embeds[0] - embeds[1]).abs().max() <= 5e-6
        torch.testing.assert_close(found.last_hidden_state.double(), expected.last_hidden_state, rtol=1e-5, atol=3e-5)

    @torch.no_grad()
    def test_of_bfloat16(self, tower: Any) -> None:
        images = pixels(5)
        expected = copy.deepcopy(tower).double()(images.double()).pooler_output
        found = tower.bfloat16().optimize_for_inference(linear="onednn")(images.bfloat16()).pooler_output
        assert nn.functional.cosine_similarity(found.double(), expected).min() >= 0.999

    def test_restore_gives_every_bit_back(self, tower: Any) -> None:
        state, classes, images = state_of(tower), classes_in(tower), pixels()
        with torch.no_grad():
            expected = tower(images).pooler_output
            tower.optimize_for_inference(linear="onednn")
            assert_same_state(state_of(tower), state)
            assert not torch.equal(tower(images).pooler_output, expected)
            assert torch.equal(tower.restore()(images).pooler_output, expected)
        assert_same_state(state_of(tower), state)
        assert classes_in(tower) == classes
        assert not any("products" in vars(module) for module in tower.modules())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    @torch.no_grad()
    def test_copies(self, tower: Any, copied: Any) -> None:
        other = copied(tower.optimize_for_inference(linear="onednn"))
        images = pixels()
        assert OptimizedConvolution in classes_in(other)
        torch.testing.assert_close(other(images).pooler_output, tower(images).pooler_output)

    @torch.no_grad()
    def test_what_is_watched_is_as_before(self, tower: Any) -> None:
        images, asked = pixels(), {"output_hidden_states": True, "output_pooling_attentions": True}
        seen: list[Tensor] = []
        for module in (tower.layers[1][0].conv3.norm, tower.layers[0][0].conv1):
            module.register_forward_hook(lambda *call: seen.append(call[2]))
        expected = tower(images, **asked)
        found = tower.optimize_for_inference(linear="onednn")(images, **asked)
        torch.testing.assert_close(found.hidden_states, expected.hidden_states, rtol=1e-5, atol=3e-5)
        torch.testing.assert_close(found.pooling_attentions, expected.pooling_attentions, rtol=1e-5, atol=3e-5)
        torch.testing.assert_close(seen[:2], seen[2:], rtol=1e-5, atol=3e-5)

    def test_gradients_for_pixels_and_new_weights(self, tower: Any, caplog: pytest.LogCaptureFixture) -> None:
        images = pixels().requires_grad_()
        (expected,) = torch.autograd.grad(tower(images).pooler_output.sum(), images)
        tower.optimize_for_inference(linear="onednn")
        (found,) = torch.autograd.grad(tower(images).pooler_output.sum(), images)
        torch.testing.assert_close(found, expected)
        tower.load_state_dict(tower.state_dict())
        assert "undoes optimize_for_inference" in caplog.text
        assert OptimizedConvolution not in classes_in(tower)


class TestCompiled:
    """`compile=True`, for a GPU; everything else of it runs on the CPU, too."""

    @pytest.mark.thorough
    @pytest.mark.parametrize("family", FAMILIES)
    @torch.no_grad()
    def test_numbers_recompilations_and_the_way_back(self, family: str) -> None:
        torch.compiler.reset()
        counters.clear()
        ours = model(family)
        batches = {count: inputs_of(family, count) for count in (5, 3, 7, 9, 4)}
        expected = {count: ours(**inputs).logits_per_image for count, inputs in batches.items()}
        ours.optimize_for_inference(compile=True)
        graphs = []
        for count, inputs in batches.items():
            found = ours(**inputs).logits_per_image
            assert (found - expected[count]).abs().max() <= 1e-4
            graphs.append(counters["stats"]["unique_graphs"])
        assert graphs[0] > 0
        assert graphs[1:] == [graphs[1]] * 4  # sizes are dynamic from the second batch on
        ours.restore()
        assert torch.equal(ours(**batches[5]).logits_per_image, expected[5])

    def test_restore(self) -> None:
        ours = model("CLIP")
        names = {name: {*vars(module)} for name, module in ours.named_modules()}
        ours.optimize_for_inference(compile=True)
        compiled = [module for module in ours.modules() if module._compiled_call_impl is not None]
        assert {*compiled} == {module for module in ours.modules() if isinstance(module, EncoderLayer)}
        ours.restore()
        assert {name: {*vars(module)} for name, module in ours.named_modules()} == names

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_compute_with_weights_of_their_own(self, copied: Any) -> None:
        ours = copied(model("CLIP").optimize_for_inference(compile=True))
        assert all(module._compiled_call_impl is None for module in ours.modules())
        assert all(parameter.requires_grad for parameter in ours.parameters())
        assert all(parameter.requires_grad for parameter in ours.restore().parameters())


class Values(TorchDispatchMode):
    """Lists the operations that look at values, for which the CPU waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(IS_OLDEST, reason="transformers 5.12 looks for padding whatever it is told")
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_nothing_waits_for_a_gpu(family: str) -> None:
    """On the meta device, where there are no values to look at; texts are looked at once, for their end."""
    ours = model(family).to("meta")
    inputs = {name: values.to("meta") for name, values in inputs_of(family).items()}
    mask = torch.ones_like(inputs["input_ids"])
    ours.encode_text(inputs["input_ids"])
    with Values() as values:
        assert ours.encode_image(**inputs).is_meta
        assert ours.encode_text(inputs["input_ids"]).is_meta
        assert ours.encode_text(inputs["input_ids"], mask).is_meta
        assert ours(**inputs).logits_per_image.is_meta
    assert not values.seen


class TestAroundIt:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_restore_gives_every_bit_back(self, family: str) -> None:
        ours = model(family)
        ours.logit_scale.requires_grad_(False)
        state, classes = state_of(ours), classes_in(ours)
        parameters = {name: (parameter, parameter.requires_grad) for name, parameter in ours.named_parameters()}
        names = {name: {*vars(module)} for name, module in ours.named_modules()}
        assert ours.optimize_for_inference(**FIXED) is ours
        assert all(parameter.requires_grad == parameters[name][1] for name, parameter in ours.named_parameters())
        assert ours.num_parameters() == sum(parameter.numel() for parameter, _ in parameters.values())
        assert ours.restore() is ours
        assert_same_state(state_of(ours), state)
        assert classes_in(ours) == classes
        for name, parameter in ours.named_parameters():
            assert parameter is parameters[name][0]
            assert parameter.requires_grad == parameters[name][1]
            assert parameter.is_contiguous()
        assert {name: {*vars(module)} for name, module in ours.named_modules()} == names

    def test_there_is_no_second_copy_of_the_weights(self) -> None:
        ours = model("Siglip", "VisionModel").optimize_for_inference(**FIXED)
        for name, parameter in ours.named_parameters():
            if ("mlp.fc" in name or "_proj" in name) and "in_proj_weight" not in name:  # that one has no other
                assert parameter.untyped_storage().nbytes() <= 4 * 96  # biases only

    def test_saving_works(self, tmp_path: Path) -> None:
        ours = model("Siglip")
        state = state_of(ours)
        ours.optimize_for_inference(**FIXED).save_pretrained(tmp_path)
        assert_same_state(ours.state_dict(), state)
        assert OptimizedLinear in classes_in(ours)
        assert_same_state(state_of(twinlens.SiglipModel.from_pretrained(tmp_path)), state)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    @torch.no_grad()
    def test_copies_are_optimised_and_independent(self, copied: Any) -> None:
        ours, inputs = model("Siglip"), inputs_of("Siglip")
        state = state_of(ours)
        other = copied(ours.optimize_for_inference(**FIXED))
        torch.testing.assert_close(other(**inputs).logits_per_image, ours(**inputs).logits_per_image)
        assert OptimizedLinear in classes_in(other)
        ours.restore()
        assert_same_state(state_of(other), state)
        assert_same_state(state_of(other.restore()), state)

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: model.train(),
            lambda model: model.vision_model.train(),
            lambda model: model.double(),
            lambda model: model.to(torch.bfloat16),
            lambda model: model.to("meta"),
            lambda model: model.load_state_dict(dict(model.state_dict())),
        ],
    )
    def test_what_needs_the_weights_undoes_it(self, change: Any, caplog: pytest.LogCaptureFixture) -> None:
        ours = model("Siglip").optimize_for_inference(**FIXED)
        with caplog.at_level(logging.WARNING):
            change(ours)
        assert "undoes optimize_for_inference" in caplog.text
        assert not hasattr(ours, "optimization")
        assert not {OptimizedLinear, OptimizedLayer} & classes_in(ours)
        assert len({(parameter.dtype, parameter.device) for parameter in ours.parameters()}) == 1

    def test_what_changes_nothing_leaves_it(self, caplog: pytest.LogCaptureFixture) -> None:
        ours = model("Siglip").optimize_for_inference(**FIXED)
        ours.to("cpu").eval().float()
        assert OptimizedLinear in classes_in(ours)
        assert not caplog.records

    @torch.no_grad()
    def test_hooks_see_what_they_saw(self) -> None:
        tower, images = model("CLIP", "VisionModel"), pixels(3)
        seen: list[Tensor] = []
        tower.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *call: seen.append(call[2]))
        tower(images)
        tower.optimize_for_inference(**FIXED)(images)
        assert seen[0].shape == (3, 17, 64)
        torch.testing.assert_close(*seen)

    @torch.no_grad()
    def test_hidden_states_and_attention_maps(self) -> None:
        tower, images = model("Siglip", "VisionModel"), pixels(3)
        asked = {"output_hidden_states": True, "output_attentions": True}
        expected = tower(images, **asked)
        tower.optimize_for_inference(**FIXED)
        for _ in range(2):  # capturing installs hooks, which stay
            found = tower(images, **asked)
            torch.testing.assert_close(found.hidden_states, expected.hidden_states)
            torch.testing.assert_close(found.attentions, expected.attentions)
            torch.testing.assert_close(tower(images).pooler_output, expected.pooler_output)

    def test_autocast(self) -> None:
        tower, images = model("Siglip", "VisionModel").optimize_for_inference(**FIXED), pixels()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert tower(images).pooler_output.isfinite().all()

    def test_the_choice_is_measured_and_can_be_printed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(optimized, "MEASURED_FROM", 0)
        ours = model("Siglip").optimize_for_inference()
        text = str(ours.optimization)
        assert "vision_model: linear" in text
        assert " ms" in text
        assert "fixed" in str(ours.optimize_for_inference(**FIXED).optimization)
        assert OptimizedLinear not in classes_in(ours.optimize_for_inference(linear="default"))

    @pytest.mark.parametrize("wrong", [{"linear": "mkl"}, {"attention": "flash"}, {"convolution": "winograd"}])
    def test_wrong_choices(self, wrong: dict[str, str]) -> None:
        with pytest.raises(ValueError, match="must be one of auto, "):
            model("Siglip").optimize_for_inference(**wrong)

    def test_weights_that_are_elsewhere(self) -> None:
        with pytest.raises(ValueError, match="off-loaded"):
            model("Siglip").to("meta").optimize_for_inference()
