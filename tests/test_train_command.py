"""`twinlens train` from data to a Hub folder, its plan, and runs that are killed and go on."""

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import twinlens
from twinlens import training
from twinlens.cli import app
from twinlens.conversion import convert
from twinlens.toy_world import ShapesDataset
from twinlens.training import TrainingPlan, TrainingResult, estimate_memory, train
from twinlens.training.plan import REQUIRED
from twinlens.training.run import build_trainer, dry_run, load
from twinlens.training.trainer import check_batches

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model, and drawings with captions to train it on."""
    folder = tmp_path_factory.mktemp("world")
    convert("siglip-shapes", folder / "model", verify=False)
    for split, size in (("train", 24), ("test", 10)):
        (folder / split).mkdir()
        with (folder / split / "metadata.jsonl").open("w") as lines:
            for pair in ShapesDataset(split, size):  # type: ignore[arg-type]
                pair["image"].save(folder / split / f"{pair['index']}.png")
                lines.write(json.dumps({"file_name": f"{pair['index']}.png", "text": pair["text"]}) + "\n")
    return folder


def plan(world: Path, output: Path, **settings) -> TrainingPlan:
    given = {"model": str(world / "model"), "data": str(world / "train"), "output": str(output)}
    return TrainingPlan(**given | {"steps": 4, "batch_size": 8, "log_steps": 1} | settings)


class TestPlan:
    def test_yaml_and_options(self, world, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_text("model: here\ndata: there\nlearning_rate: 1e-4\nepochs: 2\nbf16: true\n")
        read = TrainingPlan.read(file, {"output": "out", "batch_size": 16, "data": "elsewhere"})
        assert (read.model, read.data, read.learning_rate, read.epochs) == ("here", "elsewhere", 1e-4, 2.0)
        assert (read.bf16, read.batch_size) == (True, 16)
        assert read.changed()["learning_rate"] == 1e-4

    def test_yaml_with_names_of_options(self, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_text("learning-rate: 1e-4\n--batch-size: 16\n")
        read = TrainingPlan.read(file, {"model": "here", "data": "there", "output": "out"})
        assert (read.learning_rate, read.batch_size) == (1e-4, 16)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("batch_sise: 3", "unknown settings: batch_sise. Known are model, data"),
            ("- a list", "Expected names and values"),
            ("false", "Expected names and values"),
            ("a: [", "is not YAML"),
            ("learning_rate: fast", "learning_rate must be a number or nothing, got 'fast'"),
            ("batch_size: many", "batch_size must be a whole number or nothing, got 'many'"),
            ("batch_size: 1.5", "batch_size must be a whole number or nothing, got 1.5"),
            ("batch_size: true", "batch_size must be a whole number or nothing, got True"),
            ("weight_decay: true", "weight_decay must be a number, got True"),
            ("weight_decay:", "weight_decay must be a number, got None"),
            ("schedule: stairs", "schedule must be 'cosine' or 'linear' or 'constant', got 'stairs'"),
            ("lora_rank: high", "lora_rank must be a whole number or nothing, got 'high'"),
            ("bf16: 1", "bf16 must be true or false, got 1"),
            ("template: [a, b]", r"template must be text, got \['a', 'b'\]"),
            ("tokenizer: 3", "tokenizer must be text or nothing, got 3"),
            ("freeze: both", "freeze must be 'image' or 'text' or nothing, got 'both'"),
        ],
    )
    def test_wrong_yaml(self, tmp_path, text, message):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            TrainingPlan.read(tmp_path / "run.yaml", {"model": "m", "data": "d", "output": "o"})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"output": ""}, "needs output: pass it as an argument or"),
            ({"zero_shot": "x"}, "measured along with eval_data"),
            ({"streaming": True, "data": __file__}, "for data sets on the Hub, and .* is here"),
            ({"min_crop_area": 0.0}, r"in \(0, 1\], got 0.0"),
            ({"template": "a photo"}, "a template with {} where"),
            ({"model": Path("m")}, "model must be text, got PosixPath"),
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"steps": -3}, "steps must be at least 1, got -3"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"epochs": 0}, "epochs must be above 0, .* got 0"),
            ({"learning_rate": 0.0}, "learning_rate must be above 0, or the run would train nothing, got 0.0"),
            ({"patch_dropout": 1.0}, "patch_dropout must be below 1, .* got 1.0"),
            ({"unlocked_layers": 2}, "unlocked_layers=2 are those of a frozen tower: name it with --freeze"),
            ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
            ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
            ({"learning_rate": math.nan}, "learning_rate must be above 0, .* got nan"),
        ],
    )
    def test_wrong_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            TrainingPlan(**{"model": "m", "data": "d", "output": "o"} | settings)

    def test_every_setting_is_an_option_and_shows_its_default(self):
        shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "80", "NO_COLOR": "1"}).stdout
        assert max(map(len, shown.splitlines())) <= 80
        shown = re.sub(r"(?<=\w-) (?=\w)", "", " ".join(shown.split()))  # words are divided at hyphens
        for field in fields(TrainingPlan):
            option, default = f"--{field.name.replace('_', '-')}", ""
            if isinstance(field.default, bool):
                name, default = f"{option} / --no{option[1:]}", f" [default: no{option[1:]}]"
            else:
                name = f"{field.name.upper() if field.name in REQUIRED else option} <"
                default = "" if field.default in (None, "") else f" [default: {field.default}]"
            entry = shown[shown.index(name) :]
            assert f" {field.metadata['help']}{default} " in entry[:700]


@pytest.fixture
def planned(monkeypatch, tmp_path) -> Callable[..., TrainingPlan]:
    """Run `twinlens train` with a YAML file and options, and return the plan that it makes."""
    plans: list[TrainingPlan] = []

    def remember(plan: TrainingPlan) -> TrainingResult:
        plans.append(plan)
        return TrainingResult(tmp_path, {}, 0, is_main_process=False)

    monkeypatch.setattr(training, "train", remember)
    monkeypatch.setattr("twinlens.cli.training.check_model", lambda model: None)  # there is no model "m"

    def run(yaml: str, *options: str) -> TrainingPlan:
        (tmp_path / "run.yaml").write_text(yaml)
        arguments = ["train", "m", "d", "o", "--config", str(tmp_path / "run.yaml"), *options]
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
        return plans.pop()

    return run


class TestOptions:
    """What is given on the command line wins over the YAML file, whatever its value."""

    def test_zeros(self, planned):
        yaml = "weight_decay: 0.3\nwarmup: 100\nseed: 7\nworkers: 4\nmax_grad_norm: 1e-3\n"
        zeros = ["--weight-decay", "0", "--warmup", "0", "--seed", "0", "--workers", "0", "--max-grad-norm", "0"]
        plan = planned(yaml, *zeros)
        assert (plan.weight_decay, plan.warmup, plan.seed, plan.workers, plan.max_grad_norm) == (0, 0, 0, 0, 0)

    def test_values_that_are_the_defaults(self, planned):
        plan = planned("batch_size: 8\nepochs: 3\nsplit: other\n", "--batch-size", "64", "--split", "train")
        assert (plan.batch_size, plan.epochs, plan.split) == (64, 3.0, "train")

    @pytest.mark.parametrize("name", [field.name for field in fields(TrainingPlan) if field.default is False])
    def test_flags(self, planned, name):
        flag = name.replace("_", "-")
        assert getattr(planned(f"{name}: true\n"), name) is True
        assert getattr(planned(f"{name}: true\n", f"--no-{flag}"), name) is False
        assert getattr(planned(f"{name}: false\n", f"--{flag}"), name) is True

    def test_empty_text(self, planned):
        plan = planned("eval_data: pairs\nzero_shot: images\ntokenizer: file\n", "--eval-data", "", "--zero-shot", "")
        assert (plan.eval_data, plan.zero_shot, plan.tokenizer) == ("", "", "file")

    def test_without_a_file_every_setting_has_its_default(self, planned):
        assert planned("") == TrainingPlan(model="m", data="d", output="o")


class TestRun:
    def test_a_folder_for_the_hub(self, world, tmp_path):
        """Also what is in it: weights that changed, processor, card with curves, report, TensorBoard's logs."""
        (tmp_path / "classes" / "red_star").mkdir(parents=True)
        Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "classes" / "red_star" / "0.png")
        output = tmp_path / "out"
        arguments = [str(world / "model"), str(world / "train"), str(output), "--eval-data", str(world / "test")]
        arguments += [
            "--zero-shot",
            str(tmp_path / "classes"),
            "--steps",
            "3",
            "--batch-size",
            "8",
            "--eval-steps",
            "2",
        ]
        result = CliRunner().invoke(app, ["train", *arguments, "--log-steps", "1", "--json"], catch_exceptions=False)
        answer = json.loads(result.stdout)
        assert answer["updates"] == 3
        assert answer["metrics"]["eval_zero_shot_accuracy"] == 1.0
        before = load_file(world / "model" / "model.safetensors")
        after = load_file(output / "model.safetensors")
        assert before.keys() == after.keys()
        assert any(not torch.equal(after[name], value) for name, value in before.items())
        report = json.loads((output / "training.json").read_text())
        assert [entry["step"] for entry in report["history"] if "loss" in entry] == [1, 2, 3]
        assert report["metrics"] == answer["metrics"]
        card = (output / "README.md").read_text()
        assert "training_curves.png" in card
        assert f"| image to text recall at 1 | {answer['metrics']['eval_image_to_text_recall_at_1']:.1%} |" in card
        assert str(world) not in card
        with Image.open(output / "training_curves.png") as curves:
            assert curves.size[0] > 500
        assert list((output / ".training").rglob("events.out.tfevents*"))
        model = twinlens.DualEncoderModel.from_pretrained(output)
        processor = twinlens.DualEncoderProcessor.from_pretrained(output)
        assert model.encode_text(**processor(text=["a red star"])).shape == (1, 64)
        code, _ = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        with Image.open(world / "train" / "0.png") as image:
            namespace: dict[str, Any] = {"images": [image], "texts": ["a red star", "a white arrow"]}
            exec(code.replace("FOLDER", str(output)), namespace)
        assert namespace["logits"].shape == (1, 2)
        padding = json.loads((output / "sentence_bert_config.json").read_text())["processing_kwargs"]["text"]["padding"]
        assert padding == "max_length"  # as in a converted folder

    def test_the_folder_is_named_as_it_was_given(self, world, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, output, _ = run("train", world / "model", world / "train", "out", "--steps", 1, "--batch-size", 8)
        assert (code, output) == (0, "Wrote out\n")

    def test_what_is_in_the_way_stays(self, world, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("kept")
        with pytest.raises(FileExistsError, match=r"not empty\. Choose another folder, or --resume"):
            train(plan(world, tmp_path / "out"))
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
        with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
            train(plan(world, tmp_path / "new", resume=True))
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        "settings",
        [{"lora_rank": 2}, pytest.param({"freeze": "image"}, marks=pytest.mark.thorough), {"from_scratch": True}],
    )
    def test_switches(self, world, tmp_path, settings):
        train(plan(world, tmp_path / "out", learning_rate=1e-3, warmup=0.0, **settings))
        before = load_file(world / "model" / "model.safetensors")
        after = load_file(tmp_path / "out" / "model.safetensors")
        assert before.keys() == after.keys()
        changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
        if "freeze" in settings:
            assert changed
            assert not any(name.startswith("vision_model") for name in changed)
        elif "lora_rank" in settings:
            linear = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
            assert changed == {name for name in before if name.endswith("weight") and name.split(".")[-2] in linear}
        else:
            assert changed == set(before)
            weight = "vision_model.encoder.layers.0.mlp.fc1.weight"
            assert (after[weight] - before[weight]).abs().mean() > 0.01

    @pytest.mark.parametrize("package", ["matplotlib", "tensorboardX"])
    def test_a_missing_package_is_found_before_training(self, world, tmp_path, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr("twinlens.training.packages.is_tensorboard_available", lambda: package != "tensorboardX")
        with pytest.raises(ImportError, match=rf"need.* {package}.*pip install"):
            train(plan(world, tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_on_a_terminal_the_result_alone_is_on_stdout(self, world, tmp_path, run, monkeypatch):
        """Progress, losses and metrics are on stderr, so that `--json > file` writes JSON."""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        arguments = ["train", world / "model", world / "train", tmp_path / "out", "--eval-data", world / "test"]
        code, output, errors = run(*arguments, "--steps", 2, "--batch-size", 8, "--log-steps", 1, "--json")
        assert (code, json.loads(output)["updates"]) == (0, 2)
        for text in ("\r\x1b[Kupdate 0/2  evaluating", "update 0/2  evaluation loss", "update 2/2  loss", "pairs/s"):
            assert text in errors

    def test_streams_need_a_number_of_steps(self, world, tmp_path):
        (tmp_path / "0.tar").write_bytes(b"")
        with pytest.raises(ValueError, match=r"is a stream, .* say how many --steps"):
            train(plan(world, tmp_path / "out", data=str(tmp_path / "{0..0}.tar"), steps=None))

    def test_what_cannot_be_read_is_left_out_and_counted(self, world, tmp_path):
        shutil.copytree(world / "train", tmp_path / "data")
        (tmp_path / "data" / "0.png").write_bytes(b"damaged")
        arguments = {"data": str(tmp_path / "data"), "steps": 3}
        with pytest.raises(ValueError, match=r"0\.png"):
            train(plan(world, tmp_path / "out", **arguments))
        train(plan(world, tmp_path / "other", **arguments, skip_corrupt=True))
        assert json.loads((tmp_path / "other" / "training.json").read_text())["skipped"] == 1

    def test_splits_of_a_data_set(self, world, tmp_path):
        def pairs(split: Any, size: int) -> datasets.Dataset:
            rows = list(ShapesDataset(split, size))
            return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in ("image", "text")})

        splits = {"learn": pairs("train", 16), "check": pairs("test", 5)}
        datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
        chosen = {"data": str(tmp_path / "data"), "eval_data": str(tmp_path / "data"), "steps": 2}
        result = train(plan(world, tmp_path / "out", **chosen, split="learn", eval_split="check"))
        assert result.metrics["eval_text_to_image_recall_at_5"] == 1.0  # of five
        with pytest.raises(ValueError, match="no split 'test', only learn, check"):
            train(plan(world, tmp_path / "other", **chosen, split="learn"))


class TestChecks:
    """What would end a run, or make it useless, ends it before anything is written."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"eval_data": "absent/pairs"}, "absent/pairs"),
            ({"eval_data": "{world}/damaged"}, "no format that Pillow knows"),
            ({"eval_data": "{world}/late"}, r"late/1\.png"),
            ({"eval_data": "{world}/late-rows"}, r"Sample 1: .* no format that Pillow knows"),
            ({"data": "{world}/damaged", "batch_size": 2}, "no format that Pillow knows"),
            ({"eval_data": "{world}/test", "zero_shot": "{world}/classes"}, "no format that Pillow knows"),
            ({"text_column": "said"}, "a column named 'said'"),
            ({"output": "{world}/train/0.png/out"}, "is a file"),
            ({"output": "{world}/loop/out"}, "leads nowhere: Symlink loop"),
            ({"output": "~nobody-of-that-name/out"}, "leads nowhere: Could not determine home directory"),
            ({"model": "{world}/hollow"}, r"has not the weights of a SiglipModel: 1 missing keys \(logit_bias\)"),
        ],
    )
    def test_before_the_start(self, world, tmp_path, settings, message):
        if not (world / "damaged").exists():
            for folder in ("damaged", "classes/red"):
                (world / folder).mkdir(parents=True)
                for number in range(2):
                    (world / folder / f"{number}.png").write_bytes(b"nothing")
                    (world / folder / f"{number}.txt").write_text(f"caption {number}")
            shutil.copytree(world / "damaged", world / "late")
            shutil.copy(world / "train" / "0.png", world / "late" / "0.png")
            images = [{"bytes": file.read_bytes(), "path": None} for file in sorted((world / "late").glob("*.png"))]
            rows = datasets.Dataset.from_dict({"image": images, "text": ["a", "b"]})
            datasets.DatasetDict({"test": rows}).save_to_disk(str(world / "late-rows"))
            (world / "loop").symlink_to("loop")
            shutil.copytree(world / "model", world / "hollow")
            weights = load_file(world / "model" / "model.safetensors")
            del weights["logit_bias"]
            save_file(weights, world / "hollow" / "model.safetensors", {"format": "pt"})
        given = {
            name: str(value).format(world=world) if name != "batch_size" else value for name, value in settings.items()
        }
        with pytest.raises((ValueError, OSError), match=message):
            train(TrainingPlan(**asdict(plan(world, tmp_path / "out")) | given))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
    def test_a_batch_of_one(self, loss, caplog):
        """The softmax of one logit is 1, and its loss 0; the sigmoid loss has no pair that should not match."""
        pairs = range(3)
        if loss == "softmax":
            with pytest.raises(ValueError, match="softmax loss of one pair is always 0"):
                check_batches(pairs, 1, loss)
            with pytest.raises(ValueError, match="bring at least 2 pairs, there is 1"):
                check_batches(range(1), 1, loss)
        else:
            check_batches(pairs, 1, loss)
            assert "A batch of one pair" in caplog.text
        check_batches(pairs, 1, loss, processes=2)
        with pytest.raises(ValueError, match=r"2 pairs for each of 2 processes, .* 3 pairs .* at most 1, or"):
            check_batches(pairs, 2, loss, processes=2)

    @pytest.mark.parametrize("package", ["matplotlib.figure", "tensorboard"])
    def test_a_missing_package(self, world, tmp_path, monkeypatch, package):
        if package == "tensorboard":
            monkeypatch.setattr("twinlens.training.packages.is_tensorboard_available", lambda: False)
        else:
            monkeypatch.setitem(sys.modules, package, None)
        for start_run in (train, dry_run):
            with pytest.raises(ImportError, match=package.partition(".")[0]):
                start_run(plan(world, tmp_path / "out"))

    def test_no_room_on_the_disk(self, world, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"needs 4,441,120 bytes .* the disk has 1,000"):  # 16 for each of 277,570
            train(plan(world, tmp_path / "out"))

    def test_skipped_pairs_are_counted(self, world, run, tmp_path):
        sound = [f"{world}/train/{number}.png,no. {number}" for number in range(8)]
        (tmp_path / "t.csv").write_text("\n".join(["image,text", *sound, "gone.png,x", "a.png,"]))
        options = ["--batch-size", 8, "--steps", 1, "--skip-corrupt"]
        code, output, _ = run("train", world / "model", tmp_path / "t.csv", tmp_path / "out", *options)
        assert (code, output.splitlines()[0]) == (0, "Skipped 2 pairs that could not be read.")
        assert json.loads((tmp_path / "out" / "training.json").read_text())["skipped"] == 2


class TestDryRun:
    def test_writes_nothing_and_counts(self, world, tmp_path):
        result = CliRunner().invoke(
            app,
            ["train", str(world / "model"), str(world / "train"), str(tmp_path / "out"), "--dry-run", "--json"],
            catch_exceptions=False,
        )
        estimate = json.loads(result.stdout)
        count = sum(p.numel() for p in twinlens.DualEncoderModel.from_pretrained(world / "model").parameters())
        assert (estimate["parameters"], estimate["trainable"]) == (count, count)
        assert estimate["weights"] == estimate["gradients"] == 4 * count
        assert estimate["total"] > estimate["activations"] > 1e6
        assert not (tmp_path / "out").exists()

    def test_memory_follows_the_slice_and_what_is_trained(self, world, tmp_path):
        whole = dry_run(plan(world, tmp_path / "out", batch_size=24))
        sliced = dry_run(plan(world, tmp_path / "out", batch_size=24, gradient_cache_size=3))
        assert whole.activations / 8 < sliced.activations < whole.activations / 5
        assert dry_run(plan(world, tmp_path / "out", batch_size=24, freeze="image")).trainable < whole.trainable

    def test_activations_are_those_that_a_batch_keeps(self, world, tmp_path):
        """One pair times eight is what eight pairs keep: measured by the same hooks on the larger batch."""
        settings = plan(world, tmp_path / "out")
        model, processor = load(settings)
        trainer = build_trainer(settings, model, processor, tmp_path / "work")
        batch = next(iter(trainer.get_train_dataloader()))
        one = estimate_memory(model, {name: value[:1] for name, value in batch.items()}, batch_size=8)
        eight = estimate_memory(model, batch, batch_size=1)  # of these batches
        assert one.activations == pytest.approx(eight.activations, rel=0.05)
