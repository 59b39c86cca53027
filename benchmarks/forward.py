"""Time and memory of a forward pass beside transformers' own classes, in one interleaved run.

    python benchmarks/forward.py [--json FILE] [--rounds 7] [--only siglip-b16-float32-8]

Every case gives both libraries the same weights and images, on two threads. The ratio is that of the median times,
below 1 where twinlens is faster. Peak memory is that of a fresh process that only builds the model and runs it once.
"""

from functools import partial
from importlib import import_module
from itertools import product

import torch
from common import (
    MIB,
    THREADS,
    Case,
    in_fresh_process,
    interleaved_seconds,
    option_parser,
    parse_options,
    process_arguments,
    resident_bytes,
    write_results,
)
from transformers import PreTrainedModel

# The family, and the sizes that are not its configuration's defaults.
MODELS: dict[str, tuple[str, dict[str, int]]] = {"siglip-b16": ("Siglip", {}), "clip-b32": ("CLIP", {})}
DTYPES = ("float32", "bfloat16")
BATCH_SIZES = (1, 8, 32)
LIBRARIES = ("twinlens", "transformers")
ATTENTIONS = ("sdpa", "eager")


def build(library: str, model: str, dtype: str, attention: str) -> PreTrainedModel:
    """Return an image tower with random weights."""
    family, sizes = MODELS[model]
    package = import_module(library)
    torch.manual_seed(0)
    tower: PreTrainedModel = getattr(package, f"{family}VisionModel")(
        getattr(package, f"{family}VisionConfig")(**sizes)
    )
    tower.set_attn_implementation(attention)
    return tower.eval().to(getattr(torch, dtype))


def random_images(tower: PreTrainedModel, batch_size: int) -> torch.Tensor:
    """Return random pixels of the size and dtype of the tower, (batch, 3, side, side)."""
    side = tower.config.image_size
    pixels = torch.randn(batch_size, 3, side, side, generator=torch.Generator().manual_seed(1))
    return pixels.to(tower.dtype)


@torch.inference_mode()
def median_seconds(model: str, dtype: str, batch_size: int, rounds: int) -> dict[tuple[str, str], float]:
    """Return the median seconds of a forward pass of every library with every attention."""
    variants = [(library, attention) for library in LIBRARIES for attention in ATTENTIONS]
    towers = {variant: build(variant[0], model, dtype, variant[1]) for variant in variants}
    weights = towers[variants[0]].state_dict()
    for tower in towers.values():
        tower.load_state_dict(weights, assign=True)
    pixel_values = random_images(towers[variants[0]], batch_size)
    return interleaved_seconds({variant: partial(tower, pixel_values) for variant, tower in towers.items()}, rounds)


@torch.inference_mode()
def peak_mib(library: str, attention: str, model: str, dtype: str, batch_size: int) -> int:
    """Return the MiB resident at most in this process, which builds a tower and runs it once."""
    tower = build(library, model, dtype, attention)
    tower(random_images(tower, batch_size))
    return resident_bytes("VmHWM") // MIB


def measure(model: str, dtype: str, batch_size: int, rounds: int) -> list[Case]:
    """Measure one tower with one batch size, and return a case for each attention."""
    seconds = median_seconds(model, dtype, batch_size, rounds)
    cases: list[Case] = []
    for attention in ATTENTIONS:
        ours, theirs = (seconds[library, attention] for library in LIBRARIES)
        our_mib, their_mib = (
            in_fresh_process(__file__, library, attention, model, dtype, batch_size) for library in LIBRARIES
        )
        cases.append(
            {
                "case": f"{model}-{dtype}-{batch_size}",
                "attention": attention,
                "twinlens_ms": round(ours * 1e3, 1),
                "transformers_ms": round(theirs * 1e3, 1),
                "time_ratio": round(ours / theirs, 3),
                "twinlens_mib": our_mib,
                "transformers_mib": their_mib,
                "memory_ratio": round(our_mib / their_mib, 3),
            }
        )
    return cases


def main() -> None:
    """Measure every case, or one of `in_fresh_process`."""
    torch.set_num_threads(THREADS)
    if arguments := process_arguments():
        library, attention, model, dtype, batch_size = arguments
        print(peak_mib(library, attention, model, dtype, int(batch_size)))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="a part of the case's name, such as clip-b32 or float32-8")
    options = parse_options(parser)
    cases: list[Case] = []
    for case_settings in product(MODELS, DTYPES, BATCH_SIZES):
        if options.only in "-".join(map(str, case_settings)):
            cases += measure(*case_settings, options.rounds)
            for case in cases[-len(ATTENTIONS) :]:
                print(*case.values(), sep="\t", flush=True)
    write_results(options, cases)


if __name__ == "__main__":
    main()
