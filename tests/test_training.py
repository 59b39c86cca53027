"""The trainer: metrics, parameters, large batches in slices, several processes, resumption, and the command."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.families import model as family_model
from helpers.processes import finish, start
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers import HfArgumentParser

import twinlens
from twinlens.evaluation import retrieval_metrics
from twinlens.losses import LOSSES
from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments, add_lora, freeze, parameter_groups
from twinlens.training.pair_ids import pair_ids
from twinlens.training.patch_dropout import drop_patches


def tiny(family: str, **vision) -> twinlens.DualEncoderModel:
    towers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**towers, "vocab_size": 99, "max_position_embeddings": 8}
    vision = {**towers, "image_size": 16, "patch_size": 8, **vision}
    if family == "clip":
        config = twinlens.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
        return twinlens.CLIPModel(config)
    return twinlens.SiglipModel(twinlens.SiglipConfig(vision_config=vision, text_config=text))


class TestParameters:
    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_groups(self, family):
        """Every parameter is in one group; vectors and numbers do not decay; layers learn slower downwards."""
        model = tiny(family)
        groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.2, layer_decay=0.5)
        found = {id(p): group for group in groups for p in group["params"]}
        assert len(found) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        named = {name: found[id(p)] for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            assert named[name]["weight_decay"] == (0.2 if p.ndim > 1 else 0.0)
            assert ("norm" in name or "bias" in name or "logit" in name) <= (named[name]["weight_decay"] == 0)
        assert named["logit_scale"]["lr"] == 1
        for tower in ("vision_model", "text_model"):
            rates = [named[f"{tower}.encoder.layers.{n}.mlp.fc1.weight"]["lr"] for n in range(3)]
            assert [*rates, named[f"{tower}.embeddings.position_embedding.weight"]["lr"]] == [0.125, 0.25, 0.5, 0.0625]

    def test_freezing_leaves_the_embeddings_of_a_tower(self):
        model = tiny("clip")
        freeze(model, "image")
        trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"text_model", "text_projection", "logit_scale"}
        with pytest.raises(ValueError, match="image, text, got 'both'"):
            freeze(model, "both")  # type: ignore[arg-type]

    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_partly_frozen(self, family):
        """The last two of three layers, and what follows them."""
        model = tiny(family, attention_dropout=0.5)
        freeze(model, "image", unlocked_layers=2)
        trained = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("vis")}
        below = ("vision_model.embeddings", "vision_model.pre_layrnorm", "vision_model.encoder.layers.0.")
        names = {name for name, _ in model.named_parameters() if name.startswith("vis")}
        assert trained == {name for name in names if not name.startswith(below)}
        model.train()(**collate([Pairs()[i] for i in range(2)]), return_loss=True)
        assert [layer.self_attn.training for layer in model.vision_model.encoder.layers] == [False, True, True]
        with pytest.raises(ValueError, match="The text tower has 3 layers, so 4 of them cannot be unlocked"):
            freeze(model, "text", unlocked_layers=4)

    def test_nothing_to_train(self):
        model = tiny("siglip").requires_grad_(False)
        with pytest.raises(ValueError, match="No parameter is trainable"):
            parameter_groups(model, learning_rate=1, weight_decay=0)

    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_lora_starts_from_the_model_and_merges_into_it(self, family):
        model, pixels, ids = tiny(family).eval(), torch.randn(2, 3, 16, 16), torch.randint(2, 99, (2, 8))
        before = model.encode_image(pixels), model.encode_text(ids)
        adapted = add_lora(model, 2).eval()
        trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
        assert trained
        assert all("lora_" in name for name in trained)
        assert any("head.attention.out_proj" in name for name in trained) == (family == "siglip")
        torch.testing.assert_close(adapted.encode_image(pixels), before[0])
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.1)
        after = adapted.encode_image(pixels), adapted.encode_text(ids)
        assert (after[0] - before[0]).abs().max() > 1e-3
        merged = adapted.merge_and_unload()
        assert type(merged) is type(tiny(family))
        torch.testing.assert_close((merged.encode_image(pixels), merged.encode_text(ids)), after, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="at least 1, got 0"):
            add_lora(tiny(family), 0)

    def test_the_hub_is_not_asked_for_a_name_of_ours(self, tmp_path, monkeypatch):
        """peft looks for the configuration of the start when it saves."""
        monkeypatch.setattr(
            "peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *asked: pytest.fail(f"{asked}")
        )
        adapted = add_lora(twinlens.DualEncoderModel.from_pretrained("clip-shapes"), 2)
        for _ in range(2):  # the name is filled in by the first time
            adapted.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "clip-shapes"


class Pairs(torch.utils.data.Dataset):
    """Samples that are model inputs already; of `captions` different ones, if given, every caption is one."""

    def __init__(self, count: int = 24, length: int = 8, captions: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(count, 3, 16, 16, generator=generator)
        self.ids = torch.randint(2, 98, (count, length), generator=generator)
        self.ids[:, -1] = 98
        self.ids = self.ids[torch.arange(count) % (captions or count)]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.pixels[index], "input_ids": self.ids[index], "index": index}


def collate(samples: list[dict]) -> dict:
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "input_ids")}


def trainer(model, folder, captions: int | None = None, **settings) -> ContrastiveTrainer:
    arguments = ContrastiveTrainingArguments(
        **{  # type: ignore[arg-type]
            "output_dir": str(folder), "use_cpu": True, "max_steps": 4, "learning_rate": 1e-3, "warmup_steps": 0,
            "per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        }
        | settings
    )  # fmt: skip
    run = ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=Pairs(captions=captions),
        eval_dataset=Pairs(13, captions=captions),
        data_collator=collate,
    )
    run.current_gradient_accumulation_steps = 1  # as at the beginning of `train`, for single steps
    return run


class TestTrainer:
    @pytest.mark.parametrize("family", ["clip", "siglip"])
    @pytest.mark.parametrize("size", [3, 8, 100])
    def test_slices_give_the_gradients_of_the_whole_batch(self, family, size, tmp_path):
        model = tiny(family)
        batch = collate([Pairs(captions=5)[i] for i in range(8)])
        gradients = []
        for cache in (None, size):
            model.zero_grad()
            loss = trainer(model, tmp_path, gradient_cache_size=cache).training_step(model, batch)
            gradients.append(torch.cat([loss.view(1), *(p.grad.flatten() for p in model.parameters())]))
        whole, sliced = gradients
        assert (whole - sliced).norm() <= 1e-6 * whole.norm()
        assert (whole[1:] - sliced[1:]).norm() <= 1e-6 * whole[1:].norm()

    def test_both_passes_over_a_slice_draw_the_same_dropout(self, tmp_path):
        model = tiny("siglip", attention_dropout=0.5)
        run = trainer(model, tmp_path, gradient_cache_size=4)
        seen = []
        model.vision_model.register_forward_hook(lambda module, inputs, output: seen.append(output.pooler_output))
        run.training_step(model, collate([Pairs()[i] for i in range(8)]))
        first, second, again_first, again_second = seen
        assert torch.equal(first, again_first)
        assert torch.equal(second, again_second)
        run.training_step(model, collate([Pairs()[i] for i in range(8)]))
        assert not torch.equal(first, seen[4])

    def test_no_more_pairs_are_embedded_at_a_time(self, tmp_path):
        model = tiny("siglip")
        sizes = []
        model.vision_model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
        run = trainer(model, tmp_path, gradient_cache_size=3)
        run.training_step(model, collate([Pairs()[i] for i in range(8)]))
        assert sizes == [3, 3, 2] * 2

    @pytest.mark.parametrize(
        "settings",
        [
            {"gradient_cache_size": 4},
            {"bf16": True},
            *(
                pytest.param(x, marks=pytest.mark.thorough)
                for x in (
                    {},
                    {"activation_checkpointing": True},
                    {"optim": "adafactor"},
                    {"lr_scheduler_type": "linear"},
                )
            ),
        ],
    )
    def test_learns(self, settings, tmp_path):
        model = tiny("siglip")
        run = trainer(model, tmp_path, max_steps=40, learning_rate=3e-3, **settings)
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert np.mean(losses[-3:]) < 0.5 * losses[0]
        assert {p.dtype for p in model.parameters()} == {torch.float32}

    def test_evaluation_is_over_all_pairs(self, tmp_path):
        model = tiny("siglip")
        metrics = trainer(model, tmp_path, per_device_eval_batch_size=5).evaluate()
        pairs = collate([Pairs(13)[i] for i in range(13)])
        embeds = model.encode_image(pairs["pixel_values"]), model.encode_text(pairs["input_ids"])
        expected = retrieval_metrics(*embeds, text_ids=pairs["input_ids"])
        assert {name: value for name, value in metrics.items() if "recall" in name} == {
            f"eval_{name}": pytest.approx(value) for name, value in expected.items()
        }
        assert metrics["eval_loss"] > 0

    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_the_loss_of_an_evaluation_is_that_of_all_pairs_together(self, family, tmp_path):
        """Whatever the batches: 13 pairs are three of four and one more. Equal captions are not compared."""
        model = tiny(family).eval()
        pairs = Pairs(13, captions=6)
        with torch.no_grad():
            expected = model(
                **collate([pairs[index] for index in range(13)]), return_loss=True, pair_ids=torch.arange(13) % 6
            ).loss.item()
        for size in (1, 4, 100):
            metrics = trainer(model, tmp_path, captions=6, per_device_eval_batch_size=size).evaluate()
            assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
        counted = trainer(model, tmp_path, captions=6, duplicates_as_negatives=True).evaluate()["eval_loss"]
        assert counted > expected + 1e-5

    def test_a_single_pair_has_no_softmax_loss(self, tmp_path):
        assert "eval_loss" not in trainer(tiny("clip"), tmp_path).evaluate(Pairs(1))
        assert "eval_loss" in trainer(tiny("siglip"), tmp_path).evaluate(Pairs(1))

    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_equal_captions_are_no_false_negatives(self, family, tmp_path):
        """Training with them has the loss of the batch without these comparisons; other libraries compare them."""
        model, batch = tiny(family), collate([Pairs(captions=3)[i] for i in range(8)])
        equal = torch.arange(8) % 3
        embeds = model.encode_image(batch["pixel_values"]), model.encode_text(batch["input_ids"])
        scalars = [model.logit_scale, *([model.logit_bias] if family == "siglip" else [])]
        loss = LOSSES[model.traits.loss]
        for counted, ids in ((False, equal), (True, None)):
            found = trainer(model, tmp_path, duplicates_as_negatives=counted).training_step(model, batch)
            assert found.item() == pytest.approx(loss(*embeds, *scalars, pair_ids=ids).item(), rel=1e-5)

    def test_captions_are_equal_if_their_tokens_are(self):
        """Also where one batch is padded to a greater length than another, as processes may do."""
        short = {"input_ids": torch.tensor([[5, 6], [6, 5]]), "attention_mask": torch.tensor([[1, 1], [1, 1]])}
        padded = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
        long = {"input_ids": padded[0], "attention_mask": padded[1], "image_ids": torch.tensor([4, 4])}
        first, second = pair_ids(short).flatten().tolist()
        (third, image), (fourth, same) = pair_ids(long).tolist()
        assert first == third
        assert len({first, second, fourth}) == 3
        assert image == same == 4

    def test_the_first_update_and_the_last_have_a_rate(self, tmp_path):
        """open_clip's curve: a tenth of the rate at the first of ten updates of warm-up, then a cosine."""
        for schedule, shares in (
            ("cosine", [0.5, 1, 1, 0.5 * (1 + np.cos(np.pi / 3)), 0.5, 0.5 * (1 + np.cos(np.pi * 5 / 6))]),
            ("linear", [0.5, 1, 1, 2 / 3, 0.5, 1 / 6]),
            ("constant", [0.5, 1, 1, 1, 1, 1]),
        ):
            run = trainer(tiny("siglip"), tmp_path, max_steps=8, warmup_steps=2, lr_scheduler_type=schedule)
            run.train()
            rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
            assert np.array(rates)[[0, 1, 2, 4, 5, 7]] == pytest.approx([1e-3 * share for share in shares])

    def test_gradients_are_not_clipped_unless_asked(self, tmp_path):
        """SGD moves the weights by the gradient itself, whose norm is above the limit."""
        moves = []
        for limit in (None, 0.01):
            torch.manual_seed(0)
            model = tiny("siglip")
            before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
            settings: dict[str, Any] = {} if limit is None else {"max_grad_norm": limit}
            run = trainer(model, tmp_path, max_steps=1, optim="sgd", weight_decay=0, learning_rate=1e-2, **settings)
            run.train()
            after = torch.cat([p.detach().flatten() for p in model.parameters()])
            moves.append((after - before).norm().item() / 1e-2)
            norm = run.state.log_history[0]["grad_norm"]
        assert moves[1] == pytest.approx(0.01, rel=0.05)
        assert moves[0] == pytest.approx(norm, rel=0.05)

    def test_accumulation_would_be_another_loss(self, tmp_path):
        with pytest.raises(ValueError, match="pass per_device_train_batch_size=16 with gradient_cache_size=8"):
            trainer(tiny("siglip"), tmp_path, gradient_accumulation_steps=2)

    def test_batches_that_cannot_be_made(self, tmp_path):
        with pytest.raises(ValueError, match="A batch has 25 pairs, and there are 24 pairs"):
            trainer(tiny("clip"), tmp_path, per_device_train_batch_size=25).train()

    def test_the_scale_of_clip_is_clipped(self, tmp_path):
        model = tiny("clip")
        nn.init.constant_(model.logit_scale, 6.0)
        trainer(model, tmp_path, max_steps=1).train()
        assert model.logit_scale.item() == pytest.approx(np.log(100))
        model = tiny("siglip")
        nn.init.constant_(model.logit_scale, 6.0)
        trainer(model, tmp_path, max_steps=1).train()
        assert model.logit_scale.item() > 5.9

    def test_a_script_can_read_the_arguments_from_its_command_line(self, tmp_path):
        parser = HfArgumentParser(ContrastiveTrainingArguments)
        options = ["--output_dir", str(tmp_path), "--report_to", "none", "--layer_decay", "0.5"]
        (arguments,) = parser.parse_args_into_dataclasses([*options, "--gradient_cache_size", "8"])
        assert (arguments.report_to, arguments.layer_decay, arguments.gradient_cache_size) == ([], 0.5, 8)

    def test_wrong_arguments(self, tmp_path):
        for name, value, message in (
            ("gradient_cache_size", 0, "at least 1 or None, got 0"),
            ("layer_decay", 1.5, r"in \(0, 1\], got 1.5"),
        ):
            with pytest.raises(ValueError, match=message):
                ContrastiveTrainingArguments(output_dir=str(tmp_path), **{name: value})  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="takes a twinlens DualEncoderModel, got <class"):
            trainer(tiny("siglip").vision_model, tmp_path)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_two_processes_train_as_one(tmp_path):
    """Twice four pairs are eight, some with one caption: the same losses, weights and metrics, whole or in slices."""
    port = free_port()
    running = [start(train_as_rank, rank, port, tmp_path, output=tmp_path / f"log {rank}") for rank in "01"]
    alone = {family: train_three_steps(family, 8, tmp_path) for family in FAMILIES}
    for rank, process in enumerate(running):
        assert finish(process) == 0, (tmp_path / f"log {rank}").read_text()
    for family, (weights, metrics) in alone.items():
        together = load_file(tmp_path / f"{family}.safetensors")
        assert weights.keys() == together.keys()
        for name, value in weights.items():
            torch.testing.assert_close(together[name], value, rtol=1e-4, atol=2e-6, msg=name)
        assert json.loads((tmp_path / f"{family}.json").read_text()) == pytest.approx(metrics)


