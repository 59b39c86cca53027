"""The code in the folder of a model that transformers has no class for: this package's own, as flat files.

With it, `AutoModel.from_pretrained(folder, trust_remote_code=True)` works where twinlens is not installed. The loader
of such code finds the files that a module imports as `from .name import`, and no others. So each room becomes one file,
with what the classes of the family need of it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from textwrap import indent
from typing import NamedTuple

from .._version import __version__
from .families import Family, family_of, loader_of

_PACKAGE = Path(__file__).parent.parent
# What only twinlens itself has a use for. A class that is left out gives its place as a base to its own bases.
_LEFT_OUT = {
    "AcceptsFormerNames",
    "DualEncoderConfig.from_pretrained",
    "DualEncoderModel.class_for",
    "DualEncoderModel.encode",
    "DualEncoderModel.from_towers",
    "ImageClassifier.from_labels",
    "LoadableModel.optimize_for_inference",
    "LoadableModel.restore",
    "LoadsOfficialFiles",
    "SavesNumbers",
    "StrictConfig.from_pretrained",
    "StrictConfig.save_pretrained",
    "TextTower.text_model",
    "VisionTower.vision_model",
}
_HEADS = {  # how the names of a dual encoder's classes end, by Auto class
    "AutoModel": "Model",
    "AutoModelForZeroShotImageClassification": "Model",
    "AutoModelForImageClassification": "ForImageClassification",
}
_HEADER = '''\
# Written by twinlens {version} from its modules in {room}/. Change them there, not here.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""{title}: {room}."""
'''
_MAX_LINE = 120


def auto_map(model_type: str) -> dict[str, str]:
    """Return what `config.json` says of the files of `remote_code`: for each Auto class, a file and a class in it."""
    family, name = family_of(model_type), str(loader_of(model_type)).removesuffix("Model")
    heads = _HEADS if model_type == family.model_type else {"AutoModel": "Model"}
    classes = {"AutoConfig": ("configuration", "Config"), **{auto: ("modeling", head) for auto, head in heads.items()}}
    return {auto: f"{_file_name(room, family)}.{name}{suffix}" for auto, (room, suffix) in classes.items()}


@lru_cache
def remote_code(model_type: str) -> dict[str, str]:
    """Return the files, text by name, with which transformers loads a model: the same for a family and its towers.

    Raises ValueError for code that cannot be made flat.
    """
    family = family_of(model_type)
    bundle = _Bundle(family)
    dual_encoder = family.model.removesuffix("Model")
    for name in (family.vision_model, *(dual_encoder + head for head in _HEADS.values())):
        bundle.require(_module("modeling/__init__"), name)
    return {f"{_file_name(room, family)}.py": bundle.text_of(room) for room in bundle.imports}


def _file_name(room: str, family: Family) -> str:
    return f"{room}_{family.model_type}"


class _Import(NamedTuple):
    """`from module import name as alias`; without a name, `import module as alias`."""

    module: str
    name: str
    alias: str
    for_types: bool  # stands under `if TYPE_CHECKING`


class _Module:
    """A module of this package: what the names at its top level stand for."""

    def __init__(self, path: str) -> None:
        self.path = path  # such as modeling/towers
        self.room = path.partition("/")[0]
        source = (_PACKAGE / f"{path}.py").read_text(encoding="utf-8")
        self.lines = [*source.splitlines(), ""]
        self.statements = ast.parse(source).body
        self.definitions = {name: statement for statement in self.statements for name in _defined_names(statement)}
        self.imports: dict[str, _Import] = {}  # from other packages, by the name here
        self.relative: dict[str, str] = {}  # the modules of this package from which names come
        self.earlier: list[str] = []  # of those, the ones that are imported before this one
        for statement in self.statements:
            for node in ast.walk(statement):
                if isinstance(node, ast.ImportFrom) and node.level:
                    self._add_relative(node, at_top=node is statement)
                elif isinstance(node, ast.Import | ast.ImportFrom) and (node is statement or _is_for_types(statement)):
                    module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
                    for alias in node.names:
                        found = (module, alias.name) if module else (alias.name, "")
                        bound = alias.asname or alias.name.partition(".")[0]
                        self.imports[bound] = _Import(*found, alias.asname or "", node is not statement)

    def _add_relative(self, node: ast.ImportFrom, *, at_top: bool) -> None:
        if node.module is None or any(alias.asname for alias in node.names):
            raise ValueError(f"{self.path}.py has an import without a flat form: {ast.unparse(node)}.")
        path = Path(self.path).parents[node.level - 1].joinpath(*node.module.split("."))
        source = (path / "__init__" if (_PACKAGE / path).is_dir() else path).as_posix()
        self.relative |= {alias.name: source for alias in node.names}
        self.earlier += [source] if at_top else []

    def home_of(self, name: str) -> "_Module":
        """Return the module that defines a name of this one, or that imports it from another package."""
        return _module(self.relative[name]).home_of(name) if name in self.relative else self

    def text_of(self, node: ast.stmt, dropped: list[ast.stmt | ast.expr], header: str | None = None) -> str:
        """Return a statement with the comment above it, without those `dropped` in it, perhaps with another header."""
        numbers = {*self._numbers(node)}
        for one in dropped:
            after = self._numbers(one).stop
            numbers -= {*self._numbers(one), *([] if self.lines[after - 1] else [after])}  # and an empty line below
        lines = [header if header and number == node.lineno else self.lines[number - 1] for number in sorted(numbers)]
        return "\n".join(lines).rstrip()

    def _numbers(self, node: ast.stmt | ast.expr) -> range:
        """Return the numbers of the lines of a node and of the comment above it."""
        start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        while self.lines[start - 2].lstrip().startswith("#"):
            start -= 1
        return range(start, (node.end_lineno or start) + 1)


_module = lru_cache(_Module)


class _Bundle:
    """The definitions that the classes of a family need, and what they import, room by room."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.imports: dict[str, set[_Import]] = {}  # by room
        self.texts: dict[_Module, dict[ast.stmt, str]] = {}  # of definitions, without what is left out

    def require(self, module: _Module, name: str) -> None:
        """Add what a name stands for in a module, and what its definition needs in turn."""
        home = module.home_of(name)
        texts = self.texts.setdefault(home, {})
        imports = self.imports.setdefault(home.room, set())
        if home.room != module.room:
            self.imports[module.room].add(_Import(f".{_file_name(home.room, self.family)}", name, "", False))
        if name in home.imports:
            imports.add(home.imports[name])
        elif (statement := home.definitions.get(name)) and statement not in texts:
            texts[statement] = self._flat_text(home, statement)
            used_names = dict.fromkeys(_used_names(ast.parse(texts[statement])))  # in the same order every time
            for used_name in used_names:
                self.require(home, used_name)

    def _flat_text(self, module: _Module, statement: ast.stmt) -> str:
        """Return the text of a definition without what is left out, and without inner imports of this package."""
        dropped: list[ast.stmt | ast.expr] = [
            node for node in ast.walk(statement) if isinstance(node, ast.ImportFrom) and node.level
        ]
        header = None
        match statement:
            case ast.ClassDef(name=name, body=body):
                dropped += [node for node in body if f"{name}.{getattr(node, 'name', '')}" in _LEFT_OUT]
                if any(ast.unparse(base) in _LEFT_OUT for base in statement.bases):
                    header = f"class {name}({', '.join(_bases(module, statement))}):"
            case ast.If(body=body):
                dropped += [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
            case ast.Assign(targets=[ast.Name(id="_FAMILIES")], value=ast.Tuple(elts=families)):
                own_config = f"config={self.family.config.__name__},"
                dropped += [family for family in families if own_config not in ast.unparse(family)]
        return module.text_of(statement, dropped, header)

    def text_of(self, room: str) -> str:
        """Return the file of a room. Modules stand in the order in which they are imported."""
        modules: dict[_Module, None] = {}  # in the order in which they are imported
        for module in self.texts:
            _add_in_order(module, room, modules)
        header = _HEADER.format(room=room, title=self.family.title, version=__version__)
        blocks = [f"{header}\n{_import_lines(self.imports[room])}\n\n"]
        texts: dict[str, str] = {}  # of definitions, by name
        for module in modules:
            blocks += [f"# {module.path}.py\n"] if self.texts.get(module) else []
            for statement, text in sorted(self.texts.get(module, {}).items(), key=lambda item: item[0].lineno):
                names = [*_defined_names(statement)]
                if any(texts.get(name, text) != text for name in names):
                    raise ValueError(f"{room}/ has two definitions of {names[0]}, and one file has place for one.")
                if names[0] not in texts:  # otherwise a logger, which several modules define alike
                    is_long = isinstance(statement, ast.ClassDef | ast.FunctionDef)
                    blocks.append(f"\n{text}\n\n" if is_long else f"{text}\n")
                texts |= dict.fromkeys(names, text)
        return re.sub(r"\n{4,}", "\n\n\n", "\n".join(blocks)).rstrip() + "\n"


def _add_in_order(module: _Module, room: str, modules: dict[_Module, None]) -> None:
    """Add a module of a room, behind those of the room that are imported before it."""
    if module.room == room and module not in modules:
        for path in module.earlier:
            _add_in_order(_module(path), room, modules)
        modules[module] = None


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _defined_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement at the top level of a module defines; not those that it only imports."""
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            yield statement.name
        case ast.Assign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
        case ast.If():
            for inner in statement.body + statement.orelse:
                yield from _defined_names(inner)
        case ast.Try():  # an import that another version of a package does not have
            for inner in statement.handlers[0].body:
                yield from _defined_names(inner)


def _used_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names in code, and those of types in quotes."""
    for node in ast.walk(tree):
        types = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("cast", "TypeVar"):
            types += [*node.args, *(keyword.value for keyword in node.keywords)]
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            types.append(node.value)
        for constant in (inner for part in types if part for inner in ast.walk(part)):
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                yield from _used_names(ast.parse(constant.value, mode="eval"))


def _bases(module: _Module, statement: ast.ClassDef) -> Iterator[str]:
    """Yield the bases of a class; in place of one that is left out, its own."""
    for name in map(ast.unparse, statement.bases):
        home = module.home_of(name)
        if name in _LEFT_OUT and isinstance(left_out := home.definitions[name], ast.ClassDef):
            yield from _bases(home, left_out)
        else:
            yield name


def _import_lines(imports: set[_Import]) -> str:
    """Return import statements: the standard library, other packages, files beside this one, and those for types."""
    needed = {one for one in imports if not one.for_types}
    for_types = {one for one in imports if one.for_types and one._replace(for_types=False) not in needed}
    if for_types:
        needed.add(_Import("typing", "TYPE_CHECKING", "", for_types=False))
    local = {one for one in needed if one.module.startswith(".")}
    standard = {one for one in needed if one.module.partition(".")[0] in sys.stdlib_module_names}
    groups = ["\n".join(_statements(group)) for group in (standard, needed - standard - local, local) if group]
    if for_types:
        groups.append("if TYPE_CHECKING:\n" + indent("\n".join(_statements(for_types)), "    "))
    return "\n\n".join(groups)


def _statements(imports: set[_Import]) -> Iterator[str]:
    """Yield import statements, one for all names that a module has without an alias, in isort's order."""
    names: dict[tuple[bool, str, str], list[str]] = {}
    for one in sorted(
        imports, key=lambda one: (not one.name.isupper(), not one.name[:1].isupper(), one.name.casefold())
    ):
        names.setdefault((bool(one.name), one.module, one.alias), []).append(one.name)
    for (has_names, module, alias), group in sorted(names.items()):
        suffix = f" as {alias}" if alias else ""
        line = f"from {module} import {', '.join(group)}{suffix}" if has_names else f"import {module}{suffix}"
        yield (
            line
            if len(line) <= _MAX_LINE
            else "\n".join([f"from {module} import (", *(f"    {name}," for name in group), ")"])
        )
