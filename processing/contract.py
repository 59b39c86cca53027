"""What preprocessing does, in words: the contract that pixels and ids keep, for `explain()` and the model card."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

_CLEANUPS = {
    "none": "used as they are",
    "lower": "lower-cased, A-Z only, as in training",
    "canonicalize": "rid of punctuation, lower-cased, their white space made single, as in big_vision's zero-shot code",
}


def numbered(steps: Iterator[str]) -> str:
    """Number the steps, a line each."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def image_contract(processor: Any) -> Iterator[str]:
    """Say what an image processor does to an image, with every number."""
    official, patch = processor.resize_engine == "official", getattr(processor, "patch_size", None)
    upright = "is applied" if processor.do_exif_transpose else "is ignored, as in the official code"
    yield f"Files are opened by Pillow, their first frame; the EXIF orientation {upright}."
    rgb = []
    if processor.do_convert_rgb:
        if processor.background == "ignore":
            rgb = ["Converted to RGB by Pillow; transparency is dropped."]
        else:
            rgb = [f"Transparent parts are laid over {processor.background or (255, 255, 255)}; converted to RGB."]
    values = _values(processor)
    last = getattr(processor, "openai_order", False)
    yield from () if last else rgb
    values_first = official and patch
    yield from values if values_first else ()
    own_mode = ", in the image's own mode" if last else ""
    if processor.do_resize:
        yield f"Resized to {_target(processor)}, {_engine(processor)}{own_mode}."
    yield from rgb if last else ()
    if processor.do_center_crop:
        crop, place = processor.crop_size, "half to even" if last else "down"
        yield f"The middle {crop.width}x{crop.height} is cut out, its place rounded {place}."
    yield from () if values_first else values
    if patch:
        yield (
            f"Cut into patches of {patch}x{patch}, row by row, values in the order (y, x, channel); "
            f"filled up with zeros to {processor.max_num_patches}, which the mask marks."
        )


def _target(processor: Any) -> str:
    if hasattr(processor, "patch_size"):
        return (
            f"the largest grid of at most {processor.max_num_patches} patches of "
            f"{processor.patch_size}x{processor.patch_size} pixels that keeps the aspect"
        )
    size = dict(processor.size)
    if "shortest_edge" in size:
        return f"a shorter side of {size['shortest_edge']}, the aspect kept"
    return f"{size['width']}x{size['height']}, whatever the aspect"


def _engine(processor: Any) -> str:
    if processor.resize_engine == "official" and not hasattr(processor, "patch_size"):
        return "bilinear between the four nearest pixels (no antialiasing), truncated to levels 0..255"
    filter_name = Image.Resampling(processor.resample).name.lower()
    engine = {
        "pillow": "by Pillow, rounded to levels 0..255",
        "torch": "by torch.nn.functional.interpolate, at most one level of 0..255 from Pillow",
        "official": "in float32",
    }[processor.resize_engine]
    return f"{filter_name} with antialiasing, {engine}"


def _values(processor: Any) -> list[str]:
    steps = []
    if processor.do_rescale:
        steps.append(f"times {processor.rescale_factor:.4g}")
    if processor.do_normalize:
        steps += [f"minus {_numbers(processor.image_mean)}", f"divided by {_numbers(processor.image_std)}"]
    return [f"Levels {', '.join(steps)}: float32."] if steps else []


def _numbers(values: Any) -> str:
    shown = [f"{value:.4g}" for value in (values if isinstance(values, tuple | list) else [values])]
    return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"


def text_contract(tokenizer: Any) -> Iterator[str]:
    """Say what a tokenizer does to a text."""
    length, pad = tokenizer.model_max_length, tokenizer.pad_token_id
    if tokenizer.fixed_length:
        yield f"Texts are {_CLEANUPS[tokenizer.text_cleanup]}, then cut into the vocabulary's pieces."
        yield f"End of text ({tokenizer.eos_token_id}) is the last; what is over {length} tokens is cut out before it."
        yield f"Padded on the right with {pad} to {length} tokens, always; there is no mask, padding takes part."
    else:
        yield "Texts are repaired by ftfy, HTML entities undone twice, white space made single, lower-cased."
        yield (
            f"Cut into byte pairs between start ({tokenizer.bos_token_id}) and end ({tokenizer.eos_token_id}) of text; "
            f"longer texts are cut to {length} tokens and keep the end."
        )
        yield f"Padded on the right with {pad} to {length} tokens by the processor; what follows the end has no effect."
