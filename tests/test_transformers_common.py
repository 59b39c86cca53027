"""transformers' own common tests, run on every model and configuration class of this package."""

import os
import tempfile
import unittest
from collections.abc import Callable
from contextlib import nullcontext
from fnmatch import fnmatch
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from accelerate import cpu_offload
from helpers.transformers_sources import transformers_tests
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.models.siglip import configuration_siglip
from transformers.testing_utils import force_serialization_as_bin_files, torch_device

transformers_tests()

from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin  # noqa: E402

# `COMMON_TESTS_OF=transformers pytest tests/test_transformers_common.py` shows what transformers' own classes fail.
LIBRARY = import_module(os.environ.get("COMMON_TESTS_OF", "twinlens"))

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION = {**TOWER, "image_size": 12, "patch_size": 4}
NAFLEX = {**TOWER, "num_patches": 9, "patch_size": 4}
RESNET = {"hidden_size": 64, "depths": [1, 2, 1, 1], "num_attention_heads": 2, "image_size": 64}
TEXT = {
    **TOWER,
    "vocab_size": 99,
    "max_position_embeddings": 7,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}


def pixels(images, generator, size=VISION["image_size"]):
    return {"pixel_values": torch.randn(images, 3, size, size, generator=generator)}


def patches(images, generator):
    """Images of different grids, the first of one row, as the reference's tests have them."""
    grids = torch.tensor([[1, 5], [3, 4], [5, 2]]).repeat(images, 1)[:images]
    mask = torch.arange(12).lt(grids.prod(dim=1, keepdim=True)).long()
    values = torch.randn(images, 12, 3 * NAFLEX["patch_size"] ** 2, generator=generator)
    return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": grids}


class Images(NamedTuple):
    """What a family's image tower has: settings, as many tokens for an image, and inputs."""

    settings: dict[str, Any]
    tokens: int
    make: Callable[..., dict[str, torch.Tensor]] = pixels
    batch_size: int = 3


IMAGES = {
    "Siglip2": Images(NAFLEX, 12, patches, batch_size=7),  # upstream cannot make more of them by itself
    "Siglip": Images(VISION, 9),
    "CLIPResNet": Images(RESNET, 4, partial(pixels, size=RESNET["image_size"])),
    "CLIP": Images(VISION, 10),
}


def images_of(model_class):
    return next(images for family, images in IMAGES.items() if model_class.__name__.startswith(family))


class SmallModel:
    """What the common tests ask of a `model_tester`: a small configuration, inputs for it, and their sizes."""

    is_training = True
    hidden_size = TOWER["hidden_size"]
    num_attention_heads = TOWER["num_attention_heads"]
    num_hidden_layers = TOWER["num_hidden_layers"]

    def __init__(self, config_class, inputs, images):
        self.config_class, self.inputs, self.images = config_class, inputs, images
        self.batch_size = images.batch_size
        self.seq_length = TEXT["max_position_embeddings"] if "text" in inputs else images.tokens

    def settings(self):
        if not self.config_class.sub_configs:
            return dict(self.images.settings if self.inputs == ("image",) else TEXT)
        return {"vision_config": dict(self.images.settings), "text_config": dict(TEXT)}

    def get_config(self):
        return self.config_class(**self.settings())

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        inputs = {}
        if "text" in self.inputs:
            ids = torch.randint(4, TEXT["vocab_size"], (self.batch_size, self.seq_length), generator=generator)
            ids[:, -1] = TEXT["eos_token_id"]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "image" in self.inputs:
            inputs |= self.images.make(self.batch_size, generator)
        inputs = {name: value.to(torch_device) for name, value in inputs.items()}
        return self.get_config(), inputs


def trainable(model_class):
    """`model_class` with a loss where it has none: upstream trains only models with a head, these are all trained."""

    class Trainable(model_class):  # type: ignore[misc, valid-type]  # its base is an argument
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            if "loss" not in outputs:
                outputs.loss = outputs[1 if "pooler_output" in outputs else 0].square().mean()
            return outputs

    return Trainable


