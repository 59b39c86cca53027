"""Runs that are killed, stopped or damaged, and go on: whole checkpoints, their checks, and stages."""

import json
import os
import pickle
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import Popen
from subprocess import run as run_process
from typing import Any

import pytest
import torch
from helpers.processes import finish, run_command, start
from safetensors.torch import load_file

from twinlens.conversion import convert
from twinlens.toy_world import ShapesDataset
from twinlens.training import TrainingPlan, checkpoints, train
from twinlens.training.checkpoints import MANIFEST, last_whole_checkpoint
from twinlens.training.run import build_trainer, load
from twinlens.training.stages import FIXED, read_stages
from twinlens.training.trained_folder import WORK_FOLDER

STEPS = 7  # in epochs of three updates


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and drawings with captions to train it on."""
    folder: Path = tmp_path_factory.mktemp("world")
    convert("siglip-shapes", folder / "model", verify=False)
    (folder / "pairs").mkdir()
    for pair in ShapesDataset("train", 24):  # type: ignore[arg-type]
        pair["image"].save(folder / "pairs" / f"{pair['index']}.png")
        (folder / "pairs" / f"{pair['index']}.txt").write_text(pair["text"])
    return folder


def plan(world: Path, output: Path, **settings: Any) -> TrainingPlan:
    given: dict[str, Any] = {
        "model": str(world / "model"),
        "data": str(world / "pairs"),
        "output": str(output),
        "batch_size": 8,
    }
    given |= {"steps": STEPS, "save_steps": 2, "log_steps": 1, "learning_rate": 1e-3, "min_crop_area": 0.5}
    return TrainingPlan(**given | settings)


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """The folder of a run that was not interrupted."""
    train(plan(world, world / "whole"))
    return world / "whole"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(folder: Path, other: Path) -> bool:
    ours, theirs = weights(folder), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def losses(folder: Path) -> list[tuple[int, float]]:
    report = json.loads((folder / "training.json").read_text())
    return [(entry["step"], entry["loss"]) for entry in report["history"] if "loss" in entry]


def train_and_say(planned: TrainingPlan) -> None:
    print("begin", flush=True)
    train(planned)


def train_until_the_second_checkpoint(planned: TrainingPlan) -> None:
    """Kill the process when all files of the second checkpoint are written, and it has not its name yet."""
    describe, written = checkpoints._write_manifest, []

    def write_or_die(checkpoint: Path) -> None:
        describe(checkpoint)
        written.append(checkpoint)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints._write_manifest = write_or_die
    train(planned)


def wait_for(process: BaseProcess, happens: Callable[[], bool]) -> None:
    while process.is_alive() and not happens():
        time.sleep(0.002)


class TestKills:
    def test_while_a_checkpoint_is_written(self, world: Path, whole: Path, tmp_path: Path) -> None:
        code = finish(start(train_until_the_second_checkpoint, plan(world, tmp_path / "out"), output=tmp_path / "log"))
        assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
        found = {path.name for path in (tmp_path / "out" / WORK_FOLDER).iterdir() if "checkpoint" in path.name}
        assert "checkpoint-2" in found
        assert "checkpoint-4" not in found
        assert any(name.startswith(".checkpoint-4.") for name in found)
        assert not (tmp_path / "out" / "model.safetensors").exists()
        train(plan(world, tmp_path / "out", resume=True))
        assert equal(tmp_path / "out", whole)
        assert losses(tmp_path / "out") == losses(whole)
        assert not [path for path in (tmp_path / "out").rglob("*") if "partial" in path.name]

    @pytest.mark.thorough
    def test_at_any_moment(self, world: Path, tmp_path: Path) -> None:
        """Of reading, training, and writing checkpoints and the result; no checkpoint is lost."""
        log, kills = tmp_path / "log", 20
        settings = {"steps": 3 * kills + 4, "save_steps": 1}
        work, moments = tmp_path / "out" / WORK_FOLDER, random.Random(0)

        def begin(output: Path) -> BaseProcess:
            log.unlink(missing_ok=True)
            resumed = (output / WORK_FOLDER).exists()
            process = start(train_and_say, plan(world, output, resume=resumed, **settings), output=log)
            wait_for(process, lambda: log.exists() and "begin" in log.read_text())
            return process

        process, times = begin(tmp_path / "whole"), [time.perf_counter()]
        wait_for(process, (tmp_path / "whole" / WORK_FOLDER / "checkpoint-1").exists)
        times.append(time.perf_counter())
        assert finish(process) == 0, log.read_text()
        loading, training = times[1] - times[0], time.perf_counter() - times[1]
        reached, unfinished = [], 0
        for _ in range(kills):
            process = begin(tmp_path / "out")
            time.sleep(moments.uniform(0.7 * loading, loading + 2 * training / kills))
            process.kill()
            assert finish(process) in (-signal.SIGKILL, 0), log.read_text()
            last = last_whole_checkpoint(work) if work.exists() else None
            reached.append(int(last.name.partition("-")[2]) if last else 0)
            unfinished += any(work.glob(".checkpoint-*"))
        print(f"updates kept after each kill: {reached}; {unfinished} of {kills} while a checkpoint was written")
        assert reached == sorted(reached)
        assert finish(begin(tmp_path / "out")) == 0, log.read_text()
        assert equal(tmp_path / "out", tmp_path / "whole")
        assert losses(tmp_path / "out") == losses(tmp_path / "whole")

    def test_before_the_first_checkpoint(self, world: Path, whole: Path, tmp_path: Path, caplog: Any) -> None:
        (tmp_path / "out" / WORK_FOLDER / ".checkpoint-2.0123.partial").mkdir(parents=True)
        with pytest.raises(FileExistsError, match="--resume the run that is in it"):
            train(plan(world, tmp_path / "out"))
        train(plan(world, tmp_path / "out", resume=True))
        assert "has no checkpoint yet, so the run starts again from the beginning" in caplog.text
        assert equal(tmp_path / "out", whole)

    def test_after_the_last_update(self, world: Path, tmp_path: Path, run: Any) -> None:
        """In the middle of an epoch, where transformers' own loop would make one update more."""
        settings = ["--steps", 4, "--batch-size", 8, "--learning-rate", 1e-3]
        arguments = ["train", world / "model", world / "pairs", tmp_path / "out", *settings]
        assert run(*arguments)[0] == 0
        before = weights(tmp_path / "out")
        (tmp_path / "out" / "model.safetensors").unlink()
        code, output, _ = run(*arguments, "--resume", "--json")
        assert (code, json.loads(output)["updates"]) == (0, 4)
        assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "out").items())


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_full_disk(world: Path, whole: Path, tmp_path: Path) -> None:
    """One line that names the checkpoint; those before it are whole, and the run goes on where there is room."""
    (disk := tmp_path / "disk").mkdir()
    mounted = run_process(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting needs permission: {mounted.stderr.decode().strip()}")
    options = ["--steps", STEPS, "--batch-size", 8, "--save-steps", 2, "--log-steps", 1, "--learning-rate", 1e-3]
    options += ["--min-crop-area", 0.5]
    try:
        code, printed = run_command(
            "train", world / "model", world / "pairs", disk / "out", *options, output=tmp_path / "log"
        )
        assert code == 1
        (line,) = [line for line in printed if line.startswith("twinlens: ")]  # TensorBoard's writer has its own say
        assert re.fullmatch(r"twinlens: Writing .*/out/\.training/checkpoint-\d failed: .*", line)
        assert not list(disk.rglob("*.partial"))
        assert last_whole_checkpoint(disk / "out" / WORK_FOLDER)
        shutil.copytree(disk / "out", tmp_path / "out")
    finally:
        run_process(["umount", disk], check=True)
    train(plan(world, tmp_path / "out", resume=True))
    assert equal(tmp_path / "out", whole)


class TestTermination:
    """SIGTERM to all processes of a run, as some schedulers send it, after its first logs."""

    def stop(self, pid: int, alive: Callable[[], bool], log: Path) -> None:
        while alive() and not (log.exists() and "update 1/" in log.read_text()):
            time.sleep(0.002)
        os.killpg(pid, signal.SIGTERM)

    def check(self, code: int | None, log: Path, output: Path) -> int:
        """Check how a run ended, and return the number of its updates."""
        assert code == 128 + signal.SIGTERM, log.read_text()
        (line,) = [line for line in log.read_text().splitlines() if "Stopped" in line]
        found = re.fullmatch(
            r"Stopped by SIGTERM after update (\d+) of 500, with a checkpoint: .* --resume goes on\.", line
        )
        assert found
        assert not (output / "model.safetensors").exists()
        checkpoint = last_whole_checkpoint(output / WORK_FOLDER)
        assert checkpoint is not None
        assert read_stages(checkpoint)[-1].last_update == int(found[1])
        return int(found[1])

    def test_one_process(self, world: Path, tmp_path: Path) -> None:
        log, output, settings = tmp_path / "log", tmp_path / "out", {"save_steps": 400}
        process = start(train_in_a_group, plan(world, output, steps=500, **settings), output=log)
        self.stop(process.pid or 0, process.is_alive, log)
        finish(process)
        updates = self.check(process.exitcode, log, output)
        train(plan(world, output, steps=updates + 1, resume=True, **settings))
        assert len(losses(output)) == updates + 1

    @pytest.mark.thorough
    @pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (2, 1)])
    def test_processes_and_their_workers(self, world: Path, tmp_path: Path, processes: int, workers: int) -> None:
        log, output, settings = tmp_path / "log", tmp_path / "out", ["--steps", 500, "--save-steps", 400]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", processes] if processes > 1 else []
        settings += ["--batch-size", 4, "--log-steps", 1, "--workers", workers]
        command = [sys.executable, *launcher, "-m", "twinlens", "train", world / "model", world / "pairs", output]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        arguments = list(map(str, command + settings))
        with (
            log.open("w") as file,
            Popen(arguments, stdout=file, stderr=file, env=environment, start_new_session=True) as process,
        ):
            self.stop(process.pid, lambda: process.poll() is None, log)
            code = process.wait()
        # The launcher has a code of its own.
        updates = self.check(code if processes == 1 else 128 + signal.SIGTERM, log, output)
        assert updates < 400


