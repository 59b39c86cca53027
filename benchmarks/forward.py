"""Time and memory of a forward pass beside transformers' own classes, in one interleaved run.

    python benchmarks/forward.py [--json FILE] [--rounds 7] [--only siglip-b16-float32-8]

Every case gives both libraries the same weights and images. A round runs each (library, attention) variant once, in an
order that turns by one every round; the ratio is that of the medians, below 1 where twinlens is faster. Peak memory is
that of a fresh process that only loads the model and runs it once.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

MODELS = {"siglip-b16": ("Siglip", {}), "clip-b32": ("CLIP", {})}  # the defaults of the configurations
DTYPES = ("float32", "bfloat16")
BATCHES = (1, 8, 32)
VARIANTS = tuple((library, attention) for library in ("twinlens", "transformers") for attention in ("sdpa", "eager"))


def build(library: str, model: str, dtype: str) -> torch.nn.Module:
    family, settings = MODELS[model]
    package = import_module(library)
    torch.manual_seed(0)
    tower = getattr(package, f"{family}VisionModel")(getattr(package, f"{family}VisionConfig")(**settings))
    return tower.eval().to(getattr(torch, dtype))


def images(batch: int, dtype: str) -> torch.Tensor:
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))


@torch.inference_mode()
def seconds(model: str, dtype: str, batch: int, rounds: int) -> dict[tuple[str, str], list[float]]:
    towers = {library: build(library, model, dtype) for library in ("twinlens", "transformers")}
    towers["transformers"].load_state_dict(towers["twinlens"].state_dict())
    pixel_values = images(batch, dtype)
    taken: dict[tuple[str, str], list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(rounds + 1):
        for position in range(len(VARIANTS)):
            library, attention = VARIANTS[(turn + position) % len(VARIANTS)]
            towers[library].set_attn_implementation(attention)
            start = time.perf_counter()
            towers[library](pixel_values)
            if turn:  # the first round warms up
                taken[library, attention].append(time.perf_counter() - start)
    return taken


def peak_memory(library: str, attention: str, model: str, dtype: str, batch: int) -> int:
    """Megabytes resident at most, in a fresh process."""
    arguments = ("--memory-of", library, attention, model, dtype, str(batch))
    result = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return int(result.stdout)


@torch.inference_mode()
def print_own_peak(library: str, attention: str, model: str, dtype: str, batch: str) -> None:
    tower = build(library, model, dtype)
    tower.set_attn_implementation(attention)
    tower(images(int(batch), dtype))
    # Not ru_maxrss, which a child inherits from the process that started it.
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="a part of the case's name, such as clip-b32 or float32-8")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.memory_of:
        print_own_peak(*options.memory_of)
        return
    cases = []
    for name, model, dtype, batch in (
        (f"{model}-{dtype}-{batch}", model, dtype, batch) for model in MODELS for dtype in DTYPES for batch in BATCHES
    ):
        if options.only not in name:
            continue
        taken = seconds(model, dtype, batch, options.rounds)
        for attention in ("sdpa", "eager"):
            ours, theirs = (statistics.median(taken[library, attention]) for library in ("twinlens", "transformers"))
            memory = [peak_memory(library, attention, model, dtype, batch) for library in ("twinlens", "transformers")]
            cases.append(
                {
                    "case": name, "attention": attention, "twinlens_ms": round(ours * 1e3, 1),
                    "transformers_ms": round(theirs * 1e3, 1), "time_ratio": round(ours / theirs, 3),
                    "twinlens_mb": memory[0], "transformers_mb": memory[1],
                    "memory_ratio": round(memory[0] / memory[1], 3),
                }
            )  # fmt: skip
            print(*cases[-1].values(), sep="\t", flush=True)
    if options.json:
        packages = ("twinlens", "torch", "transformers")
        machine = {"processor": platform.machine(), "threads": 2, "python": platform.python_version()}
        environment = {**{name: version(name) for name in packages}, **machine}
        options.json.write_text(json.dumps({"environment": environment, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
