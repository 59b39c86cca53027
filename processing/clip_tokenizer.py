"""CLIP's tokenizer: OpenAI's cleaning of text, then byte-level BPE."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftfy import chardata
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast  # noqa: F401  # diffusers looks for it beside the class of a component

from ..messages import quoted
from . import clip_vocabulary
from .charsmap import letter_normalizers
from .text_cleanup import OPEN_CLIP_CLEANUPS, clean_beginning, lower, spell_specials
from .tokenization import DualEncoderTokenizer, VocabularyNotFoundError
from .tokenizer_json import read_tokenizer_json
from .vocabulary_file import MAX_JSON, check_file, readable_vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self  # part of `typing` from Python 3.11 on


def _letter_repairs() -> dict[str, str]:
    """Return what ftfy makes of single letters: ligatures, widths, curly quotes, controls, Windows' bytes 80 to 9F."""
    letters = [chr(code) for code in range(0x80, 0xD800)]
    uncurled = {letter: "'" for letter in letters if chardata.SINGLE_QUOTE_RE.fullmatch(letter)}
    uncurled |= {letter: '"' for letter in letters if chardata.DOUBLE_QUOTE_RE.fullmatch(letter)}
    repairs = uncurled.copy()
    windows = {code: bytes([code]).decode("sloppy-windows-1252") for code in range(0x80, 0xA0)}
    for table in (windows, chardata.CONTROL_CHARS, chardata.LIGATURES, chardata.WIDTH_MAP):
        for code, text in table.items():
            if code:  # no table of spellings can have U+0000
                repairs[chr(code)] = "".join(uncurled.get(letter, letter) for letter in text or "")
    return repairs


class CLIPTokenizer(DualEncoderTokenizer):
    """CLIP's byte-level BPE after OpenAI's cleaning of text: start, pieces, end.

    Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, of any age. What follows the end never reaches the
    embedding, so padding is the caller's choice; its token is the folder's, else "!" (id 0) as in OpenAI's code.
    `text_cleanup` is a key of `OPEN_CLIP_CLEANUPS`, for a model that open_clip trained; by default OpenAI's cleaning.
    """

    splits_special_tokens = False  # OpenAI's tokenizer reads its two in text; no others are registered here
    vocab_files_names = {"vocab_file": "vocab.json", "merges_file": "merges.txt", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]
    default_length = 77

    def __init__(
        self,
        tokenizer_file: str | None = None,
        vocab_file: str | None = None,
        merges_file: str | None = None,
        tokenizer_object: Tokenizer | None = None,
        text_cleanup: str | None = None,
        **kwargs: Any,
    ) -> None:
        if text_cleanup not in (None, *OPEN_CLIP_CLEANUPS):
            raise ValueError(
                f"text_cleanup must be one of {', '.join(OPEN_CLIP_CLEANUPS)}, got {quoted(text_cleanup)}."
            )
        if tokenizer_object is not None:
            model = tokenizer_object.model
        elif tokenizer_file is not None:
            model = read_tokenizer_json(tokenizer_file).model
        elif vocab_file is not None and merges_file is not None:
            for file in (vocab_file, merges_file):
                check_file(file, MAX_JSON)
            with readable_vocabulary(vocab_file, f"a vocabulary with the merges of {merges_file}"):
                model = models.BPE.from_file(
                    vocab_file, merges_file, end_of_word_suffix="</w>", unk_token=clip_vocabulary.END
                )
        else:
            raise VocabularyNotFoundError(
                "Expected tokenizer.json, or vocab.json and merges.txt, found neither. OpenAI's vocabulary is part of "
                "this package: leave the tokenizer out, or call CLIPTokenizer.from_official()."
            )
        start, end = clip_vocabulary.START, clip_vocabulary.END
        if not isinstance(model, models.BPE) or None in (model.token_to_id(start), model.token_to_id(end)):
            raise ValueError(
                f"CLIP's vocabularies are BPE with {start} and {end}, got {type(model).__name__} "
                f"{'with' if model.token_to_id(start) and model.token_to_id(end) else 'without'} them."
            )
        tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "!"}
        self.text_cleanup = text_cleanup
        if text_cleanup is not None:
            kwargs["text_cleanup"] = text_cleanup
        super().__init__(clip_vocabulary.pipeline(model, text_cleanup), **(tokens | kwargs))

    @classmethod
    def from_official(cls, path: str | Path | None = None, **kwargs: Any) -> "Self":
        """Read OpenAI's `bpe_simple_vocab_16e6.txt.gz`; without a path the copy that is part of this package."""
        return cls(tokenizer_object=Tokenizer(clip_vocabulary.read_official(path)), **kwargs)

    @classmethod
    def from_file(cls, path: str | Path, **kwargs: Any) -> "Self":
        """Read a `tokenizer.json` or OpenAI's vocabulary, recognised by its content."""
        check_file(path, MAX_JSON)
        with open(path, "rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
        if is_compressed:
            return cls.from_official(path, **kwargs)
        return cls(tokenizer_file=str(path), **kwargs)

    def clean(self, text: str) -> str:
        """Clean a text as OpenAI does, or as the JSON of open_clip states."""
        return lower(text) if self.text_cleanup is None else spell_specials(OPEN_CLIP_CLEANUPS[self.text_cleanup](text))

    def clean_for(self, text: str, tokens: int) -> str:
        return clean_beginning(self.clean, text, words=tokens)

    def _can_end_a_text(self, index: int) -> bool:
        if super()._can_end_a_text(index):
            return True
        # Without end-of-text a text ends with a word. The official padding, "!", never ends one: that piece is "!</w>".
        return str(self._tokenizer.id_to_token(index)).endswith("</w>") and not str(self.pad_token).endswith("</w>")

    def _save_pretrained(self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        written = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        # Of ftfy's repairs the file can express those of single letters and NFC, for plain transformers. Here they
        # would be too much, since `clean` does not repair what HTML entities stand for.
        for path in written:
            if path.endswith("tokenizer.json"):
                saved = read_tokenizer_json(path)
                saved.normalizer = normalizers.Sequence(
                    [*letter_normalizers(_letter_repairs()), normalizers.NFC(), saved.normalizer]
                )
                saved.save(path)
        return written
