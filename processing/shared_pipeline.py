"""A `tokenizers` pipeline that many calls share, each with its own truncation and padding."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from tokenizers import Encoding, Tokenizer


class PipelineOfOneCall:
    """A pipeline as transformers sees it during one call, which may switch truncation and padding as it likes.

    The pipeline itself is shared by all calls, also those of other threads, and stays as it is.
    """

    truncation: dict[str, Any] | None = None
    padding: dict[str, Any] | None = None

    def __init__(self, shared: Tokenizer) -> None:
        self._shared = shared
        self.encode_special_tokens = shared.encode_special_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared, name)

    def enable_truncation(self, **settings: Any) -> None:
        self.truncation = settings

    def enable_padding(self, **settings: Any) -> None:
        self.padding = settings

    def encode_batch(self, texts: list[Any], **settings: Any) -> list[Encoding]:
        """Encode texts, cut and padded as the pipeline itself would if it was switched so."""
        pipeline = without_cutting(self._shared, self.encode_special_tokens)
        encodings = pipeline.encode_batch(texts, **settings)
        if self.truncation is not None:
            limit = self.truncation["max_length"]
            if too_long := [index for index, encoding in enumerate(encodings) if len(encoding) > limit]:
                cutting = sharing_copy(pipeline, self.encode_special_tokens)
                cutting.enable_truncation(**self.truncation)
                cut = cutting.encode_batch([texts[index] for index in too_long], **settings)
                for index, encoding in zip(too_long, cut, strict=True):
                    encodings[index] = encoding
        if self.padding is not None:
            padding = self.padding.copy()
            length, multiple = padding.pop("length"), padding.pop("pad_to_multiple_of")
            if length is None:
                length = max(map(len, encodings), default=0)
            if multiple:
                length += -length % multiple
            for encoding in encodings:
                encoding.pad(length, **padding)
        return encodings


def without_cutting(pipeline: Tokenizer, encode_special_tokens: bool) -> Tokenizer:
    """Return the pipeline, or a copy where it has other settings, which a user may have given it."""
    whole = pipeline.truncation is None and pipeline.padding is None
    if whole and pipeline.encode_special_tokens == encode_special_tokens:
        return pipeline
    return sharing_copy(pipeline, encode_special_tokens)


def sharing_copy(
    pipeline: Tokenizer,
    encode_special_tokens: bool,
    steps: Iterable[str] = ("normalizer", "pre_tokenizer", "post_processor", "decoder"),
) -> Tokenizer:
    """Return a pipeline of these steps and the same vocabulary in memory, without truncation and padding."""
    copy = Tokenizer(pipeline.model)
    for step in steps:
        if (value := getattr(pipeline, step)) is not None:
            setattr(copy, step, value)
    added = (token for _, token in sorted(pipeline.get_added_tokens_decoder().items()))
    for special, tokens in groupby(added, key=lambda token: token.special):
        (copy.add_special_tokens if special else copy.add_tokens)(list(tokens))
    copy.encode_special_tokens = encode_special_tokens
    return copy
