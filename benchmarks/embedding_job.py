"""Images per second and memory of `twinlens embed` beside a loop over transformers' model, on the files of one folder.

    python benchmarks/embedding_job.py [--json FILE] [--images 2000] [--parts 4] [--counts 1000 4000 16000]

Needs the extra `embed`. A SigLIP B/16 at 224 pixels with random weights embeds JPEG files of 640x480. The loop opens 32
of them with Pillow, calls the image processor and `get_image_features`, and again. The folder is cut into parts; all
variants do one part, in turns, and then the next, on two threads. Loading the model does not count.

Memory is the peak of a fresh process above what it is after the first batch, for lists of several lengths and a small
model, so that nothing hides behind its weights.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from common import (
    MB,
    THREADS,
    Case,
    in_fresh_process,
    interleaved_times,
    option_parser,
    parse_options,
    process_arguments,
    resident_bytes,
    write_results,
)
from inputs import ONE_LAYER, Sizes, photographs, write_model
from PIL import Image, ImageChops

import twinlens
from twinlens.index import EmbedPlan, embed

BATCH_SIZE = 32  # images, of the loop
DTYPES = ("float32", "bfloat16")
DIFFERENT_PHOTOGRAPHS = 100
SMALL_MODEL = "siglip-shapes"
SIGLIP_B16: Sizes = {"vision_config": {"patch_size": 16, "image_size": 224}, "text_config": ONE_LAYER}


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of 640x480 and quality 90, no two of them equal."""
    folder.mkdir()
    pictures = photographs(min(count, DIFFERENT_PHOTOGRAPHS))
    files = []
    for number in range(count):
        files.append(folder / f"{number:06}.jpg")
        turns, place = divmod(number, len(pictures))
        ImageChops.offset(pictures[place], 8 * turns).save(files[-1], quality=90)
    return files


def loop_over(model: Any, processor: Any, files: Sequence[Path]) -> torch.Tensor:
    """Return the embeddings of files as people write it with transformers."""
    embeds = []
    for start in range(0, len(files), BATCH_SIZE):
        images = [Image.open(file) for file in files[start : start + BATCH_SIZE]]
        inputs = processor(images, return_tensors="pt").to(model.dtype)
        with torch.inference_mode():
            embeds.append(model.get_image_features(**inputs).pooler_output.float())
    return torch.nn.functional.normalize(torch.cat(embeds), dim=-1)


def measure_speed(model: Path, files: Sequence[Path], parts: int, folder: Path) -> list[Case]:
    """Measure both libraries and both dtypes on the files, part by part."""
    seconds: dict[str, float] = {}
    size = -(-len(files) // parts)
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    loops: dict[str, Callable[[Sequence[Path]], object]] = {}
    for dtype in DTYPES:
        peer = transformers.AutoModel.from_pretrained(model, dtype=dtype).eval()
        loops[f"transformers, {dtype}"] = partial(loop_over, peer, processor)
    for part in range(parts):
        some = files[part * size : (part + 1) * size]
        (listed := folder / f"{part}.txt").write_text("\n".join(map(str, some)))
        spent: dict[str, float] = {}

        def job(dtype: Any, part: int = part, listed: Path = listed, spent: dict[str, float] = spent) -> None:
            plan = EmbedPlan(str(model), [str(listed)], folder / f"index-{dtype}-{part}", dtype=dtype, device="cpu")
            spent[f"twinlens, {dtype}"] = embed(plan).seconds

        variants: dict[str, Callable[[], object]] = {f"twinlens, {dtype}": partial(job, dtype) for dtype in DTYPES}
        variants |= {name: partial(loop, some) for name, loop in loops.items()}
        taken = {name: times[0] for name, times in interleaved_times(variants, 1, warm_up=False).items()}
        for name, value in {**taken, **spent}.items():
            seconds[name] = seconds.get(name, 0.0) + value
    reference = seconds["transformers, float32"]
    return [
        {
            "case": "speed",
            "variant": name,
            "images": len(files),
            "seconds": round(value, 2),
            "images_per_s": round(len(files) / value, 2),
            "speed_over_transformers_float32": round(reference / value, 2),
            "speed_over_transformers": round(seconds[f"transformers, {name.rsplit(' ', 1)[1]}"] / value, 2),
        }
        for name, value in seconds.items()
    ]


def peak_of_job(listed: str | Path, count: int) -> dict[str, float]:
    """Return the bytes at most resident in a job above those after its first batch, and its images per second."""
    before: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = EmbedPlan(SMALL_MODEL, [str(listed)], Path(folder, "index"), device="cpu")
        result = embed(plan, lambda progress: before or before.append(resident_bytes("VmRSS")))
    if result.rows != count:
        raise ValueError(f"Expected {count} rows, got {result.rows}.")
    return {"bytes": resident_bytes("VmHWM") - before[0], "images_per_s": count / result.seconds}


def measure_memory(files: Sequence[Path], counts: Sequence[int], folder: Path) -> list[Case]:
    """Measure the memory of lists of so many images, which repeat the files."""
    cases: list[Case] = []
    for count in counts:
        (listed := folder / f"{count}-images.txt").write_text(
            "\n".join(str(files[number % len(files)]) for number in range(count))
        )
        peak = in_fresh_process(__file__, listed, count)
        mb, rate = round(peak["bytes"] / MB), round(peak["images_per_s"], 1)
        cases.append({"case": "memory", "images": count, "peak_mb": mb, "images_per_s": rate})
    return cases


def main() -> None:
    """Measure speed and memory, or one list of `in_fresh_process`."""
    torch.set_num_threads(THREADS)
    if arguments := process_arguments():
        print(json.dumps(peak_of_job(arguments[0], int(arguments[1]))))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--images", type=int, default=2000, help="JPEG files to embed")
    parser.add_argument("--parts", type=int, default=4, help="parts of the folder, one turn of all variants each")
    parser.add_argument("--counts", type=int, nargs="*", default=[1000, 4000, 16_000], help="images, for the memory")
    options = parse_options(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", "Siglip", SIGLIP_B16)
        twinlens.SiglipImageProcessor().save_pretrained(folder / "model")
        files = write_photographs(folder / "photographs", options.images)
        bytes_each = sum(file.stat().st_size for file in files) / len(files)
        cases = measure_speed(folder / "model", files, options.parts, folder)
        cases += measure_memory(files, options.counts, folder)
    for case in cases:
        print(case)
    write_results(options, cases, "pillow", "pyarrow", file_bytes=round(bytes_each), dim=768)


if __name__ == "__main__":
    main()
