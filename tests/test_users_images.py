"""Images, resolutions and NaFlex: each test fails with transformers' class and passes with ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import families
from helpers.builders import TINY_CLIP, TINY_CLIP_JSON, open_clip_tensors
from helpers.differences import SILENT, difference, same
from helpers.photographs import cat
from helpers.versions import places_one_column
from PIL import Image

import twinlens
from twinlens.formats import write_tensors

SIZE = 64  # of the bundled checkpoints
PATCH_VALUES = 3 * families.VISION["patch_size"] ** 2


def levels(library: Any, family: str, folders: dict[str, Path], image: Image.Image) -> torch.Tensor:
    """The levels 0..255 that a library's image processor of a converted folder makes, (height, width, channel)."""
    processor = getattr(library, f"{family}ImageProcessorPil").from_pretrained(folders[f"{family.lower()}-shapes"])
    pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    return pixels.float().permute(1, 2, 0)


def as_levels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).float()


# --- images -----------------------------------------------------------------------------------------------------------


@difference(
    "images",
    "float images in 0..1",
    "rescaled twice",
    "recognised",
    "one picture, one result",
    fails=(AssertionError, "not close"),
)
def test_floats_are_recognised(library: Any) -> None:
    processor, array = library.SiglipImageProcessorPil(), np.array(cat().resize((224, 224)))
    expected = processor(array, return_tensors="pt")["pixel_values"]
    same(processor((array / 255).astype(np.float32), return_tensors="pt")["pixel_values"], expected, 1e-2)


@difference(
    "images",
    "`CLIPImageProcessor`, `SiglipImageProcessor`",
    "other pixels where torchvision is installed than where it is not",
    "Pillow's everywhere",
    "the same folder makes the same pixels on every machine",
    fails=(AssertionError, "not close"),
)
@pytest.mark.parametrize("family", families.SQUARE)
def test_pixels_do_not_depend_on_torchvision(library: Any, family: str) -> None:
    if library is transformers:
        pytest.importorskip("torchvision", reason="transformers' pixels differ where torchvision is installed")
    expected = getattr(transformers, f"{family}ImageProcessorPil")()(cat(), return_tensors="pt")["pixel_values"]
    same(getattr(library, f"{family}ImageProcessor")()(cat(), return_tensors="pt")["pixel_values"], expected)


@difference(
    "images",
    "CLIP: palette and 1-bit images",
    "converted to RGB, then resized: up to 255 levels from OpenAI's",
    "resized, then converted, where the folder is of an official file",
    "OpenAI's order of steps",
    fails=(AssertionError, "not close"),
)
@pytest.mark.parametrize("mode", ["P", "1"])
def test_modes_are_resized_as_by_openai(library: Any, mode: str, folders: dict[str, Path]) -> None:
    image = cat().resize((2 * SIZE, 2 * SIZE)).convert(mode)
    same(
        levels(library, "CLIP", folders, image),
        as_levels(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)),
    )


@difference(
    "images",
    "CLIP: the position of the crop",
    "rounded down: one pixel off for a quarter of all sizes",
    "rounded half to even, where the folder is of an official file",
    "OpenAI's code does",
    fails=(AssertionError, "not close"),
)
def test_crops_are_those_of_openai(library: Any, folders: dict[str, Path]) -> None:
    image = cat().resize((SIZE + 3, SIZE))  # margins of 1.5 pixels
    same(levels(library, "CLIP", folders, image), as_levels(image.crop((2, 0, SIZE + 2, SIZE))))


@difference(
    "images",
    "SigLIP: the resize of the official code",
    "with antialiasing: photographs differ by 4 to 9 levels on average",
    "without, truncated, where the folder is of an official file; a folder from the Hub keeps what it states",
    "training saw these pixels",
    fails=(AssertionError, "not close"),
)
def test_siglip_pixels_are_those_of_big_vision(library: Any, folders: dict[str, Path]) -> None:
    whole = as_levels(cat()).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(whole, (SIZE, SIZE), mode="bilinear", antialias=False).floor()
    same(levels(library, "Siglip", folders, cat()), expected[0].permute(1, 2, 0), tolerance=1)


