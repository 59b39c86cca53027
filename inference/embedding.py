"""Embeddings of any number of texts or images: what `DualEncoderModel.encode` does."""

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import chain, islice
from numbers import Integral
from typing import Any, TypedDict, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ..catalogue.addresses import is_address
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..processing.image_arrays import highest_float
from ..processing.image_input import ImageItem
from ..processing.text_input import check_encodable
from ..runtime import check_finite_rows, check_ids
from ..runtime.inputs import Kind

BATCH_SIZE = 64
TEXTS_AT_ONCE = 8192  # are tokenized and sorted by length together; an iterator may have any number of them

_PAUSED: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()  # how many calls keep modules out of training mode
_PAUSING = threading.Lock()

_IMAGE_SUFFIX = re.compile(r"\.(avif|bmp|gif|jpe?g|png|tiff?|webp)$", re.IGNORECASE)


class EncodeOptions(TypedDict, total=False):
    """The options of `DualEncoderModel.encode`."""

    batch_size: int | None
    kind: Kind | None
    convert_to_numpy: bool
    show_progress_bar: bool
    check_finite: bool


@torch.no_grad()  # not inference mode: the embeddings may be what a probe learns from
def encode(
    model: DualEncoderModel,
    items: Any,
    processor: Any,
    *,
    batch_size: int | None = None,
    kind: Kind | None = None,
    convert_to_numpy: bool = False,
    show_progress_bar: bool = False,
    check_finite: bool = True,
) -> Any:
    """Do what `DualEncoderModel.encode` says."""
    if not isinstance(processor, DualEncoderProcessor):
        raise TypeError(
            f"Expected a processor of twinlens, got {type(processor).__name__}: load it with "
            "twinlens.DualEncoderProcessor.from_pretrained."
        )
    if batch_size is not None:
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        batch_size = int(batch_size)  # True and NumPy's integers are no sizes for torch
    if kind not in (None, *get_args(Kind)):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))} or None, got {kind!r}.")
    stream = _Items(items, kind)
    if stream.is_empty:
        blank: Any = "" if stream.kind == "text" else Image.new("RGB", (1, 1))
        embeds = encode(model, [blank], processor, check_finite=False)[:0]  # (0, dim)
    else:
        encode_all = _encode_texts if stream.kind == "text" else _encode_images
        settings = {"total": stream.count, "unit": f" {stream.kind}s", "disable": not show_progress_bar}
        with _evaluation_mode(model), tqdm(**settings) as bar:
            parts = encode_all(model, stream, processor, batch_size, bar.update)
            embeds = torch.cat([*(_checked(parts, stream.kind) if check_finite else parts)])
    embeds = embeds[0] if stream.is_one else embeds
    return embeds.numpy() if convert_to_numpy else embeds


