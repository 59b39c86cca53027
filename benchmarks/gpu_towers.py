"""Image towers of SigLIP on a GPU, in bfloat16: what `towers.py --device cuda` measures."""

import gc
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import peers
import torch
from common import Case, interleaved_times, print_rows
from inputs import ONE_LAYER, SO400M, Sizes, random_images, write_model
from peers import Encode, ImageFeatures, compiled

MODELS: dict[str, Sizes] = {
    "siglip-b16-224": {"text_config": ONE_LAYER},
    "siglip-so400m14-384": {
        "vision_config": SO400M | {"patch_size": 14, "image_size": 384},
        "text_config": SO400M | ONE_LAYER,
    },
}
BATCH_SIZES = (1, 8, 64, 512)
DTYPE = torch.bfloat16


def encoders(folder: Path, device: str, absent: dict[str, str]) -> dict[str, Callable[[], Encode]]:
    """Return how each encoder is made, on the device."""
    ours: Callable[[], Any] = lambda: ImageFeatures(peers.to_twinlens(folder, DTYPE)).to(device)  # noqa: E731
    theirs: Callable[[str], Any] = lambda attention: ImageFeatures(  # noqa: E731
        peers.to_transformers(folder, attention, DTYPE)
    ).to(device)
    makers: dict[str, Callable[[], Encode]] = {
        "twinlens": ours,
        "twinlens, compiled": lambda: compiled(ours()),
        "transformers, sdpa": lambda: theirs("sdpa"),
        "transformers, eager": lambda: theirs("eager"),
        "transformers, compiled": lambda: compiled(theirs("sdpa")),
    }
    if "open_clip" not in absent:
        makers["open_clip, compiled"] = lambda: compiled(OpenClipImages(peers.to_open_clip(folder, DTYPE)).to(device))
    return makers


class OpenClipImages(torch.nn.Module):
    """The image side of an open_clip model as a module, which can be compiled."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return embeddings (images, dim), not normalised."""
        embeds: torch.Tensor = self.model.encode_image(pixels)
        return embeds


def run_to_the_end(encode: Encode, pixels: torch.Tensor) -> torch.Tensor:
    """Encode, and wait until the GPU has done it."""
    embeds = encode(pixels)
    torch.cuda.synchronize()
    return embeds


@torch.no_grad()
def measure(folder: Path, side: int, batch_size: int, absent: dict[str, str], options: Any) -> Case:
    """Measure one batch, which lies on the GPU already; a variant that does not fit says so."""
    torch.compiler.reset()
    pixels = random_images(side, batch_size).to(options.device, DTYPE)
    variants: dict[str, Callable[[], torch.Tensor]] = {}
    embeds: dict[str, torch.Tensor] = {}
    too_big: list[str] = []
    for name, make in encoders(folder, options.device, absent).items():
        variant = partial(run_to_the_end, make(), pixels)
        try:
            for _ in range(3):  # compiles, chooses kernels, fills the allocator
                embeds[name] = torch.nn.functional.normalize(variant().double())
            variants[name] = variant
        except torch.OutOfMemoryError:
            too_big.append(name)
    times = interleaved_times(variants, options.rounds, settle=True, limit=options.seconds)
    return {
        "ms": {name: round(statistics.median(seconds) * 1e3, 3) for name, seconds in times.items()},
        "images_per_s": {name: round(batch_size / statistics.median(seconds)) for name, seconds in times.items()},
        "runs": min(len(seconds) for seconds in times.values()),
        "difference_to_transformers": {
            name: float(f"{1 - (value * embeds['transformers, sdpa']).sum(dim=-1).min().item():.1e}")
            for name, value in embeds.items()
        },
        "out_of_memory": too_big,
    }


def measure_all(options: Any, absent: dict[str, str]) -> list[Case]:
    """Measure every model with every batch size that `options.only` chooses."""
    cases: list[Case] = []
    for name, batch_size in product(MODELS, BATCH_SIZES):
        case = f"{name}-bfloat16-{batch_size}"
        if options.only in case:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                write_model(folder, "Siglip", MODELS[name])
                side = MODELS[name].get("vision_config", {}).get("image_size", 224)
                cases.append({"case": case, **measure(folder, side, batch_size, absent, options)})
            print_rows(cases, len(cases) - 1)
            gc.collect()
            torch.cuda.empty_cache()
    return cases
