"""Image towers of the official sizes beside other libraries, in one interleaved run.

    python benchmarks/towers.py [--json FILE] [--rounds 5] [--seconds 8] [--only siglip-b16-float32-8] [--all]
    python benchmarks/towers.py --device cuda [--json FILE] [--rounds 20] [--only siglip-so400m14-384]

Every library has the same random weights and the same images, on two threads: pixels to projected embeddings. A library
that is not installed is left out, with a line that says so. A median is over at most `--rounds` rounds, after one that
warms up; no further round begins after `--seconds`. L/14 with 32 images takes minutes, and is measured with `--all`.
The error is 1 minus the cosine to the embedding in float64, of the worst of four images.

Before the towers comes their roofline: the best rate of a matrix product of their sizes that any of the libraries
reaches; the share of a tower is its rate over that.

With `--device cuda` the towers of SigLIP B/16-224 and So400m/14-384 are measured in bfloat16, with up to 512 images.
Where there is no GPU, that is what the results say.
"""

import gc
import statistics
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gpu_towers
import peers
import torch
from common import THREADS, Case, interleaved_times, option_parser, parse_options, print_rows, write_results
from inputs import CLIP_L14_TEXT, CLIP_L14_VISION, ONE_LAYER, Sizes, random_images, write_model
from peers import Encode, ImageFeatures, compiled
from products import best_products
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import twinlens

# The family, and the sizes that are not its configuration's defaults. Texts are not measured: one layer is enough.
MODELS: dict[str, tuple[str, Sizes]] = {
    "clip-b32": ("CLIP", {"text_config": ONE_LAYER}),
    "siglip-b16": ("Siglip", {"text_config": ONE_LAYER}),
    "clip-l14": (
        "CLIP",
        {"vision_config": CLIP_L14_VISION, "text_config": CLIP_L14_TEXT | ONE_LAYER, "projection_dim": 768},
    ),
}
DTYPES = ("float32", "bfloat16")
BATCH_SIZES = (1, 8, 32)
SLOW = ("clip-l14-float32-32", "clip-l14-bfloat16-32")  # measured with --all only
FIXED = ("transformers, compiled", "ONNX Runtime", "OpenVINO")  # are made for one number of images
COMPARED = 4  # images that are computed in float64 too


def reference(folder: Path, pixels: Tensor) -> tuple[Tensor, float]:
    """Return the embeddings in float64, and the operations an image takes, both from transformers' eager model."""
    model = ImageFeatures(peers.to_transformers(folder, "eager", torch.float64))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embeds = model(pixels.double())
    return embeds, counter.get_total_flops() / len(pixels)


def load_encoders(name: str, folder: Path, dtype: torch.dtype, absent: dict[str, str]) -> dict[str, Encode]:
    """Return the encoders for any number of images that are installed and compute in this dtype."""
    theirs = peers.to_transformers(folder, "sdpa", dtype)
    encoders: dict[str, Encode] = {
        "twinlens, optimised": ImageFeatures(peers.to_twinlens(folder, dtype).optimize_for_inference()),
        "twinlens": ImageFeatures(peers.to_twinlens(folder, dtype)),
        "transformers, sdpa": ImageFeatures(theirs),
        "transformers, eager": ImageFeatures(peers.to_transformers(folder, "eager", dtype)),
    }
    if "open_clip" not in absent:
        encoders["open_clip"] = peers.to_open_clip(folder, dtype).encode_image
    if "openai-clip" not in absent and MODELS[name][0] == "CLIP":
        encoders["openai-clip"] = peers.to_openai_clip(folder, dtype).encode_image
    return encoders


def fixed_encoders(folder: Path, dtype: torch.dtype, batch_size: int, absent: dict[str, str]) -> dict[str, Encode]:
    """Return the encoders that are made for one batch size."""
    torch.compiler.reset()
    encoders = {"transformers, compiled": compiled(ImageFeatures(peers.to_transformers(folder, "sdpa", dtype)))}
    file = folder / "image.onnx"
    if file.exists() and "ONNX Runtime" not in absent and dtype == torch.float32:
        encoders["ONNX Runtime"] = peers.onnx_runtime_encoder(file, batch_size)
    if file.exists() and "OpenVINO" not in absent:
        encoders["OpenVINO"] = peers.openvino_encoder(file, batch_size, dtype)
    return encoders


