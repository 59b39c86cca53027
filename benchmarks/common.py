"""The common parts of all benchmarks: options, the load, interleaved timing, fresh processes, results as JSON."""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

import twinlens

MB = 10**6  # bytes
MIB = 2**20  # bytes
THREADS = 2
MOST_OTHER_CORES = 0.1  # that other processes may keep busy while something is measured

Case = dict[str, Any]  # one measurement, as it stands in the JSON
Key = TypeVar("Key", bound=Hashable)


def option_parser(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the script's docstring, with the options that all scripts have."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--noisy", action="store_true", help="measure although other processes are busy")
    return parser


def cpu_seconds() -> tuple[float, float]:
    """Return the seconds for which all cores were busy since the start of the machine, and those of this process.

    Those of its children are counted when they have ended. Linux only.
    """
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]  # without guests, which are in the others
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, fields)
    busy = user + nice + system + interrupts + soft_interrupts + stolen
    return busy / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


class Load:
    """How busy other processes are: one second before a measurement, while it lasts, and one second after it."""

    def __init__(self) -> None:
        self.before = self.now()
        self._begin = (time.perf_counter(), *cpu_seconds())

    @staticmethod
    def _since(begin: tuple[float, float, float]) -> float:
        wall, busy, own = (now - then for now, then in zip((time.perf_counter(), *cpu_seconds()), begin, strict=True))
        return round(max(0.0, busy - own) / wall, 2)

    @classmethod
    def now(cls) -> dict[str, float]:
        """Return the load average of the last minute, and the cores that others keep busy for a second."""
        begin = (time.perf_counter(), *cpu_seconds())
        time.sleep(1)
        return {"average": round(os.getloadavg()[0], 2), "other_cores": cls._since(begin)}

    def require_quiet(self) -> None:
        """Exit unless other processes leave the machine alone.

        The load average is no reason to: it still remembers the benchmark that ran before.
        """
        if self.before["other_cores"] > MOST_OTHER_CORES:
            raise SystemExit(
                f"Other processes keep {self.before['other_cores']} cores busy, and at most {MOST_OTHER_CORES} may be "
                f"(load average {self.before['average']}). Wait, or pass --noisy to measure all the same."
            )

    def as_json(self) -> dict[str, Any]:
        """Return all three."""
        return {
            "load_before": self.before,
            "load_during": {"other_cores": self._since(self._begin)},
            "load_after": self.now(),
        }


def parse_options(parser: argparse.ArgumentParser, cases: Iterable[str] = ()) -> argparse.Namespace:
    """Return the options with the load of the machine, `load`; exit where it is too high, unless with `--noisy`.

    `cases` are the names of which `--only` chooses some; exit where it chooses none.
    """
    options = parser.parse_args()
    names = list(cases)
    if names and not any(options.only in name for name in names):
        parser.error(f"--only {options.only!r} is a part of no case's name. The cases are {', '.join(names)}.")
    options.load = Load()
    if not options.noisy:
        options.load.require_quiet()
    return options


def interleaved_times(
    variants: Mapping[Key, Callable[[], object]],
    rounds: int,
    *,
    settle: bool = False,
    warm_up: bool = True,
    limit: float = float("inf"),
) -> dict[Key, list[float]]:
    """Return the seconds of each run of each variant.

    A round runs every variant once, in an order that turns by one every round; an unmeasured round comes first, unless
    `warm_up` is false. With `settle`, each variant runs in its turn once unmeasured, while the threads of the one
    before go to sleep, and then twice measured. After `limit` seconds no further round begins; one is always measured.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in variants}
    names = list(variants)
    begin = time.perf_counter()
    for turn in range(0 if warm_up else 1, rounds + 1):
        if turn > 1 and time.perf_counter() - begin > limit:
            break
        for position in range(len(names)):
            name = names[(turn + position) % len(names)]
            if settle:
                variants[name]()
            for _ in range(2 if settle else 1):
                start = time.perf_counter()
                variants[name]()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def interleaved_seconds(
    variants: Mapping[Key, Callable[[], object]], rounds: int, *, settle: bool = False
) -> dict[Key, float]:
    """Return the median seconds of each variant: see `interleaved_times`."""
    times = interleaved_times(variants, rounds, settle=settle)
    return {name: statistics.median(measured) for name, measured in times.items()}


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


def processor_name() -> str:
    """Return what the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def print_rows(cases: Sequence[Case], first: int) -> None:
    """Print the cases from the place `first` on as lines, with the names of the columns before the very first one."""
    if first == 0 and cases:
        print(*cases[0], sep="\t")
    for case in cases[first:]:
        print(*case.values(), sep="\t", flush=True)


def write_results(options: argparse.Namespace, cases: object, *packages: str, **more: object) -> None:
    """Write the cases, the versions of twinlens, torch, transformers and `packages`, the load, and `more`.

    `options` are those of `parse_options`; without `--json` nothing is written.
    """
    if options.json is None:
        return
    environment = {
        "twinlens": twinlens.__version__,
        **installed_versions("torch", "transformers", *packages),
        "python": platform.python_version(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    results = {"environment": environment, **options.load.as_json(), **more, "cases": cases}
    options.json.write_text(json.dumps(results, indent=1) + "\n")
