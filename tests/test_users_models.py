"""Models: each test fails with transformers' class and passes with ours, or says that upstream is right too."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from helpers import families
from helpers.differences import difference, same
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import twinlens
from twinlens import compat

# --- embeddings -------------------------------------------------------------------------------------------------------


@difference(
    "embeddings",
    "image-only or text-only input to a dual model",
    "an error",
    "the embeddings of that side",
    "half of all uses",
    fails=((ValueError, AttributeError), "have to specify|no attribute 'shape'"),
)
@pytest.mark.parametrize("side", ["image", "text"])
def test_one_side_is_enough(library: Any, side: str) -> None:
    inputs = {"image": {"pixel_values": families.pixels()}, "text": {"input_ids": families.token_ids("CLIP")}}[side]
    outputs = families.model("CLIP", library=library)(**inputs)
    assert outputs[f"{side}_embeds"].shape[1] == 24


@difference(
    "embeddings",
    "`get_image_features` in code of before transformers 5",
    "an output of the tower",
    "a tensor, from the models of `twinlens.compat`; otherwise as transformers",
    "its callers take the norm of what it returns",
    fails=(AttributeError, "norm"),
)
def test_features_of_former_versions(library: Any) -> None:
    classes = compat if library is twinlens else library
    features = classes.SiglipModel(families.config("Siglip", library)).get_image_features(families.pixels())
    assert (features / features.norm(dim=-1, keepdim=True)).shape == (2, 32)


@difference(
    "embeddings",
    "unit vectors of images and texts, in float32, by names that stay",
    "not available: what `get_*_features` returns has changed, and is not normalised",
    "`encode_image`, `encode_text`",
    "what most callers want",
    fails=(AttributeError, "encode_image"),
)
def test_stable_names(library: Any) -> None:
    model = families.model("Siglip", library=library).bfloat16()
    for embeds in (model.encode_image(families.pixels()), model.encode_text(families.token_ids("Siglip"))):
        assert embeds.dtype == torch.float32
        same(embeds.norm(dim=-1), torch.ones(len(embeds)))


@difference(
    "embeddings",
    "no images or no texts, (0, ...)",
    "an error",
    "embeddings (0, dim) and logits (0, texts) or (images, 0)",
    "a filter may leave none",
    fails=(RuntimeError, "ambiguous"),
)
def test_no_images(library: Any) -> None:
    model = families.model("CLIP", library=library)
    outputs = model(pixel_values=torch.zeros(0, 3, 32, 32), input_ids=families.token_ids("CLIP"))
    assert outputs.logits_per_image.shape == (0, 3)


@difference(
    "embeddings",
    "`tower.text_model`, `tower.vision_model` of code from before 5.6",
    "an error",
    "the tower; `hasattr` finds none in either",
    "libraries tell old models by it, and diffusers' `clip_skip` needs it",
    fails=(AttributeError, "vision_model"),
)
def test_former_names_of_towers(library: Any) -> None:
    tower = families.model("Siglip", "VisionModel", library)
    assert not hasattr(tower, "vision_model")
    assert tower.vision_model is tower


@difference(
    "embeddings",
    "state dicts with the names of before 5.6",
    "an error",
    "loaded",
    "trained weights outlive a version",
    fails=(RuntimeError, "Missing key"),
)
def test_former_names_of_weights(library: Any) -> None:
    tower = families.model("Siglip", "VisionModel", library)
    former = {f"vision_model.{name}": weight + 1 for name, weight in tower.state_dict().items()}
    tower.load_state_dict(former)
    same(tower.state_dict(), {name.removeprefix("vision_model."): weight for name, weight in former.items()})


@difference(
    "embeddings",
    "peft's `PeftModel` with an adapter that has the names of before 5.6",
    "left out, with a warning",
    "applied",
    "trained adapters outlive a version",
    fails=(AssertionError, "Tensor-likes are not close"),
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_former_names_of_adapters(library: Any, tmp_path: Path) -> None:
    pixels, lora = families.pixels(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    trained = get_peft_model(families.model("Siglip", "VisionModel", library), lora).eval()
    expected = trained(pixels).pooler_output
    trained.save_pretrained(str(tmp_path))
    file, below = tmp_path / "adapter_model.safetensors", "base_model.model."
    weights = load_file(file)
    save_file({name.replace(below, f"{below}vision_model."): weights[name] for name in weights}, file)
    adapted = PeftModel.from_pretrained(families.model("Siglip", "VisionModel", library), str(tmp_path)).eval()
    same(adapted(pixels).pooler_output, expected)


# --- the pooling head -------------------------------------------------------------------------------------------------


@difference(
    "head",
    "off-loading",
    "an error: the head's weights stay on the meta device",
    "works",
    "the head calls its parts as modules",
    fails=((RuntimeError, NotImplementedError), "meta"),
)
def test_off_loaded_head(library: Any) -> None:
    model, pixels = families.model("Siglip", "VisionModel", library), families.pixels()
    expected = model(pixels).pooler_output
    cpu_offload(model, execution_device=torch.device("cpu"))
    same(model(pixels).pooler_output, expected)


class Int8Linear(nn.Module):
    """A linear layer as quantisers leave it: `weight` holds int8, and `forward` knows what that means."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


