"""Peak memory and time of `twinlens convert`, beside copying and hashing the same file, in one interleaved run.

    python benchmarks/conversion.py [--json FILE] [--rounds 3] [--only so400m] [--scratch FOLDER]

Writes SigLIPs with random values as big_vision does (float32 .npz: B/16-224 and So400m/14-384); that takes 11 GB of
disk. Memory is the peak of a fresh process that runs the command and nothing else; the limit that it is held to is 1.3
times the larger of the two files plus 600 MB without verification, and twice the larger with it. A round runs the
conversion without verification, and the copy (to the disk, with fsync) with sha256 of what was copied; the ratio is
that of the medians, the limit 2. Beside it stands the ratio without what Python takes to start and import. Of So400m
the verification alone takes minutes.
"""

import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import (
    MB,
    Case,
    in_fresh_process,
    option_parser,
    parse_options,
    process_arguments,
    resident_bytes,
    write_results,
)

Shape = tuple[int, ...]


class Geometry(NamedTuple):
    """The sizes of a SigLIP whose two towers are alike."""

    grid_size: int  # patches per side
    patch_size: int  # pixels
    width: int
    layers: int
    heads: int
    mlp_width: int
    vocabulary_size: int = 32_000
    text_length: int = 64


MODELS = {
    "siglip-b16-224": Geometry(14, 16, 768, 12, 12, 3072),
    "siglip-so400m14-384": Geometry(27, 14, 1152, 27, 16, 4304),
}
CHUNK_BYTES = 2**20  # read at a time, for the hash


def names_and_shapes(geometry: Geometry) -> Iterator[tuple[str, Shape]]:
    """Yield the arrays of a released big_vision file."""
    grid, patch, width, layers, heads, mlp, vocabulary, length = geometry
    head = (heads, width // heads)
    norm: dict[str, Shape] = {"scale": (width,), "bias": (width,)}
    attention: dict[str, Shape] = {"out/kernel": (*head, width), "out/bias": (width,)}
    for part in ("query", "key", "value"):
        attention |= {f"{part}/kernel": (width, *head), f"{part}/bias": head}
    dense: dict[str, Shape] = {"Dense_0/kernel": (width, mlp), "Dense_0/bias": (mlp,)}
    dense |= {"Dense_1/kernel": (mlp, width), "Dense_1/bias": (width,)}
    block = {
        "LayerNorm_0": norm,
        "LayerNorm_1": norm,
        "MultiHeadDotProductAttention_0": attention,
        "MlpBlock_0": dense,
    }
    modules: dict[str, dict[str, Shape]] = {
        "": {"t": (1,), "b": (1,)},
        "img/embedding/": {"kernel": (patch, patch, 3, width), "bias": (width,)},
        "img/": {"pos_embedding": (1, grid * grid, width)},
        "img/MAPHead_0/": {"probe": (1, 1, width)},
        "txt/": {"pos_embedding": (1, length, width)},
        "txt/Embed_0/": {"embedding": (vocabulary, width)},
        "txt/head/": {"kernel": (width, width), "bias": (width,)},
    }
    for encoder in ("img/Transformer", "txt/Encoder_0"):
        modules[f"{encoder}/encoder_norm/"] = norm
        for n in range(layers):
            modules |= {f"{encoder}/encoderblock_{n}/{part}/": block[part] for part in block}
    modules |= {f"img/MAPHead_0/{part}/": block[part] for part in block if part != "LayerNorm_1"}
    for module, shapes in modules.items():
        for name, shape in shapes.items():
            yield f"params/{module}{name}", shape


def write_source(path: Path, geometry: Geometry) -> None:
    """Write a big_vision file of random values, small enough that activations stay of order one."""
    generator = torch.Generator().manual_seed(0)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in names_and_shapes(geometry):
        values = torch.randn(shape, generator=generator)
        if name.endswith("scale"):
            values = 1 + 0.1 * values
        else:
            values *= geometry.width**-0.5 if name.endswith("kernel") else 0.1
        arrays[name] = values.numpy()
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy takes any name but `file` and `allow_pickle`


def run_command(arguments: list[str]) -> tuple[float, int]:
    """Run the command line in this process; return its seconds without imports, and the bytes resident at most."""
    from twinlens.cli import app
    from twinlens.conversion import convert  # noqa: F401  # what the command would import otherwise

    start = time.perf_counter()
    app(arguments, standalone_mode=False)
    return time.perf_counter() - start, resident_bytes("VmHWM")


def convert(source: Path, folder: Path, *options: str) -> tuple[float, float, int]:
    """Convert in a fresh process; return its seconds from the start of Python, those after its imports, and its MB."""
    start = time.perf_counter()
    seconds_inside, peak = in_fresh_process(__file__, "convert", source, folder, *options)
    return time.perf_counter() - start, seconds_inside, round(peak / MB)


def copy_and_hash(source: Path, target: Path) -> float:
    """Copy a file to the disk, hash the copy, and return the seconds."""
    start = time.perf_counter()
    shutil.copyfile(source, target)
    digest = hashlib.sha256()
    with target.open("rb+") as stream:
        os.fsync(stream.fileno())
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return time.perf_counter() - start


def measure(name: str, geometry: Geometry, scratch: Path, rounds: int) -> Case:
    """Measure the conversion of one model, with its files in `scratch`."""
    source, folder, copied = scratch / f"{name}.npz", scratch / name, scratch / "copy.npz"
    write_source(source, geometry)
    os.sync()
    copies: list[float] = []
    conversions: list[tuple[float, float, int]] = []
    for _ in range(rounds):
        copies.append(copy_and_hash(source, copied))
        copied.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        conversions.append(convert(source, folder, "--no-verify"))
    larger = max(source.stat().st_size, (folder / "model.safetensors").stat().st_size) / MB
    verified_seconds, _, verified_mb = convert(source, folder, "--overwrite")
    shutil.rmtree(folder)
    source.unlink()
    seconds, seconds_inside = (statistics.median(run[column] for run in conversions) for column in (0, 1))
    copy_seconds = statistics.median(copies)
    return {
        "case": name,
        "larger_file_mb": round(larger),
        "no_verify_mb": max(mb for _, _, mb in conversions),
        "no_verify_limit_mb": round(1.3 * larger + 600),
        "verify_mb": verified_mb,
        "verify_limit_mb": round(2 * larger),
        "no_verify_s": round(seconds, 2),
        "copy_and_hash_s": round(copy_seconds, 2),
        "time_ratio": round(seconds / copy_seconds, 2),
        "no_verify_without_imports_s": round(seconds_inside, 2),
        "time_ratio_without_imports": round(seconds_inside / copy_seconds, 2),
        "verify_s": round(verified_seconds, 1),
    }


def main() -> None:
    """Measure every case, or run the command of `in_fresh_process`."""
    if arguments := process_arguments():
        print(json.dumps(run_command(arguments)))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the case's name")
    parser.add_argument("--scratch", type=Path, help="the folder for the files; a temporary one by default")
    options = parse_options(parser, MODELS)
    cases: list[Case] = []
    for name, geometry in MODELS.items():
        if options.only in name:
            with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
                cases.append(measure(name, geometry, Path(scratch), options.rounds))
            print(json.dumps(cases[-1]), flush=True)
    write_results(options, cases, "safetensors", "numpy")


if __name__ == "__main__":
    main()