# The tests that leave themselves out, by a pattern of class and name, and why.
LEFT_OUT = {
    "*.test_bc_cache_name_forward": "no cache: nothing is generated",
    "*.test_*_rope*": "positions are learned, not rotary",
    "*.test_causal_lm_loss_honors_shift_labels": "no language modelling",
    "*.test_eager_matches_batched_and_grouped_inference*": "no mixture of experts",
    "*.test_encoder_decoder_loss_no_double_shift": "no language modelling",
    "*.test_keep_in_fp32_modules*": "no weight is kept in float32: the steps that need it compute in it",
    "*.test_moe_models_record_router_logits": "no mixture of experts",
    "*.test_output_router_logits_from_config": "no mixture of experts",
    "CLIPResNet[VF]*.test_can_load_from_already_mapped_keys": "parameters never had other names in transformers' files",
    "*.test_reverse_loading_mapping": "of all that files have been called, only a prefix of the towers is renamed",
    "CLIPResNetVisionModel.test_can_capture_specific_layers_hidden_states": "upstream takes stages for kinds of layers",
    "CLIPResNet[VF]*.test_enable_input_require_grads_with_gradient_checkpointing": "the first module has no `weight`",
    "*.test_resize_position_vector_embeddings": "position tables are not resized in place",
    "*.test_sliding_window_mask": "attention reaches over the whole sequence",
    "*.test_tied_head_has_a_tp_plan_entry": "no plan for tensor parallelism",
    "*.test_tp_plan_matches_params": "no plan for tensor parallelism",
    "*VisionModel*.test_[ac]*_composite_model*": "one tower, one configuration",
    "*TextModel*.test_[ac]*_composite_model*": "one tower, one configuration",
    "*VisionModel*.test_sdpa_can_dispatch_composite_models": "one tower, one configuration",
    "*TextModel*.test_sdpa_can_dispatch_composite_models": "one tower, one configuration",
    "*ForImageClassification.test_sdpa_can_dispatch_composite_models": "one tower",
    "*VisionModel*.test_internal_model_config_and_subconfig_are_same": "one tower, one configuration",
    "*TextModel*.test_internal_model_config_and_subconfig_are_same": "one tower, one configuration",
    "*VisionModel.test_correct_missing_keys": "its own base model",
    "*TextModel.test_correct_missing_keys": "its own base model",
    "*VisionModel*.test_inputs_embeds": "images have no `inputs_embeds`",
    "*[!t]VisionModel.test_inputs_embeds_matches_input_ids": "images have no `inputs_embeds`",
    "*ForImageClassification.test_inputs_embeds": "images have no `inputs_embeds`",
    "Siglip2Model.test_inputs_embeds*": "upstream looks for its name, which transformers' forward does not have either",
    "*VisionModel*.test_resize_*": "images have no token embeddings",
    "*ForImageClassification.test_resize_*": "images have no token embeddings",
}


def methods(tests):
    return {name: getattr(tests, name) for name in dir(tests) if name.startswith("test_") and getattr(tests, name)}


def left_out(tests, class_name):
    """The tests that are not run for a class: their names, and why."""
    pairs = [(name, pattern) for name in methods(tests) for pattern in LEFT_OUT]
    return {name: LEFT_OUT[pattern] for name, pattern in pairs if fnmatch(f"{class_name}.{name}", pattern)}


def out_of_reach(tests):
    """The tests of a class that ask for what this machine or installation lacks: their names, and what that is."""
    skipped = {name: method for name, method in methods(tests).items() if hasattr(method, "__unittest_skip__")}
    return {name: method.__unittest_skip_why__ for name, method in skipped.items()}


# In half precision on a CPU these are slow, and are what they are in float32 but for its rounding.
for _name, _method in methods(ModelTesterMixin).items():
    if fnmatch(_name, "test_eager_matches_sdpa_inference_*[pf]16_*"):
        pytest.mark.thorough(_method)

# These are slow, too. By day they run on one dual encoder, which holds most of what the other classes are made of.
SLOW = (
    "test_bc_torch_dtype",
    "test_can_init_all_missing_weights",
    "test_disk_offload_*",
    "test_eager_matches_sdpa_inference_*",
    "test_model_outputs_equivalence",
)


def slow(name):
    """The test of this name, marked for one class alone: the method belongs to all of them."""

    @pytest.mark.thorough
    def method(self):
        getattr(super(type(self), self), name)()

    return method


