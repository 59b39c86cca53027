"""The tokenizer of SigLIP and SigLIP 2: pieces of text, end-of-text, and padding to the full length."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast  # noqa: F401  # diffusers looks for it beside the class of a component

from .siglip_vocabulary import SiglipVocabulary
from .text_cleanup import OPEN_CLIP_CLEANUPS
from .tokenization import DualEncoderTokenizer, VocabularyNotFoundError
from .vocabulary_file import MAX_JSON, check_file

if TYPE_CHECKING:
    from typing_extensions import Self  # part of `typing` from Python 3.11 on

logger = logging.getLogger(__name__)


class SiglipTokenizer(DualEncoderTokenizer):
    """SigLIP's and SigLIP 2's text: pieces, end, padding to the full length on the right; no attention mask.

    The towers were trained on texts of one length without a mask, so any other padding would change the embedding:
    `padding`, `padding_side` and `max_length` have no effect. Reads `spiece.model` or `tokenizer.json` of any age;
    `text_cleanup` is a key of `TEXT_CLEANUPS`, by default the training's, "lower"; `pad_token_id` overrides the
    vocabulary's own. A `tokenizer.json` of another kind, such as plain Gemma's, is corrected, with a warning.
    """

    vocab_files_names = {"vocab_file": "spiece.model", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids"]
    fixed_length = True
    default_length = 64

    def __init__(
        self,
        tokenizer_file: str | None = None,
        vocab_file: str | None = None,
        text_cleanup: str | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        if vocab_file is not None:
            vocabulary = SiglipVocabulary.from_sentencepiece(vocab_file)
        elif tokenizer_file is not None:
            vocabulary = SiglipVocabulary.from_tokenizer_json(tokenizer_file)
        else:
            raise VocabularyNotFoundError("Expected spiece.model or tokenizer.json, found neither.")
        pipeline = vocabulary.pipeline(text_cleanup or "lower")
        changes = [] if text_cleanup else _changes(vocabulary.source, pipeline, kwargs)
        if changes := [*changes, *vocabulary.corrections]:
            name = kwargs.get("name_or_path") or tokenizer_file
            logger.warning("The tokenizer of %s was corrected for SigLIP: it now %s.", name, ", ".join(changes))
        tokens = {"eos_token": vocabulary.eos, "pad_token": vocabulary.pad}
        if pipeline.token_to_id("<unk>") is not None:
            tokens["unk_token"] = "<unk>"
        if pad_token_id is not None:
            kwargs["pad_token"] = pipeline.id_to_token(pad_token_id)
        self.text_cleanup = text_cleanup or "lower"
        self._word_rule = vocabulary.word_rule(self.text_cleanup)
        super().__init__(pipeline, text_cleanup=self.text_cleanup, **(tokens | kwargs))

    @classmethod
    def from_sentencepiece(cls, path: str | Path, **kwargs: Any) -> "Self":
        """Read a SentencePiece `.model`: `c4_en` (SigLIP), `mc4` (multilingual) or Gemma's (SigLIP 2)."""
        return cls(vocab_file=str(path), **kwargs)

    @classmethod
    def from_file(cls, path: str | Path, **kwargs: Any) -> "Self":
        """Read a `tokenizer.json` or a SentencePiece `.model`, recognised by its content."""
        check_file(path, MAX_JSON)
        with open(path, "rb") as file:
            is_json = file.read(1) == b"{"
        return cls(tokenizer_file=str(path), **kwargs) if is_json else cls.from_sentencepiece(path, **kwargs)

    def clean(self, text: str) -> str:
        """Clean a text as the JSON of open_clip states; all other cleanings are part of the pipeline."""
        clean = OPEN_CLIP_CLEANUPS.get(self.text_cleanup)
        return text if clean is None else clean(text)


def _changes(source: Tokenizer | None, pipeline: Tokenizer, config: dict[str, Any]) -> list[str]:
    """Return what SigLIP's pipeline does and a `tokenizer.json` with its configuration does not, in words."""
    if source is None:
        return []
    theirs, ours = source.encode("a"), pipeline.encode("a")
    was_so = {
        "lower-cases ASCII": source.encode("A").ids == theirs.ids,
        "keeps punctuation": source.encode("a.").ids != theirs.ids,
        "ends texts with end-of-text": theirs.ids[-1] == ours.ids[-1],
        "adds no begin token": theirs.special_tokens_mask[0] == 0,
        "pads on the right": config.get("padding_side", "right") == "right",
    }
    return [change for change, was in was_so.items() if not was]
