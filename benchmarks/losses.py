"""Time and memory of the losses, forward and backward, beside transformers' own, in one interleaved run.

    python benchmarks/losses.py [--json FILE] [--rounds 3] [--only sigmoid-16384]

Both libraries get the same unit vectors of 768 numbers. transformers' loss is that of its `SiglipModel` and
`CLIPModel`, whose towers are replaced by ready-made embeddings; what else their forward does with these (norms) takes a
hundredth of the time. A round runs each library once; the ratio is that of the medians, by the clock and by the time
that the processors spent, which other work on the machine disturbs less. Memory is the peak of a fresh process above
what is resident when the inputs are ready and the code has run once on a few of them; `resident_mb` counts everything.
Ranks are processes of one thread that hold 4,096 pairs each; their numbers are the largest of any rank, with glibc told
to give back what is freed, or its heap would be measured too.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from twinlens.losses import sigmoid_loss, softmax_loss

DIM = 768
COMPARED = ("sigmoid-16384", "softmax-16384")
ALONE = ("sigmoid-131072",)  # the other library would need half a terabyte
RANKS = tuple(f"{loss}-{size}x4096" for loss in ("sigmoid", "softmax") for size in (1, 2, 3, 4))


def embeddings(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(nn.functional.normalize(torch.randn(batch, DIM, generator=generator)) for _ in range(2))


class Given(nn.Module):
    """A tower whose answer is its input."""

    def forward(self, *values: Tensor, **named: Tensor) -> BaseModelOutputWithPooling:
        (embeds,) = (value for value in (*values, *named.values()) if isinstance(value, Tensor))
        return BaseModelOutputWithPooling(pooler_output=embeds)


def theirs(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
    family = {"sigmoid": "Siglip", "softmax": "CLIP"}[loss]
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = getattr(transformers, f"{family}Config")(
        vision_config=tower, text_config={**tower, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1}
    )
    model = getattr(transformers, f"{family}Model")(config)
    model.vision_model, model.text_model = Given(), Given()
    if loss == "softmax":
        model.visual_projection, model.text_projection = nn.Identity(), nn.Identity()
    set_scale_and_bias(model)
    return lambda images, texts: model(pixel_values=images, input_ids=texts, return_loss=True).loss


def set_scale_and_bias(model: nn.Module) -> None:
    for name, value in (("logit_scale", 4.6), ("logit_bias", -10.0)):
        if hasattr(model, name):
            nn.init.constant_(getattr(model, name), value)


def ours(loss: str, group: dist.ProcessGroup | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    scale, bias = torch.tensor(4.6, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    if loss == "sigmoid":
        return lambda images, texts: sigmoid_loss(images, texts, scale, bias, group=group)
    return lambda images, texts: softmax_loss(images, texts, scale, group=group)


LIBRARIES = {"twinlens": ours, "transformers": theirs}


def run(loss: Callable[[Tensor, Tensor], Tensor], images: Tensor, texts: Tensor) -> tuple[float, float, float]:
    """The loss, and the seconds by the clock and of the processors."""
    images, texts = (embeds.detach().requires_grad_() for embeds in (images, texts))
    clock, processors = time.perf_counter(), time.process_time()
    value = loss(images, texts)
    value.backward()
    return value.item(), time.perf_counter() - clock, time.process_time() - processors


def compared(loss: str, batch: int, rounds: int) -> dict[str, float]:
    images, texts = embeddings(batch)
    losses = {library: make(loss) for library, make in LIBRARIES.items()}
    values, clock, processors = ({library: [] for library in losses} for _ in range(3))
    for turn in range(rounds + 1):
        for library, computed in losses.items():
            rows = batch if turn else 1024  # the first round warms up
            value, *seconds = run(computed, images[:rows], texts[:rows])
            if turn:
                for taken, new in zip((values, clock, processors), (value, *seconds), strict=True):
                    taken[library].append(new)
    result: dict[str, float] = {"loss_difference": abs(values["twinlens"][0] / values["transformers"][0] - 1)}
    for name, taken in (("s", clock), ("processor_s", processors)):
        medians = [statistics.median(taken[library]) for library in LIBRARIES]
        result |= {f"twinlens_{name}": round(medians[0], 2), f"transformers_{name}": round(medians[1], 2)}
        result[f"speed_ratio_{name}"] = round(medians[1] / medians[0], 2)
    memory = [fresh_process(library, loss, batch)["mb"] for library in LIBRARIES]
    result |= {"twinlens_mb": memory[0], "transformers_mb": memory[1]}
    return {**result, "memory_ratio": round(memory[1] / memory[0], 1)}


def fresh_process(library: str, loss: str, batch: int) -> dict[str, float]:
    arguments = ("--process", library, loss, str(batch))
    result = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def resident(name: str) -> int:
    """Megabytes resident now (`VmRSS`) or at most (`VmHWM`, which is not inherited as ru_maxrss is)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) // 1024


def measured(loss: Callable[[Tensor, Tensor], Tensor], images: Tensor, texts: Tensor) -> dict[str, float]:
    run(loss, images[:64], texts[:64])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    seconds = run(loss, images, texts)[1]
    peak = resident("VmHWM")
    return {"mb": peak - before, "resident_mb": peak, "s": round(seconds, 1)}


def rank_process(rank: int, size: int, loss: str, meeting: str, results: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    results.put(measured(ours(loss, dist.group.WORLD), *embeddings(4096, seed=rank)))
    dist.destroy_process_group()


def ranks(loss: str, size: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, loss, f"{folder}/meeting", results)
        processes = [context.Process(target=rank_process, args=(rank, *arguments)) for rank in range(size)]
        for process in processes:
            process.start()
        found = [results.get() for _ in processes]
        for process in processes:
            process.join()
    return {name: max(one[name] for one in found) for name in ("mb", "s")}


def case(name: str, rounds: int) -> dict[str, float]:
    loss, batch = name.split("-")
    if name in RANKS:
        return ranks(loss, int(batch.split("x")[0]))
    return compared(loss, int(batch), rounds) if name in COMPARED else fresh_process("twinlens", loss, int(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results there; what is there of other cases stays")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the case's name, such as softmax or 16384")
    parser.add_argument("--process", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.process:
        library, loss, batch = options.process
        print(json.dumps(measured(LIBRARIES[library](loss), *embeddings(int(batch)))))
        return
    cases = json.loads(options.json.read_text())["cases"] if options.json and options.json.exists() else {}
    for name in (*COMPARED, *RANKS, *ALONE):
        if options.only in name:
            cases[name] = case(name, options.rounds)
            print(name, json.dumps(cases[name]), sep="\t", flush=True)
            if options.json:
                packages = {package: version(package) for package in ("twinlens", "torch", "transformers")}
                machine = {"processor": platform.machine(), "threads": 2, "python": platform.python_version()}
                results = {"environment": {**packages, **machine}, "cases": cases}
                options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