class _Items:
    """The items of a call, one after the other and each checked: all of one kind, and none of them missing.

    `highest` is the highest value of a stack of images in floats, which tells the scale of all of them.
    """

    def __init__(self, items: Any, kind: Kind | None) -> None:
        if isinstance(items, np.ndarray) and items.dtype.kind in "OUST":
            items = items.tolist()
        elif hasattr(items, "to_pylist"):  # a column of Arrow
            items = items.to_pylist()
        elif isinstance(items, ImageSequence.Iterator):  # it yields one image again and again, and changes it
            items = (frame.copy() for frame in items)
        is_array = isinstance(items, np.ndarray | Tensor)
        is_stack = is_array and (items.ndim == 4 or tuple(items.shape) == (0,))
        self.highest = highest_float(items) if is_stack else None
        self.is_one = not is_stack and _kind_of(items) is not None
        is_unordered = isinstance(items, Mapping | set | frozenset) or hasattr(items, "columns")
        if not self.is_one and (is_unordered or not (hasattr(items, "__iter__") or hasattr(items, "__getitem__"))):
            raise _unknown("", items)
        items = [items] if self.is_one else items
        self.count = len(items) if isinstance(items, Sized) else None
        iterator = iter(items)
        first = list(islice(iterator, 1))
        self._items = chain(first, iterator)
        self._strings_are_images = kind == "image"
        self.is_empty = not first
        self.kind: Kind = kind or ("image" if self.is_empty else self._decide(first[0]))

    def _decide(self, first: Any) -> Kind:
        kind = _kind_of(first)
        if kind is None:
            raise _unknown(self.name(0, "Item"), first)
        if kind == "text" and _names_an_image(first):
            raise ValueError(
                f"{first!r} names an image, and strings are texts: pass kind='image' (or a pathlib.Path) for images, "
                "kind='text' for the strings themselves."
            )
        return kind

    def name(self, place: int, noun: str) -> str:
        """Return what errors call an item; one alone needs no name."""
        if self.count == 1:
            return ""
        return f"{noun} {place}" if self.count is None else f"{noun} {place} of {self.count}"

    def __iter__(self) -> Iterator[Any]:
        for place, item in enumerate(self._items):
            kind = _kind_of(item)
            if kind is None:
                raise _unknown(self.name(place, "Item"), item)
            if kind != self.kind and not (kind == "text" and self._strings_are_images):
                hint = "; strings are images with kind='image'" if kind == "text" else ""
                raise _wrong(
                    self.name(place, "Item"),
                    f"expected {self.kind}s, got {type(item).__name__}: encode texts and images in a call each{hint}.",
                )
            if kind == self.kind == "text" and not item.isascii():
                check_encodable(item, (place,))
            yield item


def _kind_of(item: Any) -> Kind | None:
    """Return what one item is, and None for what is no item."""
    if isinstance(item, str):
        return "text"
    if isinstance(item, np.ndarray | Tensor):
        return None if item.ndim == 4 else "image"
    is_file = isinstance(item, os.PathLike | bytes | bytearray | memoryview) or hasattr(item, "read")
    is_row = isinstance(item, Mapping) and item.keys() & {"bytes", "path"}  # as `datasets` has an image
    return "image" if is_file or is_row or isinstance(item, Image.Image) else None


def _names_an_image(text: str) -> bool:
    """Return whether a text is what people write for an image: its URL, or the name of an existing file."""
    if is_address(text):
        return not re.search(r"\s", text) and bool(_IMAGE_SUFFIX.search(re.split("[?#]", text)[0]))
    return text.startswith("data:image/") or bool(_IMAGE_SUFFIX.search(text) and os.path.isfile(text))


def _unknown(name: str, item: Any) -> TypeError:
    what, hint = type(item).__name__, "DualEncoderModel.encode says what it takes."
    if item is None or isinstance(item, float):  # as pandas has what is missing
        what, hint = str(item), "leave it out."
    elif isinstance(item, Mapping) or hasattr(item, "columns"):
        hint = "pass one of its columns."
    elif isinstance(item, list | tuple | np.ndarray | Tensor):
        hint = "pass one flat list."
    elif isinstance(item, set | frozenset):
        hint = "it has no order; pass a list."
    return _wrong(name, f"expected a text or an image, got {what}: {hint}")


def _wrong(name: str, problem: str) -> TypeError:
    return TypeError(f"{name}: {problem}" if name else problem[0].upper() + problem[1:])


def _checked(parts: Iterator[Tensor], kind: Kind) -> Iterator[Tensor]:
    """Yield parts of the embeddings. Raises ValueError, with the places of the items, where one is not finite."""
    start = 0
    for part in parts:
        yield check_finite_rows(part, f"embeddings of {kind}s", range(start, start := start + len(part)))


