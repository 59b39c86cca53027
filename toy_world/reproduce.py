"""Train the two small checkpoints that ship from random weights: `python -m twinlens.toy_world.reproduce FOLDER`."""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers

from .._version import __version__
from ..conversion import convert, export
from ..conversion.export import Format
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..training import ContrastiveCollator, ContrastiveTrainer, ContrastiveTrainingArguments
from .dataset import ShapesDataset
from .evaluation import evaluate
from .recipe import RECIPES, Recipe

FILES: dict[str, tuple[str, Format]] = {
    "siglip": ("siglip-shapes.npz", "big_vision"),
    "clip": ("clip-shapes.pt", "openai"),
}


def reproduce(family: str, folder: Path, *, updates: int | None = None) -> dict[str, Any]:
    """Train, write the official file and a report beside it, and return the report.

    The metrics are those of the official file, converted again, so that the rounding of its dtypes is included.
    """
    recipe = RECIPES[family]
    updates = updates or recipe.updates
    file, format = FILES[family]
    start, cpu = time.perf_counter(), time.process_time()
    trainer = _train(recipe, updates)
    report: dict[str, Any] = {
        "updates": updates,
        "pairs": updates * recipe.batch_size,
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "cpu_minutes": round((time.process_time() - cpu) / 60, 1),
        "threads": torch.get_num_threads(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        trainer.model.save_pretrained(Path(scratch, "trained"))
        export(Path(scratch, "trained"), folder / file, format=format, overwrite=True)
        vocabulary = recipe.vocabulary_file()
        convert(folder / file, Path(scratch, "converted"), tokenizer=vocabulary)
        model = DualEncoderModel.from_pretrained(Path(scratch, "converted"))
        report["metrics"] = evaluate(model, DualEncoderProcessor.from_pretrained(Path(scratch, "converted")))
    report["loss"] = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    report["versions"] = {
        "twinlens": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
    report["machine"] = platform.machine()
    (folder / file).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _train(recipe: Recipe, updates: int) -> ContrastiveTrainer:
    model = recipe.model()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ContrastiveTrainingArguments(
            output_dir=scratch,
            max_steps=updates,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.warmup_updates,
            weight_decay=recipe.weight_decay,
            adam_beta2=recipe.adam_beta2,
            max_grad_norm=1.0,  # this and the next setting are those with which the files that ship were made
            duplicates_as_negatives=True,
            logging_steps=max(1, updates // 60),
            save_strategy="no",
            use_cpu=True,
        )
        trainer = ContrastiveTrainer(
            model=model,
            args=arguments,
            train_dataset=ShapesDataset("train", updates * recipe.batch_size),  # each pair is used once
            data_collator=ContrastiveCollator(recipe.processor()),
        )
        trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path, help="the folder to write the files into; it is created if it is new")
    parser.add_argument("--family", choices=list(RECIPES), help="the family to train; both by default")
    parser.add_argument("--updates", type=int, help="the number of updates, to try it out with fewer")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for family in [options.family] if options.family else RECIPES:
        report = reproduce(family, options.folder, updates=options.updates)
        print(family, json.dumps(report["metrics"], indent=1))


if __name__ == "__main__":
    main()
