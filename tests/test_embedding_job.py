"""`twinlens embed`: right rows in a right order, whatever stops the job and however it is shared out."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.photographs import cat
from helpers.processes import finish, start

from twinlens.index import EmbedPlan, Index, Progress, embed
from twinlens.index.sources import TarSource, open_source
from twinlens.inference import load_exact_model, load_processor

MODEL = "siglip-shapes"
SETTINGS: dict[str, Any] = {"batch_size": 4, "shard_size": 10}
DAMAGED = {"b/03.png": b"", "b/07.jpg": b"no image"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 photographs in nested folders, of several sizes and formats, a text, and two files that are no images."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(26):
        suffix = ("png", "jpg", "webp")[number % 3]
        file = folder / "ab"[number % 2] / f"{number:02}.{suffix}"
        file.parent.mkdir(exist_ok=True)
        cat().resize((60 + number, 90 - number)).save(file)
    (folder / "a" / "deep").mkdir()
    (folder / "a" / "00.png").rename(folder / "a" / "deep" / "00.png")
    (folder / "a" / "notes.txt").write_text("no image")
    for name, content in DAMAGED.items():
        (folder / name).write_bytes(content)
    return folder


def files_of(photos: Path) -> list[Path]:
    return sorted(file for file in photos.rglob("*") if file.suffix in (".png", ".jpg", ".webp"))


def readable(photos: Path) -> list[Path]:
    return [file for file in files_of(photos) if str(file.relative_to(photos)) not in DAMAGED]


@pytest.fixture(scope="module")
def complete(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a job that nothing stopped."""
    folder = tmp_path_factory.mktemp("complete") / "index"
    embed(EmbedPlan(MODEL, [str(photos)], folder, **SETTINGS))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def vectors_of(folder: Path) -> np.ndarray:
    return np.concatenate([np.asarray(shard, np.float32) for shard in Index.open(folder).shards])


class TestAnIndex:
    def test_has_the_embedding_of_every_image(self, complete: Path, photos: Path) -> None:
        """Those that `encode` gives for one image at a time: a batch changes the last bits alone."""
        index = Index.open(complete)
        images = readable(photos)
        assert [*index.paths] == [str(file) for file in images]
        model, processor = load_exact_model(MODEL), load_processor(MODEL)
        expected = model.encode(images, processor, batch_size=1, convert_to_numpy=True)
        np.testing.assert_allclose(np.concatenate(index.shards), expected, rtol=0, atol=5e-6)
        rows = [row for shard in range(len(index.shards)) for row in index.read_table(shard).to_pylist()]
        for number, (row, file) in enumerate(zip(rows, images, strict=True)):
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            assert row == {"row": number, "path": str(file), "hash": digest, "size": len(data)}

    def test_lists_what_could_not_be_read(self, complete: Path, photos: Path) -> None:
        lines = [json.loads(line) for line in (complete / "skipped.jsonl").read_text().splitlines()]
        assert [line["path"] for line in lines] == [str(photos / name) for name in DAMAGED]
        assert all("no format that Pillow knows" in line["reason"] for line in lines)
        assert Index.open(complete).metadata["skipped"] == 2

    def test_has_nothing_but_its_files(self, complete: Path) -> None:
        shards = [
            f"{kind}-0000{n}.{suffix}"
            for n in range(3)
            for kind, suffix in (("embeddings", "safetensors"), ("index", "parquet"))
        ]
        assert {*contents(complete)} == {*shards, "index.json", "job.json", "skipped.jsonl"}

    def test_started_again_changes_nothing(self, complete: Path, photos: Path) -> None:
        before = contents(complete)
        result = embed(EmbedPlan(MODEL, [str(photos)], complete, **SETTINGS))
        assert (result.rows, result.skipped, result.embedded) == (24, 2, 0)
        assert contents(complete) == before

    def test_half_precision(self, complete: Path, photos: Path, tmp_path: Path) -> None:
        plan = EmbedPlan(MODEL, [str(photos)], tmp_path / "x", dtype="bfloat16", vectors="float16", **SETTINGS)
        embed(plan)
        index, full = Index.open(tmp_path / "x"), Index.open(complete)
        assert {shard.dtype for shard in index.shards} == {np.dtype("float16")}
        cosines = (np.concatenate(index.shards).astype(np.float32) * np.concatenate(full.shards)).sum(axis=1)
        assert cosines.min() > 0.999
        assert not np.array_equal(np.concatenate(index.shards), np.concatenate(full.shards).astype("float16"))

    def test_is_the_same_with_any_number_of_threads(self, complete: Path, photos: Path, tmp_path: Path) -> None:
        embed(EmbedPlan(MODEL, [str(photos)], tmp_path / "x", workers=3, **SETTINGS))
        assert contents(tmp_path / "x") == contents(complete)


