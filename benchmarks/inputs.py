"""What the benchmarks of daily work give to the libraries: models of random weights, images, captions and labels."""

import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

import twinlens

transformers.utils.logging.disable_progress_bar()

Sizes = dict[str, Any]

# Sizes that are not the default of a configuration; a tower that a benchmark does not use has one layer.
ONE_LAYER: Sizes = {"num_hidden_layers": 1}
CLIP_L14_VISION: Sizes = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
CLIP_L14_TEXT: Sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SO400M: Sizes = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}

ADJECTIVES = """
red blue green yellow black white small large old new wooden metal round bright dark wet empty young happy tired
""".split()  # noqa: SIM905
NOUNS = """
dog cat horse bird car train boat bicycle table chair house bridge tree flower mountain river street kitchen clock cup
""".split()  # noqa: SIM905
VERBS = "stands sits lies waits rests moves appears stays".split()  # noqa: SIM905
PLACES = "near behind on under beside above below inside".split()  # noqa: SIM905


def write_model(folder: Path, family: str, sizes: Sizes) -> None:
    """Write a folder with a model of random weights, always the same."""
    torch.manual_seed(0)
    config = getattr(twinlens, f"{family}Config")(**sizes)
    getattr(twinlens, f"{family}Model")(config).save_pretrained(folder)


def write_processor(folder: Path, family: str) -> None:
    """Write the processor of a family beside a model: CLIP's vocabulary, or T5's of the same size as SigLIP's.

    The second is downloaded as the tests do.
    """
    if family == "CLIP":
        clip = twinlens.CLIPProcessor(twinlens.CLIPImageProcessor(), twinlens.CLIPTokenizer.from_official())
        clip.save_pretrained(folder)
    else:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from helpers.released_files import released_file

        tokenizer = twinlens.SiglipTokenizer.from_file(
            released_file("diffsynth==1.1.9", "flux/tokenizer_2/spiece.model")
        )
        twinlens.SiglipProcessor(twinlens.SiglipImageProcessor(), tokenizer).save_pretrained(folder)


def random_images(side: int, batch_size: int) -> Tensor:
    """Return random pixels (batch, 3, side, side)."""
    return torch.randn(batch_size, 3, side, side, generator=torch.Generator().manual_seed(1))


def photographs(count: int) -> list[Image.Image]:
    """Return photographs of 640x480: the package's own, at as many angles."""
    from twinlens.catalogue import PHOTOGRAPH

    with Image.open(PHOTOGRAPH) as photograph:
        upright = photograph.convert("RGB").resize((640, 480))
    return [upright.rotate(360 * number / count) for number in range(count)]


def captions(count: int) -> list[str]:
    """Return as many different captions, of 2 to 28 words, 10 on average: in CLIP's vocabulary a token each."""
    choose = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        words: list[str] = []
        length = min(28, 2 + round(choose.gammavariate(2.0, 4.0)))
        while len(words) < length:
            thing, place = ((choose.choice(ADJECTIVES), choose.choice(NOUNS)) for _ in range(2))
            words += ["a", *thing, choose.choice(VERBS), choose.choice(PLACES), "the", *place, "and"]
        found[" ".join(words[:length])] = None
    return list(found)


def labels(count: int) -> list[str]:
    """Return as many different labels of two words, such as "wooden bridge"."""
    every = [f"{adjective} {noun}" for noun in NOUNS for adjective in ADJECTIVES]
    return random.Random(0).sample(every, count)
