"""Show mkdocstrings the package: in a checkout of any name, the modules of the root and the rooms as `twinlens`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
SEARCH_PATH = TemporaryDirectory()  # removed when mkdocs ends


def on_startup(**_: Any) -> None:
    """Link what belongs to the package, and nothing else, into a folder that mkdocstrings searches first."""
    package = Path(SEARCH_PATH.name) / "twinlens"
    package.mkdir()
    for path in PROJECT.iterdir():
        if path.suffix in (".py", ".pyi") or (path / "__init__.py").is_file():
            (package / path.name).symlink_to(path)
    sys.path.insert(0, SEARCH_PATH.name)
