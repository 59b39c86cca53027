"""torch.compile and torch.export of every model of every family: one graph for any number of images and texts."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import twinlens
from twinlens.configuration import FAMILIES

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {
    **TOWER,
    "vocab_size": 99,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 98,
}
FIRST, OTHERS = 5, (7, 2, 12)  # numbers of images; none is that of a model's other sizes, which would stand for it


def pixels(images: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(images, 3, 32, 32)}


def patches(images: int, tokens: int = 20) -> dict[str, Tensor]:
    """Images of different grids, one row and one column among them, with NaN as padding."""
    grids = torch.tensor([[4, 4], [1, 9], [9, 1], [5, 3], [2, 10]]).repeat(images, 1)[:images]
    mask = torch.arange(tokens).lt(grids.prod(dim=1, keepdim=True))  # (images, tokens)
    values = torch.randn(images, tokens, 48).masked_fill(~mask[..., None], torch.nan)
    return {"pixel_values": values, "pixel_attention_mask": mask.int(), "spatial_shapes": grids}


class Entry(NamedTuple):
    """A family: settings of its image tower and of both towers, inputs for a number of images, and what may vary."""

    vision: dict[str, Any]
    images: Callable[[int], dict[str, Tensor]] = pixels
    common: dict[str, Any] = {}
    text_length_is_free: bool = False
    number_of_patches_is_free: bool = False


ENTRIES = {
    "CLIP": Entry(VIT, common={"projection_dim": 24}, text_length_is_free=True),
    "Siglip": Entry(VIT),
    "Siglip2": Entry({**TOWER, "num_patches": 16, "patch_size": 4}, patches, number_of_patches_is_free=True),
    "CLIPResNet": Entry(
        {"hidden_size": 64, "depths": (1, 2, 1, 1), "num_attention_heads": 2, "image_size": 32},
        common={"projection_dim": 24},
        text_length_is_free=True,
    ),
}
KINDS = (
    "VisionModel",
    "TextModel",
    "VisionModelWithProjection",
    "TextModelWithProjection",
    "Model",
    "ForImageClassification",
)
CLASSES = [(family, kind) for family in ENTRIES for kind in KINDS if hasattr(twinlens, family + kind)]


# Each is of other operations; `test_compiles_whole` runs the towers that are made of the same ones, too.
TOWERS = [
    ("CLIP", "VisionModel"),
    ("CLIP", "TextModel"),
    ("Siglip2", "VisionModel"),
    ("CLIPResNet", "VisionModel"),
]


def classes(*daily: tuple[str, str]) -> pytest.MarkDecorator:
    """Run a test for all classes; by day for these."""
    return pytest.mark.parametrize(
        ("family", "kind"),
        [pytest.param(*each, marks=() if each in daily else pytest.mark.thorough) for each in CLASSES],
    )


def make(family: str, kind: str) -> Any:
    """A seeded model in evaluation mode whose numbers are all far from zero and one."""
    entry = ENTRIES[family]
    config = getattr(twinlens, f"{family}Config")(
        vision_config={**entry.vision, **entry.common}, text_config={**TEXT, **entry.common}, **entry.common
    )
    part = {"V": config.vision_config, "T": config.text_config}.get(kind[0], config)
    torch.manual_seed(0)
    model = getattr(twinlens, family + kind)(part).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if name != "logit_scale" else 0)
    return model


def inputs_for(family: str, kind: str, batch: int) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    if kind.startswith("Text") or kind == "Model":
        ids = torch.randint(3, 97, (batch, TEXT["max_position_embeddings"]))
        ids[:, 7], ids[:, 8:] = TEXT["eos_token_id"], TEXT["pad_token_id"]
        inputs = {"input_ids": ids, "attention_mask": ids.ne(TEXT["pad_token_id"]).long()}
    return inputs if kind.startswith("Text") else inputs | ENTRIES[family].images(batch)


def tensors(outputs: Any) -> dict[str, Tensor]:
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def assert_near(outputs: Any, expected: Any, tolerance: float = 1e-5) -> None:
    found, wanted = tensors(outputs), tensors(expected)
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def test_every_family_has_an_entry() -> None:
    assert {family.model.removesuffix("Model") for family in FAMILIES.values()} <= set(ENTRIES)


def check_compiled(model: Any, family: str, kind: str, backend: str, tolerance: float = 1e-5) -> None:
    """Compile for one batch, and run others without compiling again."""
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    compiled(**inputs_for(family, kind, FIRST))
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in OTHERS:
            inputs = inputs_for(family, kind, batch)
            assert_near(compiled(**inputs), model(**inputs), tolerance)


@classes(("CLIP", "TextModel"))
def test_compiles_whole(family: str, kind: str) -> None:
    """Without generated code, which `test_generated_code` runs, a graph has the operations of the model itself."""
    with torch.no_grad():
        check_compiled(make(family, kind), family, kind, "eager")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [(torch.enable_grad, torch.float32), (torch.inference_mode, torch.bfloat16)],
    ids=["gradients-float32", "inference_mode-bfloat16"],
)
@pytest.mark.parametrize(("family", "kind"), TOWERS)
def test_towers_compile_whole_in_other_modes(
    family: str, kind: str, mode: Callable[[], AbstractContextManager[Any]], dtype: torch.dtype
) -> None:
    with mode():
        check_compiled(make(family, kind).to(dtype), family, kind, "eager", 1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.thorough
@pytest.mark.parametrize(("family", "kind"), TOWERS)
def test_generated_code(family: str, kind: str) -> None:
    with torch.no_grad():
        check_compiled(make(family, kind), family, kind, "inductor")


@pytest.mark.thorough
@pytest.mark.parametrize(("family", "kind"), TOWERS)
def test_training(family: str, kind: str) -> None:
    """Forward and backward, each as one graph."""
    model = make(family, kind).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")

    def gradients(function: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        outputs = function(**inputs)
        (outputs.last_hidden_state.square().mean() + outputs.pooler_output.square().mean()).backward()
        return {name: x.grad for name, x in model.named_parameters()}

    for batch in (FIRST, OTHERS[-1]):
        inputs = inputs_for(family, kind, batch)
        assert_near(gradients(compiled, inputs), gradients(model, inputs))


@classes(("CLIP", "TextModel"))
def test_exports_for_any_batch(family: str, kind: str) -> None:
    check_exported(family, kind, strict=False)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # transformers collects outputs
@pytest.mark.parametrize(("family", "kind"), TOWERS)
def test_exports_from_byte_code(family: str, kind: str) -> None:
    check_exported(family, kind, strict=True)


@torch.no_grad()
def check_exported(family: str, kind: str, strict: bool) -> None:
    """Export for any number of images and of texts, and any length where the family has no fixed one."""
    entry, model, inputs = ENTRIES[family], make(family, kind), inputs_for(family, kind, FIRST)
    texts, images = {0: Dim("texts", max=999)}, {0: Dim("images", max=999)}
    if entry.text_length_is_free:
        texts[1] = Dim("length", max=TEXT["max_position_embeddings"])
    patches = images | ({1: Dim("patches", max=999)} if entry.number_of_patches_is_free else {})
    shapes = {
        "input_ids": texts,
        "attention_mask": texts,
        "pixel_values": patches,
        "pixel_attention_mask": patches,
        "spatial_shapes": images,
    }
    free = {name: shapes[name] for name in inputs}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=free, strict=strict).module()
    for batch in (*OTHERS, 1, 40):
        inputs = inputs_for(family, kind, batch)
        for name in ("input_ids", "attention_mask"):
            if name in inputs and entry.text_length_is_free:
                inputs[name] = inputs[name][:, : 8 if batch % 2 else 11]
        for name in ("pixel_values", "pixel_attention_mask"):
            if name in inputs and entry.number_of_patches_is_free and batch == 1:
                inputs[name] = inputs[name][:, :16]  # as many as that image has
        assert_near(exported(**inputs), model(**inputs))
