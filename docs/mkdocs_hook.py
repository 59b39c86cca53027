"""Show mkdocstrings the package, in a checkout of any name and without an installation.

It searches a folder `twinlens` of links to the modules and rooms. Where the names of a room are imported on first use,
mkdocstrings gets an `__init__.py` that imports them, made from the stub beside it.
"""

import ast
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
SEARCH_PATH = TemporaryDirectory()  # removed when mkdocs ends


def on_startup(**_: Any) -> None:
    """Put the folder first among those that mkdocstrings searches."""
    package = Path(SEARCH_PATH.name) / "twinlens"
    package.mkdir()
    for path in PROJECT.iterdir():
        if path.suffix in (".py", ".pyi"):
            (package / path.name).symlink_to(path)
        elif (path / "__init__.py").is_file():
            link_room(path, package / path.name)
    sys.path.insert(0, SEARCH_PATH.name)


def link_room(room: Path, target: Path) -> None:
    """Link a room; one with a stub gets an `__init__.py` that imports what the stub names."""
    stub = room / "__init__.pyi"
    if not stub.exists():
        target.symlink_to(room)
        return
    imports = [node for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    target.mkdir()
    for path in room.iterdir():
        # A module such as convert.py would hide the function `convert` that the room exports.
        if not path.name.startswith("__"):
            (target / (f"_{path.name}" if path.stem in names else path.name)).symlink_to(path)
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    lines = [f'"""{docstring}"""', *(import_from(node, names) for node in imports), f"__all__ = {names!r}"]
    (target / "__init__.py").write_text("\n".join(lines) + "\n", encoding="utf-8")


def import_from(node: ast.ImportFrom, names: list[str]) -> str:
    """Return the line of an import, from the name that its module has below the folder."""
    module = f"_{node.module}" if node.module in names else node.module
    return f"from .{module} import {', '.join(alias.name for alias in node.names)}"
