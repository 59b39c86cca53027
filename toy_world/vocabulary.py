"""The vocabularies of the small checkpoints, learnt from captions: `python -m twinlens.toy_world.vocabulary FOLDER`."""

import gzip
import json
import string
import sys
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from .dataset import ShapesDataset

SENTENCEPIECE, MERGES = "shapes.model", "bpe_shapes_vocab.txt.gz"
_CAPTIONS = 20_000
_MAX_PIECES = 128


@cache
def captions() -> tuple[str, ...]:
    """Return the captions that the vocabularies are learnt from."""
    pairs = ShapesDataset("train", _CAPTIONS)
    return tuple(pairs.describe(index)[1] for index in range(_CAPTIONS))


def write_sentencepiece(file: Path) -> None:
    """Train a unigram model with the special ids of SigLIP's `c4_en`: 1 ends and pads a text, 2 is unknown."""
    import sentencepiece

    # A word becomes a piece only if it occurs in several contexts, so every word occurs with a comma as well.
    lines = (line for text in captions() for line in (text, text.replace(" ", ", ") + ","))

    with file.open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=writer,
            vocab_size=_MAX_PIECES,
            hard_vocab_limit=False,
            required_chars=string.ascii_lowercase,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )


def write_merges(file: Path) -> None:
    """Learn merges until every word is one token; write them as OpenAI's `bpe_simple_vocab_16e6.txt.gz` has them."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=1024, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(captions(), trainer)
    merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    # No line break at the end: OpenAI's code would read one more merge there.
    lines = "\n".join([f'"bpe_shapes_vocab.txt#version: 0.2#merges: {len(merges)}', *merges])
    file.write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_sentencepiece(folder / SENTENCEPIECE)
    write_merges(folder / MERGES)
