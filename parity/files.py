"""The files that a certificate vouches for: it holds their hashes, and a changed byte makes it stale."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalogue.download import Progress, file_sha256, resolve_source
from ..formats import FormatError, absolute_path, read_json, readable_errors
from ..formats.folder_files import PROOF, describe_file, loaded_files
from ..formats.reader import weight_files
from ..messages import listed, shown


@dataclass(frozen=True)
class FileCheck:
    """The files of a folder, and perhaps its source, against the hashes in `parity.json`; nothing was computed."""

    folder: Path
    files: tuple[str, ...]  # the names of those that were compared
    faults: tuple[str, ...]  # in words, by name

    @property
    def passed(self) -> bool:
        return not self.faults

    def describe(self) -> str:
        """Return the result in a sentence."""
        if self.passed:
            return f"{PROOF} is of these {len(self.files)} files, byte for byte: {', '.join(self.files)}."
        return f"{PROOF} is stale, and proves nothing about {self.folder}: {listed(self.faults)}."

    def to_dict(self) -> dict[str, Any]:
        """Return the result ready for JSON."""
        return {"verdict": "pass" if self.passed else "stale", "files": [*self.files], "faults": [*self.faults]}


def describe_files(folder: Path) -> tuple[dict[str, Any], ...]:
    """Return name, size and hash of each file that decides what a folder computes, for its certificate."""
    return tuple(describe_file(folder / name) for name in loaded_files(folder))


def verify_files(
    folder: str | Path, source: str | Path | None = None, *, progress: Progress = lambda step: None
) -> FileCheck:
    """Compare the files of a converted folder, and those of `source` where one is given, with `parity.json`.

    This takes as long as reading them. `source` is a file, a folder, or a name of the catalogue. Raises
    FileNotFoundError without a `parity.json`, FormatError for one that cannot be read or whose verdict is not "pass".
    """
    folder = absolute_path(folder)
    with readable_errors(folder):
        proof = read_json(folder / PROOF)
    if proof is None:
        raise FileNotFoundError(f"{folder} has no {PROOF}, expected a folder that twinlens convert wrote and verified.")
    if proof.get("verdict") != "pass":
        raise FormatError(f"{folder}: the verdict in {PROOF} is {shown(proof.get('verdict'))}, expected pass.")
    progress("comparing hashes")
    with readable_errors(folder):
        faults = stale_files(folder, proof)
    if source is not None:
        path, _ = resolve_source(source, progress=progress)
        with readable_errors(source):
            hashes = sorted(map(file_sha256, weight_files(path)))
        stated = proof.get("source")
        if hashes != sorted(_hashes(stated.get("files") if isinstance(stated, Mapping) else None).values()):
            faults.append(f"{source} is not the source that was measured")
    return FileCheck(folder, tuple(loaded_files(folder)), tuple(faults))


def stale_files(folder: Path, proof: Mapping[str, Any]) -> list[str]:
    """Return in words what is not as it was when the certificate `proof` of a folder was made.

    Only files of the folder are opened, whatever the certificate names.
    """
    stated, present = _hashes(proof.get("files")), loaded_files(folder)
    if not stated:
        return ["it has no hashes of the files that were measured"]
    changed = [name for name in present if name in stated and file_sha256(folder / name) != stated[name]]
    return [
        *(f"{name} was changed" for name in changed),
        *(f"{name} was added" for name in present if name not in stated),
        *(f"{shown(name)} is missing" for name in stated if name not in present),
    ]


def _hashes(files: object) -> dict[str, str]:
    """Return the hashes in a list of `describe_files` by name; nothing of a list that is none."""
    entries = [entry for entry in files if isinstance(entry, Mapping)] if isinstance(files, list) else []
    return {str(entry.get("name")): str(entry.get("sha256")) for entry in entries}
