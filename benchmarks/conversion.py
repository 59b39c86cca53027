"""Peak memory and time of `twinlens convert`, beside copying and hashing the same file, in one interleaved run.

    python benchmarks/conversion.py [--json FILE] [--rounds 3] [--only so400m] [--scratch FOLDER]

Writes SigLIPs with random values as big_vision does (float32 .npz: B/16-224 and So400m/14-384); that takes 11 GB of
disk. Memory is VmHWM of a fresh process that runs the command and nothing else; its bar is 1.3 times the larger of the
two files plus 600 MB without verification, and twice the larger with it. A round runs the conversion without
verification, and the copy (to the disk, with fsync) with sha256 of what was copied; the ratio is that of the medians,
the bar 2. Beside it stands the ratio without what Python takes to start and import. Of So400m the verification alone
takes minutes.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

TOWERS = {  # grid, patch; width, layers, heads, MLP of either tower
    "siglip-b16-224": (14, 16, 768, 12, 12, 3072),
    "siglip-so400m14-384": (27, 14, 1152, 27, 16, 4304),
}
VOCABULARY, LENGTH = 32_000, 64
MB = 1e6


def names_and_shapes(grid: int, patch: int, width: int, layers: int, heads: int, mlp: int) -> Iterator[tuple]:
    """What a released file of big_vision holds."""
    head, norm = (heads, width // heads), {"scale": (width,), "bias": (width,)}
    attention = {f"{part}/{name}": shape for part in ("query", "key", "value") for name, shape in
                 (("kernel", (width, *head)), ("bias", head))}  # fmt: skip
    attention |= {"out/kernel": (*head, width), "out/bias": (width,)}
    dense = {"Dense_0/kernel": (width, mlp), "Dense_0/bias": (mlp,)}
    dense |= {"Dense_1/kernel": (mlp, width), "Dense_1/bias": (width,)}
    block = {
        "LayerNorm_0": norm,
        "LayerNorm_1": norm,
        "MultiHeadDotProductAttention_0": attention,
        "MlpBlock_0": dense,
    }
    modules: dict[str, dict[str, tuple[int, ...]]] = {
        "": {"t": (1,), "b": (1,)},
        "img/embedding/": {"kernel": (patch, patch, 3, width), "bias": (width,)},
        "img/": {"pos_embedding": (1, grid * grid, width)},
        "img/MAPHead_0/": {"probe": (1, 1, width)},
        "txt/": {"pos_embedding": (1, LENGTH, width)},
        "txt/Embed_0/": {"embedding": (VOCABULARY, width)},
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


def write_source(path: Path, *geometry: int) -> None:
    generator, width = torch.Generator().manual_seed(0), geometry[2]
    arrays: dict[str, np.ndarray] = {}
    for name, shape in names_and_shapes(*geometry):
        values = torch.randn(shape, generator=generator)
        if name.endswith("scale"):
            values = 1 + 0.1 * values
        else:  # small enough that activations stay of order one
            values *= width**-0.5 if name.endswith("kernel") else 0.1
        arrays[name] = values.numpy()
    np.savez(path, **arrays)


def print_own_cost(arguments: list[str]) -> None:
    """Run the command line; print its seconds without imports and the megabytes resident at most.

    Those are not ru_maxrss, which a child inherits.
    """
    from twinlens.cli import app
    from twinlens.conversion import convert  # noqa: F401  # what the command would import otherwise

    start = time.perf_counter()
    app(arguments, standalone_mode=False)
    seconds = time.perf_counter() - start
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(f"seconds, VmHWM {seconds} {int(peak.split()[1]) * 1024 / MB:.0f}")


def convert(source: Path, folder: Path, *options: str) -> tuple[float, float, int]:
    """Seconds from the start of Python on, those after its imports, and megabytes."""
    command = [sys.executable, __file__, "--run", "convert", str(source), str(folder), *options]
    start = time.perf_counter()
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    inside, peak = result.stdout.split()[-2:]
    return time.perf_counter() - start, float(inside), int(peak)


def copy_and_hash(source: Path, target: Path) -> float:
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb+") as stream:
        os.fsync(stream.fileno())
        hashlib.file_digest(stream, "sha256") if sys.version_info >= (3, 11) else hashlib.sha256(stream.read())
    return time.perf_counter() - start


def measure(name: str, scratch: Path, rounds: int) -> dict[str, object]:
    source, folder, copied = scratch / f"{name}.npz", scratch / name, scratch / "copy.npz"
    write_source(source, *TOWERS[name])
    os.sync()
    taken: dict[str, list[float]] = {"convert": [], "inside": [], "copy": []}
    plain = 0
    for _ in range(rounds):
        taken["copy"].append(copy_and_hash(source, copied))
        copied.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        seconds, inside, peak = convert(source, folder, "--no-verify")
        taken["convert"].append(seconds)
        taken["inside"].append(inside)
        plain = max(plain, peak)
    larger = max(source.stat().st_size, (folder / "model.safetensors").stat().st_size) / MB
    verified_seconds, _, verified = convert(source, folder, "--overwrite")
    shutil.rmtree(folder)
    source.unlink()
    seconds, inside, copy = (statistics.median(taken[what]) for what in ("convert", "inside", "copy"))
    return {
        "case": name, "larger_file_mb": round(larger),
        "no_verify_mb": plain, "no_verify_bar_mb": round(1.3 * larger + 600),
        "verify_mb": verified, "verify_bar_mb": round(2 * larger),
        "no_verify_s": round(seconds, 2), "copy_and_hash_s": round(copy, 2), "time_ratio": round(seconds / copy, 2),
        "no_verify_without_imports_s": round(inside, 2), "time_ratio_without_imports": round(inside / copy, 2),
        "verify_s": round(verified_seconds, 1),
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        print_own_cost(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the case's name")
    parser.add_argument("--scratch", type=Path, help="where the files go; a temporary folder unless given")
    options = parser.parse_args()
    cases = []
    for name in TOWERS:
        if options.only in name:
            with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
                cases.append(measure(name, Path(scratch), options.rounds))
            print(json.dumps(cases[-1]), flush=True)
    if options.json:
        packages = ("twinlens", "torch", "transformers", "safetensors", "numpy")
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        machine["threads"] = torch.get_num_threads()
        environment = {**{name: version(name) for name in packages}, **machine}
        options.json.write_text(json.dumps({"environment": environment, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
