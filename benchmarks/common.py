"""The common parts of all benchmarks: options, interleaved timing, memory of fresh processes, results as JSON."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

import twinlens

MB = 10**6  # bytes
MIB = 2**20  # bytes
THREADS = 2

Case = dict[str, Any]  # one measurement, as it stands in the JSON
Key = TypeVar("Key", bound=Hashable)


def option_parser(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the script's docstring, with the option that all scripts have."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return parser


def interleaved_seconds(
    variants: Mapping[Key, Callable[[], object]], rounds: int, *, settle: bool = False
) -> dict[Key, float]:
    """Return the median seconds of each variant.

    A round runs every variant once, in an order that turns by one every round; an unmeasured round comes first. With
    `settle`, each variant runs in its turn once unmeasured, while the threads of the one before go to sleep, and then
    twice measured.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds + 1):
        for position in range(len(names)):
            name = names[(turn + position) % len(names)]
            if settle:
                variants[name]()
            for _ in range(2 if settle else 1):
                start = time.perf_counter()
                variants[name]()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def resident_bytes(what: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the memory of this process: resident now (VmRSS), or at most since it started (VmHWM).

    A child inherits the peak of getrusage (`ru_maxrss`) from the process that started it, but not VmHWM. Linux only.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def in_fresh_process(script: str, *arguments: object) -> Any:
    """Run `script --in-process arguments...` and return the JSON in the last line that it prints."""
    command = [sys.executable, script, "--in-process", *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def process_arguments() -> list[str] | None:
    """Return what `in_fresh_process` gave this process, or None if a person started it."""
    return sys.argv[2:] if sys.argv[1:2] == ["--in-process"] else None


def write_results(path: Path | None, cases: object, *packages: str) -> None:
    """Write the cases, with the versions of twinlens, torch, transformers and `packages`, unless `path` is None."""
    if path is None:
        return
    environment = {
        "twinlens": twinlens.__version__,
        **{name: version(name) for name in ("torch", "transformers", *packages)},
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    path.write_text(json.dumps({"environment": environment, "cases": cases}, indent=1) + "\n")
