"""What the page answers: HTML and pictures, made from what was typed and uploaded. Knows nothing of Gradio."""

import os
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image
from typing_extensions import Self

from ..index import Searcher, SearchResult, Thumbnail, make_thumbnail, make_thumbnails
from ..index.originals import THUMBNAIL_SIDE, split_member
from ..index.page import show_picture, to_html
from ..inference import ZeroShotClassifier, load_exact_model, load_processor, probabilities
from ..inference.zero_shot import DEFAULT_TEMPLATE
from ..messages import printable
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.image_formats import open_formats
from ..processing.image_input import READ_ERRORS, open_image

_GREY = (128, 128, 128)
_ROW_SIDE = 96  # pixels of the pictures beside a table
_LABEL_SETS = 16  # whose embeddings are kept

FilePath = str | os.PathLike[str]
Picture = tuple[Image.Image, str]  # with its caption


class Answers:
    """Answers about images, which are files, by one model; and from an index, if there is one.

    Whatever a file or a label is called, the HTML shows it as text. Methods raise ValueError, in words for
    the one who asks, for a missing or unreadable image and for missing texts.
    """

    def __init__(
        self, model: DualEncoderModel, processor: DualEncoderProcessor, searcher: Searcher | None = None
    ) -> None:
        """Take a model and, for the search, a searcher of it."""
        self.model, self.processor, self.searcher = model, processor, searcher
        self._classifier = lru_cache(maxsize=_LABEL_SETS)(self._make_classifier)

    @classmethod
    def open(cls, model: FilePath, index: FilePath | None = None, tokenizer: FilePath | None = None) -> Self:
        """Load a model, and open an index that was embedded by its weights. Raises ValueError where it was not."""
        if index is not None:
            searcher = Searcher.open(index, model, tokenizer)
            return cls(searcher.model.optimize_for_inference(), searcher.processor, searcher)
        processor = load_processor(str(model), None if tokenizer is None else str(tokenizer))
        return cls(load_exact_model(str(model)).optimize_for_inference(), processor)

    def classify(self, image: FilePath | None, labels: str, template: str = DEFAULT_TEMPLATE) -> str:
        """Return a list with a bar for each label, the best first; `labels` has one on each line."""
        opened = _open(image)
        classifier = self._classifier(tuple(_lines(labels, "label")), template.strip() or DEFAULT_TEMPLATE)
        rows = [
            f"<li><span>{to_html(entry['label'])}</span><b>{entry['score']:.2%}</b>"
            f'<i style="width:{entry["score"]:.2%}"></i></li>'
            for entry in classifier(opened)
        ]
        alone = classifier.scores == "sigmoid"
        note = "Every label is scored by itself." if alone else "The scores add up to 100%."
        return f'<ol class="twinlens-bars">{"".join(rows)}</ol><p class="twinlens-note">{note}</p>'

    def _make_classifier(self, labels: tuple[str, ...], template: str) -> ZeroShotClassifier:
        return ZeroShotClassifier(self.model, self.processor, labels, [template])

    def compare(self, images: Sequence[FilePath] | None, texts: str) -> str:
        """Return a table: a row for each image, a column for each text, which has one on each line."""
        if not images:
            raise ValueError("No image yet: add one or several.")
        opened, columns = [_open(image) for image in images], _lines(texts, "text")
        image_embeds = self.model.encode(opened, self.processor, kind="image")
        text_embeds = self.model.encode(columns, self.processor, kind="text")
        cosines = image_embeds @ text_embeds.t()  # (images, texts)
        shares = probabilities(self.model, self.model.logits(image_embeds, text_embeds).detach()).tolist()
        lowest, highest = float(cosines.min()), float(cosines.max())
        # From no colour to 70% of it, on which text can still be read.
        tints = ((cosines - lowest) / max(highest - lowest, 1e-6) * 70).tolist()
        head = "".join(f'<th scope="col">{to_html(text)}</th>' for text in columns)
        body = "".join(
            f'<tr><th scope="row">{show_picture(make_thumbnail(picture, _ROW_SIDE), Path(image).name)}</th>'
            + "".join(
                f'<td style="--tint:{tint:.0f}%">{cosine:.3f}<small>{share:.1%}</small></td>'
                for cosine, tint, share in zip(*row, strict=True)
            )
            + "</tr>"
            for image, picture, *row in zip(images, opened, cosines.tolist(), tints, shares, strict=True)
        )
        alone = self.model.traits.loss == "sigmoid"
        return (
            f'<div class="twinlens-table"><table><tr><td></td>{head}</tr>{body}</table></div><p class="twinlens-note">'
            "The cosine of image and text; the colour reaches from the lowest to the highest of the table. Below it "
            f"the probability of the text: {'each by itself' if alone else 'those of an image add up to 100%'}.</p>"
        )

    def search_text(self, text: str, top: int = 20) -> list[Picture]:
        """Return the images of the index that fit a text, the best first, with score and name as their caption."""
        searcher = self._searcher()
        if not text.strip():
            raise ValueError("No text yet: say in words what to find.")
        return _pictures(searcher.nearest(searcher.embed_text(text), top))

    def search_image(self, image: FilePath | None, top: int = 20) -> list[Picture]:
        """Return the images of the index that are like another one, as `search_text` does."""
        searcher = self._searcher()
        return _pictures(searcher.nearest(searcher.embed_image(_open(image)), top))

    def _searcher(self) -> Searcher:
        if self.searcher is None:
            raise ValueError("There is no index to search in.")
        return self.searcher


def _open(image: FilePath | None) -> Image.Image:
    if image is None:
        raise ValueError("No image yet: add one.")
    try:
        return open_image(Path(image).read_bytes())
    except READ_ERRORS as error:
        raise ValueError(f"{Path(image).name}: {error}") from error


def _lines(text: str, kind: str) -> list[str]:
    """Return the lines that say something, each once."""
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise ValueError(f"No {kind} yet: write one on each line.")
    return lines


def _pictures(results: Sequence[SearchResult]) -> list[Picture]:
    thumbnails = make_thumbnails([result.path for result in results])
    return [_picture(result, thumbnail) for result, thumbnail in zip(results, thumbnails, strict=True)]


def _picture(result: SearchResult, thumbnail: Thumbnail) -> Picture:
    file, member = split_member(result.path)
    caption = f"{result.score:.3f} {printable(Path(member or file).name)}"
    if thumbnail.jpeg:
        return open_formats(BytesIO(thumbnail.jpeg)), caption
    return Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE), _GREY), f"{caption}: {printable(thumbnail.problem)}"
