"""Processes of their own, forked from one that has imported what takes seconds to import."""

import inspect
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["twinlens.conversion.convert", "twinlens.training.run", "twinlens.cli"])


def start(function: Callable[..., None], *arguments: Any, output: Path) -> BaseProcess:
    """Call a function of a module in a process of its own that prints into a file.

    It ends with the exit code of a program that does nothing else.
    """
    process = FORKED.Process(target=_run, args=(inspect.getfile(function), function.__name__, arguments, output))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for its exit code: minus the number of the signal for one that was killed."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"more than {seconds} s")
    return process.exitcode


def run_command(*arguments: Any, output: Path) -> tuple[int, list[str]]:
    """Run the command line in a process of its own; give its exit code, and all lines that it printed."""
    code = finish(start(_command, list(map(str, arguments)), output=output))
    return code, output.read_text().splitlines()


def _command(arguments: Iterable[str]) -> None:
    from twinlens.cli import main

    sys.argv = ["twinlens", *arguments]
    main()


def _run(file: str, name: str, arguments: tuple[Any, ...], output: Path) -> None:
    """Find the function by its file, for what its module is called differs between pytest's import modes."""
    opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(opened, stream)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
    try:
        spec = spec_from_file_location(Path(file).stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        getattr(module, name)(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
