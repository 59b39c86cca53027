"""Training beside transformers' Trainer and open_clip: the same start, the same batches, one table.

    python benchmarks/training.py [--json FILE] [--rounds 7] [--only ranks]

- curve: the losses of 50 updates of 64 pairs with different captions, from `clip-shapes`, and their largest difference
  to a loop in float64. "curve, equal captions": with equal ones in each batch, which that loop does not compare.
- ranks: the gradients of two processes with half a batch each, and their difference to those of one process, relative
  to their norm. "parts": those of a batch that is embedded in four parts (`gradient_cache_size`,
  `gradient_accumulation_steps`, `--accum-freq`), to those of the whole batch. "scale": that of the logit scale alone.
- memory: of two updates of 256 pairs, above what the process held before; "memory, parts" in parts of 16 pairs. The
  model is a CLIP of 18 million parameters (112 pixels, patch 16, 77 tokens, width 192, 6 layers).
- speed: the median pairs a second of that model, in rounds of all libraries: of tensors in memory, and of JPEG files of
  640x480 with captions, each library with its own image processor and tokenizer, and no worker processes. "ratio": the
  median of the ratios to transformers' in the same round.
- accuracy: of 400 other pictures, after training on the same 400 pairs in invented words with all defaults. Those of
  Trainer are 3 epochs, batches of 8 and a rate of 5e-5, those of open_clip 32 epochs, batches of 64 and a rate of 5e-4
  after 10,000 updates of warm-up; both have tensors in memory. "accuracy, as long": with as many epochs as take the
  processor's seconds of `twinlens train` as a whole.

All but speed is measured on one thread, speed on two. Cases that `--json FILE` already has
and that are not measured again stay in the file.
"""

import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peers
import torch
import training_cost
from common import THREADS, Case, option_parser, parse_options, print_rows, process_arguments, write_results
from fine_tuning import accuracy, new_words
from torch import Tensor
from trainers import LIBRARIES, Settings, reference_losses, stack, to_twinlens

import twinlens
from twinlens.toy_world import write_new_words
from twinlens.toy_world.new_words import TEMPLATE, draw_in_new_words
from twinlens.training import TrainingPlan, train

START, CLASSES = "clip-shapes", 100
RATE = 1e-3  # what the rule of `twinlens train` gives this start
UPDATES, BATCH = 50, 64
DEFAULT_EPOCHS = {"transformers": 3, "open_clip": 32}
GRADIENTS = {  # the settings of a case, and its processes
    "ranks": ({}, 2),
    "ranks, local loss": ({"local_loss": True}, 2),  # open_clip alone has the options
    "parts": ({"parts": 4}, 1),
}
KINDS = ("curve", "ranks", "parts", "memory", "speed", "accuracy")

Samples = list[dict[str, Tensor]]


def small_start(folder: Path) -> Path:
    """Write the start of curves and gradients."""
    twinlens.DualEncoderModel.from_pretrained(START).save_pretrained(folder)
    return folder


def new_word_samples(count: int = 400) -> Samples:
    """Return pairs in invented words, in the order of their classes."""
    pairs = [*draw_in_new_words(count)]
    processor = twinlens.DualEncoderProcessor.from_pretrained(START)
    pixels = processor(images=[image for image, _ in pairs])["pixel_values"]
    ids = processor(text=[TEMPLATE.format(name) for _, name in pairs])["input_ids"]
    return [{"pixel_values": image, "input_ids": text} for image, text in zip(pixels, ids, strict=True)]


def batches_of(samples: Samples, *, equal_captions: bool, count: int = UPDATES) -> list[Samples]:
    """Return batches of which each has equal captions, as chance has it, or none."""
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for number in range(count):
        first = 0 if equal_captions else number * CLASSES % len(samples)
        rows = torch.randperm(len(samples) if equal_captions else CLASSES, generator=generator)[:BATCH]
        chosen.append([samples[first + int(row)] for row in rows])
    return chosen


def measure_curves(libraries: Sequence[str], updates: int = UPDATES) -> Iterator[Case]:
    """Yield the largest difference of a loss to the loop in float64."""
    settings = Settings(learning_rate=RATE, batch_size=BATCH, recorded=True)
    with tempfile.TemporaryDirectory() as folder:
        start, samples = small_start(Path(folder)), new_word_samples()
        for case, equal in (("curve", False), ("curve, equal captions", True)):
            batches = batches_of(samples, equal_captions=equal, count=updates)
            expected = reference_losses(start, [stack(batch) for batch in batches], RATE)
            data = [sample for batch in batches for sample in batch]
            for library in libraries:
                _, record = LIBRARIES[library](start, data, stack, settings)
                pairs = zip(record.losses, expected, strict=True)
                yield {"case": case, "library": library, "value": max(abs(one - other) for one, other in pairs)}


def gradients(library: str, start: Path, batch: Samples, **settings: Any) -> dict[str, Tensor]:
    """Return the gradients of one update."""
    _, record = LIBRARIES[library](
        start, batch, stack, Settings(learning_rate=RATE, batch_size=len(batch), recorded=True, **settings)
    )
    return record.gradients


