"""From the start of Python to the first answer of CLIP B/16, in fresh processes, beside transformers.

    python benchmarks/start.py [--json FILE] [--rounds 3]

Both load the same folder of random weights, which lies in the file cache, and tell one photograph's best of three
labels, on two threads. The processes take turns. `total_s` is the whole process, from outside.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import (
    THREADS,
    Case,
    in_fresh_process,
    option_parser,
    parse_options,
    print_rows,
    process_arguments,
    write_results,
)

LIBRARIES = ("twinlens", "transformers")
PARTS = ("import_s", "load_s", "answer_s")
SIZES: dict[str, Any] = {"vision_config": {"patch_size": 16}}
CANDIDATES = ["a photo of a cat", "a photo of a dog", "a photo of a red bicycle"]


def first_answer(library: str, folder: str, photograph: str) -> dict[str, Any]:
    """Import a library in this process, load a model and answer; return the seconds of each, and the probabilities."""
    start = time.perf_counter()
    if library == "twinlens":
        from twinlens import DualEncoderModel as Model
        from twinlens import DualEncoderProcessor as Processor
    else:
        from transformers import AutoModel as Model
        from transformers import AutoProcessor as Processor
    from PIL import Image

    imported = time.perf_counter()
    model, processor = Model.from_pretrained(folder), Processor.from_pretrained(folder)
    loaded = time.perf_counter()
    inputs = processor(text=CANDIDATES, images=Image.open(photograph), padding=True, return_tensors="pt")
    with torch.inference_mode():
        probabilities = model(**inputs).logits_per_image.softmax(dim=-1)
    end = time.perf_counter()
    seconds = (imported - start, loaded - imported, end - loaded)
    return {**dict(zip(PARTS, seconds, strict=True)), "probabilities": probabilities[0].tolist()}


def measure(folder: Path, photograph: Path, rounds: int) -> list[Case]:
    """Start both libraries in turn, once unmeasured, and return the medians."""
    runs: dict[str, list[dict[str, Any]]] = {library: [] for library in LIBRARIES}
    for turn in range(rounds + 1):
        for library in LIBRARIES[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            run = in_fresh_process(__file__, library, folder, photograph)
            run["total_s"] = time.perf_counter() - begin
            if turn:
                runs[library].append(run)
    ours, theirs = (torch.tensor(runs[library][0]["probabilities"]) for library in LIBRARIES)
    difference = float(f"{(ours - theirs).abs().max().item():.1e}")
    return [
        {
            "library": library,
            **{part: round(statistics.median(run[part] for run in of), 2) for part in (*PARTS, "total_s")},
            "runs": rounds,
            "difference": difference,
        }
        for library, of in runs.items()
    ]


def main() -> None:
    """Measure both, or one of `in_fresh_process`."""
    torch.set_num_threads(THREADS)
    if arguments := process_arguments():
        library, folder, photograph = arguments
        print(json.dumps(first_answer(library, folder, photograph)))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parse_options(parser)
    from inputs import write_model, write_processor

    from twinlens.catalogue import PHOTOGRAPH

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder, "CLIP", SIZES)
        write_processor(folder, "CLIP")
        cases = measure(folder, Path(str(PHOTOGRAPH)), options.rounds)
    print_rows(cases, 0)
    write_results(options, cases, "tokenizers", "torchvision")


if __name__ == "__main__":
    main()
