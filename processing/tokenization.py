"""Tokenizers: text to ids as each family was trained, however they are called."""

import html
import json
import re
from pathlib import Path
from typing import Any

import ftfy
from tokenizers import AddedToken, Tokenizer, models
from transformers import BatchEncoding
from transformers.tokenization_utils_base import LARGE_INTEGER, PaddingStrategy, TruncationStrategy
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from . import clip_vocabulary
from .siglip_vocabulary import SiglipVocabulary
from .tokenizer_json import read_tokenizer_json


class VocabularyNotFoundError(ValueError):
    """A source holds no file with a vocabulary of the family."""


class DualEncoderTokenizer(TokenizersBackend):
    """A `tokenizers` pipeline that cuts at the model's length and always ends with end-of-text.

    Whatever pipeline the files hold, it is built anew from their vocabulary; saved files carry it, so that plain
    transformers gives the same ids (for CLIP: of text that needs no repair by `ftfy`).
    """

    fixed_length = False
    default_length: int

    def __init__(self, pipeline: Tokenizer, *, model_max_length: int | None = None, **kwargs: Any) -> None:
        self._tokenizer = pipeline
        if model_max_length is None or model_max_length > LARGE_INTEGER:  # how files say that they do not know
            model_max_length = self.default_length
        for name in ("add_bos_token", "add_eos_token"):  # either would replace the pipeline's post-processor
            kwargs.pop(name, None)
        kwargs |= {
            "model_max_length": model_max_length,
            "model_input_names": list(type(self).model_input_names),
            "padding_side": "right",
            "split_special_tokens": True,  # what only looks like a special token stays text, in plain transformers too
        }
        super().__init__(**kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Leave the files to `__init__`: transformers would build its own pipeline from them."""
        return kwargs

    def _add_tokens(self, new_tokens: list[str | AddedToken], special_tokens: bool = False) -> int:
        # transformers registers all special tokens of a folder, and what is registered is cut out of the text: CLIP's
        # padding is "!". The pipeline has registered its own.
        unknown = [token for token in new_tokens if self._tokenizer.token_to_id(str(token)) is None]
        return super()._add_tokens(unknown, special_tokens=special_tokens)

    def _patch_mistral_regex(self, tokenizer: Tokenizer, *args: Any, **kwargs: Any) -> Tokenizer:
        return tokenizer  # transformers would ask the Hub whether a large vocabulary is Mistral's

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        if add_special_tokens:
            truncation_strategy = TruncationStrategy.LONGEST_FIRST
            max_length = min(max_length or self.model_max_length, self.model_max_length)
        if add_special_tokens and self.fixed_length:
            padding_strategy = PaddingStrategy.MAX_LENGTH
            max_length = self.model_max_length
            kwargs |= {"padding_side": "right", "pad_to_multiple_of": None}
        return super()._encode_plus(
            self._clean_all(text),
            self._clean_all(text_pair),
            add_special_tokens=add_special_tokens,
            padding_strategy=padding_strategy,
            truncation_strategy=truncation_strategy,
            max_length=max_length,
            **kwargs,
        )

    def _clean_all(self, text: Any) -> Any:
        if isinstance(text, list | tuple):
            return [self._clean_all(item) for item in text]
        return self.clean(text) if isinstance(text, str) else text

    def clean(self, text: str) -> str:
        """Do what must happen to the text before the pipeline and cannot be said in a `tokenizer.json`."""
        return text

    def _save_pretrained(self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        # At the name of our class plain transformers would build a pipeline of its own, SigLIP's from a file that is
        # not there. At this name, which all its versions know, it reads the one in tokenizer.json.
        config_file = Path(file_names[0])
        config = json.loads(config_file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        config_file.write_text(
            json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)


class CLIPTokenizer(DualEncoderTokenizer):
    """CLIP's byte-level BPE after OpenAI's cleaning of text: start, pieces, end.

    Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, of any age. What follows the end never reaches the
    embedding, so padding is the caller's choice; its token is the folder's, else "!" (id 0) as in OpenAI's code.
    """

    vocab_files_names = {"vocab_file": "vocab.json", "merges_file": "merges.txt", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]
    default_length = 77

    def __init__(
        self,
        tokenizer_file: str | None = None,
        vocab_file: str | None = None,
        merges_file: str | None = None,
        tokenizer_object: Tokenizer | None = None,
        **kwargs: Any,
    ) -> None:
        if tokenizer_object is not None:
            model = tokenizer_object.model
        elif tokenizer_file is not None:
            model = read_tokenizer_json(tokenizer_file).model
        elif vocab_file is not None and merges_file is not None:
            model = models.BPE.from_file(
                vocab_file, merges_file, end_of_word_suffix="</w>", unk_token=clip_vocabulary.END
            )
        else:
            raise VocabularyNotFoundError(
                "expected tokenizer.json, or vocab.json and merges.txt, found neither: "
                "CLIPTokenizer.from_official() has OpenAI's vocabulary"
            )
        start, end = clip_vocabulary.START, clip_vocabulary.END
        tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "!"}
        super().__init__(clip_vocabulary.pipeline(model), **(tokens | kwargs))

    @classmethod
    def from_official(cls, path: str | Path | None = None, **kwargs: Any) -> "CLIPTokenizer":
        """Read OpenAI's `bpe_simple_vocab_16e6.txt.gz`; without a path the copy that is part of this package."""
        return cls(tokenizer_object=Tokenizer(clip_vocabulary.read_official(path)), **kwargs)

    @classmethod
    def from_file(cls, path: str | Path, **kwargs: Any) -> "CLIPTokenizer":
        """Read a `tokenizer.json` or OpenAI's vocabulary, told apart by their content."""
        if Path(path).read_bytes()[:2] == b"\x1f\x8b":
            return cls.from_official(path, **kwargs)
        return cls(tokenizer_file=str(path), **kwargs)

    def clean(self, text: str) -> str:
        """Repair encoding, undo HTML entities twice, make white space single, lower-case (`simple_tokenizer.py`)."""
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        return re.sub(r"\s+", " ", text).strip().lower()

    def _encode_plus(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        # OpenAI's tokenizer does read its two special tokens in text; no others are registered here.
        return super()._encode_plus(*args, **(kwargs | {"split_special_tokens": False}))


class SiglipTokenizer(DualEncoderTokenizer):
    """SigLIP's and SigLIP 2's text: pieces, end, padding to the full length on the right; no attention mask.

    The towers were trained on texts of one length without a mask, so any other padding would change the embedding:
    `padding`, `padding_side` and `max_length` have no effect. Reads `spiece.model` or `tokenizer.json` of any age;
    `text_cleanup` is a key of `TEXT_CLEANUPS`, `pad_token_id` overrides the vocabulary's own.
    """

    vocab_files_names = {"vocab_file": "spiece.model", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids"]
    fixed_length = True
    default_length = 64

    def __init__(
        self,
        tokenizer_file: str | None = None,
        vocab_file: str | None = None,
        text_cleanup: str = "lower",
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        if vocab_file is not None:
            vocabulary = SiglipVocabulary.from_sentencepiece(vocab_file)
        elif tokenizer_file is not None:
            vocabulary = SiglipVocabulary.from_tokenizer_json(tokenizer_file)
        else:
            raise VocabularyNotFoundError("expected spiece.model or tokenizer.json, found neither")
        pipeline = vocabulary.pipeline(text_cleanup)
        tokens = {"eos_token": vocabulary.eos, "pad_token": vocabulary.pad}
        if pipeline.token_to_id("<unk>") is not None:
            tokens["unk_token"] = "<unk>"
        if pad_token_id is not None:
            kwargs["pad_token"] = pipeline.id_to_token(pad_token_id)
        self.text_cleanup = text_cleanup
        super().__init__(pipeline, text_cleanup=text_cleanup, **(tokens | kwargs))

    @classmethod
    def from_sentencepiece(cls, path: str | Path, **kwargs: Any) -> "SiglipTokenizer":
        """Read a SentencePiece `.model`: `c4_en` (SigLIP), `mc4` (multilingual) or Gemma's (SigLIP 2)."""
        return cls(vocab_file=str(path), **kwargs)

    @classmethod
    def from_file(cls, path: str | Path, **kwargs: Any) -> "SiglipTokenizer":
        """Read a `tokenizer.json` or a SentencePiece `.model`, told apart by their content."""
        with open(path, "rb") as file:
            is_json = file.read(1) == b"{"
        return cls(tokenizer_file=str(path), **kwargs) if is_json else cls.from_sentencepiece(path, **kwargs)