class CommonTests(ModelTesterMixin):
    inputs: tuple[str, ...] = ()
    left_out: dict[str, str] = {}
    all_model_classes: tuple[Any, ...] = ()
    additional_model_inputs = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

    def setUp(self):
        model_class = self.all_model_classes[0]
        self.model_tester = SmallModel(model_class.config_class, self.inputs, images_of(model_class))
        self._is_composite = bool(model_class.config_class.sub_configs) and "non_composite" not in self._testMethodName
        if "training" in self._testMethodName and not model_class.__name__.endswith("ForImageClassification"):
            self.all_model_classes = (trainable(model_class),)

    def skipTest(self, reason):
        self.fail(f"leaves itself out without a listed reason: {reason}")

    def test_what_is_left_out_leaves_itself_out(self):
        with (
            patch.object(self, "skipTest", side_effect=unittest.SkipTest),
            patch.object(self, "subTest", lambda *_, **__: nullcontext()),  # where SkipTest would end
        ):
            for name in self.left_out:
                with pytest.raises(unittest.SkipTest):
                    getattr(super(type(self), self), name)()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and len(self.inputs) == 2:
            inputs["return_loss"] = True
        elif return_labels and model_class.__name__.endswith("ForImageClassification"):  # upstream knows its own ones
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long, device=torch_device)
        return inputs

    def model_and_inputs(self, attn_implementation="sdpa"):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        torch.manual_seed(0)
        model = self.all_model_classes[0]._from_config(config, attn_implementation=attn_implementation)
        return model.eval().to(torch_device), inputs

    def towers(self, outputs):
        return [outputs.vision_model_output, outputs.text_model_output] if len(self.inputs) == 2 else [outputs]

    def test_config(self):
        settings = {} if self.model_tester.config_class.sub_configs else self.model_tester.settings()
        tester = ConfigTester(self, self.model_tester.config_class, self.inputs == ("text",), **settings)
        tester.run_common_tests()

    def test_torch_save_load(self):
        """Upstream's test, which wants to find our configurations in its registry and leaves the class there out."""
        with patch.dict(MODEL_MAPPING._extra_content, {self.model_tester.config_class: PreTrainedModel}):
            super().test_torch_save_load()

    def test_correct_missing_keys(self):
        model, _ = self.model_and_inputs()
        if model.base_model is model and not model.config.sub_configs:
            self.skipTest("own base model")
        super().test_correct_missing_keys()

    def test_can_init_all_missing_weights(self):
        """Upstream's test, which looks for a year from 2023 on in the file that defines the configuration."""
        with patch("tests.test_modeling_common.inspect.getfile", return_value=configuration_siglip.__file__):
            super().test_can_init_all_missing_weights()

    def test_bc_torch_dtype(self):
        """Upstream's test, whose `subTest` for each of 1,000 parameters takes most of its time."""
        with patch.object(self, "subTest", lambda *_: nullcontext()):
            super().test_bc_torch_dtype()

    def test_attention_outputs_under_sdpa(self):
        eager, inputs = self.model_and_inputs("eager")
        sdpa, _ = self.model_and_inputs("sdpa")
        expected = self.towers(eager(**inputs, output_attentions=True))
        for tower, expected_tower in zip(self.towers(sdpa(**inputs, output_attentions=True)), expected, strict=True):
            assert len(tower.attentions) == TOWER["num_hidden_layers"]
            torch.testing.assert_close(tower.attentions, expected_tower.attentions)

    def test_training_reaches_every_trainable_parameter(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model_class = self.all_model_classes[0]
        model = model_class.from_pretrained(None, config=config, state_dict={}).to(torch_device).train()
        model(**self._prepare_for_class(inputs, model_class, return_labels=True)).loss.backward()
        assert [name for name, x in model.named_parameters() if x.requires_grad and x.grad is None] == []

    # Upstream's off-loading tests need an accelerator. Without one, these do the same with the CPU in its place.

    def test_cpu_offload(self):
        if torch_device != "cpu":
            return super().test_cpu_offload()
        model, inputs = self.model_and_inputs()
        expected = model(**inputs)
        cpu_offload(model, execution_device=torch.device("cpu"))
        return self.check_offloaded(model, inputs, expected)

    def test_disk_offload_safetensors(self):
        return super().test_disk_offload_safetensors() if torch_device != "cpu" else self.check_disk_offload()

    def test_disk_offload_bin(self):
        if torch_device != "cpu":
            return super().test_disk_offload_bin()
        with force_serialization_as_bin_files():
            return self.check_disk_offload(use_safetensors=False)

    def check_disk_offload(self, **loading):
        model, inputs = self.model_and_inputs()
        expected = model(**inputs)
        memory = {"cpu": int(0.7 * 4 * model.num_parameters())}  # bytes
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loading |= {"device_map": "auto", "max_memory": memory, "offload_folder": folder}
            self.check_offloaded(type(model).from_pretrained(folder, **loading), inputs, expected)

    def check_offloaded(self, model, inputs, expected):
        assert "meta" in {parameter.device.type for parameter in model.parameters()}
        torch.testing.assert_close(model(**inputs)[0], expected[0])


class ImageTests(CommonTests):
    inputs = ("image",)
    test_resize_embeddings = False

    def test_model_get_set_embeddings(self):
        """As upstream's, for a model whose input embeddings are a convolution, or a linear layer of patches."""
        model, _ = self.model_and_inputs()
        assert any(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.get_input_embeddings().modules())
        embeddings = nn.Conv2d(3, 3, 3)
        model.set_input_embeddings(embeddings)
        assert model.get_input_embeddings() is embeddings


class TextTests(CommonTests):
    inputs = ("text",)


class DualTests(CommonTests):
    inputs = ("text", "image")

    # Upstream expects these outputs at top level; a dual encoder has them per tower.

    def test_hidden_states_output(self):
        model, inputs = self.model_and_inputs()
        for tower in self.towers(model(**inputs, output_hidden_states=True)):
            assert len(tower.hidden_states) == TOWER["num_hidden_layers"] + 1
            for hidden_states in tower.hidden_states:
                assert hidden_states.shape == tower.last_hidden_state.shape

    def test_attention_outputs(self):
        model, inputs = self.model_and_inputs("eager")
        for tower in self.towers(model(**inputs, output_attentions=True)):
            batch, length, _ = tower.last_hidden_state.shape
            shape = (batch, TOWER["num_attention_heads"], length, length)
            assert [attentions.shape for attentions in tower.attentions] == [shape] * TOWER["num_hidden_layers"]

    def test_retain_grad_hidden_states_attentions(self):
        model, inputs = self.model_and_inputs("eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        kept = [x for tower in self.towers(outputs) for x in (tower.hidden_states[0], tower.attentions[0])]
        for x in kept:
            x.retain_grad()
        outputs.logits_per_image[0, 0].backward()
        for x in kept:
            assert x.grad is not None


class ResNetTests:
    """A ResNet has stages of different sizes for layers, and no attention in them: other tests of these outputs.

    No subclass of upstream's class, which writes all of its tests into every subclass.
    """

    inputs: Any
    model_and_inputs: Any
    towers: Any

    test_attention_outputs: Any = None
    test_attention_outputs_under_sdpa: Any = None
    test_get_image_features_attentions: Any = None
    test_get_image_features_hidden_states: Any = None

    def test_hidden_states_output(self):
        model, inputs = self.model_and_inputs()
        hidden_states = self.towers(model(**inputs, output_hidden_states=True))[0].hidden_states
        shapes = [(256, 2), (256, 8), (64, 16), (16, 32), (4, 64)]  # tokens and channels of the stem and of each stage
        assert [tuple(x.shape[1:]) for x in hidden_states] == shapes

    def test_retain_grad_hidden_states_attentions(self):
        model, inputs = self.model_and_inputs()
        outputs = model(**inputs, output_hidden_states=True)
        hidden_states = self.towers(outputs)[0].hidden_states
        for x in hidden_states:
            x.retain_grad()
        outputs["logits_per_image" if len(self.inputs) == 2 else 0].square().sum().backward()
        assert hidden_states[-1].grad is not None


class ResNetImageTests(ResNetTests, ImageTests):
    pass


class ResNetDualTests(ResNetTests, DualTests):
    pass


CLASSES = {
    "SiglipVisionModel": ImageTests,
    "SiglipTextModel": TextTests,
    "SiglipModel": DualTests,
    "SiglipForImageClassification": ImageTests,
    "CLIPVisionModel": ImageTests,
    "CLIPTextModel": TextTests,
    "CLIPVisionModelWithProjection": ImageTests,
    "CLIPTextModelWithProjection": TextTests,
    "CLIPModel": DualTests,
    "CLIPForImageClassification": ImageTests,
    "Siglip2VisionModel": ImageTests,
    "Siglip2TextModel": TextTests,
    "Siglip2Model": DualTests,
    "Siglip2ForImageClassification": ImageTests,
    "CLIPResNetVisionModel": ResNetImageTests,
    "CLIPResNetModel": ResNetDualTests,
    "CLIPResNetForImageClassification": ResNetImageTests,
}

# The other towers are made of the same parts as the dual encoders, and as these two, which stand for them by day.
DAILY = ("SiglipModel", "CLIPModel", "CLIPForImageClassification", "CLIPTextModelWithProjection")

for _name, _tests in CLASSES.items():
    _left_out = left_out(_tests, _name)
    _attributes = {"all_model_classes": (getattr(LIBRARY, _name),), "left_out": _left_out, "__module__": __name__}
    if _name != "CLIPModel":
        _attributes |= {name: slow(name) for name in methods(_tests) if any(fnmatch(name, pattern) for pattern in SLOW)}
    _attributes |= dict.fromkeys(_left_out | out_of_reach(_tests))
    globals()[f"Test{_name}"] = type(f"Test{_name}", (_tests, unittest.TestCase), _attributes)
    if _name not in DAILY:
        pytest.mark.thorough(globals()[f"Test{_name}"])


@pytest.mark.parametrize("reason", sorted({*out_of_reach(CommonTests).values()}))
def test_out_of_reach_here(reason):
    pytest.skip(f"{reason}: {sum(why == reason for why in out_of_reach(CommonTests).values())} tests of each class")
