"""What a run does where its plan says nothing, what it says on the way, and what it refuses to call a success."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import finish, start
from safetensors.torch import load_file
from transformers import TrainerCallback

from twinlens.conversion import convert
from twinlens.toy_world import write_new_words
from twinlens.toy_world.new_words import WORDS, draw_in_new_words
from twinlens.toy_world.world import COLOURS, SHAPES
from twinlens.training import TrainingPlan, train
from twinlens.training.defaults import RECIPES, choose_settings, describe_start
from twinlens.training.run import build_trainer

PLAN = TrainingPlan(model="m", data="d", output="o")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs in new words, of which two have the same caption nowhere."""
    folder = tmp_path_factory.mktemp("worlds") / "new-words"
    write_new_words(folder, 40)
    return folder


def plan(world: Path, output: Path, **settings: Any) -> TrainingPlan:
    return TrainingPlan(
        **{"model": "clip-shapes", "data": str(world / "train"), "output": str(output), "report_to": "none"} | settings
    )


class TestRule:
    def test_what_is_left_open_is_chosen(self) -> None:
        """The rates of the literature at the size of ViT-B; smaller models learn faster, few pairs are seen often."""
        for settings, rate in (({}, 1e-5), ({"lora_rank": 8}, 1e-4), ({"from_scratch": True}, 5e-4)):
            chosen = choose_settings(replace(PLAN, **settings), parameters=150_000_000, pairs=1_000_000)
            assert chosen.learning_rate == pytest.approx(rate, rel=0.05)
        small = choose_settings(PLAN, parameters=400_000, pairs=400)
        large = choose_settings(PLAN, parameters=400_000_000, pairs=400)
        assert large.learning_rate < 1e-5 < small.learning_rate  # type: ignore[operator]
        assert choose_settings(PLAN, parameters=10**6, pairs=10**6).epochs == 1
        assert choose_settings(PLAN, parameters=10**6, pairs=400).epochs == 50
        assert choose_settings(PLAN, parameters=10**6, pairs=10).epochs == RECIPES["fine-tuning"].most_epochs

    def test_what_is_given_stays(self) -> None:
        given = replace(
            PLAN, epochs=3, batch_size=8, learning_rate=1.0, warmup=0.0, min_crop_area=1.0, eval_steps=5, save_steps=6,
            max_grad_norm=0.5,
        )  # fmt: skip
        assert choose_settings(given, parameters=10**6, pairs=400) == given
        assert choose_settings(given, parameters=10**6, pairs=None) == given

    def test_batches_evaluations_and_checkpoints(self) -> None:
        few = {5: 5, 25: 16, 100: 16, 200: 33, 400: 64, 10**6: 64}
        assert {pairs: choose_settings(PLAN, parameters=1, pairs=pairs).batch_size for pairs in few} == few
        assert choose_settings(PLAN, parameters=1, pairs=400, processes=2).batch_size == 33
        assert choose_settings(PLAN, parameters=1, pairs=31, processes=2).batch_size == 15
        assert choose_settings(replace(PLAN, batch_size=128), parameters=1, pairs=100).batch_size == 100
        chosen = choose_settings(replace(PLAN, epochs=2), parameters=1, pairs=6400)  # 100 updates an epoch
        assert (chosen.eval_steps, chosen.save_steps) == (100, 100)
        chosen = choose_settings(replace(PLAN, epochs=50), parameters=1, pairs=400)  # 6 updates an epoch
        assert (chosen.eval_steps, chosen.save_steps) == (30, 30)
        assert choose_settings(replace(PLAN, steps=70), parameters=1, pairs=None).save_steps == 7

    def test_a_line_says_what_is_about_to_happen(self) -> None:
        chosen = choose_settings(PLAN, parameters=150_000_000, pairs=40)
        assert describe_start(chosen, trained=1234, pairs=40) == (
            "Fine-tuning of 1,234 weights on 40 pairs: 158 epochs of batches of 16, learning rate 1e-05 (cosine), "
            "warm-up of 10% of the run, no crops, no limit of the gradient."
        )


class TestNewWords:
    def test_every_kind_has_a_name_of_its_own(self) -> None:
        assert len(set(WORDS.values())) == len(WORDS) == len(COLOURS) + len(SHAPES)
        names = [name for _, name in draw_in_new_words(200)]
        assert len(set(names)) == 100
        assert names[:100] == names[100:]
        assert names[0] == "zilo bimu"

    def test_the_folder(self, world: Path) -> None:
        lines = (world / "train" / "metadata.csv").read_text().splitlines()
        assert lines[:2] == ["file_name,text", "0.png,a zilo bimu"]
        assert len(lines) == 41
        assert (world / "classes" / "zilo bimu" / "0.png").read_bytes() == (world / "test" / "0.png").read_bytes()
        assert (world / "train" / "0.png").read_bytes() != (world / "test" / "0.png").read_bytes()