def run_rank(rank: int, port: int, file: Path, *arguments: Any, **settings: Any) -> None:
    """Write the gradients of one of two processes."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    found = gradients(*arguments, **settings)
    if rank == 0:
        torch.save(found, file)


def gradients_of_two(*arguments: Any, **settings: Any) -> dict[str, Tensor]:
    """Return the gradients of one update of two processes, which DDP has averaged."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, file = free.getsockname()[1], Path(folder, "gradients")
        free.close()
        context = multiprocessing.get_context("spawn")
        ranks = [
            context.Process(target=run_rank, args=(rank, port, file, *arguments), kwargs=settings) for rank in (0, 1)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        found: dict[str, Tensor] = torch.load(file)
        return found


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return the norms of the differences of all gradients but that of the logit scale, and of that, as shares."""
    assert found.keys() == expected.keys()
    parts = {"": [name for name in expected if name != "logit_scale"], ", scale": ["logit_scale"]}
    both = (
        (suffix, [torch.cat([values[name].double().flatten() for name in names]) for values in (found, expected)])
        for suffix, names in parts.items()
    )
    return {suffix: ((one - other).norm() / other.norm()).item() for suffix, (one, other) in both}


def measure_gradients(kind: str, libraries: Sequence[str]) -> Iterator[Case]:
    """Yield the difference of the gradients to those of one process with the whole batch."""
    with tempfile.TemporaryDirectory() as folder:
        start = small_start(Path(folder))
        (batch,) = batches_of(new_word_samples(), equal_captions=False, count=1)
        whole = {library: gradients(library, start, batch) for library in libraries}
        for case, (settings, count) in GRADIENTS.items():
            for library in whole if kind in case else ():
                if library == "open_clip" or "local_loss" not in settings:
                    compute = gradients_of_two if count == 2 else gradients
                    found = differences(compute(library, start, batch, **settings), whole[library])
                    for suffix, value in found.items():
                        yield {"case": f"{case}{suffix}", "library": library, "value": value}


def measure_accuracy(libraries: Sequence[str], count: int = 400) -> Iterator[Case]:
    """Yield the accuracy of each library with its defaults, and with more epochs for as long as twinlens takes."""
    samples, (_, measured) = new_word_samples(count), new_words(count)
    with tempfile.TemporaryDirectory() as folder:
        start = small_start(Path(folder, "start"))
        write_new_words(Path(folder, "world"), count)
        tuned, begin = Path(folder, "twinlens"), time.process_time()
        train(TrainingPlan(model=START, data=f"{folder}/world/train", output=str(tuned)))
        longest, report = time.process_time() - begin, json.loads((tuned / "training.json").read_text())
        value = accuracy(twinlens.DualEncoderModel.from_pretrained(tuned), measured, TEMPLATE)
        case = {"updates": report["updates"], "seconds": round(longest, 1)}
        for name in ("accuracy", "accuracy, as long"):
            yield {"case": name, "library": "twinlens", "value": value, **case}
        for library in libraries:
            seconds, epochs = longest, DEFAULT_EPOCHS.get(library, 0)
            for name in ("accuracy", "accuracy, as long") if epochs else ():
                epochs = round(epochs * longest / seconds)
                torch.manual_seed(0)
                begin = time.process_time()
                model, record = LIBRARIES[library](start, samples, stack, Settings(epochs=epochs))
                seconds = time.process_time() - begin
                value = accuracy(to_twinlens(model, start, Path(folder, f"{library} {name}")), measured, TEMPLATE)
                case = {"epochs": epochs, "updates": len(record.ends), "seconds": round(seconds, 1)}
                yield {"case": name, "library": library, "value": value, **case}


def main() -> None:
    """Measure every case, or one of `in_fresh_process`."""
    if arguments := process_arguments():
        torch.set_num_threads(1)
        library, start, pairs, parts = arguments
        print(training_cost.peak_of_updates(library, Path(start), int(pairs), int(parts)))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help=f"a part of the case's name: {', '.join(KINDS)}")
    options = parse_options(parser, KINDS)
    absent = peers.missing_peers("open_clip")
    libraries = [library for library in LIBRARIES if library not in absent]
    measures: dict[str, Callable[[], Iterator[Case]]] = {
        "curve": lambda: measure_curves(libraries),
        "ranks": lambda: measure_gradients("ranks", libraries),
        "parts": lambda: measure_gradients("parts", libraries),
        "memory": lambda: training_cost.measure_memory(libraries),
        "speed": lambda: training_cost.measure_speed(libraries, options.rounds),
        "accuracy": lambda: measure_accuracy(libraries),
    }
    earlier = json.loads(options.json.read_text())["cases"] if options.json and options.json.exists() else []
    cases: list[Case] = []
    for kind in KINDS:
        torch.set_num_threads(THREADS if kind == "speed" else 1)
        if options.only not in kind:
            cases += [case for case in earlier if case["case"].startswith(kind)]
            continue
        for case in measures[kind]():
            cases.append(case)
            print_rows(cases, len(cases) - 1)
    write_results(options, cases, "accelerate", "open_clip_torch", "torchvision", not_measured=absent)


if __name__ == "__main__":
    main()
