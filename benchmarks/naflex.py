"""Images of many aspect ratios through a NaFlex tower: without padding, padded, and padded in transformers.

    python benchmarks/naflex.py [--json FILE] [--rounds 7] [--only float32]

The longer side of each image has 16 patches, and images are padded to 256. All variants have the same weights and
images and take turns, on two threads. A speed is that of the median times.
"""

from functools import partial
from itertools import cycle, islice, product

import torch
import transformers
from common import THREADS, Case, interleaved_seconds, option_parser, parse_options, print_rows, write_results
from torch import Tensor

import twinlens

SIZES: dict[str, int] = {}  # those that are not the configuration's defaults, which are B/16's
LONGER_SIDE = 16
RATIOS = (1, 4 / 3, 3 / 2, 16 / 9, 2, 21 / 9, 3, 4)
DTYPES = ("float32", "bfloat16")
BATCH_SIZES = (16,)


def random_images(config: twinlens.Siglip2VisionConfig, batch_size: int) -> dict[str, Tensor]:
    """Return random patches as the processor pads them, wide images and tall ones in turns."""
    wide = [(round(LONGER_SIDE / ratio), LONGER_SIDE) for ratio in RATIOS]
    wide_and_tall = [grid[:: (1, -1)[turn % 2]] for turn, grid in enumerate(wide)]
    grids = torch.tensor(list(islice(cycle(wide_and_tall), batch_size)))
    mask = torch.arange(LONGER_SIDE**2) < grids.prod(dim=1, keepdim=True)  # (images, tokens)
    values = config.num_channels * config.patch_size**2
    patches = torch.randn(*mask.shape, values, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": patches * mask[..., None], "pixel_attention_mask": mask.int(), "spatial_shapes": grids}


@torch.inference_mode()
def measure(dtype: str, batch_size: int, rounds: int) -> Case:
    """Measure one batch, and compare what the variants return."""
    torch.manual_seed(0)
    ours = twinlens.Siglip2VisionModel(twinlens.Siglip2VisionConfig(**SIZES)).eval().to(getattr(torch, dtype))
    theirs = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**SIZES)).eval().to(ours.dtype)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    images = random_images(ours.config, batch_size)
    variants = {
        "packed": partial(ours, **images, packed=True),
        "padded": partial(ours, **images),
        "transformers": partial(theirs, **images),
    }
    packed, padded = (torch.nn.functional.normalize(variants[name]().pooler_output) for name in ("packed", "padded"))
    seconds = interleaved_seconds(variants, rounds)
    return {
        "case": f"{dtype}-{batch_size}",
        "padding": round(1 - images["pixel_attention_mask"].float().mean().item(), 3),
        **{f"{name}_ms": round(value * 1e3, 1) for name, value in seconds.items()},
        "speed_over_padded": round(seconds["padded"] / seconds["packed"], 2),
        "speed_over_transformers": round(seconds["transformers"] / seconds["packed"], 2),
        "embedding_difference": (packed - padded).abs().max().item(),
    }


def main() -> None:
    """Measure every case."""
    torch.set_num_threads(THREADS)
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="a part of the case's name, such as float32")
    names = {f"{dtype}-{batch_size}": (dtype, batch_size) for dtype, batch_size in product(DTYPES, BATCH_SIZES)}
    options = parse_options(parser, names)
    cases: list[Case] = []
    for name, (dtype, batch_size) in names.items():
        if options.only in name:
            cases.append(measure(dtype, batch_size, options.rounds))
            print_rows(cases, len(cases) - 1)
    write_results(options, cases)


if __name__ == "__main__":
    main()
