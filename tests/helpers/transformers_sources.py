"""transformers' own common tests, taken from the source distribution of the installed version."""

import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock

# Settings every configuration class accepts, each at a value that is not its default.
COMMON_CONFIG_SETTINGS = {
    "architectures": ["SomeModel"],
    "chunk_size_feed_forward": 3,
    "dtype": "float16",
    "id2label": {0: "cat"},
    "label2id": {"cat": 0},
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}

# What the common tests import although the source distribution leaves it out.
STAND_INS: dict[str, dict[str, Any]] = {
    "fetch_hub_objects_for_ci": {"url_to_local_path": str},
    "tests.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "tests.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "tests.utils.test_configuration_utils": {"config_common_kwargs": COMMON_CONFIG_SETTINGS},
}


def transformers_tests() -> Path:
    """Make the installed transformers' tests importable as the package `tests` and return that package's folder.

    The source distribution is downloaded by pip, which checks its hash, once per version into `TWINLENS_TEST_CACHE`
    (default: `~/.cache/twinlens-tests`). Skips the calling module when it is neither there nor to be had.
    """
    release = f"transformers-{version('transformers')}"
    cache = Path(os.environ.get("TWINLENS_TEST_CACHE") or Path.home() / ".cache" / "twinlens-tests")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{release}.lock"):
        if not (cache / release).is_dir():
            _fetch(release, cache)
    for name, contents in STAND_INS.items():
        module = ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module
    warnings.filterwarnings("ignore", category=pytest.PytestUnknownMarkWarning)  # upstream's marks, not ours
    # A package with an `__init__.py` comes before our own folder of that name, which has none, wherever it stands.
    if str(cache / release) not in sys.path:
        sys.path.insert(0, str(cache / release))
    return cache / release / "tests"


def _fetch(release: str, cache: Path) -> None:
    """Unpack the tests of `release` into `cache / release`, which appears only when complete."""
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        requirement = release.replace("-", "==")
        pip = [sys.executable, "-m", "pip", "--quiet", "--retries", "2", "download", "--no-deps"]
        command = [*pip, "--no-binary", "transformers", "--dest", scratch, requirement]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        archive = Path(scratch, f"{release}.tar.gz")
        if not archive.is_file():
            last_line = (answer.stderr.strip() or "no file arrived").splitlines()[-1]
            pytest.skip(f"pip could not download the sources of {requirement}: {last_line}", allow_module_level=True)
        package = Path(scratch, "complete", "tests")
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        with tarfile.open(archive) as members:
            for member in members:
                # Only the bare name is used, so that no member can be written elsewhere.
                path = PurePosixPath(member.name)
                if member.isfile() and path.parent == PurePosixPath(release, "tests") and path.suffix == ".py":
                    source = members.extractfile(member)
                    assert source is not None
                    (package / path.name).write_bytes(source.read())
        package.parent.rename(cache / release)
