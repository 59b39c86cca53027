"""Pictures of boxes."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

SHORTEST_SIDE, LONGEST_SIDE = 448, 1280  # pixels of the longer side of a picture as it is drawn
_BEST, _OTHER = (90, 255, 60), (255, 255, 255)
_SMALLEST = 26  # pixels: a smaller box is drawn this large around its middle, so that it can be seen


def draw_boxes(image: Image.Image, boxes: Sequence[Box], labels: Sequence[str]) -> Image.Image:
    """Return a copy of an image with boxes, given in its pixels, and a label at each; the first box stands out.

    The copy is from `SHORTEST_SIDE` to `LONGEST_SIDE` pixels long, so that labels of one size can be read in it.
    """
    longest = max(image.size)
    scale = min(max(longest, SHORTEST_SIDE), LONGEST_SIDE) / longest
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(16)
    for number, (box, label) in reversed(list(enumerate(zip(boxes, labels, strict=True)))):  # the best on top
        colour = _OTHER if number else _BEST
        across, down = ((box[axis] + box[axis + 2]) / 2 * scale for axis in (0, 1))
        width, height = (max((box[axis + 2] - box[axis]) * scale, _SMALLEST) / 2 for axis in (0, 1))
        frame = across - width, down - height, across + width, down + height
        for outwards, line in ((1, (0, 0, 0)), (0, colour)):
            edges = frame[0] - outwards, frame[1] - outwards, frame[2] + outwards, frame[3] + outwards
            draw.rectangle(edges, outline=line, width=2 + 2 * outwards)
        text_width = draw.textlength(label, font)
        left = min(max(frame[0], 2), max(2, size[0] - text_width - 2))
        top = frame[1] - 22 if frame[1] >= 22 else frame[3] + 3
        draw.text((left, top), label, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return picture
