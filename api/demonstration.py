"""The tour of `twinlens demo`: an official archive, its conversion, the proof, and a pipeline's answers."""

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from skimage import data
from transformers import pipeline

from .configuration import CLIPConfig
from .conversion import convert
from .formats import OpenAILayout, to_official, write_archive
from .modeling import CLIPModel

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")  # bundled with scikit-image
LABELS = ("an astronaut", "a cat", "a cup of coffee", "a rocket")
# What openai/CLIP keeps in float16 (clip/model.py, convert_weights); norms, tables and the scale stay float32.
HALF = re.compile(r"(visual\.)?(conv1|proj|text_projection|transformer\..*\.(attn|mlp)\.).*")


def write_random_archive(path: Path, config: CLIPConfig) -> None:
    """Write a CLIP with random weights as OpenAI publishes its ViTs: a TorchScript archive with mixed dtypes."""
    torch.manual_seed(0)
    layout = OpenAILayout.of_config(config)
    tensors = to_official(CLIPModel(config).state_dict(), layout)
    write_archive({name: x.half() if HALF.fullmatch(name) else x for name, x in tensors.items()}, path)


def demonstrate(folder: Path, console: Any) -> None:
    """Run the tour in `folder`, saying every step on `console`."""
    archive, converted = folder / "ViT-B-32.pt", folder / "clip-vit-base-patch32"
    console.print(f"1. Write {archive.name} as OpenAI publishes it, full size, with [bold]random weights[/bold].")
    write_random_archive(archive, CLIPConfig())
    console.print(f"   {archive.stat().st_size:,} bytes")

    console.print(f"\n2. twinlens convert {archive.name} {converted.name}")
    certificate = convert(archive, converted)
    if certificate is not None:
        console.print(certificate.table())

    console.print(f'\n3. pipeline("zero-shot-image-classification", model="{converted.name}"), transformers\' own:')
    classify = pipeline("zero-shot-image-classification", model=str(converted))
    for name in PHOTOGRAPHS:
        answers = classify(Image.fromarray(getattr(data, name)()), candidate_labels=list(LABELS))
        shares = ", ".join(f"{answer['label']} {answer['score']:.1%}" for answer in answers)
        console.print(f"   {name:<10} {shares}")
    console.print(
        "\nRandom weights know nothing, so these answers mean nothing: every step before them is the real one."
    )