@difference(
    "head",
    "quantising the linear layers",
    "an error: the head reads an int8 weight as if it were float",
    "works",
    "the head calls its parts as modules",
    fails=(RuntimeError, "dtype"),
)
def test_quantised_head(library: Any) -> None:
    model, pixels = families.model("Siglip", "VisionModel", library), families.pixels()
    expected = model(pixels).pooler_output
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    assert nn.functional.cosine_similarity(model(pixels).pooler_output, expected).min() > 0.99


@difference(
    "head",
    "LoRA on the head's `out_proj`",
    "without effect, and never trained, silently",
    "trained and used",
    "the head calls its parts as modules",
    fails=(AssertionError, "assert not"),
)
def test_lora_on_the_head(library: Any) -> None:
    model, pixels = families.model("Siglip", "VisionModel", library), families.pixels()
    before = model(pixels).pooler_output
    lora = LoraConfig(r=2, target_modules=r".*head\.attention\.out_proj", init_lora_weights=False)
    assert not torch.allclose(get_peft_model(model, lora)(pixels).pooler_output, before)


@difference(
    "head",
    "attention map of the head",
    "not available",
    "`output_pooling_attentions=True`",
    "it shows where the model looks",
    fails=((TypeError, AttributeError), "pooling_attentions"),
)
def test_attention_map_of_the_head(library: Any) -> None:
    model = families.model("Siglip", "VisionModel", library)
    (weights,) = model(families.pixels(), output_pooling_attentions=True).pooling_attentions
    same(weights.sum(-1), torch.ones(2, 2, 1))


# --- attention maps ---------------------------------------------------------------------------------------------------


@difference(
    "attention",
    "`output_attentions` under sdpa",
    "an empty tuple",
    "attention maps",
    "what was asked for",
    fails=(AssertionError, "assert 0 == 2"),
)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_attention_maps_under_sdpa(library: Any, family: str) -> None:
    model = families.model(family, "VisionModel", library)
    attentions = model(**families.images(family), output_attentions=True).attentions
    assert len(attentions) == families.VISION["num_hidden_layers"]


@difference(
    "attention",
    "similarities under autocast",
    "in the low precision",
    "in float32",
    "8 bits merge most probabilities",
    fails=(AssertionError, "bfloat16"),
)
def test_similarities_under_autocast(library: Any) -> None:
    model = families.model("CLIP", library=library)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pixel_values=families.pixels(), input_ids=families.token_ids("CLIP"))
    assert outputs.logits_per_image.dtype == torch.float32


# --- classifiers ------------------------------------------------------------------------------------------------------