@difference(
    "stated-pixels",
    'open_clip\'s JSON beside the weights (`"resize_mode": "squash"`, mean, std)',
    "not read",
    "used, or refused by name",
    "of 54 models that immich serves, 22 want `squash`",
    fails=(OSError, "preprocessor_config.json"),
)
def test_stated_pixels_are_used(library: Any, tmp_path: Path) -> None:
    pixels = {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    content = {"model_cfg": TINY_CLIP_JSON, "preprocess_cfg": pixels}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    write_tensors("safetensors", open_clip_tensors(**TINY_CLIP), tmp_path / "open_clip_model.safetensors")
    loaders = {"transformers": transformers.CLIPImageProcessorPil, "twinlens": twinlens.DualEncoderProcessor}
    found = loaders[library.__name__].from_pretrained(tmp_path)(images=cat())["pixel_values"][0]
    squashed = as_levels(cat().resize((32, 32), Image.Resampling.BILINEAR)) / 255
    same(found, ((squashed - torch.tensor(pixels["mean"])) / torch.tensor(pixels["std"])).permute(2, 0, 1))


# --- resolutions ------------------------------------------------------------------------------------------------------


@difference(
    "resolution",
    "images of a wrong size",
    "SigLIP takes 16x64 for 32x32",
    "an error with both sizes and the way out",
    "the position table no longer fits",
    fails=SILENT,
)
def test_wrong_sizes_are_refused(library: Any) -> None:
    model = families.model("Siglip", "VisionModel", library)
    with pytest.raises(ValueError, match=r"must be 32x32 .* got 16x64\..*interpolate_pos_encoding=True"):
        model(torch.zeros(1, 3, 16, 64))


@difference(
    "resolution",
    "positions for another resolution, for good",
    "not available",
    "`resize_positions`, with three resamplings",
    "training goes on from what the authors' code makes",
    fails=(AttributeError, "resize_positions"),
)
def test_positions_are_resized_for_good(library: Any) -> None:
    model, pixels = families.model("Siglip", "VisionModel", library), families.pixels(size=48)
    expected = model(pixels, interpolate_pos_encoding=True).pooler_output
    same(model.resize_positions(48, "transformers")(pixels).pooler_output, expected)


def naflex(library: Any, grid: tuple[int, int], patches: torch.Tensor, is_turned: bool = False) -> torch.Tensor:
    """The embedding of patches in a grid, with the table of positions as it is or mirrored at its diagonal."""
    model = families.model("Siglip2", "VisionModel", library)
    table = model.embeddings.position_embedding.weight.data
    if is_turned:
        table.copy_(table.reshape(4, 4, -1).transpose(0, 1).reshape(16, -1))
    mask = torch.ones(patches.shape[:2], dtype=torch.int32)
    output: torch.Tensor = model(patches, mask, torch.tensor([grid])).pooler_output
    return output


@difference(
    "resolution",
    "NaFlex images of a single column of patches",
    "wrong by up to ten logits",
    "right",
    "PyTorch's `interpolate` on the CPU, antialiased, is wrong for width 1; transformers 5.24 does without",
    fails=(AssertionError, "not close"),
)
def test_single_columns(library: Any) -> None:
    """A column is a row whose picture and positions are mirrored at the diagonal."""
    if library is transformers and places_one_column():
        pytest.skip("this transformers is right for a single column")
    patches = torch.randn(1, 12, PATCH_VALUES)
    same(naflex(library, (12, 1), patches), naflex(library, (1, 12), patches, is_turned=True))


@difference(
    "resolution",
    "NaFlex padding that holds NaN or infinity",
    "NaN for the whole image",
    "the same result as with zeros",
    "padding takes no part",
    fails=(AssertionError, "not close"),
)
@pytest.mark.parametrize("anything", [torch.nan, torch.inf])
def test_padding_can_hold_anything(library: Any, anything: float) -> None:
    model, inputs = families.model("Siglip2", "VisionModel", library), families.images("Siglip2")
    is_padding = inputs["pixel_attention_mask"].eq(0)[..., None]
    filled = {**inputs, "pixel_values": inputs["pixel_values"].masked_fill(is_padding, anything)}
    same(model(**filled).pooler_output, model(**inputs).pooler_output)


@difference(
    "resolution",
    "NaFlex inputs that do not fit together",
    "taken as they are, silently",
    "an error with the image and both numbers",
    "the processor's three outputs belong together",
    fails=SILENT,
)
def test_inputs_belong_together(library: Any) -> None:
    model, inputs = families.model("Siglip2", "VisionModel", library), families.images("Siglip2")
    with pytest.raises(ValueError, match=r"Image 0 has \[2, 2\] .* but 16 of its 18 tokens"):
        model(**{**inputs, "spatial_shapes": inputs["spatial_shapes"] - torch.tensor([[2, 2], [0, 0]])})


@difference(
    "resolution",
    "`pixel_attention_mask` of NaFlex",
    "needed",
    "may be left out where there is no padding",
    "one image has none",
    fails=(TypeError, "pixel_attention_mask"),
)
def test_mask_may_be_left_out(library: Any) -> None:
    model, patches = families.model("Siglip2", "VisionModel", library), torch.randn(1, 8, PATCH_VALUES)
    grid = torch.tensor([[2, 4]])
    expected = model(patches, torch.ones(1, 8, dtype=torch.int32), grid).pooler_output
    same(model(pixel_values=patches, spatial_shapes=grid).pooler_output, expected)


@difference(
    "resolution",
    "NaFlex images of different sizes",
    "padded to the longest",
    "`encode_image` packs them without padding, on the CPU by itself; the same result",
    "padding costs as much as patches",
    fails=(AssertionError, r"assert \[54\] == \[47\]"),
)
@torch.inference_mode()
def test_images_are_packed(library: Any) -> None:
    model, inputs = families.model("Siglip2", library=library), families.images("Siglip2", 3)
    tokens: list[int] = []
    encoder = model.vision_model.encoder
    encoder.layers[0].register_forward_hook(lambda module, given, output: tokens.append(output.shape[:2].numel()))
    getattr(model, "encode_image", model.get_image_features)(**inputs)
    assert tokens == [int(inputs["spatial_shapes"].prod(dim=1).sum())]


@pytest.mark.thorough
@difference(
    "serving",
    "NaFlex in one graph (`torch.compile`, `torch.export`)",
    "a loop over the images: another graph for each number of them",
    "one graph for all numbers and grids of images",
    "compiling takes longer than most batches",
    fails=(RuntimeError, "fail_on_recompile"),
)
@torch.no_grad()
def test_naflex_is_one_graph(library: Any) -> None:
    model = families.model("Siglip2", "VisionModel", library)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    compiled(**families.images("Siglip2", 3))
    inputs = families.images("Siglip2", 4)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = compiled(**inputs).pooler_output
    same(found, model(**inputs).pooler_output)