def train_in_a_group(planned: TrainingPlan) -> None:
    os.setpgid(0, 0)
    train(planned)


def change_one_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def put(file: Path) -> None:
    file.write_bytes(b"")


STATES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    *((name, Path.unlink, f"{name} is missing") for name in STATES),
    *((name, cut, rf"{re.escape(name)} has [\d,]+ bytes, expected \d+") for name in STATES),
    *((name, change_one_byte, f"{name} has changed since it was written") for name in STATES),
    ("pytorch_model.bin", put, "pytorch_model.bin is not one of its files"),
    (MANIFEST, Path.unlink, f"{MANIFEST} is missing or damaged"),
    (MANIFEST, cut, f"{MANIFEST} is missing or damaged"),
    (MANIFEST, lambda file: file.write_text("[" * 100_000), f"{MANIFEST} is missing or damaged"),
    (MANIFEST, lambda file: file.write_text('{"files": {"a": 3}}'), f"{MANIFEST} is missing or damaged"),
]


class TestDamages:
    @pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
    def test_the_last_whole_one_is_found(
        self, whole: Path, tmp_path: Path, caplog: Any, name: str, damage: Callable[[Path], object], message: str
    ) -> None:
        shutil.copytree(whole / WORK_FOLDER, tmp_path / "work")
        damage(tmp_path / "work" / "checkpoint-7" / name)
        found = last_whole_checkpoint(tmp_path / "work")
        assert found == tmp_path / "work" / "checkpoint-6"
        assert re.search(f"Not whole, so checkpoint-6 is taken: checkpoint-7, in which {message}", caplog.text)
        damage(found / name)
        with pytest.raises(ValueError, match=f"is whole: checkpoint-7, in which {message}.*; checkpoint-6, in which"):
            last_whole_checkpoint(tmp_path / "work")

    def test_the_command_says_so(self, world: Path, whole: Path, tmp_path: Path, run: Any, caplog: Any) -> None:
        shutil.copytree(whole, tmp_path / "out")
        (tmp_path / "out" / WORK_FOLDER / "checkpoint-7" / "optimizer.pt").unlink()
        options = ["--steps", STEPS, "--batch-size", 8, "--save-steps", 2, "--log-steps", 1, "--learning-rate", 1e-3]
        arguments = ["train", world / "model", world / "pairs", tmp_path / "out", *options, "--min-crop-area", 0.5]
        code, _, _ = run(*arguments, "--resume")
        assert code == 0
        assert "Not whole, so checkpoint-6 is taken: checkpoint-7, in which optimizer.pt is missing." in caplog.text
        assert "Going on after update 6, from checkpoint-6." in caplog.text
        assert equal(tmp_path / "out", whole)
        for folder in (tmp_path / "out" / WORK_FOLDER).glob("checkpoint-*"):
            (folder / "scheduler.pt").unlink()
        code, _, errors = run(*arguments, "--resume")
        *_, line = errors.splitlines()
        assert code == 1
        assert "No checkpoint in" in line
        assert line.count("scheduler.pt is missing") == 2

    @pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
    def test_no_pickle_is_executed(self, world: Path, whole: Path, tmp_path: Path, run: Any, name: str) -> None:
        """Not even one whose size and hash are those of the manifest."""
        shutil.copytree(whole, tmp_path / "out")
        checkpoint = tmp_path / "out" / WORK_FOLDER / "checkpoint-7"
        (checkpoint / name).write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
        (checkpoint / MANIFEST).unlink()
        checkpoints._write_manifest(checkpoint)
        options = ["--steps", STEPS + 1, "--batch-size", 8, "--resume"]
        code, _, errors = run("train", world / "model", world / "pairs", tmp_path / "out", *options)
        assert not (tmp_path / "touched").exists()
        if name == "training_args.bin":  # nobody reads it
            assert code == 0
            return
        *_, line = errors.splitlines()
        assert code == 1
        assert "checkpoint-7: its weights are damaged, or hold more than tensors; nothing in them was executed" in line

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("scheduler.pt", lambda state: {**state, "last_epoch": None}, "has None as last_epoch"),
            ("scheduler.pt", lambda state: {**state, "_step_count": "\x1b"}, r"has '\\x1b' as _step_count"),
            ("optimizer.pt", lambda state: state["param_groups"][0].update(amsgrad=None) or state, "None as amsgrad"),
            ("optimizer.pt", lambda state: state["state"][0].update(exp_avg=None) or state, "NoneType as exp_avg of a"),
            (
                "optimizer.pt",
                lambda state: state["state"][1].update(exp_avg_sq=torch.zeros(3, 5, 7)) or state,
                r"a tensor \(3, 5, 7\) as exp_avg_sq of a weight \(",
            ),
        ],
    )  # type: ignore[misc]
    def test_kinds_that_no_run_has_written(
        self, world: Path, whole: Path, tmp_path: Path, name: str, change: Callable[[Any], Any], message: str
    ) -> None:
        checkpoint = shutil.copytree(whole / WORK_FOLDER / "checkpoint-7", tmp_path / "checkpoint-7")
        torch.save(change(torch.load(checkpoint / name)), checkpoint / name)
        (checkpoint / MANIFEST).unlink()
        checkpoints._write_manifest(checkpoint)
        trainer = build_trainer(plan(world, tmp_path / "out"), *load(plan(world, tmp_path / "out")), tmp_path / "out")
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=str(checkpoint))

    def test_by_the_trainer_alone(self, world: Path, whole: Path, tmp_path: Path) -> None:
        shutil.copytree(whole / WORK_FOLDER / "checkpoint-7", tmp_path / "checkpoint-7")
        planned = plan(world, tmp_path / "out")
        trainer = build_trainer(planned, *load(planned), tmp_path / "out")
        shutil.copy(tmp_path / "checkpoint-7" / "rng_state.pth", tmp_path / "checkpoint-7" / "rng_state_0.pth")
        (tmp_path / "checkpoint-7" / MANIFEST).unlink()
        checkpoints._write_manifest(tmp_path / "checkpoint-7")
        with pytest.raises(ValueError, match=r"random states of 2 processes, and this run has 1\. Start 2\."):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
        (tmp_path / "checkpoint-7" / "optimizer.pt").unlink()
        with pytest.raises(ValueError, match=r"checkpoint-7 is not whole: optimizer\.pt is missing"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


class Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


CHANGEABLE = {
    "eval_data", "zero_shot", "template", "eval_split", "skip_corrupt", "epochs", "steps", "gradient_cache_size",
    "learning_rate", "warmup", "weight_decay", "layer_decay", "adam_beta2", "min_crop_area", "bf16", "workers",
    "log_steps", "eval_steps", "save_steps", "output", "resume", "schedule", "max_grad_norm", "duplicates_as_negatives",
    "patch_dropout", "gradient_checkpointing", "compile", "report_to",
}  # fmt: skip


class TestOtherSettings:
    def test_every_setting_is_decided_upon(self) -> None:
        assert {field.name for field in fields(TrainingPlan)} == CHANGEABLE | set(FIXED)

    def test_what_may_change_takes_effect(self, world: Path, whole: Path, tmp_path: Path, caplog: Any) -> None:
        shutil.copytree(whole, tmp_path / "out")
        changed = {"steps": 9, "learning_rate": 1e-5, "log_steps": 2, "save_steps": 9, "weight_decay": 0.5}
        train(plan(world, tmp_path / "out", resume=True, **changed))
        assert "from checkpoint-7, steps 9 instead of 7, learning_rate 1e-05 instead of 0.001" in caplog.text
        report = json.loads((tmp_path / "out" / "training.json").read_text())
        assert [entry["step"] for entry in report["history"] if "loss" in entry] == [*range(1, 10)]
        (rate,) = [entry["learning_rate"] for entry in report["history"] if entry["step"] == 8]
        assert 0 < rate < 1e-5
        first, second = report["stages"]
        assert (first["first_update"], first["last_update"], second["first_update"], second["last_update"]) == (
            1,
            7,
            8,
            9,
        )
        assert (first["settings"]["learning_rate"], second["settings"]["learning_rate"]) == (1e-3, 1e-5)
        assert report["seconds"] == pytest.approx(first["seconds"] + second["seconds"], abs=0.1)
        card = (tmp_path / "out" / "README.md").read_text()
        assert "- `learning_rate`: 0.001\n" in card
        assert "From update 8 on, for " in card
        assert "- `learning_rate`: 1e-05, before: 0.001\n" in card
        optimizer = torch.load(tmp_path / "out" / WORK_FOLDER / "checkpoint-9" / "optimizer.pt", weights_only=True)
        assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.0, 0.5}

    def test_rates_follow_the_schedule_of_this_run(self, world: Path, tmp_path: Path) -> None:
        """As in a run that had the same schedule from the beginning."""
        settings = {"warmup": 0.0, "save_steps": 3}
        for name, rate, steps in (("out", 1e-3, 3), ("as planned", 2e-3, 6)):
            train(plan(world, tmp_path / name, learning_rate=rate, steps=steps, **settings))
        train(plan(world, tmp_path / "out", learning_rate=2e-3, steps=6, resume=True, **settings))
        rates = [
            [entry["learning_rate"] for entry in json.loads((tmp_path / name / "training.json").read_text())["history"]
             if "learning_rate" in entry][3:]
            for name in ("out", "as planned")
        ]  # fmt: skip
        assert rates[0] == rates[1]
        assert len(rates[0]) == 3

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"batch_size": 4}, "batch_size was 8, and is 4 now"),
            ({"seed": 1, "freeze": "text"}, "freeze was None, and is 'text' now; seed was 0, and is 1 now"),
            ({"steps": 5}, "The run has made 7 updates, and 5 are asked for: raise --steps or --epochs"),
        ],
    )
    def test_what_may_not_is_refused(
        self, world: Path, whole: Path, tmp_path: Path, settings: dict[str, Any], message: str
    ) -> None:
        shutil.copytree(whole / WORK_FOLDER, tmp_path / "out" / WORK_FOLDER)
        with pytest.raises(ValueError, match=message):
            train(plan(world, tmp_path / "out", resume=True, **settings))

    def test_other_data_is_refused(self, world: Path, whole: Path, tmp_path: Path) -> None:
        shutil.copytree(world / "pairs", tmp_path / "pairs")
        shutil.copytree(whole / WORK_FOLDER, tmp_path / "out" / WORK_FOLDER)
        with pytest.raises(ValueError, match=r"data was '.*/world.*/pairs', and is '.*' now"):
            train(plan(world, tmp_path / "out", resume=True, data=str(tmp_path / "pairs")))
        (world / "pairs" / "more.txt").write_text("one more")
        shutil.copy(world / "pairs" / "0.png", world / "pairs" / "more.png")
        try:
            with pytest.raises(ValueError, match="pairs was 24, and is 25 now"):
                train(plan(world, tmp_path / "out", resume=True))
        finally:
            for suffix in ("txt", "png"):
                (world / "pairs" / f"more.{suffix}").unlink()
