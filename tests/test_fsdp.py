"""Dual encoders whose weights FSDP2 divides between processes: here two, on CPUs."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from helpers import families
from helpers.processes import finish, start
from safetensors.torch import load_file, save_file
from torch import Tensor

import twinlens
from twinlens.conversion import convert
from twinlens.runtime import shardable
from twinlens.toy_world import ShapesDataset
from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments, TrainingPlan
from twinlens.training import run as training_run

PAIRS, STEPS = 8, 3
# By day, what FSDP has most to do with: the number that it cannot divide, and slices.
CASES = {"CLIP in slices": ("CLIP", 3), "Siglip": ("Siglip", None)}


class Trainer(ContrastiveTrainer):
    """With FSDP2 on CPUs, which accelerate itself has on accelerators alone."""

    fsdp_version = 2

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state: Any = self.accelerator.state
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=self.fsdp_version,
            auto_wrap_policy="transformer_based_wrap",
            state_dict_type="FULL_STATE_DICT",
        )
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        self.is_fsdp_enabled = True


class Pairs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples that are model inputs already."""

    def __init__(self, family: str) -> None:
        torch.manual_seed(1)
        self.pixels, self.ids = families.pixels(len(self)), families.token_ids(family, len(self))

    def __len__(self) -> int:
        return PAIRS * STEPS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "input_ids": self.ids[index]}


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "input_ids")}


def build(kind: Any, family: str, folder: Path, batch: int, size: int | None = None, **settings: Any) -> Any:
    arguments = ContrastiveTrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=STEPS, learning_rate=1e-3, warmup_steps=0, logging_steps=1,
        per_device_train_batch_size=batch, per_device_eval_batch_size=batch, gradient_cache_size=size,
        save_strategy="no", disable_tqdm=True, max_grad_norm=0.5, **settings,
    )  # fmt: skip
    data = Pairs(family)
    return kind(
        model=families.model(family), args=arguments, train_dataset=data, eval_dataset=data, data_collator=collate
    )


def losses(run: Any) -> Tensor:
    return torch.tensor([entry["loss"] for entry in run.state.log_history if "loss" in entry])


def train_divided(rank: str, port: str, folder: Path, cases: dict[str, tuple[str, int | None]]) -> None:
    enter(rank, port)
    for name, (family, size) in cases.items():
        run = build(Trainer, family, folder / name, PAIRS // 2, size)
        run.train()
        assert {type(parameter).__name__ for parameter in run.model.parameters()} == {"DTensor"}
        run.save_model()
        batch = collate([run.train_dataset[index] for index in range(PAIRS)])
        with torch.no_grad():
            outputs = run.model.eval()(**batch)
            run.model.reshard()
            logits = run.model.logits(outputs.image_embeds, outputs.text_embeds)
        if rank == "0":
            save_file({"losses": losses(run), "logits": logits.contiguous()}, folder / f"{name}.safetensors")
    torch.distributed.destroy_process_group()


def start_two(function: Any, folder: Path, *arguments: Any) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [start(function, rank, port, folder, *arguments, output=folder / f"log {rank}") for rank in "01"]


def finish_both(running: list[Any], folder: Path) -> None:
    for rank, process in enumerate(running):
        assert finish(process) == 0, (folder / f"log {rank}").read_text()


def enter(rank: str, port: str) -> None:
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}


@pytest.mark.thorough
def test_trains_as_one_process(tmp_path: Path) -> None:
    """The same losses and weights, in folders that plain transformers loads as ever, and the same logits afterwards."""
    running = start_two(train_divided, tmp_path, CASES)
    alone = {name: build(ContrastiveTrainer, family, tmp_path / "alone", PAIRS) for name, (family, _) in CASES.items()}
    for run in alone.values():
        run.train()
    finish_both(running, tmp_path)
    for name, run in alone.items():
        found = load_file(tmp_path / f"{name}.safetensors")
        torch.testing.assert_close(found["losses"], losses(run), rtol=1e-4, atol=1e-5)
        weights = load_file(tmp_path / name / "model.safetensors")
        expected = run.model.state_dict()
        assert {key: value.shape for key, value in weights.items()} == {k: v.shape for k, v in expected.items()}
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=2e-5, msg=f"{name}: {key}")
        model = twinlens.DualEncoderModel.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            batch = collate([run.train_dataset[index] for index in range(PAIRS)])
            torch.testing.assert_close(found["logits"], model(**batch).logits_per_image, rtol=0, atol=1e-4)


