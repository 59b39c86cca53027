"""Check what a wheel and a source distribution hold: python .ci/check_distributions.py FOLDER"""

import sys
import tarfile
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
ROOT_FILES = {"__init__.py", "__init__.pyi", "__main__.py", "_version.py", "compat.py", "messages.py", "py.typed"}
OTHER_FOLDERS = {".ci", ".github", "benchmarks", "docs", "notebooks", "tests", "tools"}
HIDDEN_FILES = {".gitignore", ".pre-commit-config.yaml"}


def files_below(folder: Path) -> set[str]:
    """Return the files of a folder, relative to the project, without what running them leaves behind."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in {".pyc", ".pyo"})
    return {path.relative_to(PROJECT).as_posix() for path in paths if ".ipynb_checkpoints" not in path.parts}


def package_files() -> set[str]:
    """Return the root's modules and all files of every folder that is a sub-package."""
    rooms = [path.parent for path in PROJECT.glob("[!.]*/__init__.py") if path.parent.name not in OTHER_FOLDERS]
    return ROOT_FILES.union(*(files_below(room) for room in rooms))


def differences(name: str, actual: set[str], expected: set[str]) -> list[str]:
    """Return a line for every file that is missing from or not expected in an archive."""
    missing = [f"{name}: {path} is missing" for path in sorted(expected - actual)]
    return missing + [f"{name}: {path} does not belong there" for path in sorted(actual - expected)]


def check_wheel(path: Path) -> list[str]:
    """A wheel holds the package and its metadata, and nothing else."""
    names = zipfile.ZipFile(path).namelist()
    metadata = f"{'-'.join(path.name.split('-')[:2])}.dist-info/"
    package = {name for name in names if not name.startswith(metadata)}
    return differences(path.name, package, {f"twinlens/{file}" for file in package_files()})


def check_source(path: Path) -> list[str]:
    """A source distribution holds the package and the other folders; what setuptools adds at the root may vary."""
    with tarfile.open(path) as archive:
        files = {
            name.split("/", 1)[1] for name in archive.getnames() if "/" in name and archive.getmember(name).isfile()
        }
    expected = (package_files() | HIDDEN_FILES).union(*(files_below(PROJECT / folder) for folder in OTHER_FOLDERS))
    in_folders = {file for file in files if "/" in file and not file.startswith("twinlens.egg-info/")}
    return differences(path.name, in_folders | (files & (ROOT_FILES | HIDDEN_FILES)), expected)


def main() -> None:
    """Check the only wheel and the only source distribution of a folder."""
    folder = Path(sys.argv[1])
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    faults = check_wheel(wheel) + check_source(source)
    if faults:
        sys.exit("\n".join(faults))
    print(f"{wheel.name} holds the package's {len(package_files())} files and nothing else; {source.name} is complete.")


if __name__ == "__main__":
    main()
