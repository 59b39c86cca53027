"""Peak memory of one update, with and without gradient caching, in fresh processes.

    python benchmarks/training.py [--json FILE]

A SigLIP of 7 million parameters (112 pixels, patch 16, width 192, 12 layers) takes one step of `ContrastiveTrainer` on
random pairs. Memory is VmHWM above what is resident before the step.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

CASES = [(64, None), (256, None), (64, 16), (256, 16)]  # pairs, and how many at a time


def resident(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def step(batch: int, size: int | None) -> float:
    """Megabytes at the peak of an update, above those before it."""
    import twinlens
    from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments

    tower = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
    config = twinlens.SiglipConfig(
        vision_config={**tower, "image_size": 112, "patch_size": 16},
        text_config={**tower, "vocab_size": 1000, "max_position_embeddings": 16},
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = ContrastiveTrainingArguments(output_dir=folder, use_cpu=True, gradient_cache_size=size)
        trainer = ContrastiveTrainer(model=twinlens.SiglipModel(config), args=arguments, data_collator=list)
        trainer.current_gradient_accumulation_steps = 1
        trainer.create_optimizer()

        def update(pairs: int) -> None:
            pixels, ids = torch.randn(pairs, 3, 112, 112), torch.randint(2, 1000, (pairs, 16))
            trainer.training_step(trainer.model, {"pixel_values": pixels, "input_ids": ids})
            trainer.optimizer.step()

        update(2)
        before = resident("VmRSS")
        update(batch)
    return (resident("VmHWM") - before) / 1e6


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        batch, size = sys.argv[2:]
        print(step(int(batch), int(size) or None))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    cases = []
    for batch, size in CASES:
        command = [sys.executable, __file__, "--case", str(batch), str(size or 0)]
        peak = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
        inputs = batch * (3 * 112 * 112 * 4 + 16 * 8) / 1e6
        cases.append({"pairs": batch, "at_a_time": size, "peak_mb": round(peak), "of_which_inputs_mb": round(inputs)})
        print(json.dumps(cases[-1]), flush=True)
    if options.json:
        packages = ("twinlens", "torch", "transformers", "accelerate")
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        environment = {**{name: version(name) for name in packages}, **machine}
        options.json.write_text(json.dumps({"environment": environment, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