@difference(
    "classifiers",
    "weights of the pooling, which the mean of the patches does not use",
    "held and trainable: 2 to 11 parameters without a gradient",
    "not held",
    "DDP and optimizers stumble over them",
    fails=(AssertionError, "assert "),
)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_weight_of_a_classifier_is_trained(library: Any, family: str) -> None:
    model = getattr(library, f"{family}ForImageClassification")(families.config(family, library))
    model(**families.images(family), labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@difference(
    "classifiers",
    "what a classifier takes of its image tower",
    "the mean of the patches",
    'the same, or with `classifier_pooling="pooled"` the trained head, which transformers ignores in a saved folder',
    "the head was trained for it",
    fails=(AssertionError, "not close"),
)
def test_classifier_over_the_trained_head(library: Any, tmp_path: Path) -> None:
    config = families.config("Siglip")
    config.classifier_pooling = "pooled"
    twinlens.SiglipForImageClassification(config).save_pretrained(tmp_path)
    model, pixels = library.SiglipForImageClassification.from_pretrained(tmp_path).eval(), families.pixels()
    same(model(pixels).logits, model.classifier(model.vision_model(pixels).pooler_output))


@difference(
    "classifiers",
    "a classifier that starts from the texts of its labels",
    "not available: it starts from noise",
    "`SiglipForImageClassification.from_labels`, and of the other families",
    "before training, it answers as the zero-shot classifier",
    fails=(AttributeError, "from_labels"),
)
def test_classifier_from_labels(library: Any) -> None:
    model = twinlens.SiglipModel.from_pretrained("siglip-shapes")
    processor = twinlens.SiglipProcessor.from_pretrained("siglip-shapes")
    labels = ["red star", "blue circle", "green square"]
    classifier = library.SiglipForImageClassification.from_labels(model, processor, labels, templates="{}")
    pixels = torch.randn(4, 3, *[model.config.vision_config.image_size] * 2)
    expected = (model.encode_image(pixels) @ model.encode(labels, processor).T).argmax(dim=1)
    assert classifier(pixels).logits.argmax(dim=1).tolist() == expected.tolist()


@difference(
    "classifiers",
    "several labels for an image",
    '`problem_type="multi_label_classification"`',
    "the same",
    "upstream is right here",
    fails=None,
)
def test_several_labels(library: Any) -> None:
    config = families.config("Siglip", library)
    config.num_labels, config.problem_type = 3, "multi_label_classification"
    model = library.SiglipForImageClassification(config).eval()
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    outputs = model(families.pixels(), labels=labels)
    same(outputs.loss, nn.functional.binary_cross_entropy_with_logits(outputs.logits, labels))


# --- features ---------------------------------------------------------------------------------------------------------


@difference(
    "features",
    "the patches of one layer, with the last norm or without",
    "all hidden states of all layers, which the caller has to take apart",
    "`forward_features(images, layers, norm=..., as_map=...)`; later layers are not run",
    "vision-language models and dense tasks read an inner layer",
    fails=(AttributeError, "forward_features"),
)
def test_features_of_a_layer(library: Any) -> None:
    tower, pixels = families.model("Siglip", "VisionModel", library), families.pixels()
    (patches,) = tower.forward_features(pixels, layers=(-2,), norm=True, as_map=False)
    same(patches, tower.post_layernorm(tower(pixels, output_hidden_states=True).hidden_states[-2]))


@difference(
    "features",
    "`SiglipVisionModel.from_pretrained(whole checkpoint, vision_use_head=False)`",
    "reports the head as unexpected",
    "silent",
    "it was asked for",
    fails=((AssertionError, TypeError), "head"),
)
def test_tower_without_its_head(library: Any, tmp_path: Path) -> None:
    families.model("Siglip", library=library).save_pretrained(tmp_path)
    load = library.SiglipVisionModel.from_pretrained
    _, info = load(tmp_path, vision_use_head=False, output_loading_info=True)
    assert not info["unexpected_keys"]


@difference(
    "features",
    "an image tower inside another model, such as LLaVA",
    "a part of it",
    "the same: put in its place, or by `twinlens.register()`; equal bit for bit under eager attention",
    "vision-language models are built on these towers; upstream is right here",
    fails=None,
)
@pytest.mark.parametrize("family", families.SQUARE)
@torch.no_grad()
def test_a_tower_inside_another_model(library: Any, family: str) -> None:
    text = transformers.LlamaConfig(**{**families.TEXT, "num_hidden_layers": 1}, pad_token_id=0)
    vision = families.config(family, transformers, "Vision")
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=98,
        vision_feature_select_strategy={"CLIP": "default", "Siglip": "full"}[family],
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    tower = families.model(family, "VisionModel", library, attention="eager")
    ids, pixels = torch.tensor([[1, *[98] * 16, 5]]), families.pixels(1)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    expected = model(input_ids=ids, pixel_values=pixels).logits
    model.model.vision_tower = tower
    same(model(input_ids=ids, pixel_values=pixels).logits, expected, tolerance=0)


# --- work that is not done --------------------------------------------------------------------------------------------


@difference(
    "speed",
    "CLIP texts shorter than their padding",
    "all positions are encoded",
    "in inference on the CPU under sdpa, the batch is encoded as far as its longest text ends; `last_hidden_state` has "
    "all positions, computed when it is read",
    "what follows the end of a causal text has no effect on its embedding",
    fails=(AssertionError, "assert 12 == 8"),
)
@torch.inference_mode()
def test_padding_of_clip_is_not_encoded(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lengths = families.model("CLIP", "TextModel", library), []
    attend = nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *others: Any, **settings: Any) -> torch.Tensor:
        lengths.append(query.shape[2])
        return attend(query, *others, **settings)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    assert model(families.token_ids("CLIP")).pooler_output.shape == (3, 32)  # each text ends at position 7
    assert lengths[0] == 8


@difference(
    "speed",
    "matrix products on CPUs that PyTorch's default does not use fully",
    "PyTorch's default",
    "`model.optimize_for_inference()` measures and packs the weights for oneDNN; `restore()` undoes it bit for bit",
    "see [Benchmarks](benchmarks.md)",
    fails=(AttributeError, "optimize_for_inference"),
)
@torch.inference_mode()
def test_optimised_models_give_the_same(library: Any) -> None:
    model, pixels = families.model("Siglip", library=library), families.pixels()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = model.get_image_features(pixels).pooler_output
    model.optimize_for_inference(linear="onednn")
    same(model.get_image_features(pixels).pooler_output, expected)
    same(model.restore().state_dict(), weights, tolerance=0)