class TestSources:
    def vectors(self, source: list[Path], out: Path) -> tuple[np.ndarray, list[str]]:
        embed(EmbedPlan(MODEL, [*map(str, source)], out, **SETTINGS))
        index = Index.open(out)
        return np.concatenate(index.shards), [*index.paths]

    def test_a_list(self, complete: Path, photos: Path, tmp_path: Path) -> None:
        """Paths are relative to it, or absolute; lines may end as on Windows; what is not there is skipped."""
        images = files_of(photos)
        lines = [str(images[0]), "", *(str(file.relative_to(photos)) for file in images[1:]), "absent.png"]
        (photos / "list").write_text("\r\n".join(lines), newline="")
        found, paths = self.vectors([photos / "list"], tmp_path / "x")
        index = Index.open(complete)
        assert paths == [*index.paths]
        assert (found == np.concatenate(index.shards)).all()
        *_, last = (tmp_path / "x" / "skipped.jsonl").read_text().splitlines()
        assert json.loads(last) == {"path": str(photos / "absent.png"), "reason": "No such file or directory"}

    @pytest.mark.parametrize("mode", ["w", "w:gz"])
    def test_tars(self, complete: Path, photos: Path, tmp_path: Path, mode: Any) -> None:
        images = files_of(photos)
        archives = [tmp_path / f"{number}.tar{mode[1:].replace(':', '.')}" for number in range(2)]
        for archive, part in zip(archives, (images[:11], images[11:]), strict=True):
            with tarfile.open(archive, mode) as tar:
                for file in part:
                    tar.add(file, file.name)
                    tar.add(photos / "a" / "notes.txt", f"{file.stem}.txt")
        found, paths = self.vectors(archives, tmp_path / "x")
        names = {file.name: archives[0] if place < 11 else archives[1] for place, file in enumerate(images)}
        assert paths == [f"{names[file.name]}::{file.name}" for file in readable(photos)]
        assert (found == np.concatenate(Index.open(complete).shards)).all()

    @pytest.mark.parametrize("damage", ["cut in an image", "cut in a head", "a head of garbage", "empty", "cut gzip"])
    def test_a_damaged_tar(self, photos: Path, tmp_path: Path, damage: str) -> None:
        """What comes before the damage is embedded, and the rest is reported, whether or not it is read."""
        archive = tmp_path / "x.tar"
        with tarfile.open(archive, "w:gz" if "gzip" in damage else "w", format=tarfile.USTAR_FORMAT) as tar:
            for file in readable(photos)[:3]:
                tar.add(file, file.name)
        data = archive.read_bytes()
        place = 0
        if "gzip" not in damage:
            with tarfile.open(archive) as tar:
                place = tar.getmembers()[2].offset
        archive.write_bytes(
            {
                "cut in an image": data[: place + 600],
                "cut in a head": data[: place + 100],
                "a head of garbage": data[:place] + b"x" * 512 + data[place + 512 :],
                "empty": b"",
                "cut gzip": data[:-2000],
            }[damage]
        )
        *members, last = TarSource([archive]).entries()
        assert all(not member.problem for member in members)
        assert last.problem.startswith("The rest of the tar cannot be read: ")
        assert len(members) == {"empty": 0, "cut gzip": len(members)}.get(damage, 2)

    def test_memory_does_not_hold_the_members_of_a_tar(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for number in range(2000):
                tar.addfile(tarfile.TarInfo(f"{number}.png"))
        assert sum(1 for _ in open_source([str(tmp_path / "x.tar")]).entries()) == 2000

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["absent"], "got absent, which is not there"),
            (["folder"], "Expected images in the folder folder, got none. Its tars, such as x.tar, can be passed"),
            (["empty.txt"], "Expected paths of images in empty.txt, one a line, got none"),
            (["cat.png"], "got cat.png, which is no text file"),
            (["folder", "empty.txt"], "Expected one folder, one list of paths, or tars, got folder, empty.txt"),
            (["folder/x.tar", "folder/x.tar"], "Expected every tar once"),
        ],
    )
    def test_wrong_sources(
        self, names: list[str], message: str, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("folder").mkdir()
        Path("folder/x.tar").touch()
        Path("empty.txt").write_text("\n\n")
        cat().save("cat.png")
        code, output, errors = run("embed", MODEL, *names, "--out", "index")
        assert (code, output) == (1, "")
        (line,) = errors.splitlines()
        assert message in line
        assert not Path("index").exists()


def slowly(out: Path, photos: Path) -> None:
    """Embed as the complete job does, with time for a kill after every batch."""
    print("begin", flush=True)
    embed(EmbedPlan(MODEL, [str(photos)], out, **SETTINGS), lambda progress: time.sleep(0.03))


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signals")
def test_killed_at_any_moment(complete: Path, photos: Path, tmp_path: Path, thorough: bool) -> None:
    """The same bytes as without a kill, and no shard is done again."""
    moments, log, out = random.Random(0), tmp_path / "log", tmp_path / "index"
    kills = 0
    for _ in range(10 if thorough else 2):
        process = start(slowly, out, photos, output=log)
        while process.is_alive() and not (log.exists() and log.read_text()):
            time.sleep(0.001)
        shards = len(list(out.glob("embeddings-*"))) if out.exists() else 0
        # After a new shard, or before: those of earlier runs have to be left alone.
        end = time.monotonic() + moments.uniform(0, 0.4)
        while process.is_alive() and (time.monotonic() < end or (kills == 0 and len(list(out.glob("emb*"))) == shards)):
            time.sleep(0.001)
        process.kill()
        kills += finish(process) == -signal.SIGKILL
        if thorough and (out / "index.json").exists():
            assert contents(out) == contents(complete)
            for path in out.iterdir():
                path.unlink()
    done = {path: path.stat().st_mtime_ns for path in out.glob("embeddings-*")}
    assert kills
    embed(EmbedPlan(MODEL, [str(photos)], out, **SETTINGS))
    assert contents(out) == contents(complete)
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())


