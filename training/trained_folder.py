"""The folder that a run leaves: weights, processor, report, curves and card."""

import json
import math
import platform
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .._version import __version__
from ..formats.atomic import complete_or_absent
from ..processing import DualEncoderProcessor
from ..processing.sentence_transformers import save_sentence_transformers_files
from .card import training_card
from .curves import draw_curves
from .plan import TrainingPlan
from .stages import Stage
from .trainer import ContrastiveTrainer

WORK_FOLDER = ".training"  # in the output folder; hidden, so that `twinlens push` does not upload it


def save_trained_folder(
    plan: TrainingPlan,
    trainer: ContrastiveTrainer,
    model: Any,
    processor: DualEncoderProcessor,
    output: Path,
    metrics: dict[str, float],
    stages: Sequence[Stage],
) -> None:
    """Write the files of the model beside the folder of checkpoints, each of them whole, the card last."""
    if plan.lora_rank:
        model = model.merge_and_unload()
    report = _report(plan, trainer, metrics, stages)
    result = output / WORK_FOLDER / "result"
    with complete_or_absent(result, overwrite=True) as (partial,):
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        save_sentence_transformers_files(model.config, processor, partial)
        content = json.dumps(report, indent=2, allow_nan=False) + "\n"
        (partial / "training.json").write_text(content, encoding="utf-8")
        draw_curves(report["history"], partial / "training_curves.png")
        card = training_card(report, stages, model.config, processor)
        (partial / "README.md").write_text(card, encoding="utf-8")
    for file in sorted(result.iterdir(), key=lambda path: path.name == "README.md"):
        file.replace(output / file.name)
    result.rmdir()


def _report(
    plan: TrainingPlan, trainer: ContrastiveTrainer, metrics: Mapping[str, float], stages: Sequence[Stage]
) -> dict[str, Any]:
    """Return what `training.json` holds."""
    zero_shot = trainer.zero_shot
    return {
        "plan": asdict(plan),
        "updates": trainer.state.global_step,
        "processes": trainer.args.world_size,
        "seconds": round(sum(stage.seconds for stage in stages), 1),
        "stages": [asdict(stage) for stage in stages],
        "data": {
            "pairs": count(trainer.train_dataset),
            "eval_pairs": count(trainer.eval_dataset),
            "zero_shot_images": count(zero_shot.images) if zero_shot else None,
            "zero_shot_classes": len(zero_shot.class_texts) if zero_shot else None,
        },
        "metrics": _json_numbers(metrics),
        "skipped": skipped_pairs(trainer),  # pairs that could not be read
        "history": [_json_numbers(entry) for entry in trainer.state.log_history],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions on which the result of a run depends."""
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"twinlens": __version__, **packages, "python": platform.python_version()}


def skipped_pairs(trainer: ContrastiveTrainer) -> int:
    """Return the number of pairs that could not be read."""
    return getattr(trainer.train_dataset, "skipped", 0)


def count(data: object) -> int | None:
    """Return the number of samples, None for a stream and where there is no data."""
    return len(data) if isinstance(data, Sized) else None


def _json_numbers(entry: Mapping[str, float]) -> dict[str, float | None]:
    """Return the numbers with None for those that are not finite, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }
