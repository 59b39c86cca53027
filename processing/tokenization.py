"""The base of the tokenizers: text to ids as the family was trained, however the tokenizer is called."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import BatchEncoding
from transformers.tokenization_utils_base import LARGE_INTEGER, PaddingStrategy, TruncationStrategy
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ..catalogue.download import is_name, suggest_names
from ..messages import quoted
from .shared_pipeline import PipelineOfOneCall, sharing_copy, without_cutting
from .text_input import clean_texts
from .words import WordIds, WordRule

if TYPE_CHECKING:
    from typing_extensions import Self  # part of `typing` from Python 3.11 on

logger = logging.getLogger(__name__)

_NEED_WHOLE_TEXTS = ("return_overflowing_tokens", "is_split_into_words", "stride", "return_length")
_TEXTS_AT_ONCE = 8192  # their encodings, far larger than their ids, are in memory together
_MAX_LENGTH = 1 << 20  # tokens, to which SigLIP's texts are padded
_CUT, _PADDED = "a text was cut", "a text was padded"  # the names of the warnings


class VocabularyNotFoundError(ValueError):
    """A source holds no file with a vocabulary of the family."""


class OfThisProcess(dict[str, Any]):
    """What a tokenizer remembers of its use: its copies and its pickles, and so their hashes, are without it."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class DualEncoderTokenizer(TokenizersBackend):
    """A `tokenizers` pipeline that cuts at the model's length and always ends with end-of-text.

    `truncation=False`, said in the call, is obeyed; no model takes what is longer, SigLIP's apart, which cut it.

    Whatever pipeline the files hold, it is built anew from their vocabulary; saved files carry it, so that plain
    transformers gives the same ids (for CLIP: of text that needs no more of `ftfy` than its repairs of single letters).
    """

    fixed_length = False
    splits_special_tokens = True  # what only looks like a special token stays text
    default_length: int
    _word_rule: WordRule | None = None  # where texts can be read word by word

    def __init__(self, pipeline: Tokenizer, *, model_max_length: int | None = None, **kwargs: Any) -> None:
        self._tokenizer = pipeline
        if model_max_length is None or model_max_length > LARGE_INTEGER:  # the value of files that leave it open
            model_max_length = self.default_length
        if not isinstance(model_max_length, int) or not 1 <= model_max_length <= _MAX_LENGTH:
            raise ValueError(f"model_max_length must be 1 to {_MAX_LENGTH:,} tokens, got {quoted(model_max_length)}.")
        for name in ("add_bos_token", "add_eos_token"):  # either would replace the pipeline's post-processor
            kwargs.pop(name, None)
        kwargs |= {
            "model_max_length": model_max_length,
            "model_input_names": list(type(self).model_input_names),
            "padding_side": "right",
            "split_special_tokens": self.splits_special_tokens,
        }
        super().__init__(**kwargs)
        self.deprecation_warnings = OfThisProcess()  # transformers' and our own warnings that were given
        self._use = OfThisProcess()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> "Self":
        """Load from a folder or a Hub id as transformers does, or by a name of `twinlens list`.

        A name is read as `DualEncoderProcessor.from_pretrained` reads it.
        """
        if is_name(pretrained_model_name_or_path):
            from .processor_loading import part_of_processor  # which imports this module

            return part_of_processor(cls, "tokenizer", pretrained_model_name_or_path, **kwargs)
        with suggest_names(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_file(cls, path: str | Path, **kwargs: Any) -> "Self":
        """Read one file with a vocabulary, in any format of the family, recognised by its content."""
        raise NotImplementedError

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Leave the files to `__init__`: transformers would build its own pipeline from them."""
        return kwargs

    def _add_tokens(self, new_tokens: list[str | AddedToken], special_tokens: bool = False) -> int:
        # transformers registers all special tokens of a folder, and what is registered is cut out of the text: CLIP's
        # padding is "!". The pipeline has registered its own.
        unknown = [token for token in new_tokens if self._tokenizer.token_to_id(str(token)) is None]
        if unknown:
            self._word_rule = None  # they may span words
        return super()._add_tokens(unknown, special_tokens=special_tokens)

    def _patch_mistral_regex(self, tokenizer: Tokenizer, *args: Any, **kwargs: Any) -> Tokenizer:
        return tokenizer  # transformers would ask the Hub whether a large vocabulary is Mistral's

    def _get_padding_truncation_strategies(
        self, padding: Any = False, truncation: Any = None, max_length: int | None = None, **kwargs: Any
    ) -> tuple[PaddingStrategy, TruncationStrategy | None, int | None, dict[str, Any]]:
        """Do what transformers does, but tell a truncation of which the call says nothing, None, from a refused one."""
        padding_strategy, strategy, limit, kwargs = super()._get_padding_truncation_strategies(
            padding, truncation, max_length, **kwargs
        )
        # diffusers asks so for a whole prompt, to tell its user what the model will not see of it.
        is_whole_prompt = padding == "longest" and max_length is None and not self.fixed_length
        is_open = truncation is None and strategy == TruncationStrategy.DO_NOT_TRUNCATE and not is_whole_prompt
        return padding_strategy, None if is_open else strategy, limit, kwargs

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        clean = self.clean
        cuts = add_special_tokens and self.truncation_side == "right"
        if cuts and text_pair is None and not any(kwargs.get(name) for name in _NEED_WHOLE_TEXTS):
            clean = partial(self.clean_for, tokens=min(max_length or self.model_max_length, self.model_max_length))
        texts = clean_texts(text, clean)
        pairs = None if text_pair is None else clean_texts(text_pair, self.clean)
        if truncation_strategy is None and not add_special_tokens:
            truncation_strategy = TruncationStrategy.DO_NOT_TRUNCATE
        is_cut = truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE
        if add_special_tokens and is_cut:
            truncation_strategy = TruncationStrategy.LONGEST_FIRST
            max_length = min(max_length or self.model_max_length, self.model_max_length)
        if add_special_tokens and self.fixed_length:
            if max_length is not None and max_length < self.model_max_length:
                self._warn_padded(max_length)
            padding_strategy = PaddingStrategy.MAX_LENGTH
            max_length = self.model_max_length
            kwargs |= {"padding_side": None, "pad_to_multiple_of": None}
        to_max_length = padding_strategy == PaddingStrategy.MAX_LENGTH
        if texts == [] and not pairs:  # transformers asks for the first of them
            return self._encode_arrays([], max_length or self.model_max_length, to_max_length, return_tensors)
        if (
            isinstance(texts, list)
            and pairs is None
            and list not in map(type, texts)  # pairs of texts, or words
            and add_special_tokens
            and is_cut
            and padding_strategy != PaddingStrategy.DO_NOT_PAD
            and max_length is not None
            and self._needs_only_arrays(return_tensors, **kwargs)
        ):
            return self._encode_arrays(texts, max_length, to_max_length, return_tensors)
        # transformers switches truncation and padding in the pipeline, which other threads are using.
        call = object.__new__(type(self))
        call.__dict__.update(self.__dict__, _tokenizer=PipelineOfOneCall(self._tokenizer))
        encoded = super(DualEncoderTokenizer, call)._encode_plus(
            texts,
            pairs,
            add_special_tokens=add_special_tokens,
            padding_strategy=padding_strategy,
            truncation_strategy=truncation_strategy,
            max_length=max_length,
            return_tensors=return_tensors,
            **kwargs,
        )
        if max_length is not None:
            specials = self.num_special_tokens_to_add(pairs is not None) if add_special_tokens else 0
            self._warn_truncated_encodings(encoded, specials, max_length)
        return encoded

    def _needs_only_arrays(
        self,
        return_tensors: str | None,
        split_special_tokens: bool | None = None,
        return_attention_mask: bool | None = None,
        verbose: bool = True,
        **further_settings: Any,
    ) -> bool:
        """Return whether a call with these settings asks for no more than `_encode_arrays` returns.

        A call for lists does so for SigLIP only: as in transformers, CLIP's come with alignments to the text. Each of
        the `further_settings` (`is_split_into_words`, `stride`, `pad_to_multiple_of`, `return_offsets_mapping`, ...)
        asks for more unless it is None, False or 0, as transformers passes it by default.
        """
        return (
            (return_tensors in ("np", "pt") or (return_tensors is None and self.fixed_length))
            and split_special_tokens in (None, self.split_special_tokens)
            and return_attention_mask is None
            and not any(further_settings.values())
            and self.padding_side == self.truncation_side == "right"
        )

    def _encode_arrays(
        self, texts: list[str], max_length: int, to_max_length: bool, return_tensors: str | None
    ) -> BatchEncoding:
        """Encode many texts without alignments, several times faster, as NumPy arrays, tensors or lists."""
        rows = self._rows(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        if (longest := lengths.max(initial=0)) > max_length:
            self._warn_truncated(longest, max_length)
            rows = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
            lengths = np.minimum(lengths, max_length)
        is_text = np.arange(max_length if to_max_length else min(longest, max_length)) < lengths[:, None]
        ids = np.full(is_text.shape, self.pad_token_id)
        ids[is_text] = np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
        arrays = {"input_ids": ids}
        if "attention_mask" in self.model_input_names:
            arrays["attention_mask"] = is_text.astype(np.int64)
        if return_tensors == "pt":
            return BatchEncoding({name: torch.from_numpy(array) for name, array in arrays.items()})
        if return_tensors == "np":
            return BatchEncoding(arrays)
        return BatchEncoding({name: array.tolist() for name, array in arrays.items()})

    def _rows(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts, with special tokens and of any length."""
        pipeline = without_cutting(self._tokenizer, self.split_special_tokens)
        if self._word_rule is not None and self.split_special_tokens:
            words = self._use.get("words")
            if words is None:
                after_spelling = sharing_copy(pipeline, self.split_special_tokens, steps=())
                words = self._use.setdefault("words", WordIds(self._word_rule, pipeline, after_spelling))
            return words.rows(texts)
        return [
            encoding.ids
            for start in range(0, len(texts), _TEXTS_AT_ONCE)
            for encoding in pipeline.encode_batch_fast(texts[start : start + _TEXTS_AT_ONCE])
        ]

    def _warn_truncated_encodings(self, encoded: BatchEncoding, special_tokens: int, max_length: int) -> None:
        """Warn of the first text that was cut; `special_tokens` is the number of those that surround a whole text."""
        if _CUT in self.deprecation_warnings:
            return
        for encoding in encoded.encodings or ():
            if overflowing := encoding.overflowing:
                # What was cut off comes in parts with special tokens and padding of their own.
                inner = sum(part.special_tokens_mask.count(0) for part in (encoding, *overflowing))
                self._warn_truncated(inner + special_tokens, max_length)
                return

    def _warn_padded(self, max_length: int) -> None:
        is_first = object()
        if self.deprecation_warnings.setdefault(_PADDED, is_first) is is_first:
            logger.warning(
                f"max_length={max_length} has no effect: this model was trained with texts padded to "
                f"{self.model_max_length} tokens, and takes no others."
            )

    def _warn_truncated(self, length: int, limit: int) -> None:
        is_first = object()
        if self.deprecation_warnings.setdefault(_CUT, is_first) is is_first:  # in the first thread that comes here
            logger.warning(
                "A text has %d tokens, and %d are read: %d too many. There is one such warning only.",
                length,
                limit,
                length - limit,
            )

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, *args: Any, **kwargs: Any) -> str:
        if isinstance(token_ids, Mapping):
            token_ids = token_ids["input_ids"]
        if skip_special_tokens and not isinstance(token_ids, int):
            token_ids = self._without_padding(token_ids)
        return super()._decode(token_ids, skip_special_tokens, *args, **kwargs)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or those of many; CLIP's padding is special around a text, a "!" within it."""
        if skip_special_tokens and not isinstance(ids, int):
            tokens = self._tokenizer.get_added_tokens_decoder()
            ids = [index for index in self._without_padding(ids) if index not in tokens or not tokens[index].special]
        return super().convert_ids_to_tokens(ids)

    def _without_padding(self, ids: Sequence[int]) -> Sequence[int]:
        """Return ids without the padding around a text; its token may be a piece of other texts, as CLIP's "!" is."""
        pad, start, end = self.pad_token_id, 0, len(ids)
        while end and ids[end - 1] == pad:
            end -= 1
        if not end or not self._can_end_a_text(ids[end - 1]):
            end = len(ids)
        while start < end and ids[start] == pad:
            start += 1
        if start == end or ids[start] != self.bos_token_id:
            start = 0
        return ids[start:end]

    def _can_end_a_text(self, index: int) -> bool:
        """Return whether padding can follow a piece."""
        return index == self.eos_token_id

    def clean(self, text: str) -> str:
        """Return the text after the part of its cleaning that no `tokenizer.json` can express."""
        return text

    def clean_for(self, text: str, tokens: int) -> str:
        """Return a beginning of the cleaned text that has all of its first `tokens` tokens."""
        return self.clean(text)

    def _save_pretrained(self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        # Under the name of our class plain transformers would build a pipeline of its own, SigLIP's from a file that
        # is not there. Under this name, which all its versions know, it reads the one in tokenizer.json.
        config_file = Path(file_names[0])
        config = json.loads(config_file.read_text(encoding="utf-8"))
        # Otherwise transformers would cut all special tokens out of the text: CLIP's padding is "!".
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
        config_file.write_text(
            json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)
