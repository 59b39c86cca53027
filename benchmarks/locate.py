"""How often a small thing in a large picture is found, by the guided search and by what stands beside it.

    python benchmarks/locate.py [--json FILE] [--pictures 100] [--tiled 5] [--models clip-shapes]

Pictures are those of `twinlens.toy_world.draw_large_picture`: 4,096 pixels per side, one thing of 64 pixels among 8 to
20 others. It is found if the middle of the best box lies in the box of the thing and the two overlap by 0.3 or more
(intersection over union). The search was developed on seeds from 10,000 on; the results are those of seeds from 0 on.

Beside the search stand the whole picture at the model's resolution; sliding windows, as many as the search has
encodings; and all tiles of 192 pixels, which is three times the size of the thing, in steps of 96. Their box is what
stands out most in the crop with the best score.
"""

import time
from collections import defaultdict
from typing import Any

import torch
from common import Case, option_parser, parse_options, write_results

from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.catalogue import BUNDLED
from twinlens.inference import locate
from twinlens.inference.crops import Box
from twinlens.inference.guided_search import MAX_ENCODINGS, Search
from twinlens.toy_world import HELD_OUT
from twinlens.toy_world.large_picture import LargePicture, draw_large_picture

METHODS = ("guided search", "whole picture", "sliding windows", "all tiles")
LEAST_OVERLAP = 0.3
TILE, STEP = 192, 96  # pixels
WINDOWS_PER_SIDE = 7  # 49 of 702 pixels, which overlap by a sixth; 8 per side would be 64, above the budget


def is_found(box: Box, thing: Box) -> bool:
    """Return whether a box is that of the thing."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if not (thing[0] <= x <= thing[2] and thing[1] <= y <= thing[3]):
        return False
    across, down = (max(0.0, min(box[axis + 2], thing[axis + 2]) - max(box[axis], thing[axis])) for axis in (0, 1))
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, thing))
    return across * down >= LEAST_OVERLAP * (areas - across * down)


def windows(length: int, side: float, count: int) -> list[Box]:
    """Return count x count crops of a square picture, evenly spread."""
    starts = [place * (length - side) / (count - 1) for place in range(count)]
    return [(left, top, left + side, top + side) for top in starts for left in starts]


def best_box(search: Search, crops: list[Box]) -> Box:
    """Return what stands out most in the crop that fits the text best."""
    scores, patches = search.encode(crops)
    best = max(range(len(crops)), key=lambda place: scores[place])
    regions = search.regions_in(crops[best], patches[best])
    return search.box_of(regions[0]) if regions else crops[best]


def find(
    method: str, model: DualEncoderModel, processor: DualEncoderProcessor, picture: LargePicture, image: Any
) -> tuple[Box, int]:
    """Return the best box, and the number of encodings."""
    if method == "guided search":
        found = locate(model, processor, image, picture.text, max_encodings=MAX_ENCODINGS)
        left, top, right, bottom = found.boxes[0].tolist()
        return (left, top, right, bottom), found.encodings
    length = image.width
    crops = {
        "whole picture": [(0.0, 0.0, float(length), float(length))],
        "sliding windows": windows(length, 1.2 * length / WINDOWS_PER_SIDE, WINDOWS_PER_SIDE),
        "all tiles": windows(length, TILE, 1 + -(-(length - TILE) // STEP)),
    }[method]
    search = Search(model, processor, image, picture.text, len(crops), batch_size=64)
    return best_box(search, crops), len(search.crops)


def measure(name: str, pictures: int, tiled: int) -> list[Case]:
    """Return the share of pictures in which each method finds the thing, for one bundled checkpoint."""
    model, processor = DualEncoderModel.from_pretrained(name).eval(), DualEncoderProcessor.from_pretrained(name)
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)  # and whether the kind of thing was held out
    encodings: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for seed in range(pictures):
        picture = draw_large_picture(seed)
        image = picture.render()
        for method in METHODS if seed < tiled else METHODS[:3]:
            start = time.perf_counter()
            box, count = find(method, model, processor, picture, image)
            seconds[method] += time.perf_counter() - start
            encodings[method] = max(encodings[method], count)
            found[method].append((is_found(box, picture.box), picture.scene.things[0].kind in HELD_OUT))
    cases = []
    for method, results in found.items():
        held_out = [right for right, is_held_out in results if is_held_out]
        cases.append(
            {
                "model": name,
                "method": method,
                "encodings": encodings[method],
                "pictures": len(results),
                "found": sum(right for right, _ in results),
                "held_out_pictures": len(held_out),
                "held_out_found": sum(held_out),
                "seconds_each": round(seconds[method] / len(results), 2),
            }
        )
    return cases


def main() -> None:
    """Measure the checkpoints."""
    parser = option_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=100, help="the number of pictures")
    parser.add_argument("--models", nargs="+", choices=BUNDLED, default=BUNDLED, help="the checkpoints to measure")
    parser.add_argument("--tiled", type=int, default=5, help="the number of pictures of which all tiles are encoded")
    options = parse_options(parser)
    torch.set_num_threads(1)  # small models run fastest on one
    cases = []
    for name in options.models:
        cases += measure(name, options.pictures, options.tiled)
        for case in cases[-len(METHODS) :]:
            print(case, flush=True)
    write_results(options, cases, "pillow")


if __name__ == "__main__":
    main()
