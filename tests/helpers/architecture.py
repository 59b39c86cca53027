"""The rooms of the package, the floors they stand on and the imports between them, read from the source."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]  # the checkout, which is the package

# From the ground up. A room may import from the floors below its own, and from nothing else.
FLOORS = (
    ("_version", "messages"),
    ("configuration", "catalogue"),
    ("formats", "losses", "runtime"),
    ("processing", "modeling"),
    ("inference", "integration", "parity"),
    ("index", "compat"),
    ("evaluation", "web"),
    ("conversion", "training"),
    ("deployment", "toy_world"),
    ("cli",),
    ("__main__",),
)

# The one way up: methods of models that a user looks for on the model and that are written in a higher room. Each
# imports it in its body, when it is called, or for type checkers alone; the lower room works without the higher one.
DOORS = {
    "modeling/dual_encoder.py": "inference",  # `DualEncoderModel.encode`
    "modeling/pretrained.py": "inference",  # `optimize_for_inference`
    "modeling/towers.py": "inference",  # `ImageClassifier.from_labels`
}


class Import(NamedTuple):
    """An import inside the package."""

    importer: str  # a room, or a module of the root
    imported: str
    place: str  # "room/module.py:line"


def rooms() -> list[str]:
    """Return the names of the rooms: the folders of the checkout that are packages."""
    return sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def installed_packages() -> list[str]:
    """Return the packages that setup.cfg puts into a wheel."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    return settings["options"]["packages"].split()


def sources() -> list[Path]:
    """Return the modules and stubs of the package, those of the root included, relative to the checkout."""
    folders = [ROOT, *(ROOT / room for room in rooms())]
    return sorted(
        path.relative_to(ROOT) for folder in folders for path in folder.glob("*.py*") if path.suffix in (".py", ".pyi")
    )


def absolute_imports() -> list[str]:
    """Return the places where the package imports itself by its full name, as only its users should."""
    return [
        f"{source}:{node.lineno}"
        for source in sources()
        for node in _imports_of(source)
        if any(name.split(".")[0] == "twinlens" for name in _absolute_names(node))
    ]


def imports() -> Iterator[Import]:
    """Find the imports between rooms, those inside functions, under TYPE_CHECKING and in stubs included.

    What the root re-exports does not count: its names are looked up when they are first used. Nor do `DOORS`.
    """
    for source in sources():
        importer = source.parts[0] if len(source.parts) > 1 else source.stem
        if importer == "__init__":
            continue
        for node in _imports_of(source):
            for imported in _relative_names(node, source):
                if imported != importer and DOORS.get(source.as_posix()) != imported:
                    yield Import(importer, imported, f"{source}:{node.lineno}")


def doors() -> dict[str, str]:
    """Return those of `DOORS` that are in use: imported in functions or for type checkers, and nowhere else."""
    found = {}
    for source in map(Path, DOORS):
        at_top = {*parsed(source).body}
        nodes = [node for node in _imports_of(source) if DOORS[source.as_posix()] in _relative_names(node, source)]
        if nodes and not at_top.intersection(nodes):
            found[source.as_posix()] = DOORS[source.as_posix()]
    return found


def import_graph() -> dict[str, list[str]]:
    """Return, for every room, the rooms that it imports from."""
    graph = defaultdict(set)
    for importer, imported, _ in imports():
        graph[importer].add(imported)
    return {room: sorted(graph[room]) for room in rooms()}


@cache
def parsed(source: Path) -> ast.Module:
    """Return the syntax tree of one of `sources`."""
    return ast.parse((ROOT / source).read_text(encoding="utf-8"), str(source))


@cache
def _imports_of(source: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(parsed(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def _absolute_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if node.level == 0 else []


def _relative_names(node: ast.Import | ast.ImportFrom, source: Path) -> list[str]:
    """Return the rooms, or modules of the root, that a relative import in `source` reaches."""
    if isinstance(node, ast.Import) or node.level < len(source.parts):
        return []  # absolute, or within the room
    if node.level > len(source.parts):
        raise ValueError(f"{source}:{node.lineno} imports from outside the package")
    return [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


def family_questions(module: ast.Module, names: frozenset[str]) -> list[str]:
    """Return the comparisons in a module that ask for a family by one of its `names`, where a trait would do.

    They are comparisons with such a string, patterns of `match` with one, and `isinstance` of a family's class.
    """
    return [
        f"line {part.lineno}: {ast.unparse(part)}"
        for node in ast.walk(module)
        for part in _questions_of(node)
        if any(_name_in(inner) in names for inner in ast.walk(part))
    ]


def _questions_of(node: ast.AST) -> list[ast.expr | ast.pattern]:
    match node:
        case ast.Compare():
            return [node]
        case ast.match_case(pattern=pattern):
            return [pattern]
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
            return [classes]
    return []


def _name_in(node: ast.AST) -> object:
    match node:
        case ast.Constant(value=name) | ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None
