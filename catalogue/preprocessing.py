"""The vocabularies and the pixels that the published models were trained with."""

from .official_checkpoint import Pixels, Vocabulary

_OPS_TEXT = "google-research/big_vision@0127fb6 big_vision/pp/ops_text.py"

CLIP_BPE = Vocabulary(
    name="clip",
    size=49408,
    pad=0,
    address=None,
    sha256=None,
    source="openai/CLIP@d05afc4 clip/simple_tokenizer.py, clip/clip.py `tokenize`",
)
C4_EN = Vocabulary(
    name="c4_en",
    size=32000,
    pad=1,
    address="https://storage.googleapis.com/t5-data/vocabs/cc_en.32000/sentencepiece.model",
    sha256="1e5036bed065526c3c212dfbe288752391797c4bb1a284aa18c9a0b23fcaf8ec",
    source=f"{_OPS_TEXT}; hash: spiece.model of the Hub's google/siglip-base-patch16-224@7fd15f0",
)
MC4 = Vocabulary(
    name="mc4",
    size=250000,
    pad=1,
    address="https://storage.googleapis.com/t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
    sha256=None,
    source=_OPS_TEXT,
)
GEMMA = Vocabulary(
    name="gemma",
    size=256000,
    pad=0,
    address="https://storage.googleapis.com/big_vision/gemma_tokenizer.model",
    sha256=None,
    source="google-research/big_vision@0127fb6 big_vision/pp/proj/paligemma/ops.py",
)

CLIP_PIXELS = Pixels(
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation="bicubic",
    resize_mode="shortest",
)
SIGLIP_PIXELS = Pixels(
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear", resize_mode="squash", antialias=False
)
NAFLEX_PIXELS = Pixels(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear", resize_mode="patches")