class TestWrongUse:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"model": "clip-shapes"},
                "model was siglip-shapes and is clip-shapes; weights was [0-9a-f]{12} and is ",
            ),
            ({"dtype": "bfloat16"}, "dtype was float32 and is bfloat16"),
            ({"batch_size": 5, "shard_size": 11}, "batch_size was 4 and is 5; shard_size was 10 and is 11"),
        ],
    )
    def test_another_job_is_refused(self, complete: Path, photos: Path, changes: dict[str, Any], message: str) -> None:
        before = contents(complete)
        plan = {"model": MODEL, "sources": [str(photos)], "out": complete, **SETTINGS, **changes}
        with pytest.raises(ValueError, match=f"has another job: {message}"):
            embed(EmbedPlan(**plan))
        assert contents(complete) == before

    def test_another_list_is_refused(self, photos: Path, tmp_path: Path) -> None:
        paths = [str(file) for file in readable(photos)]
        (tmp_path / "list").write_text("\n".join(paths))
        plan = EmbedPlan(MODEL, [str(tmp_path / "list")], tmp_path / "index", **SETTINGS)
        embed(plan)
        (tmp_path / "list").write_text("\n".join(paths[:-1]))
        with pytest.raises(ValueError, match=r"source\.images was 24 and is 23; source\.sha256 was \w+ and is \w+\."):
            embed(plan)

    def test_a_folder_of_other_files_is_refused(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ValueError, match=r"Expected a new folder, .* which has thesis\.tex"):
            embed(EmbedPlan(MODEL, [str(photos)], tmp_path))
        with pytest.raises(NotADirectoryError, match=r"thesis\.tex, which is a file"):
            embed(EmbedPlan(MODEL, [str(photos)], tmp_path / "thesis.tex"))

    def test_two_at_once_are_refused(self, photos: Path, tmp_path: Path) -> None:
        def start_another(progress: Progress) -> None:
            with pytest.raises(ValueError, match=f"Another process is at work in {tmp_path}"):
                embed(plan)

        plan = EmbedPlan(MODEL, [str(photos)], tmp_path, **SETTINGS)
        embed(plan, start_another)
        assert Index.open(tmp_path).rows == 24

    def test_nothing_that_can_be_read(self, tmp_path: Path, run: Callable[..., Any]) -> None:
        """The next run tries again: the disk may have been away."""
        (tmp_path / "list").write_text("a.png\nb.png\n")
        arguments = ("embed", MODEL, tmp_path / "list", "--out", tmp_path / "index")
        code, output, errors = run(*arguments)
        assert (code, output) == (1, "")
        (line,) = errors.splitlines()
        skipped = tmp_path / "index" / "skipped.jsonl"
        assert line == (
            f"twinlens: None of 2 images could be read ({skipped} has all reasons), the first is {tmp_path}/a.png: "
            "No such file or directory"
        )
        assert {*contents(tmp_path / "index")} == {"skipped.jsonl"}
        cat().save(tmp_path / "a.png")
        cat().save(tmp_path / "b.png")
        assert run(*arguments)[0] == 0
        assert "skipped.jsonl" not in contents(tmp_path / "index")

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            (["--batch-size", "0"], 2, "--batch-size must be auto or a number from 1 on, got '0'"),
            (["--workers", "many"], 2, "--workers must be auto or a number from 1 on, got 'many'"),
            (["--dtype", "float8"], 2, "'float8' is not one of"),
            (["--device", "toaster"], 1, "device must be auto, cpu, cuda, cuda:1 or the like, got 'toaster'"),
            (["--device", "xpu"], 1, "device must be one of this machine, cpu, got 'xpu'"),
        ],
    )
    def test_wrong_options(
        self, photos: Path, tmp_path: Path, run: Callable[..., Any], options: list[str], code: int, message: str
    ) -> None:
        found, output, errors = run("embed", MODEL, photos, "--out", tmp_path / "index", *options)
        assert (found, output) == (code, "")
        assert message in " ".join(errors.split())
        assert not (tmp_path / "index").exists()


