"""What other libraries do with the hostile cases: `cd tests && python -m hostile.others [KIND ...]` prints a table.

They are called as people call them, within the same limits and with the same canary. Any exception counts as a refusal,
however long its text and whatever its type; what of a kind they do not read, they refuse.
With `--ours` twinlens stands beside them.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path

from hostile import trial

Reader = Callable[[str], object]


def torch_load(path: str) -> object:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def safetensors(path: str) -> object:
    from safetensors.torch import load_file

    return load_file(path)


def open_clip(path: str) -> object:
    from open_clip.factory import load_state_dict

    return load_state_dict(path)


def transformers_model(path: str) -> object:
    from transformers import AutoModel

    return AutoModel.from_pretrained(path, local_files_only=True)


def tokenizer_libraries(path: str) -> object:
    if path.endswith(".json"):
        from tokenizers import Tokenizer

        return Tokenizer.from_file(path).encode("a red star")
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=path).encode("a red star")


def pillow(path: str) -> object:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


READERS: dict[str, dict[str, Reader]] = {
    "archives": {"torch.load(weights_only=True)": torch_load, "safetensors": safetensors, "open_clip": open_clip},
    "settings": {"transformers": transformers_model},
    "vocabularies": {"tokenizers, SentencePiece": tokenizer_libraries},
    "images": {"Pillow": pillow},
}


def attempt(reader: Reader, arguments: Iterable[str]) -> str:
    """Give the file of a case to a reader; return "answered", "refused", or what is wrong with how it ended."""
    (path, *_) = (part for part in arguments if "/case-" in part and not part.endswith("/out"))
    try:
        reader(path)
    except MemoryError:
        return "out of memory"
    except Exception as error:  # any is a refusal
        return "out of memory" if "allocate memory" in str(error) else "refused"
    return "answered"


def examine_all(kind: str, library: str, module: str, names: Sequence[str], report: Path) -> None:
    """Do what `trial.examine_all` does, with another library."""
    reader = READERS[kind][library]
    own = trial.attempt

    def with_reader(arguments: Sequence[str]) -> str:  # the suite begins with commands without a case
        return attempt(reader, arguments) if any("/case-" in part for part in arguments) else own(arguments)

    trial.attempt = with_reader  # type: ignore[assignment]
    trial.examine_all(module, names, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=[*READERS], help="archives, settings, vocabularies or images")
    parser.add_argument("--ours", action="store_true", help="measure twinlens, too")
    parser.add_argument("--sample", action="store_true", help="the cases of the default tests, not all")
    options = parser.parse_args()
    print(
        "| kind | library | tried | answered | refused | failed | of these |\n|---|---|---:|---:|---:|---:|---|",
        flush=True,
    )
    for kind in options.kinds:
        module = f"hostile.{kind}"
        cases = import_module(module)
        names = cases.SAMPLE if options.sample else cases.ALL
        names = [name for name, case in cases.cases(names).items() if not case.answer]  # servers are not theirs to ask
        for library in (*["twinlens"] * options.ours, *READERS[kind]):
            given = (trial.examine_all,) if library == "twinlens" else (examine_all, kind, library)
            with tempfile.TemporaryDirectory() as folder:
                found = trial.outcomes(module, names, Path(folder), *given)
            kinds = Counter(_kind_of(outcome) for outcome in found.values())
            failed = {name: count for name, count in kinds.items() if name not in ("answered", "refused")}
            faults = ", ".join(f"{count} {name}" for name, count in sorted(failed.items()))
            numbers = (len(names), kinds["answered"], kinds["refused"], sum(failed.values()))
            print(f"| {kind} | {library} | {' | '.join(map(str, numbers))} | {faults} |", flush=True)


def _kind_of(outcome: str) -> str:
    """Return an outcome in one or two words."""
    if outcome in ("answered", "refused"):
        return outcome
    for word, kind in {
        "killed the process": "killed", "more than": "hung", " MiB for": "memory", "out of memory": "memory",
        "to read": "foreign files", "to write": "files written", "left files": "files written",
        "Popen": "programs", "socket": "network", " s": "time",
    }.items():  # fmt: skip
        if word in outcome:
            return kind
    return "other"


if __name__ == "__main__":
    main()
