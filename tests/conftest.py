"""Shared settings: tiny models run fastest on one thread, and nothing reaches for a network."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unchanged_verbosity() -> Iterator[None]:
    """A program, such as the command line, may quieten transformers; a test may not leave it so."""
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
