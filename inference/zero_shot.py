"""Zero-shot classification: images by labels in words, which are encoded once."""

import json
import os
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from ..formats.atomic import complete_or_absent
from ..messages import quoted
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..runtime import check_finite_rows
from .labels import check_labels
from .sources import load_exact_model, load_processor
from .templates import check_templates, class_embeddings, read_templates

Scores = Literal["sigmoid", "softmax", "cosine"]

DEFAULT_TEMPLATE = "This is a photo of {}."  # of transformers' pipeline
_FORMAT = "twinlens-zero-shot-classifier"
_SAME_MODEL = 0.999  # the cosine of a class in another dtype with itself; that of a model trained further is lower


def probabilities(model: DualEncoderModel, logits: Tensor, loss: str | None = None) -> Tensor:
    """Return the probability of every text for every image, from logits (images, texts).

    A model with the sigmoid loss scores each text independently; with the softmax loss the probabilities of an image
    sum to 1. `loss` is that of the model by default.
    """
    return logits.sigmoid() if (loss or model.traits.loss) == "sigmoid" else logits.softmax(dim=-1)


class ZeroShotClassifier:
    """Classifies images by labels in words, as transformers' zero-shot pipeline does; the labels are encoded once.

    The embedding of a label is the mean of those of all `templates`, again of unit length (CLIP, arXiv:2103.00020,
    section 3.1.4): `class_embeds` (labels, dim). It belongs to the weights of that time: after further training, make
    another classifier.
    """

    def __init__(
        self,
        model: DualEncoderModel,
        processor: DualEncoderProcessor,
        labels: Iterable[str],
        templates: str | Iterable[str] = DEFAULT_TEMPLATE,
        *,
        scores: Scores | None = None,
    ) -> None:
        """Encode the labels.

        `templates` are sentences in which `{}` stands for the label, or the name of some: "openai80", the 80 of CLIP's
        paper for ImageNet, or "siglip"; or a text file with one on each line.

        `scores` is "sigmoid" for independent scores from 0 to 1, "softmax" for those that sum to 1 for each image, or
        "cosine"; by default what the model was trained for.

        Raises ValueError for no labels or empty ones, a template without `{}`, and other scores, TypeError for a model
        of another library.
        """
        if scores not in (None, *get_args(Scores)):
            raise ValueError(f"scores must be one of {', '.join(get_args(Scores))} or None, got {scores!r}.")
        if not hasattr(model, "traits"):
            raise TypeError(
                f"Expected a model of twinlens, got {type(model).__name__}: load it with "
                "twinlens.DualEncoderModel.from_pretrained; of a wrapper, pass the model inside."
            )
        self.model, self.processor = model, processor
        self.labels = check_labels(labels)
        self.templates = read_templates(templates) if isinstance(templates, str) else check_templates(templates)
        self.scores: Scores = scores or ("sigmoid" if model.traits.loss == "sigmoid" else "softmax")
        self.class_embeds = class_embeddings(model, processor, self.labels, self.templates)

    def __repr__(self) -> str:
        return f"ZeroShotClassifier({len(self.labels)} labels, {len(self.templates)} templates, scores={self.scores!r})"

    def score(
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        check_finite: bool = True,
    ) -> Tensor:
        """Return the scores (images, labels) in float32, and (labels,) of one image alone.

        `images` are what `model.encode` takes; strings are paths and URLs. Raises ValueError, with the places of the
        images, for NaN or infinity, which `check_finite=False` returns.
        """
        options: Any = {"batch_size": batch_size, "show_progress_bar": show_progress_bar, "check_finite": check_finite}
        embeds = self.model.encode(images, self.processor, kind="image", **options)
        rows = torch.atleast_2d(embeds)
        if self.scores == "cosine":
            scores = rows @ self.class_embeds.t()
        else:
            logits = self.model.logits(rows, self.class_embeds).detach()
            scores = probabilities(self.model, logits, self.scores)
        if check_finite:
            check_finite_rows(scores, "scores of images")
        return scores if embeds.ndim == 2 else scores[0]

    def __call__(
        self,
        images: Any,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        check_finite: bool = True,
    ) -> Any:
        """Return for each image its labels, `{"label": ..., "score": ...}`, the best first; of one image alone, a list.

        Of all labels, `top_k` keeps the best, and `threshold` those with at least this score: none, one or several.
        Raises ValueError for `top_k` that is no whole number or below 1 and for a threshold that is no number, and the
        errors of `score`.
        """
        if top_k is not None and not (isinstance(top_k, Integral) and top_k >= 1):
            raise ValueError(f"top_k must be a whole number of at least 1, got {top_k!r}.")
        if threshold is not None and (isinstance(threshold, str) or threshold != threshold):
            raise ValueError(f"threshold must be a number, got {threshold!r}.")
        options: Any = {"batch_size": batch_size, "show_progress_bar": show_progress_bar, "check_finite": check_finite}
        scores = self.score(images, **options)
        best = torch.atleast_2d(scores).sort(dim=-1, descending=True, stable=True)
        answers = [
            [
                {"label": self.labels[place], "score": value}
                for place, value in zip(places[:top_k], values[:top_k], strict=True)
                if threshold is None or value >= threshold
            ]
            for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return answers if scores.ndim == 2 else answers[0]

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write labels, templates and their embeddings as one `.safetensors` file, for `load`."""
        metadata = {"labels": self.labels, "templates": self.templates, "scores": self.scores}
        with complete_or_absent(Path(file), overwrite=True) as (partial,):
            values = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
            save_file({"class_embeds": self.class_embeds}, partial, {"format": _FORMAT, **values})

    @classmethod
    def load(cls, file: str | os.PathLike[str], model: DualEncoderModel, processor: DualEncoderProcessor) -> Self:
        """Return a classifier that `save` has written, without encoding its labels again.

        One of them is encoded, to see that the file is of this model. Raises ValueError where it is not, and for
        another file.
        """
        labels, templates, scores, embeds = _read_saved(file)
        classifier = cls(model, processor, labels[:1], templates, scores=scores)
        if classifier.class_embeds.shape[1] != embeds.shape[1] or classifier.class_embeds[0] @ embeds[0] < _SAME_MODEL:
            raise ValueError(
                f"{os.fspath(file)} was saved with another model: its embedding of {quoted(labels[0])} is not that of "
                "this one. Make the classifier anew with ZeroShotClassifier(model, processor, labels)."
            )
        classifier.labels, classifier.class_embeds = labels, embeds
        return classifier


def _read_saved(file: str | os.PathLike[str]) -> tuple[list[str], list[str], Scores, Tensor]:
    """Return labels, templates, scores and embeddings that `ZeroShotClassifier.save` wrote; ValueError for others."""
    name = os.fspath(file)
    expected = f"Expected a file of ZeroShotClassifier.save, got {name}"
    if os.path.exists(name) and not os.path.isfile(name):
        raise ValueError(f"{expected}, which is {'a folder' if os.path.isdir(name) else 'no file'}.")
    try:
        with safe_open(name, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError("it is of another format")
            embeds = opened.get_tensor("class_embeds")
        labels, templates, scores = (json.loads(metadata[key]) for key in ("labels", "templates", "scores"))
        if not (isinstance(labels, list) and isinstance(templates, list) and scores in get_args(Scores)):
            raise ValueError("its labels, templates or scores are none")
        labels, templates = check_labels(labels), [*check_templates(templates)]
        if embeds.ndim != 2 or len(embeds) != len(labels):
            raise ValueError(f"its embeddings of {len(labels)} labels have the shape {tuple(embeds.shape)}")
        lengths = embeds.double().norm(dim=1)
        if embeds.dtype != torch.float32 or not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4):
            raise ValueError("its embeddings are not of length 1 in float32")
    except KeyError as error:
        raise ValueError(
            f"Expected a file of ZeroShotClassifier.save, got {name}: it has no {error.args[0]}."
        ) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{expected}: {str(error).removesuffix('.')}.") from error
    return labels, templates, scores, embeds


def classify_images(
    source: str | Path,
    images: Sequence[str | Path],
    labels: Iterable[str],
    *,
    templates: str | Iterable[str] = DEFAULT_TEMPLATE,
    scores: Scores | None = None,
    top_k: int | None = None,
    tokenizer: Path | None = None,
) -> list[list[dict[str, Any]]]:
    """Return what a `ZeroShotClassifier` of the model in `source` answers for images, which are files or URLs.

    `tokenizer` is for a source without a vocabulary. Equal labels have equal scores; with "softmax" each of them takes
    its share, as in transformers' pipeline.
    """
    labels = check_labels(labels)
    model = load_exact_model(source).optimize_for_inference()
    classifier = ZeroShotClassifier(model, load_processor(source, tokenizer), labels, templates, scores=scores)
    answers: list[list[dict[str, Any]]] = classifier([str(image) for image in images], top_k=top_k)
    return answers
