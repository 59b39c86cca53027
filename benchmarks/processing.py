"""Images and texts a second beside transformers' processors and OpenAI's preprocessing, in one interleaved run.

    python benchmarks/processing.py images [--json FILE] [--rounds 9]
    python benchmarks/processing.py texts [--json FILE] [--captions 1000000]

Needs `pip install .[dev]`. A round runs every variant in turn, in an order that turns by one every round: once
unmeasured, while the threads of the one before go to sleep, and then twice. A ratio is that of the medians, above 1
where twinlens is faster. Photographs are scikit-image's at 640x480, to 224 pixels; captions have 4 to 12 words. The
vocabularies, openai-clip and torchvision's transforms are fetched as for the tests.
"""

import argparse
import io
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import skimage.data
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import twinlens

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from openai_preprocess import load_transform
from released_files import released_file, released_package

BATCH = 32
CHUNK = 50_000
WORDS = """
a photo of the cat dog sitting on red mat in New York street with two people and an old blue bicycle near river,
mountain view at sunset; black-and-white portrait, child's drawing 3 boats green field breakfast table
""".split()  # noqa: SIM905


def photographs() -> list[Image.Image]:
    names = ("astronaut", "chelsea", "coffee", "rocket")
    pictures = [Image.fromarray(getattr(skimage.data, name)()).resize((640, 480)) for name in names]
    return [picture.rotate(angle) for angle in range(0, 360, 45) for picture in pictures]


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def medians(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Give the median seconds of each variant; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds + 1):
        for position in range(len(names)):
            name = names[(turn + position) % len(names)]
            variants[name]()
            for _ in range(2):
                start = time.perf_counter()
                variants[name]()
                if turn:
                    taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def image_cases(rounds: int) -> list[dict[str, Any]]:
    images = photographs()
    files = [jpeg(image) for image in images]
    openai = load_transform(released_package("openai-clip==1.0.1"), released_package("torchvision==0.28.0"))

    def opened(files: list[bytes]) -> list[Image.Image]:
        return [Image.open(io.BytesIO(file)) for file in files]

    cases = []
    for family, ours, theirs in (
        ("CLIP", twinlens.CLIPImageProcessor(), CLIPImageProcessorPil()),
        ("SigLIP", twinlens.SiglipImageProcessor(), SiglipImageProcessorPil()),
    ):
        for source in ("PIL images", "JPEG bytes"):
            given, read = (images, list) if source == "PIL images" else (files, opened)
            variants: dict[str, Callable[[], Any]] = {
                f"twinlens, {engine}": lambda engine=engine, given=given, ours=ours: ours(given, resize_engine=engine)
                for engine in ("pillow", "torch", "official")
            }
            variants["transformers"] = lambda given=given, read=read, theirs=theirs: theirs(
                read(given), return_tensors="pt"
            )
            if family == "CLIP":
                variants["openai-clip"] = lambda given=given, read=read: torch.stack([openai(x) for x in read(given)])
            for name, seconds in (found := medians(variants, rounds)).items():
                row = {"case": f"{family}, {source}", "variant": name, "ms_each": round(seconds / BATCH * 1e3, 3)}
                cases.append(row | {f"speed_over_{peer}": round(found[peer] / seconds, 2) for peer in list(found)[3:]})
    return cases


def captions(number: int) -> list[str]:
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=choose.randint(4, 12))) for _ in range(number)]


def text_cases(number: int) -> list[dict[str, Any]]:
    """Time the same captions in chunks, turn and turn about, and add the chunks up."""
    spiece = released_file("diffsynth==1.1.9", "flux/tokenizer_2/spiece.model")
    gemma = released_file("maxtext==0.1.0", "MaxText/assets/tokenizer.gemma")
    texts = captions(number)
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / "twinlens-benchmark-clip"
    twinlens.CLIPTokenizer.from_official().save_pretrained(folder)
    native_siglip = transformers.SiglipTokenizer(str(spiece), model_max_length=64)
    cases = []
    for name, ours, theirs, settings in (
        ("CLIP", twinlens.CLIPTokenizer.from_official(), transformers.CLIPTokenizer.from_pretrained(folder), {}),
        ("SigLIP, T5 32k", twinlens.SiglipTokenizer.from_file(spiece), native_siglip, {}),
        ("SigLIP 2, Gemma 256k", twinlens.SiglipTokenizer.from_file(gemma), None, {}),
    ):
        length = {"padding": "max_length", "max_length": ours.model_max_length, "truncation": True, **settings}
        variants = {"twinlens": ours} | ({"transformers": theirs} if theirs else {})
        seconds = dict.fromkeys(variants, 0.0)
        for start in range(0, number, CHUNK):
            for variant in list(variants)[:: 1 if start // CHUNK % 2 else -1]:
                begin = time.perf_counter()
                variants[variant](texts[start : start + CHUNK], return_tensors="pt", **length)
                seconds[variant] += time.perf_counter() - begin
        for variant, taken in seconds.items():
            row = {"case": name, "variant": variant, "us_each": round(taken / number * 1e6, 2), "captions": number}
            cases.append(
                row | ({"speed_over_transformers": round(seconds["transformers"] / taken, 2)} if theirs else {})
            )
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("images", "texts"))
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--captions", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(2)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    cases = image_cases(options.rounds) if options.part == "images" else text_cases(options.captions)
    for case in cases:
        print(*case.values(), sep="\t")
    if options.json:
        packages = ("twinlens", "torch", "transformers", "tokenizers", "pillow", "numpy", "sentencepiece")
        machine = {"processor": platform.machine(), "threads": 2, "python": platform.python_version()}
        environment = {**{name: version(name) for name in packages}, **machine}
        options.json.write_text(json.dumps({"environment": environment, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
