"""Peak memory of a forward pass of an image tower beside transformers' own class, in fresh processes.

    python benchmarks/memory.py [--json FILE] [--only siglip-b16-float32-8]

A process builds a model with random weights and runs it once, on two threads. The peak is that of the whole process,
with its libraries. The ratio is below 1 where twinlens is smaller.
"""

from importlib import import_module
from itertools import product

import torch
from common import (
    MIB,
    THREADS,
    Case,
    in_fresh_process,
    option_parser,
    parse_options,
    print_rows,
    process_arguments,
    resident_bytes,
    write_results,
)
from inputs import random_images
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


@torch.inference_mode()
def peak_mib(library: str, attention: str, model: str, dtype: str, batch_size: int) -> int:
    """Return the MiB resident at most in this process, which builds a tower and runs it once."""
    tower = build(library, model, dtype, attention)
    tower(random_images(tower.config.image_size, batch_size).to(tower.dtype))
    return resident_bytes("VmHWM") // MIB


def measure(model: str, dtype: str, batch_size: int) -> list[Case]:
    """Measure one tower with one batch size, and return a case for each attention."""
    cases: list[Case] = []
    for attention in ATTENTIONS:
        ours, theirs = (
            in_fresh_process(__file__, library, attention, model, dtype, batch_size) for library in LIBRARIES
        )
        cases.append(
            {
                "case": f"{model}-{dtype}-{batch_size}",
                "attention": attention,
                "twinlens_mib": ours,
                "transformers_mib": theirs,
                "memory_ratio": round(ours / theirs, 3),
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
    parser.add_argument("--only", default="", help="a part of the case's name, such as clip-b32 or float32-8")
    names = {"-".join(map(str, settings)): settings for settings in product(MODELS, DTYPES, BATCH_SIZES)}
    options = parse_options(parser, names)
    cases: list[Case] = []
    for name, case_settings in names.items():
        if options.only in name:
            measured = len(cases)
            cases += measure(*case_settings)
            print_rows(cases, measured)
    write_results(options, cases)


if __name__ == "__main__":
    main()