PLANS: dict[str, dict[str, Any]] = {
    "plain": {"gradient_cache_size": 3, "learning_rate": 1e-4},
    "lora": {"lora_rank": 2, "learning_rate": 1e-2},
}


def run_plan(folder: Path, out: str, batch: int, settings: dict[str, Any]) -> None:
    data, output = str(folder / "data"), str(folder / out)
    common: dict[str, Any] = {
        "steps": 3,
        "batch_size": batch,
        "min_crop_area": 1.0,
        "eval_data": data,
        "zero_shot": str(folder / "zs"),
    }
    training_run.train(TrainingPlan(model=str(folder / "model"), data=data, output=output, **common, **settings))


def run_plans_divided(rank: str, port: str, folder: Path) -> None:
    enter(rank, port)
    training_run.ContrastiveTrainer = Trainer  # type: ignore[misc]
    for name, settings in PLANS.items():
        run_plan(folder, f"two {name}", PAIRS // 2, settings)
    torch.distributed.destroy_process_group()


@pytest.mark.thorough
def test_twinlens_train(tmp_path: Path) -> None:
    """With an evaluation between forward passes, and LoRA, whose weights are merged into the whole ones."""
    pairs = [ShapesDataset("train", size=16)[number] for number in range(16)]
    for folder in ("data", "zs/circle", "zs/star"):
        (tmp_path / folder).mkdir(parents=True)
    with (tmp_path / "data" / "metadata.jsonl").open("w") as lines:
        for number, pair in enumerate(pairs):
            pair["image"].save(tmp_path / "data" / f"{number}.png")
            pair["image"].save(tmp_path / "zs" / ("star" if "star" in pair["text"] else "circle") / f"{number}.png")
            lines.write(json.dumps({"file_name": f"{number}.png", "text": pair["text"]}) + "\n")
    convert("clip-shapes", tmp_path / "model", verify=False)
    running = start_two(run_plans_divided, tmp_path)
    for name, settings in PLANS.items():
        run_plan(tmp_path, f"one {name}", PAIRS, settings)
    finish_both(running, tmp_path)
    before = loss_of("clip-shapes", pairs)
    for name in PLANS:
        one, two = (tmp_path / f"{number} {name}" for number in ("one", "two"))
        assert abs(loss_of(one, pairs) - before) > 1e-5
        assert loss_of(two, pairs) == pytest.approx(loss_of(one, pairs), rel=1e-2)
        metrics = [json.loads((folder / "training.json").read_text())["metrics"] for folder in (one, two)]
        assert metrics[0]["eval_zero_shot_accuracy"] == metrics[1]["eval_zero_shot_accuracy"]


@torch.no_grad()
def loss_of(source: Any, pairs: list[Any]) -> float:
    model, kind = twinlens.DualEncoderModel.from_pretrained(source).eval(), twinlens.DualEncoderProcessor
    batch = kind.from_pretrained(source)(
        images=[pair["image"] for pair in pairs], text=[pair["text"] for pair in pairs]
    )
    return float(model(**batch, return_loss=True).loss)


def test_the_first_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fsdp_version", 1)
    with pytest.raises(ValueError, match="Expected version 2 of FSDP, got 1: set fsdp_version to 2"):
        build(Trainer, "CLIP", tmp_path, PAIRS)


@pytest.mark.parametrize("family", families.SQUARE)
def test_numbers_with_an_axis_change_nothing(family: str, tmp_path: Path) -> None:
    model = families.model(family)
    batch = collate([Pairs(family)[index] for index in range(PAIRS)])
    expected, names = model(**batch, return_loss=True), model.state_dict().keys()
    model.save_pretrained(tmp_path / "before")
    assert shardable(shardable(model)) is model
    assert model.logit_scale.shape == (1,)
    outputs = model(**batch, return_loss=True)
    for name in ("loss", "logits_per_image", "logits_per_text"):
        assert torch.equal(outputs[name], expected[name])
    model.save_pretrained(tmp_path / "after")
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("before", "after")]
    assert files[0] == files[1]
    plain = families.model(family)
    plain.load_state_dict(model.state_dict())
    assert plain.state_dict().keys() == names
