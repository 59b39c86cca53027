"""Time of an image and of a text beside transformers', OpenAI's and SentencePiece's code, in one interleaved run.

    python benchmarks/processing.py images [--json FILE] [--rounds 9]
    python benchmarks/processing.py texts [--json FILE] [--captions 1000000]

Needs the extra `dev`. A ratio is that of the medians, above 1 where twinlens is faster, on two threads. Images are
batches of 32 photographs of 640x480, to 224 pixels; captions have 4 to 12 words. The vocabularies,
openai-clip and torchvision's transforms are downloaded as the tests do.
"""

import io
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from common import THREADS, Case, interleaved_seconds, option_parser, parse_options, print_rows, write_results
from inputs import photographs
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import twinlens

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.openai_preprocess import load_transform
from helpers.released_files import released_file, released_package

Processor = Callable[..., Any]

ENGINES = ("pillow", "torch", "official")
BATCH_SIZE = 32  # images
CAPTIONS_OF_A_CHUNK = 50_000
WORDS = """
a photo of the cat dog sitting on red mat in New York street with two people and an old blue bicycle near river,
mountain view at sunset; black-and-white portrait, child's drawing 3 boats green field breakfast table
""".split()  # noqa: SIM905


def to_jpeg(image: Image.Image) -> bytes:
    """Return the bytes of a JPEG file of quality 90."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def open_and_process(processor: Processor, images: list[Any]) -> object:
    """Call a processor that takes PIL images, opening those that are the bytes of files."""
    return processor([Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image for image in images])


def compare_image_processors(
    case: str, ours: Processor, peers: dict[str, Processor], images: list[Any], rounds: int
) -> list[Case]:
    """Measure every engine of our processor and the peers, which take PIL images, on one batch."""
    variants: dict[str, Callable[[], object]] = {
        f"twinlens, {engine}": partial(ours, images, resize_engine=engine) for engine in ENGINES
    }
    variants |= {name: partial(open_and_process, peer, images) for name, peer in peers.items()}
    seconds = interleaved_seconds(variants, rounds, settle=True)
    return [
        {
            "case": case,
            "variant": name,
            "ms_each": round(taken / len(images) * 1e3, 3),
            **{f"speed_over_{peer}": round(seconds[peer] / taken, 2) for peer in peers},
        }
        for name, taken in seconds.items()
    ]


def image_cases(rounds: int) -> list[Case]:
    """Measure CLIP's and SigLIP's processors, on PIL images and on the bytes of JPEG files."""
    openai = load_transform(released_package("openai-clip==1.0.1"), released_package("torchvision==0.28.0"))
    clip, siglip = CLIPImageProcessorPil(), SiglipImageProcessorPil()
    families: tuple[tuple[str, Processor, dict[str, Processor]], ...] = (
        (
            "CLIP",
            twinlens.CLIPImageProcessor(),
            {
                "transformers": lambda images: clip(images, return_tensors="pt"),
                "openai-clip": lambda images: torch.stack([openai(image) for image in images]),
            },
        ),
        (
            "SigLIP",
            twinlens.SiglipImageProcessor(),
            {"transformers": lambda images: siglip(images, return_tensors="pt")},
        ),
    )
    pictures = photographs(BATCH_SIZE)
    sources: dict[str, list[Any]] = {"PIL images": pictures, "JPEG bytes": [to_jpeg(picture) for picture in pictures]}
    return [
        case
        for family, ours, peers in families
        for source, images in sources.items()
        for case in compare_image_processors(f"{family}, {source}", ours, peers, images, rounds)
    ]


def random_captions(number: int) -> list[str]:
    """Return captions of 4 to 12 words."""
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=choose.randint(4, 12))) for _ in range(number)]


def sentencepiece_encoder(pieces: Path) -> Processor:
    """Return SentencePiece's own encoder: lists of ids after lower-casing, without padding, on as many threads."""
    encoder = sentencepiece.SentencePieceProcessor(str(pieces))
    return lambda texts, **_: encoder.encode(
        [text.encode().lower().decode() for text in texts], add_eos=True, num_threads=THREADS
    )


def compare_tokenizers(case: str, ours: Any, peers: dict[str, Processor], captions: list[str]) -> list[Case]:
    """Measure our tokenizer and the peers on the same captions, chunk by chunk in turn."""
    settings = {
        "padding": "max_length",
        "max_length": ours.model_max_length,
        "truncation": True,
        "return_tensors": "pt",
    }
    variants: dict[str, Processor] = {"twinlens": ours, **peers}
    seconds = dict.fromkeys(variants, 0.0)
    for number, start in enumerate(range(0, len(captions), CAPTIONS_OF_A_CHUNK)):
        chunk = captions[start : start + CAPTIONS_OF_A_CHUNK]
        for variant in list(variants)[:: 1 if number % 2 else -1]:
            begin = time.perf_counter()
            variants[variant](chunk, **settings)
            seconds[variant] += time.perf_counter() - begin
    return [
        {
            "case": case,
            "variant": variant,
            "us_each": round(taken / len(captions) * 1e6, 2),
            "captions": len(captions),
            **{f"speed_over_{peer}": round(seconds[peer] / taken, 2) for peer in peers},
        }
        for variant, taken in seconds.items()
    ]


def text_cases(number: int) -> list[Case]:
    """Measure the tokenizers of CLIP and SigLIP beside transformers', and SigLIP's two beside SentencePiece."""
    t5_pieces = released_file("diffsynth==1.1.9", "flux/tokenizer_2/spiece.model")
    gemma_pieces = released_file("maxtext==0.1.0", "MaxText/assets/tokenizer.gemma")
    captions = random_captions(number)
    clip = twinlens.CLIPTokenizer.from_official()
    with tempfile.TemporaryDirectory() as folder:
        clip.save_pretrained(folder)
        native_clip = transformers.CLIPTokenizer.from_pretrained(folder)
    native_siglip = transformers.SiglipTokenizer(str(t5_pieces), model_max_length=64)
    siglip, siglip2 = twinlens.SiglipTokenizer.from_file(t5_pieces), twinlens.SiglipTokenizer.from_file(gemma_pieces)
    t5, gemma = sentencepiece_encoder(t5_pieces), sentencepiece_encoder(gemma_pieces)
    return [
        *compare_tokenizers("CLIP", clip, {"transformers": native_clip}, captions),
        *compare_tokenizers("SigLIP, T5 32k", siglip, {"transformers": native_siglip, "sentencepiece": t5}, captions),
        *compare_tokenizers("SigLIP 2, Gemma 256k", siglip2, {"sentencepiece": gemma}, captions),
    ]


def main() -> None:
    """Measure images or texts."""
    parser = option_parser(__doc__)
    parser.add_argument("part", choices=("images", "texts"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--captions", type=int, default=1_000_000)
    options = parse_options(parser)
    torch.set_num_threads(THREADS)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    cases = image_cases(options.rounds) if options.part == "images" else text_cases(options.captions)
    print_rows(cases, 0)
    write_results(options, cases, "tokenizers", "pillow", "numpy", "sentencepiece")


if __name__ == "__main__":
    main()