class TestRuns:
    def test_fewer_pairs_than_a_batch(self, world: Path, run: Any, tmp_path: Path) -> None:
        options = ("--steps", 1, "--report-to", "none")
        code, _, errors = run("train", "clip-shapes", world / "train", tmp_path / "a", "--batch-size", 64, *options)
        assert (code, errors.splitlines()[0]) == (0, "Batches of 40, not 64, because there are 40 pairs.")
        assert "1 update of batches of 40 (all there are)" in errors.splitlines()[1]
        report = json.loads((tmp_path / "a" / "training.json").read_text())
        assert (report["plan"]["batch_size"], report["plan"]["learning_rate"] > 0) == (40, True)
        assert "`batch_size`: 40" in (tmp_path / "a" / "README.md").read_text()

    def test_a_run_that_changes_nothing_is_an_error(self, world: Path, run: Any, tmp_path: Path) -> None:
        options = ("--steps", 1, "--learning-rate", "1e-60", "--report-to", "none")
        code, output, errors = run("train", "clip-shapes", world / "train", tmp_path / "out", *options)
        assert (code, output) == (1, "")
        assert "No weight has changed in 1 update at a learning rate of at most 1e-60" in errors
        assert f"remove {tmp_path / 'out'}, and choose a higher learning rate" in errors
        assert not (tmp_path / "out" / "model.safetensors").exists()

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (["0.png,one"], "a batch size of 1 trains nothing: bring at least 2 pairs, there is 1"),
            (["0.png,one", "1.png,one"], "All 2 pairs have the caption 'one', and there must be at least 2"),
        ],
    )
    def test_what_cannot_train(self, world: Path, run: Any, tmp_path: Path, rows: list[str], message: str) -> None:
        table = world / "train" / "few.csv"
        table.write_text("\n".join(["file_name,text", *rows]))
        code, _, errors = run("train", "clip-shapes", table, tmp_path / "out")
        assert code == 1
        assert message in errors
        assert not (tmp_path / "out").exists()

    def test_a_frozen_tower_has_no_adapters_that_learn(self, world: Path, tmp_path: Path) -> None:
        convert("clip-shapes", tmp_path / "start", verify=False)
        train(plan(world, tmp_path / "frozen", model=str(tmp_path / "start"), steps=1, lora_rank=2, freeze="image"))
        before = load_file(tmp_path / "start" / "model.safetensors")
        after = load_file(tmp_path / "frozen" / "model.safetensors")
        changed = {name.partition(".")[0] for name, value in before.items() if not torch.equal(after[name], value)}
        assert changed == {"text_model"}

    def test_lines_without_a_terminal(self, world: Path, run: Any, tmp_path: Path) -> None:
        """The first evaluation comes before the first update; equal captions to measure on are counted."""
        options = (
            "--eval-data",
            world / "test",
            "--steps",
            3,
            "--batch-size",
            40,
            "--log-steps",
            1,
            "--report-to",
            "none",
        )
        code, _, errors = run("train", "siglip-shapes", world / "train", tmp_path / "out", *options)
        assert code == 0
        said, first, *updates = errors.splitlines()
        assert said.startswith("Fine-tuning of 277,570 weights on 40 pairs: 3 updates")
        assert first.startswith("update 0/3  evaluation loss ")
        assert updates[0].startswith("update 1/3  loss ")
        assert all(word in updates[0] for word in ("rate ", "scale ", "pairs/s", " left"))
        assert updates[-1].startswith("update 3/3  evaluation loss ")
        history = json.loads((tmp_path / "out" / "training.json").read_text())["history"]
        assert [entry["step"] for entry in history if "eval_loss" in entry] == [0, 1, 2, 3]

    def test_equal_captions_to_measure_on_are_counted(self, world: Path, run: Any, tmp_path: Path) -> None:
        rows = (world / "test" / "metadata.csv").read_text().splitlines()[:4]
        (world / "test" / "equal.csv").write_text("\n".join([*rows, "4.png,a zilo bimu"]))
        options = ("--eval-data", world / "test" / "equal.csv", "--dry-run")
        code, _, errors = run("train", "clip-shapes", world / "train", tmp_path / "out", *options)
        assert code == 0
        assert "The 4 pairs to measure on have 3 different captions" in errors

    def test_interrupted(self, world: Path, tmp_path: Path) -> None:
        """Ctrl-C after the second update, with a checkpoint of the first, or with none."""
        for name, save_steps, message in (
            ("kept", 1, "interrupted at update 2. {}/.training/checkpoint-1 is kept: the same command with --resume"),
            ("none", 3, "interrupted at update 2, before the first checkpoint: remove {} and start again"),
        ):
            log = tmp_path / f"{name}.log"
            process = start(interrupt, plan(world, tmp_path / name, steps=3, save_steps=save_steps), output=log)
            assert finish(process) == 0, log.read_text()
            assert message.format(tmp_path / name) in log.read_text()

    def test_a_report_needs_its_package(self, world: Path, run: Any, tmp_path: Path) -> None:
        options = ("--report-to", "tensorboard,nowhere")
        code, _, errors = run("train", "clip-shapes", world / "train", tmp_path / "out", *options)
        assert code == 1
        assert "--report-to tensorboard,nowhere needs nowhere" in errors

    def test_bfloat16_on_the_cpu(self, world: Path, tmp_path: Path) -> None:
        train(plan(world, tmp_path / "out", steps=1, bf16=True))
        assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}

    @pytest.mark.thorough
    @pytest.mark.parametrize("settings", [{}, {"lora_rank": 8}], ids=["full", "LoRA"])
    @pytest.mark.parametrize("model", ["clip-shapes", "siglip-shapes"])
    def test_the_defaults_learn_400_pairs_in_new_words(self, tmp_path: Path, model: str, settings: dict) -> None:
        write_new_words(tmp_path / "world")
        folders = {"zero_shot": str(tmp_path / "world" / "classes"), "eval_data": str(tmp_path / "world" / "test")}
        result = train(plan(tmp_path / "world", tmp_path / "out", model=model, template="a {}", **folders, **settings))
        assert result.metrics["eval_zero_shot_accuracy"] >= 0.85


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)


def interrupt(interrupted: TrainingPlan) -> None:
    from twinlens.training import run

    def build(*arguments: Any) -> Any:
        trainer = build_trainer(*arguments)
        trainer.add_callback(Interrupt())
        return trainer

    run.build_trainer = build  # type: ignore[assignment]
    try:
        train(interrupted)
    except KeyboardInterrupt as error:
        print(error, file=sys.stderr)