def test_the_command(photos: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    code, output, errors = run("embed", MODEL, photos, "--out", tmp_path / "index")
    assert (code, errors) == (0, "")
    first, skipped, last = output.splitlines()
    assert first.startswith("Read 26 images in ")
    assert skipped == f"Skipped 2 that could not be read: {tmp_path / 'index' / 'skipped.jsonl'}"
    assert last == f"{tmp_path / 'index'} has 24 embeddings of 64 numbers."
    code, output, _ = run("embed", MODEL, photos, "--out", tmp_path / "index", "--json")
    answer = json.loads(output)
    assert (answer["rows"], answer["skipped"], answer["dim"], answer["embedded_now"]) == (24, 2, 64, 0)


def test_progress_in_words() -> None:
    from twinlens.cli.embedding import describe

    progress = Progress(1500, 30.0, share=0.6, first_share=0.5)
    assert (progress.images_per_second, progress.seconds_left) == (50, pytest.approx(120))
    assert describe(progress) == "1,500 images, 50.0 images/s, 60.0%, 2:00 left"
    assert describe(Progress(5, 1.0, 0.5, 0.5)) == "5 images, 5.0 images/s, 50.0%"


@pytest.mark.thorough
def test_two_processes(complete: Path, photos: Path, tmp_path: Path) -> None:
    """Every second shard each, with one of them killed first, and the same bytes."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "twinlens", "embed", MODEL, str(photos)]
    launch += ["--out", str(tmp_path / "x"), "--batch-size", "4", "--shard-size", "10"]
    result = subprocess.run(launch, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("has 24 embeddings") == 1
    assert contents(tmp_path / "x") == contents(complete)


RAY = """
import sys
import ray
from ray.cluster_utils import Cluster
from twinlens.index import EmbedPlan, embed

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(cluster.address, logging_level="error", log_to_driver=False)
model, photos, out = sys.argv[1:]
own = ray.get_runtime_context().get_node_id()  # the driver ends with its own machine
victim = next(node for node in nodes if node.node_id != own)
killed = []

def kill(progress):
    if not killed:
        killed.append(progress.images)
        cluster.remove_node(victim, allow_graceful=False)

result = embed(EmbedPlan(model, [photos], out, engine="ray", batch_size=4, shard_size=2, workers=2), kill)
print("rows", result.rows, "killed after", killed[0])
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.thorough
def test_a_cluster_of_which_one_machine_dies(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    embed(EmbedPlan(MODEL, [str(photos)], tmp_path / "here", batch_size=4, shard_size=2))
    command = [sys.executable, "-c", RAY, MODEL, str(photos), str(tmp_path / "x")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rows 24 killed after" in result.stdout
    found, expected = (vectors_of(tmp_path / name) for name in ("x", "here"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)  # other workers, other places in memory
    assert [*Index.open(tmp_path / "x").paths] == [*Index.open(tmp_path / "here").paths]
    assert {*contents(tmp_path / "x")} == {*contents(tmp_path / "here")}


def test_without_ray(photos: Path, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, output, errors = run("embed", MODEL, photos, "--out", tmp_path / "x", "--engine", "ray")
    assert (code, output) == (1, "")
    (line,) = errors.splitlines()
    assert "The engine ray needs Ray" in line
    assert "pip install '.[ray]'" in line
    assert not (tmp_path / "x").exists()


def test_without_pyarrow(
    photos: Path, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, errors = run("embed", MODEL, photos, "--out", tmp_path / "x")
    assert code == 1
    assert "An index needs pyarrow" in errors
    assert "pip install '.[embed]'" in errors
    assert not (tmp_path / "x").exists()
