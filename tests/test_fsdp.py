"""Dual encoders whose weights FSDP2 divides between processes: here two, on CPUs."""

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
from twinlens.runtime import shardable
from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments

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
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
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


def test_trains_as_one_process(tmp_path: Path) -> None:
    """The same losses and weights, in folders that plain transformers loads as ever, and the same logits afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = [
        start(train_divided, rank, port, tmp_path, CASES, output=tmp_path / f"log {rank}") for rank in "01"
    ]
    alone = {name: build(ContrastiveTrainer, family, tmp_path / "alone", PAIRS) for name, (family, _) in CASES.items()}
    for run in alone.values():
        run.train()
    for rank, process in enumerate(running):
        assert finish(process) == 0, (tmp_path / f"log {rank}").read_text()
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
