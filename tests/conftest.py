"""Shared settings: tiny models run fastest on one thread, and nothing reaches for a network.

Functions import torch and transformers, which take seconds and which the process that only shares the tests out
between others (`pytest -n 2`) does not need.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The client libraries have an environment of their own, in which `pytest tests/clients` asks for them.
CLIENTS = Path(__file__).with_name("clients")
_asked = (Path(argument.partition("::")[0]).resolve() for argument in sys.argv[1:])
collect_ignore = [] if any(path.is_relative_to(CLIENTS) for path in _asked) else ["clients"]


def pytest_collection() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


def pytest_collection_finish() -> None:
    """Spare the garbage collector the million objects of the imported modules, which stay until the end."""
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN or the largest integer instead of what happens to lie there."""
    import torch

    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def verbosities() -> dict[Any, int]:
    """Libraries and how much they say, before any test."""
    import huggingface_hub.utils
    import transformers

    return {library: library.get_verbosity() for library in (transformers.logging, huggingface_hub.utils.logging)}


@pytest.fixture(autouse=True)
def unchanged_verbosity(verbosities: dict[Any, int]) -> Iterator[None]:
    """A program, such as the command line, may quieten libraries; a test or its fixtures may not leave it so."""
    yield
    for library, verbosity in verbosities.items():
        library.set_verbosity(verbosity)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled checkpoints, converted, by their names: their folders state the official pixels."""
    from twinlens.conversion import convert

    root = tmp_path_factory.mktemp("converted")
    for name in ("clip-shapes", "siglip-shapes"):
        convert(name, root / name, verify=False)
    return {folder.name: folder for folder in root.iterdir()}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help="All texts, every missing weight, 20,000 damaged files, 20 killed conversions; otherwise a sample.",
    )
    parser.addoption(
        "--every-case",
        action="store_true",
        help="With --thorough: all 2,790 hostile documents, places and settings (otherwise every sixteenth), slow "
        "servers, and 20,000 damages of each kind (otherwise 300). It takes an hour.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let `pytest -n 2` share the tests by work stealing: some take 10 s, most take 10 ms."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: does more, or runs only, under --thorough")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `thorough` unless asked; what takes a sample otherwise is marked now."""
    if not config.getoption("thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    for item in items:
        if "thorough" in getattr(item, "fixturenames", ()):
            item.add_marker("thorough")


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("thorough")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process, as its entry point does: exit code, standard output, standard error."""
    from twinlens import cli

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["twinlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run
