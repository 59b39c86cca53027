"""What a job is: `EmbedPlan`, as a caller says it, and its settings in `job.json`, on which all of its runs agree."""

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..formats import read_json
from ..formats.nested import flattened
from ..inference import Embedder, load_exact_model, load_processor
from .layout import JOB_FILE, write_json
from .sources import Source
from .weights import weights_fingerprint

Dtype = Literal["float32", "bfloat16"]
VectorDtype = Literal["float32", "float16"]
Engine = Literal["local", "ray"]

# On the CPU a shard takes about a minute, which is what a kill can cost; an accelerator would drown in small files.
SHARD_SIZES = {"cpu": 1024, "accelerator": 16_384}
BATCH_SIZES = {"cpu": 32, "accelerator": 256}
NOT_COMPARED = ("model", "dim", "optimization")  # in job.json: what the same weights have in common, or what was chosen
_HASH = re.compile("[0-9a-f]{64}")
WAIT_SECONDS = 0.5  # between two looks at what other processes have written


@dataclass(frozen=True)
class EmbedPlan:
    """What to embed, how, and where to. Raises ValueError for a setting that cannot be."""

    model: str
    sources: Sequence[str]
    out: str | os.PathLike[str]
    dtype: Dtype = "float32"  # of the model
    vectors: VectorDtype = "float32"  # in the index
    batch_size: int | None = None  # images; None chooses
    shard_size: int | None = None  # images; None chooses
    device: str | None = None  # None is the accelerator, or the CPU where there is none
    workers: int | None = None  # threads, or actors of Ray; None chooses
    engine: Engine = "local"

    def __post_init__(self) -> None:
        for name, choices in {"dtype": Dtype, "vectors": VectorDtype, "engine": Engine}.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}.")
        for name in ("batch_size", "shard_size", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")


def agree(
    plan: EmbedPlan, source: Source[Any], folder: Path, device: torch.device, *, rank: int = 0, computes: bool = True
) -> tuple[Embedder, dict[str, Any]]:
    """Load the model, and return it with the settings of the job in the folder.

    `device` is where the job computes, and the model goes there if this process `computes` any of it. The first process
    writes the settings where there are none yet. Raises ValueError, with both values, where the plan says something
    else than they do.
    """
    kind = "cpu" if device.type == "cpu" else "accelerator"
    model, processor = load_exact_model(plan.model), load_processor(plan.model, reads_texts=False)
    settings = {
        "model": os.path.abspath(plan.model) if os.path.exists(plan.model) else plan.model,
        "weights": weights_fingerprint(model),
        "image_processor": json.loads(json.dumps(processor.image_processor.to_dict(), default=str)),
        "source": source.describe(),
        "dtype": plan.dtype,
        "vectors": plan.vectors,
        "device": device.type,
        "batch_size": plan.batch_size or BATCH_SIZES[kind],
        "shard_size": plan.shard_size or SHARD_SIZES[kind],
    }
    model = model.to(device if computes else "cpu", getattr(torch, plan.dtype)).eval()
    file = folder / JOB_FILE
    if rank == 0 and not file.exists():
        settings["dim"] = model.encode([], processor, kind="image").shape[1]
        model.optimize_for_inference()
        # The faster way is found by a measurement, which may have another result the next time.
        settings["optimization"] = model.optimization.choices.get("vision_model", {})
        write_json(file, settings)
    while not file.exists():
        time.sleep(WAIT_SECONDS)
    settings = _agreed(read_json(file), settings, folder)
    model.optimize_for_inference(**settings["optimization"])
    return Embedder(model, processor, batch_size=settings["batch_size"]), settings


def _agreed(former: dict[str, Any], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings of the job in the folder. Raises ValueError that has both values where they are others."""
    known, given = (
        flattened({name: value for name, value in each.items() if name not in NOT_COMPARED})
        for each in (former, settings)
    )
    if former["weights"] != settings["weights"]:  # then the model is another one, whose processor tells nothing more
        known["model"], given["model"] = former["model"], settings["model"]
        known, given = ({k: v for k, v in each.items() if k[:15] != "image_processor"} for each in (known, given))
    names = sorted({*known, *given})
    if different := [name for name in names if known.get(name) != given.get(name)]:
        words = "; ".join(
            f"{name} was {_short(known.get(name))} and is {_short(given.get(name))}" for name in different
        )
        raise ValueError(
            f"{folder} has another job: {words}. Start it again with the same settings, or embed into another folder."
        )
    return former


def _short(value: Any) -> str:
    """Return a value as text, of a hash the beginning."""
    return value[:12] if isinstance(value, str) and _HASH.fullmatch(value) else str(value)
