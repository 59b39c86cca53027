"""Pictures of maps: an image with heat maps over it, their titles, and colour bars."""

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.image_settings import WHITE
from ..processing.image_steps import composite_over, to_rgb

Box = tuple[float, float, float, float]  # left, top, right, bottom

# Nine of the 256 colours of matplotlib's "inferno", which get lighter evenly; those between them are interpolated.
_COLOURS = (
    (0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84),
    (228, 90, 49), (249, 142, 9), (249, 203, 53), (252, 255, 164),
)  # fmt: skip
# For titles beyond ASCII, which Pillow's font does not have: fonts of Linux, macOS and Windows.
_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "segoeui.ttf", "msyh.ttc")
_OPACITY = 0.65  # of a heat map over the image
_SHORTEST, _LONGEST = 448, 1024  # pixels of the longer side of an image as it is drawn
_LEAST_WIDTH, _LEAST_HEIGHT = 300, 160  # pixels of a panel, for its title and for its colour bar
_PANELS_IN_A_ROW = 3
_MARGIN, _GAP, _BAR_WIDTH, _FONT_SIZE, _LINE_HEIGHT = 16, 6, 18, 17, 23  # pixels


def patch_box(model: DualEncoderModel, processor: DualEncoderProcessor, image: Image.Image, grid: Sequence[int]) -> Box:
    """Return which part of an image a grid of (rows, columns) of patches covers, in pixels of the image.

    It is less than all where the processor crops, or where pixels fill no whole patch, and more where it fills up.
    """
    left, top, across, down = processor.image_processor.placement(image.height, image.width)
    rows, columns = grid
    patch_size = model.vision_model.config.patch_size
    return left, top, left + columns * patch_size * across, top + rows * patch_size * down


def draw_maps(image: Image.Image, maps: Tensor, box: Box, titles: Sequence[str], *, unit: str) -> Image.Image:
    """Return an image, and beside it the same image in grey under each of `maps` (maps, rows, columns), with a title.

    The maps lie over `box`, the part of the image that the model saw. They are interpolated linearly between the
    centres of patches, so that nothing between them is higher or lower than they are. Each has a colour bar of its own,
    from its lowest value to its highest, in `unit`.
    """
    scale = min(max(*image.size, _SHORTEST), _LONGEST) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    colour = to_rgb(composite_over(image, WHITE)).resize((width, height), Image.Resampling.BILINEAR)
    grey = colour.convert("L").convert("RGB")
    left, top, right, bottom = (round(side * scale) for side in box)
    panels: list[tuple[Image.Image, Image.Image | None]] = [(colour, None)]
    for values in maps:
        lowest, highest = float(values.min()), float(values.max())
        levels = (values - lowest) / ((highest - lowest) or 1)
        bar = _draw_bar(max(height, _LEAST_HEIGHT), lowest, highest, unit)
        panels.append((_lay_over(grey, levels, (left, top), (right - left, bottom - top)), bar))
    return _arrange(panels, ["", *titles])


def _lay_over(grey: Image.Image, heat: Tensor, place: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Return an image with the colours of a map (rows, columns) of values 0..1 over the part of `size` at `place`."""
    width, height = (max(1, side) for side in size)
    resized = Image.fromarray(heat.float().numpy()).resize((width, height), Image.Resampling.BILINEAR)
    layer, opacity = grey.copy(), Image.new("L", grey.size)
    layer.paste(_in_colours(np.asarray(resized)), place)
    opacity.paste(round(255 * _OPACITY), (*place, place[0] + width, place[1] + height))
    return Image.composite(layer, grey, opacity)


def _in_colours(values: NDArray[np.float32]) -> Image.Image:
    """Return an image of the colours of values 0..1 (rows, columns)."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, places, channel) for channel in np.transpose(_COLOURS)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def _draw_bar(height: int, lowest: float, highest: float, unit: str) -> Image.Image:
    """Return a colour bar of this height, with the values at its ends and in its middle, and their unit."""
    font = ImageFont.load_default(_FONT_SIZE)
    decimals = max(0, 2 - math.floor(math.log10(highest - lowest))) if highest > lowest else 3
    labels = [f"{value:.{decimals}f}" for value in (highest, (highest + lowest) / 2, lowest)]
    right = _BAR_WIDTH + _GAP + round(max(font.getlength(label) for label in labels))
    bar = Image.new("RGB", (right + _LINE_HEIGHT, height), "white")
    column = _in_colours(np.linspace(1, 0, height, dtype=np.float32)[:, None])
    bar.paste(column.resize((_BAR_WIDTH, height)))
    draw = ImageDraw.Draw(bar)
    for share, label, anchor in zip((0, 0.5, 1), labels, ("la", "lm", "ld"), strict=True):
        draw.text((_BAR_WIDTH + _GAP, share * height), label, "black", font, anchor=anchor)
    name = Image.new("RGB", (height, _LINE_HEIGHT), "white")
    ImageDraw.Draw(name).text((height / 2, _LINE_HEIGHT / 2), unit, "black", font, anchor="mm")
    bar.paste(name.rotate(90, expand=True), (right, 0))
    return bar


def _arrange(panels: Sequence[tuple[Image.Image, Image.Image | None]], titles: Sequence[str]) -> Image.Image:
    """Return a picture of all panels, each with its colour bar at its right and its title above it."""
    font = _font_for("".join(titles))
    panel_width = max(panels[0][0].width, _LEAST_WIDTH)
    lines = [_wrap(title, font, panel_width) for title in titles]
    title_height = max(map(len, lines)) * _LINE_HEIGHT
    bar_width = max((bar.width for _, bar in panels if bar), default=0)
    width, height = panel_width + _GAP + bar_width + _MARGIN, title_height + max(panels[0][0].height, _LEAST_HEIGHT)
    rows = -(-len(panels) // _PANELS_IN_A_ROW)
    columns = -(-len(panels) // rows)
    picture = Image.new("RGB", (columns * width + _MARGIN, rows * (height + _MARGIN) + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for place, ((panel, bar), title) in enumerate(zip(panels, lines, strict=True)):
        row, column = divmod(place, columns)
        x, y = _MARGIN + column * width, _MARGIN + row * (height + _MARGIN)
        for number, line in enumerate(title):
            draw.text((x, y + number * _LINE_HEIGHT), line, "black", font)
        picture.paste(panel, (x, y + title_height))
        if bar:
            picture.paste(bar, (x + panel.width + _GAP, y + title_height))
    return picture


def _font_for(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that has the most characters of a text: Pillow's own, or else one of the system's."""
    fonts = [ImageFont.load_default(_FONT_SIZE)]
    if not text.isascii():
        for name in _FONTS:
            with suppress(OSError):  # there is none of this name
                fonts.append(ImageFont.truetype(name, _FONT_SIZE))
    return min(fonts, key=lambda font: _count_absent(font, text))


def _count_absent(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    """Return how many characters of a text a font lacks: it draws all of them as the same box."""
    box = bytes(font.getmask("\uffff"))
    return sum(bytes(font.getmask(character)) == box for character in text if not character.isspace())


def _wrap(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return the lines of a title: those that it has, and those that a longer one than `width` pixels needs."""
    lines = []
    for line in title.splitlines():
        words = line.split(" ")
        while words:
            fitting = [count for count in range(1, len(words) + 1) if font.getlength(" ".join(words[:count])) <= width]
            if not fitting:  # a word longer than a line is broken
                word = words[0]
                length = max((n for n in range(1, len(word)) if font.getlength(word[:n]) <= width), default=1)
                words[:1] = [word[:length], word[length:]]
            count = max(fitting, default=1)
            lines.append(" ".join(words[:count]))
            words = words[count:]
    return lines
