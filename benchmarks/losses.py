"""Time and memory of the losses, forward and backward, beside transformers' own, in one interleaved run.

    python benchmarks/losses.py [--json FILE] [--rounds 3] [--only sigmoid-16384]

Both libraries get the same unit vectors of 768 numbers. transformers' loss is that of its `SiglipModel` and
`CLIPModel`, whose towers are replaced by ready-made embeddings; what else their forward does with these (norms) takes a
hundredth of the time. A round runs each library once; the ratio is that of the medians, by the clock and by the time
that the processors spent, which other work on the machine disturbs less. Memory is the peak of a fresh process above
what is resident when the inputs are ready and the code has run once on a few of them; `resident_mib` counts everything.
Ranks are processes of one thread that hold 4,096 pairs each; their numbers are the largest of any rank, with glibc told
to give back what is freed, or its heap would be measured too.

Cases that `--json FILE` already has and that are not measured again stay in the file.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from common import (
    MIB,
    THREADS,
    Case,
    in_fresh_process,
    option_parser,
    parse_options,
    process_arguments,
    resident_bytes,
    write_results,
)
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from twinlens.losses import sigmoid_loss, softmax_loss

Loss = Callable[[Tensor, Tensor], Tensor]  # takes image and text embeddings, (pairs, WIDTH) each

WIDTH = 768  # numbers of an embedding
WARM_UP_PAIRS = 64
PAIRS_OF_A_RANK = 4096
LOGIT_SCALE, LOGIT_BIAS = 4.6, -10.0  # about those of trained models

COMPARED = ("sigmoid-16384", "softmax-16384")
ALONE = ("sigmoid-131072",)  # transformers would need half a terabyte
RANKS = tuple(f"{loss}-{size}x{PAIRS_OF_A_RANK}" for loss in ("sigmoid", "softmax") for size in (1, 2, 3, 4))


def unit_vectors(pairs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random embeddings of images and of texts, (pairs, WIDTH) each."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (nn.functional.normalize(torch.randn(pairs, WIDTH, generator=generator)) for _ in range(2))
    return images, texts


class ReadyMadeTower(nn.Module):
    """A tower that returns its input as its embeddings."""

    def forward(self, *values: Tensor, **named: Tensor) -> BaseModelOutputWithPooling:
        (embeds,) = (value for value in (*values, *named.values()) if isinstance(value, Tensor))
        return BaseModelOutputWithPooling(pooler_output=embeds)


def transformers_loss(name: str) -> Loss:
    """Return the loss of transformers' SigLIP or CLIP as a function of embeddings."""
    family = {"sigmoid": "Siglip", "softmax": "CLIP"}[name]
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = getattr(transformers, f"{family}Config")(
        vision_config=tower, text_config={**tower, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1}
    )
    model = getattr(transformers, f"{family}Model")(config)
    model.vision_model, model.text_model = ReadyMadeTower(), ReadyMadeTower()
    nn.init.constant_(model.logit_scale, LOGIT_SCALE)
    if name == "sigmoid":
        nn.init.constant_(model.logit_bias, LOGIT_BIAS)
    else:
        model.visual_projection, model.text_projection = nn.Identity(), nn.Identity()
    return lambda images, texts: model(pixel_values=images, input_ids=texts, return_loss=True).loss


def twinlens_loss(name: str, group: dist.ProcessGroup | None = None) -> Loss:
    """Return the loss of this package, over the processes of `group`, as a function of embeddings."""
    scale, bias = (torch.tensor(value, requires_grad=True) for value in (LOGIT_SCALE, LOGIT_BIAS))
    if name == "sigmoid":
        return lambda images, texts: sigmoid_loss(images, texts, scale, bias, group=group)
    return lambda images, texts: softmax_loss(images, texts, scale, group=group)


LIBRARIES: dict[str, Callable[[str], Loss]] = {"twinlens": twinlens_loss, "transformers": transformers_loss}


def run(loss: Loss, images: Tensor, texts: Tensor) -> tuple[float, float, float]:
    """Compute the loss and its gradients; return its value, and the seconds by the clock and of the processors."""
    images, texts = (embeds.detach().requires_grad_() for embeds in (images, texts))
    clock, processors = time.perf_counter(), time.process_time()
    value = loss(images, texts)
    value.backward()
    return value.item(), time.perf_counter() - clock, time.process_time() - processors


