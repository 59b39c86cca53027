"""Texts to vectors: 1,000 captions with CLIP's text tower and with SigLIP's, beside other libraries.

    python benchmarks/text_encoding.py [--json FILE] [--rounds 1] [--only clip-strings]

The captions have 4 to 30 of CLIP's tokens, 12 on average. They are made of few words and many begin alike, which spares
an optimised causal tower a quarter of the tokens.
Every library has the same random weights of B/32 (CLIP) and B/16 (SigLIP), two threads, and batches of 64 captions in
float32, except that `encode` chooses its batches; the libraries take turns. Once the clock runs from strings to vectors
and once from ids, without tokenization. Where a text always has the same number of tokens (77 in open_clip and
openai-clip, 64 in SigLIP), the time of a text is that of the first 128 captions. The error is 1 minus the cosine to the
embedding in float64, of the worst of 16 texts.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from common import THREADS, Case, interleaved_times, option_parser, parse_options, print_rows, write_results
from inputs import ONE_LAYER, Sizes, captions, write_model, write_processor
from torch import Tensor
from transformers import AutoTokenizer

import twinlens

EncodeTexts = Callable[[], Tensor]
Variant = tuple[int, EncodeTexts, EncodeTexts]  # the number of texts; encodes all of them; encodes the first batch

MODELS: dict[str, tuple[str, Sizes]] = {
    "clip": ("CLIP", {"vision_config": ONE_LAYER}),
    "siglip": ("Siglip", {"vision_config": ONE_LAYER}),
}
CAPTIONS = 1000
CAPTIONS_OF_ONE_LENGTH = 128
BATCH_SIZE = 64
COMPARED = 16  # texts that are computed in float64 too


def batches(items: Sequence[Any]) -> list[Any]:
    """Return the items in batches."""
    return [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]


def batch_by_batch(prepare: Callable[[Any], Any], encode: Callable[[Any], Tensor], inputs: list[Any]) -> EncodeTexts:
    """Return a function that prepares and encodes batch by batch."""
    return lambda: torch.cat([encode(prepare(batch)) for batch in inputs])


def variant_of(
    prepare: Callable[[Any], Any], encode: Callable[[Any], Tensor], inputs: list[Any], count: int
) -> Variant:
    """Return what is measured of a library, given batches of what it prepares."""
    return count, batch_by_batch(prepare, encode, inputs), batch_by_batch(prepare, encode, inputs[:1])


def variants_of(name: str, folder: Path, texts: list[str], absent: dict[str, str]) -> dict[str, dict[str, Variant]]:
    """Return what is measured from strings, and from ids."""
    family = MODELS[name][0]
    fixed = texts[:CAPTIONS_OF_ONE_LENGTH]
    texts = texts if family == "CLIP" else fixed
    model: Any = peers.to_twinlens(folder, torch.float32)
    optimised: Any = peers.to_twinlens(folder, torch.float32).optimize_for_inference()
    processor = twinlens.DualEncoderProcessor.from_pretrained(folder)
    theirs, tokenizer = peers.to_transformers(folder, "sdpa", torch.float32), AutoTokenizer.from_pretrained(folder)
    padding = {"padding": True} if family == "CLIP" else {"padding": "max_length", "max_length": 64}
    # A library: how many texts it gets, how it makes ids of a batch, and how it encodes those.
    libraries: dict[str, tuple[list[str], Callable[[Any], Any], Callable[[Any], Tensor]]] = {
        "twinlens, optimised": (texts, lambda batch: processor(text=batch), lambda ids: optimised.encode_text(**ids)),
        "twinlens": (texts, lambda batch: processor(text=batch), lambda ids: model.encode_text(**ids)),
        "transformers": (
            texts,
            lambda batch: tokenizer(batch, **padding, truncation=True, return_tensors="pt"),
            lambda ids: theirs.get_text_features(**ids).pooler_output,
        ),
    }
    if family == "CLIP" and "open_clip" not in absent:
        import open_clip

        open_clip_model = peers.to_open_clip(folder, torch.float32)
        libraries["open_clip"] = (fixed, open_clip.get_tokenizer("ViT-B-32"), open_clip_model.encode_text)
    if family == "CLIP" and "openai-clip" not in absent:
        openai_model = peers.to_openai_clip(folder, torch.float32)
        libraries["openai-clip"] = (fixed, peers.import_openai_clip().tokenize, openai_model.encode_text)

    def encode_strings(model: Any) -> Variant:
        """What does the batches itself."""
        encode, first = (partial(model.encode, given, processor) for given in (texts, texts[:BATCH_SIZE]))
        return len(texts), encode, first

    strings = {"twinlens, encode, optimised": encode_strings(optimised), "twinlens, encode": encode_strings(model)}
    ids: dict[str, Variant] = {}
    for library, (given, prepare, encode) in libraries.items():
        strings[library] = variant_of(prepare, encode, batches(given), len(given))
        prepared = [prepare(batch) for batch in batches(given)]
        ids[library] = variant_of(lambda batch: batch, encode, prepared, len(given))
    return {"strings": strings, "ids": ids}


def reference(name: str, folder: Path, texts: list[str]) -> Tensor:
    """Return the embeddings of a few texts in float64, from transformers' eager model."""
    model = peers.to_transformers(folder, "eager", torch.float64)
    length = {"CLIP": 77, "Siglip": 64}[MODELS[name][0]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    embeds: Tensor = model.get_text_features(**ids).pooler_output
    return embeds


@torch.no_grad()
def measure(case: str, variants: dict[str, Variant], expected: Tensor, options: Any) -> Case:
    """Measure the variants; what they return for the first batch, which warms them up, is compared."""
    errors = {name: peers.worst_error(encode_first(), expected) for name, (_, _, encode_first) in variants.items()}
    functions = {name: encode for name, (_, encode, _) in variants.items()}
    times = interleaved_times(functions, options.rounds, warm_up=False)
    return {
        "case": case,
        "ms_each": {
            name: round(statistics.median(seconds) / variants[name][0] * 1e3, 3) for name, seconds in times.items()
        },
        "texts": {name: count for name, (count, _, _) in variants.items()},
        "runs": min(len(seconds) for seconds in times.values()),
        "error": {name: float(f"{error:.1e}") for name, error in errors.items()},
    }


def main() -> None:
    """Measure every case."""
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    parser.add_argument(
        "--only", default="", help="a part of the case's name: clip-strings, clip-ids, siglip-strings ..."
    )
    options = parse_options(parser, (f"{name}-{source}" for name in MODELS for source in ("strings", "ids")))
    torch.set_num_threads(THREADS)
    absent = peers.missing_peers("open_clip", "openai-clip")
    texts = captions(options.captions)
    cases: list[Case] = []
    for name in MODELS:
        if not any(options.only in f"{name}-{source}" for source in ("strings", "ids")):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_model(folder, *MODELS[name])
            write_processor(folder, MODELS[name][0])
            with torch.no_grad():
                expected = reference(name, folder, texts[:COMPARED])
            for source, variants in variants_of(name, folder, texts, absent).items():
                if options.only in f"{name}-{source}":
                    cases.append(measure(f"{name}-{source}", variants, expected, options))
                    print_rows(cases, len(cases) - 1)
    write_results(options, cases, "tokenizers", *peers.VERSIONS, not_measured=absent)


if __name__ == "__main__":
    main()
