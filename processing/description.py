"""The steps of preprocessing in words, for `explain()` and the model card."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from PIL import Image

from .image_settings import ImageSettings
from .resizing import ResizeEngine

if TYPE_CHECKING:
    from .tokenization import DualEncoderTokenizer

_REPAIRED = "repaired by ftfy, HTML entities undone twice, white space made single"
_TEXT_CLEANUPS = {  # after "Texts are", for each `text_cleanup`
    "none": "used as they are",
    "lower": "lower-cased, A-Z only, as in training",
    "canonicalize": "rid of punctuation, lower-cased, their white space made single, as in big_vision's zero-shot code",
    "open_clip_canonicalize": f"{_REPAIRED}, lower-cased, rid of punctuation, as in open_clip",
    "open_clip_lower": f"{_REPAIRED}, lower-cased, as in open_clip",
    "open_clip_whitespace": f"{_REPAIRED}, as in open_clip",
}


def numbered(steps: Iterable[str]) -> str:
    """Return the steps as a numbered list, one line each."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def describe_image_steps(settings: ImageSettings, engine: ResizeEngine) -> Iterator[str]:
    """Yield a sentence for each step that an image goes through, with every number, in their order."""
    if settings.do_exif_transpose:
        yield "Files are opened by Pillow, their first frame; the EXIF orientation is applied."
    else:
        yield "Files are opened by Pillow, their first frame; the EXIF orientation is ignored, as in the official code."
    to_rgb, values = [*_describe_conversion(settings)], [*_describe_values(settings)]
    if not settings.resizes_own_mode:
        yield from to_rgb
    if engine.takes_values:
        yield from values
    if settings.do_resize:
        filter_name = Image.Resampling(settings.resample).name.lower()
        mode = ", in the image's own mode" if settings.resizes_own_mode else ""
        yield f"Resized to {_describe_target(settings)}, {engine.description.format(filter=filter_name)}{mode}."
    if settings.resizes_own_mode:
        yield from to_rgb
    if settings.do_center_crop:
        height, width = settings.crop_size["height"], settings.crop_size["width"]
        rounding = "half to even" if settings.openai_order else "down"
        yield f"The middle {width}x{height} is cut out, its place rounded {rounding}{_describe_fill(settings)}."
    if not engine.takes_values:
        yield from values
    if settings.patch_size:
        yield (
            f"Cut into patches of {settings.patch_size}x{settings.patch_size}, row by row, values in the order "
            f"(y, x, channel); filled up with zeros to {settings.max_num_patches}, which the mask marks."
        )


def _describe_conversion(settings: ImageSettings) -> Iterator[str]:
    if settings.do_convert_rgb and settings.background == "ignore":
        yield "Converted to RGB by Pillow; transparency is dropped."
    elif settings.do_convert_rgb:
        yield f"Transparent parts are laid over {settings.background}; converted to RGB."


def _describe_target(settings: ImageSettings) -> str:
    if settings.patch_size:
        return (
            f"the largest grid of at most {settings.max_num_patches} patches of "
            f"{settings.patch_size}x{settings.patch_size} pixels that keeps the aspect"
        )
    if "shortest_edge" in settings.size:
        longest = (
            f", or a longer side of {edge} if it would be more" if (edge := settings.size.get("longest_edge")) else ""
        )
        return f"a shorter side of {settings.size['shortest_edge']}{longest}, the aspect kept"
    if "max_height" in settings.size:
        return f"fit {settings.size['max_width']}x{settings.size['max_height']}, the aspect kept"
    return f"{settings.size['width']}x{settings.size['height']}, whatever the aspect"


def _describe_fill(settings: ImageSettings) -> str:
    if "max_height" not in settings.size:
        return ""
    return f"; what lies outside of the image is filled with {settings.fill_color}"


def _describe_values(settings: ImageSettings) -> Iterator[str]:
    operations = []
    if settings.do_rescale:
        operations.append(f"times {settings.rescale_factor:.4g}")
    if settings.do_normalize:
        operations += [f"minus {_numbers(settings.image_mean)}", f"divided by {_numbers(settings.image_std)}"]
    if operations:
        yield f"Levels {', '.join(operations)}: float32."


def _numbers(values: float | tuple[float, ...] | None) -> str:
    """Return the values of the channels in a few digits: one number where they are all the same."""
    shown = [f"{value:.4g}" for value in (values if isinstance(values, tuple) else [values])]
    return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"


def describe_text_steps(tokenizer: "DualEncoderTokenizer") -> Iterator[str]:
    """Yield a sentence for each step that a text goes through, in their order."""
    length, pad = tokenizer.model_max_length, tokenizer.pad_token_id
    if tokenizer.fixed_length:
        yield f"Texts are {_TEXT_CLEANUPS[tokenizer.text_cleanup]}, then cut into the vocabulary's pieces."
        yield f"End of text ({tokenizer.eos_token_id}) is the last; what is over {length} tokens is cut out before it."
        yield f"Padded on the right with {pad} to {length} tokens, always; there is no mask, padding takes part."
    else:
        stated = tokenizer.text_cleanup
        yield f"Texts are {_TEXT_CLEANUPS[stated] if stated else f'{_REPAIRED}, lower-cased'}."
        yield (
            f"Cut into byte pairs between start ({tokenizer.bos_token_id}) and end ({tokenizer.eos_token_id}) of text; "
            f"longer texts are cut to {length} tokens and keep the end."
        )
        yield f"Padded on the right with {pad} to {length} tokens by the processor; what follows the end has no effect."
