"""Memory and speed of training with several libraries: two parts of training.py."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import inputs
import torch
from common import MB, Case, in_fresh_process, interleaved_times, resident_bytes
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from trainers import LIBRARIES, Collate, Settings, stack

import twinlens
from twinlens.inference import load_processor
from twinlens.training import ContrastiveCollator, load_pairs

SCRIPT = str(Path(__file__).with_name("training.py"))
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
IMAGE_SIZE, TEXT_LENGTH = 112, 77
LARGE_BATCH, PARTS = 256, 16
BATCH, TIMED_UPDATES = 64, 6  # the first of which is not timed
RATE = 1e-4


def write_start(folder: Path) -> Path:
    """Write the model of memory and speed, with its processor."""
    vision = {**TOWER, "image_size": IMAGE_SIZE, "patch_size": 16}
    inputs.write_model(folder, "CLIP", {"vision_config": vision, "text_config": TOWER, "projection_dim": 192})
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = twinlens.CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)
    twinlens.CLIPProcessor(images, twinlens.CLIPTokenizer.from_official()).save_pretrained(folder)
    return folder


def random_samples(count: int) -> list[dict[str, Tensor]]:
    """Return random pixels and tokens, the last of which is the end of the text."""
    pixels = inputs.random_images(IMAGE_SIZE, count)
    ids = torch.randint(1, 49_000, (count, TEXT_LENGTH), generator=torch.Generator().manual_seed(2))
    ids[:, -1] = 49_407
    return [{"pixel_values": image, "input_ids": text} for image, text in zip(pixels, ids, strict=True)]


def peak_of_updates(library: str, start: Path, pairs: int, parts: int) -> int:
    """Return the bytes resident at most while this process makes two updates, above those resident before."""
    data, train = random_samples(2 * pairs), LIBRARIES[library]
    train(start, data[: 2 * parts], stack, Settings(learning_rate=RATE, batch_size=2 * parts, parts=parts))  # imports
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    train(start, data, stack, Settings(learning_rate=RATE, batch_size=pairs, parts=parts))
    return resident_bytes("VmHWM") - before


def measure_memory(libraries: Sequence[str], pairs: int = LARGE_BATCH) -> Iterator[Case]:
    """Yield the megabytes of updates, each in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        start = write_start(Path(folder))
        for case, parts in (("memory", 1), ("memory, parts", PARTS)):
            for library in libraries:
                peak = in_fresh_process(SCRIPT, library, start, pairs, parts)
                yield {"case": case, "library": library, "value": round(peak / MB)}


def write_files(folder: Path, count: int) -> Path:
    """Write photographs of 640x480 as JPEG files, each with a caption beside it."""
    folder.mkdir()
    for number, (image, text) in enumerate(zip(inputs.photographs(count), inputs.captions(count), strict=True)):
        image.save(folder / f"{number:04}.jpg", quality=90)
        (folder / f"{number:04}.txt").write_text(text)
    return folder


def pairs_of_files(library: str, start: Path, folder: Path) -> tuple[Dataset[Any], Collate]:
    """Return the pairs of a folder and what makes batches of them, as people read them with a library."""
    if library == "twinlens":
        return load_pairs(folder), ContrastiveCollator(load_processor(start))
    pairs: Any = [(file, file.with_suffix(".txt").read_text()) for file in sorted(folder.glob("*.jpg"))]
    if library == "transformers":
        from transformers import CLIPProcessor

        processor = CLIPProcessor.from_pretrained(start)

        def process(samples: Sequence[tuple[Path, str]]) -> dict[str, Tensor]:
            images, texts = [Image.open(file) for file, _ in samples], [text for _, text in samples]
            return dict(processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt"))

        return pairs, process
    import open_clip

    transform, tokenize = open_clip.image_transform(IMAGE_SIZE, is_train=False), open_clip.SimpleTokenizer()

    def transform_each(samples: Sequence[tuple[Path, str]]) -> dict[str, Tensor]:
        """As the `CsvDataset` of its command."""
        return stack(
            [{"pixel_values": transform(Image.open(file)), "input_ids": tokenize([text])[0]} for file, text in samples]
        )

    return pairs, transform_each


def measure_speed(libraries: Sequence[str], rounds: int) -> Iterator[Case]:
    """Yield the median pairs a second of all rounds, and the median of their ratios to transformers'."""
    with tempfile.TemporaryDirectory() as folder:
        start, count = write_start(Path(folder, "start")), BATCH * TIMED_UPDATES
        samples, files = random_samples(count), write_files(Path(folder, "files"), count)
        for case in ("speed, tensors", "speed, files"):
            rates: dict[str, list[float]] = {library: [] for library in libraries}

            def train(library: str, case: str = case, rates: dict[str, list[float]] = rates) -> None:
                from_files = case == "speed, files"
                data, collate = pairs_of_files(library, start, files) if from_files else (samples, stack)
                _, record = LIBRARIES[library](start, data, collate, Settings(learning_rate=RATE, batch_size=BATCH))
                rates[library].append(record.pairs_per_second(BATCH))

            interleaved_times({library: partial(train, library) for library in rates}, rounds, warm_up=False)
            for library, measured in rates.items():
                yield {"case": case, "library": library, "value": round(statistics.median(measured), 1)}
            for library, measured in rates.items():
                ratios = [rate / other for rate, other in zip(measured, rates["transformers"], strict=True)]
                yield {"case": f"{case}, ratio", "library": library, "value": round(statistics.median(ratios), 2)}