def compare_speed(name: str, pairs: int, rounds: int) -> Case:
    """Measure both libraries in turn in this process."""
    images, texts = unit_vectors(pairs)
    losses = {library: make(name) for library, make in LIBRARIES.items()}
    runs: dict[str, list[tuple[float, float, float]]] = {library: [] for library in losses}
    for loss in losses.values():
        run(loss, images[:1024], texts[:1024])  # warms up
    for _ in range(rounds):
        for library, loss in losses.items():
            runs[library].append(run(loss, images, texts))
    ours, theirs = ([statistics.median(column) for column in zip(*runs[library], strict=True)] for library in LIBRARIES)
    return {
        "loss_difference": abs(ours[0] / theirs[0] - 1),
        "twinlens_s": round(ours[1], 2),
        "transformers_s": round(theirs[1], 2),
        "speed_ratio_s": round(theirs[1] / ours[1], 2),
        "twinlens_processor_s": round(ours[2], 2),
        "transformers_processor_s": round(theirs[2], 2),
        "speed_ratio_processor_s": round(theirs[2] / ours[2], 2),
    }


def compare(name: str, pairs: int, rounds: int) -> Case:
    """Measure the speed of both libraries in this process and their memory in fresh ones."""
    case = compare_speed(name, pairs, rounds)
    ours, theirs = (in_fresh_process(__file__, library, name, pairs)["mib"] for library in LIBRARIES)
    return {**case, "twinlens_mib": ours, "transformers_mib": theirs, "memory_ratio": round(theirs / ours, 1)}


def peak_of_loss(loss: Loss, images: Tensor, texts: Tensor) -> Case:
    """Return the MiB that a loss takes at most, the MiB resident then, and its seconds."""
    run(loss, images[:WARM_UP_PAIRS], texts[:WARM_UP_PAIRS])
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    seconds = run(loss, images, texts)[1]
    peak = resident_bytes("VmHWM")
    return {"mib": (peak - before) // MIB, "resident_mib": peak // MIB, "s": round(seconds, 1)}


def run_rank(rank: int, size: int, name: str, pairs: int, meeting: str, results: "multiprocessing.Queue[Case]") -> None:
    """Measure the loss in one of `size` processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    results.put(peak_of_loss(twinlens_loss(name, dist.group.WORLD), *unit_vectors(pairs, seed=rank)))
    dist.destroy_process_group()


def measure_ranks(name: str, size: int, pairs: int = PAIRS_OF_A_RANK) -> Case:
    """Return the largest numbers of `size` processes that compute one loss together."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MIB)  # inherited; glibc gives larger blocks back when they are freed
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Case] = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, name, pairs, f"{folder}/meeting", results)
        processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(size)]
        for process in processes:
            process.start()
        measured = [results.get() for _ in processes]
        for process in processes:
            process.join()
    return {number: max(rank[number] for rank in measured) for number in ("mib", "s")}


def measure(case: str, rounds: int) -> Case:
    """Measure a case by its name: a loss, a hyphen, and its pairs or its ranks."""
    name, size = case.split("-")
    if case in RANKS:
        return measure_ranks(name, int(size.split("x")[0]))
    if case in COMPARED:
        return compare(name, int(size), rounds)
    return in_fresh_process(__file__, "twinlens", name, size)


def main() -> None:
    """Measure every case, or one of `in_fresh_process`."""
    torch.set_num_threads(THREADS)
    if arguments := process_arguments():
        library, name, pairs = arguments
        print(json.dumps(peak_of_loss(LIBRARIES[library](name), *unit_vectors(int(pairs)))))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the case's name, such as softmax or 16384")
    options = parse_options(parser, (*COMPARED, *RANKS, *ALONE))
    cases = json.loads(options.json.read_text())["cases"] if options.json and options.json.exists() else {}
    for case in (*COMPARED, *RANKS, *ALONE):
        if options.only in case:
            cases[case] = measure(case, options.rounds)
            print(case, json.dumps(cases[case]), sep="\t", flush=True)
            write_results(options, cases)


if __name__ == "__main__":
    main()