FAMILIES = {"siglip": None, "clip": 3}  # and the size of their slices, where there are two processes


def train_three_steps(family: str, batch: int, folder, size: int | None = None) -> tuple[dict, dict]:
    """Weights and losses, and the recalls of an evaluation."""
    torch.manual_seed(0)
    run = trainer(
        tiny(family), folder, captions=7, max_steps=3, gradient_cache_size=size, per_device_train_batch_size=batch,
        max_grad_norm=0.1, per_device_eval_batch_size=3,
    )  # fmt: skip
    run.train()
    metrics = {name: value for name, value in run.evaluate().items() if "recall" in name or name == "eval_loss"}
    assert len(metrics) == 7
    losses = torch.tensor([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    return {**run.model.state_dict(), "losses": losses}, metrics


def train_as_rank(rank: str, port: str, folder: Path) -> None:
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
    for family, size in FAMILIES.items():
        weights, metrics = train_three_steps(family, 4, folder, size)
        if rank == "0":
            save_file(weights, folder / f"{family}.safetensors")
            (folder / f"{family}.json").write_text(json.dumps(metrics))
    torch.distributed.destroy_process_group()


def train_sharded(rank: str, port: str, folder: Path) -> None:
    """One step of half the pairs on half of every parameter (FSDP2)."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model, mesh = tiny("siglip"), torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for layer in (*model.vision_model.encoder.layers, *model.text_model.encoder.layers, model):
        fully_shard(layer, mesh=mesh)
    own = slice(4 * int(rank), 4 * int(rank) + 4)
    pairs = {name: values[own] for name, values in collate([Pairs()[i] for i in range(8)]).items()}
    model(**pairs, return_loss=True, group=torch.distributed.group.WORLD).loss.backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    if rank == "0":
        save_file(gradients, folder / "gradients.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_with_half_the_weights_each(tmp_path):
    port = free_port()
    running = [start(train_sharded, rank, port, tmp_path, output=tmp_path / f"log {rank}") for rank in "01"]
    model = tiny("siglip")
    model(**collate([Pairs()[i] for i in range(8)]), return_loss=True).loss.backward()
    for rank, process in enumerate(running):
        assert finish(process) == 0, (tmp_path / f"log {rank}").read_text()
    together = load_file(tmp_path / "gradients.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=2e-6, msg=name)


class TestPatchDropout:
    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_a_share_of_the_patches_is_left_out_in_training(self, family):
        """Of four patches one; a class token stays, and the positions of the others are their own."""
        model, pixels = tiny(family), torch.randn(6, 3, 16, 16)
        whole = model.vision_model.embeddings(pixels)
        class_tokens = whole.shape[1] - 4
        drop_patches(model, 0.25)
        torch.testing.assert_close(model.eval().vision_model.embeddings(pixels), whole)
        kept = model.train().vision_model.embeddings(pixels)
        assert kept.shape == (6, class_tokens + 3, 32)
        assert torch.equal(kept[:, :class_tokens], whole[:, :class_tokens])
        places = [[[torch.equal(token, other) for other in every].index(True) for token in some]
                  for some, every in zip(kept, whole, strict=True)]  # fmt: skip
        assert all(len(set(found)) == class_tokens + 3 for found in places)
        assert len({frozenset(found) for found in places}) > 1  # not the same ones of each image

    def test_both_passes_over_a_slice_leave_the_same_patches_out(self, tmp_path):
        model = tiny("siglip")
        drop_patches(model, 0.5)
        seen: list = []
        model.vision_model.register_forward_hook(lambda module, inputs, output: seen.append(output.pooler_output))
        run = trainer(model, tmp_path, gradient_cache_size=8)
        run.training_step(model, collate([Pairs()[i] for i in range(8)]))
        assert torch.equal(*seen)

    def test_what_has_no_grid_of_patches(self):
        with pytest.raises(ValueError, match="this model has a Siglip2VisionModel"):
            drop_patches(family_model("Siglip2"), 0.5)
        with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
            drop_patches(tiny("clip"), 1)
