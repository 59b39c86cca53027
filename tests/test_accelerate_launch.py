"""Two processes that `accelerate launch` starts on CPUs give what one process gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import families
from safetensors.torch import load_file, save_file

from twinlens.conversion import convert
from twinlens.toy_world import ShapesDataset

pytestmark = pytest.mark.thorough

LOOP = """
import sys
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
import twinlens

source, pairs, out = sys.argv[1:]
accelerator = Accelerator(cpu=True)
model = twinlens.DualEncoderModel.from_pretrained(source)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
tensors = load_file(pairs)
samples = [dict(zip(tensors, values)) for values in zip(*tensors.values())]
data = DataLoader(samples, batch_size=8 // accelerator.num_processes)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
group = torch.distributed.group.WORLD if accelerator.num_processes > 1 else None
model.train()
for batch in data:
    accelerator.backward(model(**batch, return_loss=True, group=group).loss)
    optimizer.step()
    optimizer.zero_grad()
model = accelerator.unwrap_model(model).eval()
with torch.no_grad():
    embeds = [model.encode_image(batch["pixel_values"]) for batch in data]
embeds = torch.cat([accelerator.gather_for_metrics(part) for part in embeds])
model.save_pretrained(out, is_main_process=accelerator.is_main_process)
if accelerator.is_main_process:
    save_file({"embeds": embeds}, out + "/embeds.safetensors")
    print("processes", accelerator.num_processes)
accelerator.end_training()
"""


def launch(processes: int, *command: object) -> str:
    """Start processes on CPUs, several of them by the launcher that accelerate has for accelerators."""
    several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    options = f"--num_processes {processes} --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    line = [sys.executable, "-m", "accelerate.commands.launch", *several, *options, *map(str, command)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("family", families.SQUARE)
def test_a_loop_of_ones_own(family: str, tmp_path: Path) -> None:
    """Training with the pairs of both, and embeddings that are gathered."""
    families.model(family).save_pretrained(tmp_path / "model")
    pairs = {"pixel_values": families.pixels(24), "input_ids": families.token_ids(family, 24)}
    save_file(pairs, tmp_path / "pairs.safetensors")
    (tmp_path / "loop.py").write_text(LOOP)
    for processes in (1, 2):
        out = tmp_path / str(processes)
        said = launch(processes, tmp_path / "loop.py", tmp_path / "model", tmp_path / "pairs.safetensors", out)
        assert f"processes {processes}" in said
    for file in ("model.safetensors", "embeds.safetensors"):
        one, two = (load_file(tmp_path / processes / file) for processes in "12")
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert not torch.equal(start["logit_scale"], load_file(tmp_path / "2" / "model.safetensors")["logit_scale"])


def test_twinlens_train(tmp_path: Path) -> None:
    convert("clip-shapes", tmp_path / "model", verify=False)
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "metadata.jsonl").open("w") as lines:
        for number in range(16):
            pair = ShapesDataset("train", size=16)[number]
            pair["image"].save(tmp_path / "data" / f"{number}.png")
            lines.write(json.dumps({"file_name": f"{number}.png", "text": pair["text"]}) + "\n")
    for processes in (1, 2):
        command = ["-m", "twinlens", "train", tmp_path / "model", tmp_path / "data", tmp_path / str(processes)]
        options = ["--steps", 3, "--batch-size", 8 // processes, "--gradient-cache-size", 3, "--min-crop-area", 1]
        options += ["--learning-rate", 1e-3, "--log-steps", 1, "--from-scratch"]
        said = launch(processes, *command, *options)
        assert said.count(str(tmp_path / str(processes))) == 1  # one of them says so
    reports = [json.loads((tmp_path / processes / "training.json").read_text()) for processes in "12"]
    assert [report["processes"] for report in reports] == [1, 2]
    one, two = ([entry["loss"] for entry in report["history"] if "loss" in entry] for report in reports)
    assert len(one) == 3
    assert two == pytest.approx(one, rel=1e-2)  # Adam makes full steps of gradients that are nearly 0
    assert abs(one[2] - one[0]) > 0.005