def _encode_images(
    model: DualEncoderModel,
    images: _Items,
    processor: DualEncoderProcessor,
    batch_size: int | None,
    advance: Callable[[int], object],
) -> Iterator[Tensor]:
    """Yield the embeddings of each batch; no image is taken before its batch is computed."""
    named = (ImageItem(image, images.name(place, "Image"), images.highest) for place, image in enumerate(images))

    def batches() -> Iterator[Tensor]:
        while batch := list(islice(named, batch_size or BATCH_SIZE)):
            yield model.encode_image(**processor(images=batch).to(_input_device(model)), check_finite=False)
            advance(len(batch))

    return _to_cpu(batches())


def _encode_texts(
    model: DualEncoderModel,
    texts: _Items,
    processor: DualEncoderProcessor,
    batch_size: int | None,
    advance: Callable[[int], object],
) -> Iterator[Tensor]:
    """Yield the embeddings of `TEXTS_AT_ONCE` texts, or of a larger batch; equal ones among them are encoded once."""
    iterator = iter(texts)
    while window := list(islice(iterator, max(TEXTS_AT_ONCE, batch_size or 0))):
        counts = Counter(window)
        row_of = {text: row for row, text in enumerate(counts)}
        embeds = _encode_distinct(model, counts, processor, batch_size, advance)
        yield embeds[[row_of[text] for text in window]]


def _encode_distinct(
    model: DualEncoderModel,
    counts: Counter[str],
    processor: DualEncoderProcessor,
    batch_size: int | None,
    advance: Callable[[int], object],
) -> Tensor:
    """Return the embeddings (texts, dim) of different texts, each of which counts as progress so many times."""
    inputs = processor(text=list(counts))
    check_ids(model, inputs["input_ids"])  # while they are on the CPU: a GPU that meets a wrong one stops for good
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))  # (texts, length)
    is_padded_to_longest = processor.text_defaults["padding"] == "longest"
    is_cut = is_padded_to_longest or getattr(model.config.text_config, "causal", False)  # that tower leaves out padding
    lengths = mask.sum(dim=1) if is_cut else torch.full((len(mask),), mask.shape[1])
    lengths, order = lengths.sort(descending=True, stable=True)  # first those that need most memory
    progress = torch.tensor([*counts.values()])

    def batches() -> Iterator[Tensor]:
        for rows in order.split(batch_size or _batch_sizes(lengths.tolist())):
            used = mask[rows].any(dim=0) if is_padded_to_longest else slice(None)
            batch = {name: values[rows][:, used].to(_input_device(model)) for name, values in inputs.items()}
            yield model.encode_text(**batch, check_finite=False)
            advance(int(progress[rows].sum()))

    return torch.cat([*_to_cpu(batches())])[order.argsort()]


def _batch_sizes(lengths: Sequence[int]) -> list[int]:
    """Return the sizes of batches of texts, the longest first: of shorter ones as many more as have no more tokens."""
    sizes: list[int] = []
    most = BATCH_SIZE * max(1, lengths[0])  # tokens
    while (start := sum(sizes)) < len(lengths):
        sizes.append(min(most // max(1, lengths[start]), len(lengths) - start))
    return sizes


def _to_cpu(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield batches on the CPU, each after the next one was begun: a GPU computes while the CPU prepares images."""
    last = next(batches)
    for batch in batches:
        yield last.cpu()
        last = batch
    yield last.cpu()


def _input_device(model: DualEncoderModel) -> torch.device:
    """Return where inputs belong. Of a model that is off-loaded, accelerate moves them to where they are needed."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


@contextmanager
def _evaluation_mode(model: DualEncoderModel) -> Iterator[None]:
    """Put a model into evaluation mode, and its modules back into training mode where they were in it.

    Of several calls in threads, the last one does that.
    """
    with _PAUSING:
        training = [module for module in model.modules() if module.training or module in _PAUSED]
        for module in training:
            _PAUSED[module] = _PAUSED.get(module, 0) + 1
        model.eval()
    try:
        yield
    finally:
        with _PAUSING:
            for module in training:
                _PAUSED[module] -= 1
                if not _PAUSED[module]:
                    del _PAUSED[module]
                    module.training = True
