"""Load the folder in sys.argv[1] by plain transformers, where twinlens cannot be imported; print findings as JSON.

The second argument is a repository in the cache of the Hub with the same files.
"""

import importlib.abc
import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class WithoutTwinlens(importlib.abc.MetaPathFinder):
    """Refuses the package, wherever it is installed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] == "twinlens":
            raise ModuleNotFoundError(f"No module named {name!r} in this process")
        return None


sys.meta_path.insert(0, WithoutTwinlens())

import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipeline,
)

folder, repository = sys.argv[1:3]
answers = safetensors.torch.load_file(Path(folder, "answers.safetensors"))
inputs = {name: answers[name] for name in ("input_ids", "pixel_values")}
labels, picture = json.loads(Path(folder, "labels.json").read_text()), Image.open(Path(folder, "picture.png"))
trusted: dict[str, Any] = {"trust_remote_code": True}


def error(model: Any, without_gradients: bool = True) -> float:
    """Return the largest difference from the logits of twinlens."""
    with torch.inference_mode(without_gradients):
        return (model.eval()(**inputs).logits_per_image - answers["logits"]).abs().max().item()


def scores(**parts: Any) -> list[float]:
    found = {
        answer["label"]: answer["score"]
        for answer in pipeline("zero-shot-image-classification", **parts)(picture, candidate_labels=labels)
    }
    return [found[label] for label in labels]


model = AutoModel.from_pretrained(folder, **trusted)
processor = AutoProcessor.from_pretrained(folder, **trusted)
found: dict[str, Any] = {
    "classes": [type(part).__name__ for part in (AutoConfig.from_pretrained(folder, **trusted), model, processor)],
    "folder": error(model),
    "repository": error(AutoModel.from_pretrained(repository, **trusted)),
    "zero-shot": error(AutoModelForZeroShotImageClassification.from_pretrained(folder, **trusted)),
    "device_map": error(AutoModel.from_pretrained(folder, device_map="cpu", **trusted)),
    "bfloat16": error(AutoModel.from_pretrained(folder, dtype=torch.bfloat16, **trusted)),
    "half": error(AutoModel.from_pretrained(folder, **trusted).half()),
    "eager": error(AutoModel.from_pretrained(folder, attn_implementation="eager", **trusted)),
    "compiled": error(torch.compile(model, fullgraph=True, backend="aot_eager"), without_gradients=False),
    "scores": scores(model=folder, **trusted),
    "scores of objects": scores(model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor),
    "features": np.shape(pipeline("image-feature-extraction", model=folder, **trusted)(picture)),
}
with tempfile.TemporaryDirectory() as saved:
    model.save_pretrained(saved, max_shard_size="100KB")
    found["saved"] = error(AutoModel.from_pretrained(saved, **trusted))
    classifier = AutoModelForImageClassification.from_pretrained(folder, num_labels=5, **trusted).eval()
    classifier.save_pretrained(saved)
    again = AutoModelForImageClassification.from_pretrained(saved, **trusted).eval()
    with torch.inference_mode():
        one, other = (each(answers["pixel_values"]).logits for each in (classifier, again))
    found["classifier"] = [*one.shape, torch.equal(one, other)]
pairs = {name: value[:2] for name, value in inputs.items()}
model.train()(**pairs, return_loss=True).loss.backward()
found["without gradient"] = [name for name, weight in model.named_parameters() if weight.grad is None]
print(json.dumps(found))