@torch.no_grad()
def measure(
    case: str, encoders: dict[str, Encode], pixels: Tensor, dtype: torch.dtype, expected: Tensor, options: Any
) -> Case:
    """Measure one batch. What the libraries return when they warm up is compared.

    Those that take any number of images warm up with a few: at big batches that saves a third of the time.
    """
    inputs = {name: pixels if name in ("ONNX Runtime", "OpenVINO") else pixels.to(dtype) for name in encoders}
    errors = {
        name: peers.worst_error(encode(inputs[name][: None if name in FIXED else COMPARED]), expected)
        for name, encode in encoders.items()
    }
    variants = {name: partial(encode, inputs[name]) for name, encode in encoders.items()}
    times = interleaved_times(variants, options.rounds, settle=len(pixels) == 1, warm_up=False, limit=options.seconds)
    return {
        "case": case,
        "ms": {name: round(statistics.median(seconds) * 1e3, 2) for name, seconds in times.items()},
        "runs": min(len(seconds) for seconds in times.values()),
        "error": {name: float(f"{error:.1e}") for name, error in errors.items()},
    }


def measure_model(
    name: str, folder: Path, chosen: list[tuple[str, int]], absent: dict[str, str], options: Any
) -> list[Case]:
    """Measure the chosen dtypes and batch sizes of one model."""
    write_model(folder, *MODELS[name])
    side = twinlens.DualEncoderConfig.from_pretrained(folder).vision_config.image_size
    expected, flops = reference(folder, random_images(side, COMPARED))
    if not {"ONNX Runtime", "OpenVINO"} <= absent.keys():
        peers.export_onnx(peers.to_transformers(folder, "sdpa", torch.float32), folder / "image.onnx")
    cases: list[Case] = []
    for dtype_name in dict.fromkeys(dtype for dtype, _ in chosen):
        dtype = getattr(torch, dtype_name)
        encoders = load_encoders(name, folder, dtype, absent)
        for batch_size in (batch for chosen_dtype, batch in chosen if chosen_dtype == dtype_name):
            pixels = random_images(side, max(batch_size, COMPARED))[:batch_size]  # the first images are always the same
            all_encoders = encoders | fixed_encoders(folder, dtype, batch_size, absent)
            case = measure(f"{name}-{dtype_name}-{batch_size}", all_encoders, pixels, dtype, expected, options)
            cases.append({**case, "gflop": round(flops * batch_size / 1e9, 2)})
            print(
                case["case"], *(f"{variant} {ms:,.1f} ms" for variant, ms in case["ms"].items()), sep="; ", flush=True
            )
            del all_encoders
            gc.collect()
    return cases


def main() -> None:
    """Measure every case."""
    parser = option_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="5, or 20 on a GPU")
    parser.add_argument("--seconds", type=float, default=8, help="begin no further round of a case after this time")
    parser.add_argument("--only", default="", help="a part of the case's name, such as clip-b32 or float32-8")
    parser.add_argument("--all", action="store_true", help="measure L/14 with 32 images, too")
    names = [f"{name}-{dtype}-{batch_size}" for name, dtype, batch_size in product(MODELS, DTYPES, BATCH_SIZES)]
    names += [
        f"{name}-bfloat16-{batch_size}" for name, batch_size in product(gpu_towers.MODELS, gpu_towers.BATCH_SIZES)
    ]
    options = parse_options(parser, names)
    torch.set_num_threads(THREADS)
    absent = peers.missing_peers()
    options.rounds = options.rounds or (20 if options.device == "cuda" else 5)
    if options.device == "cuda":
        gpu, reason = (torch.cuda.get_device_name(), None) if torch.cuda.is_available() else (None, "no GPU")
        print(f"not measured: {reason}" if reason else f"on {gpu}", flush=True)
        cases = [] if reason else gpu_towers.measure_all(options, absent)
        write_results(options, cases, *peers.VERSIONS, gpu=gpu, not_measured={"all": reason} if reason else absent)
        return
    products = [case for dtype in DTYPES for case in best_products(dtype, absent)]
    print_rows(products, 0)
    cases = []
    for name in MODELS:
        chosen = [
            (dtype, batch_size)
            for dtype, batch_size in product(DTYPES, BATCH_SIZES)
            if options.only in (case_name := f"{name}-{dtype}-{batch_size}") and (options.all or case_name not in SLOW)
        ]
        if chosen:
            with tempfile.TemporaryDirectory() as folder:
                cases += measure_model(name, Path(folder), chosen, absent, options)
    write_results(options, cases, "numpy", *peers.VERSIONS, products=products, not_measured=absent)


if __name__ == "__main__":
    main()
