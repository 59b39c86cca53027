"""A newcomer's first hour at the command line and in Python: what they type, what they get, and every mistake."""

import csv
import io
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.servers import file, saying, serving
from PIL import Image

import twinlens
from twinlens.catalogue import CATALOGUE, PHOTOGRAPH
from twinlens.cli.classification import describe_share
from twinlens.cli.images import find_images
from twinlens.cli.terminal import align_points
from twinlens.parity.report import TerminalTable

Run = Callable[..., tuple[int, str, str]]
ABSENT = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
LABELS = ["--label", "a cat, asleep", "--label", "a dog"]
TRAIN = ["train", "clip-shapes", "pairs.csv", "out"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two pictures, one of them in a folder of its own, and a file that is none."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    shutil.copy(PHOTOGRAPH, tmp_path / "photos" / "cat.jpg")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "photos" / "more" / "red.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "._cat.jpg").write_bytes(b"what macOS writes beside an image for other systems")
    return tmp_path / "photos"


class TestImages:
    def test_folders_patterns_and_addresses(self, photos: Path) -> None:
        both = [str(photos / "cat.jpg"), str(photos / "more" / "red.png")]
        assert find_images([str(photos)]) == both
        assert find_images([f"{photos}/**/*.*g"]) == both
        assert find_images([both[1], "https://host/a?b=*", "data:,*", "absent.png"])[1:] == [
            *("https://host/a?b=*", "data:,*", "absent.png")
        ]

    def test_names_that_look_like_patterns(self, photos: Path) -> None:
        image = photos / "a[1].png"
        Image.new("RGB", (4, 4)).save(image)
        assert find_images([str(image)]) == [str(image)]

    def test_nothing_found(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=r"Expected images in the folder .*empty, got none"):
            find_images([str(tmp_path / "empty")])
        with pytest.raises(FileNotFoundError, match=r"got the pattern '.*\*\.gif', which no file matches"):
            find_images([f"{photos}/*.gif"])


class TestClassify:
    def test_one_bad_image_does_not_end_the_run(self, run: Run, photos: Path, tmp_path: Path) -> None:
        (photos / "broken.png").write_text("no image")
        listed = tmp_path / "labels.txt"
        listed.write_text("a cat\na dog\n")
        command = ("classify", "clip-shapes", photos, "absent.png", "--labels-file", listed, "--batch-size", 2)
        code, output, errors = run(*command, "--format", "csv", "--top", 1)
        rows = [*csv.DictReader(io.StringIO(output))]
        assert code == 1
        assert [Path(row["image"]).name for row in rows] == ["cat.jpg", "red.png"]
        assert all(0.5 <= float(row["score"]) <= 1 for row in rows)
        headline, *lines = errors.splitlines()
        assert headline == "twinlens: 2 of 4 images could not be classified:"
        assert [line.split(", ")[1] for line in lines] == [f"got {photos / 'broken.png'}", "got absent.png"]

    def test_addresses_are_asked_once(self, run: Run, photos: Path) -> None:
        asked: list[str] = []
        contents = {"cat.jpg": (photos / "cat.jpg").read_bytes(), "page.html": b"<html>"}

        def answer(connection: socket.socket, request: bytes) -> None:
            name = request.split()[1].decode().lstrip("/")
            asked.append(name)
            file(contents[name])(connection, request) if name in contents else saying(ABSENT)(connection, request)

        with serving(answer) as address:
            urls = [f"http://{address}/{name}" for name in ("absent.png", "cat.jpg", "page.html")]
            code, output, errors = run("classify", "clip-shapes", *urls, photos, urls[1], *LABELS, "--format", "jsonl")
        entries = [json.loads(line) for line in output.splitlines()]
        assert sorted(asked) == ["absent.png", "cat.jpg", "page.html"]
        assert code == 1
        assert ["error" in entry for entry in entries] == [True, False, True, False, False, False]
        assert entries[1]["scores"] == pytest.approx(entries[3]["scores"])
        assert errors.splitlines()[1:] == [
            f"  Expected an image at {urls[0]}, which could not be downloaded: HTTP Error 404: Not Found",
            f"  Expected an image, got {urls[2]}, which has no format that Pillow knows.",
        ]

    def test_labels_in_quotes_and_lines_of_json(self, run: Run, photos: Path) -> None:
        labels = '"a cat, asleep",a dog'
        code, output, _ = run("classify", "clip-shapes", photos, "--labels", labels, "--format", "jsonl")
        entries = [json.loads(line) for line in output.splitlines()]
        assert code == 0
        assert [{*entry["scores"]} for entry in entries] == [{"a cat, asleep", "a dog"}] * 2
        code, output, _ = run("classify", "clip-shapes", photos, *LABELS, "--json", "--dtype", "bfloat16")
        for entry, other in zip(entries, json.loads(output), strict=True):
            assert entry["image"] == other["image"]
            assert entry["scores"] == pytest.approx(other["scores"], abs=0.1)

    @pytest.mark.parametrize(
        ("share", "text"),
        [(1, "100%"), (0.53, "53.0%"), (0.094, "9.40%"), (4.12e-5, "0.00412%"), (1.234e-7, "1.23e-05%"), (0, "0%")],
    )
    def test_three_digits(self, share: float, text: str) -> None:
        assert describe_share(share) == text

    def test_points_are_below_each_other(self) -> None:
        assert align_points(["53.0%", "0.00412%", "100%"]) == [" 53.0%    ", "  0.00412%", "100%      "]


MISTAKES: dict[str, tuple[list[Any], int, str]] = {
    "no labels": (["classify", "clip-shapes", "cat.jpg"], 2, "--labels-file"),
    "a quotation mark alone": (["classify", "clip-shapes", "cat.jpg", "--labels", '"a cat'], 1, "double quotes"),
    "no such file of labels": (["classify", "clip-shapes", "cat.jpg", "--labels-file", "absent"], 1, "got 'absent'"),
    "no such image": (["classify", "clip-shapes", "absent.jpg", *LABELS], 1, "got absent.jpg, which is not there"),
    "no such images": (["classify", "clip-shapes", "a.jpg", "b.jpg", *LABELS], 1, "None of the 2 images is there"),
    "a folder without images": (["classify", "clip-shapes", "empty", *LABELS], 1, "in the folder empty, got none"),
    "two forms": (["classify", "clip-shapes", "cat.jpg", *LABELS, "--json", "--format", "csv"], 2, "either --json"),
    "no such scores": (["classify", "clip-shapes", "cat.jpg", *LABELS, "--scores", "logits"], 2, "--scores"),
    "no such device": (["classify", "clip-shapes", "cat.jpg", *LABELS, "--device", "tpu9"], 1, "device must be"),
    "no such model": (["classify", "clip-shape", "cat.jpg", *LABELS], 1, "'clip-shapes'"),
    "templates that are not there": (
        ["classify", "clip-shapes", "cat.jpg", *LABELS, "--template", "a.txt"],
        1,
        "no file",
    ),
    "labels in another encoding": (
        ["classify", "clip-shapes", "cat.jpg", "--labels", "@latin-1.csv"],
        1,
        "not in UTF-8",
    ),
    "a plot into nowhere": (["verify", "clip-shapes", "empty", "--plot", "no/where.png"], 1, "no folder no."),
    "a plot of another kind": (["verify", "clip-shapes", "empty", "--plot", "plot.jpg"], 1, "got plot.jpg"),
    "no such command": (["clasify", "clip-shapes", "cat.jpg"], 2, "Did you mean 'classify'?"),
    "batches of none": ([*TRAIN, "--batch-size", "0"], 1, "--batch-size must be at least 1, got 0."),
    "fewer updates than none": ([*TRAIN, "--steps", "-3"], 1, "--steps must be at least 1, got -3."),
    "no epochs": ([*TRAIN, "--epochs", "0"], 1, "--epochs must be above 0"),
    "no rate": ([*TRAIN, "--learning-rate", "0"], 1, "--learning-rate must be above 0"),
    "batches of one": ([*TRAIN, "--batch-size", "1"], 1, "choose at least 2"),
    "a misspelt option": ([*TRAIN, "--bach-size", "8"], 2, "--batch-size"),
    "gradient accumulation": ([*TRAIN, "--gradient-accumulation-steps", "4"], 2, "--gradient-cache-size"),
    "no such tower": ([*TRAIN, "--freeze", "vision"], 2, "'image', 'text'"),
    "no frozen tower": ([*TRAIN, "--unlocked-layers", "2"], 1, "--unlocked-layers 2 are those of a frozen tower"),
    "no such optimizer": ([*TRAIN, "--optimizer", "adamv"], 1, "Similar names are adamw"),
    "no such reports": ([*TRAIN, "--report-to", "nowhere"], 1, "--report-to nowhere needs nowhere"),
    "adapters of random weights": (
        [*TRAIN, "--lora-rank", "8", "--from-scratch"],
        1,
        "--from-scratch makes random weights",
    ),
    "classes without pairs": ([*TRAIN, "--zero-shot", "photos"], 1, "--zero-shot is measured along with --eval-data"),
    "no such column": ([*TRAIN, "--text-column", "Text"], 1, "Name it with --text-column."),
    "nothing to resume": ([*TRAIN, "--resume"], 1, "Leave out --resume to start afresh."),
    "no such pairs": (["train", "clip-shapes", "absent", "out"], 1, "absent is neither a file nor a folder here"),
    "images without captions": (["train", "clip-shapes", "photos", "out"], 1, "got 2 images without captions."),
    "a table in another encoding": (["train", "clip-shapes", "latin-1.csv", "out"], 1, "0xfc in 'cat.jpg,gr\xfcn'"),
    "one pair": (["train", "clip-shapes", "one.csv", "out"], 1, "bring at least 2 pairs, there is 1"),
    "a file to train into": (
        ["train", "clip-shapes", "pairs.csv", "cat.jpg"],
        1,
        "cat.jpg is a file, expected a folder",
    ),
    "a folder to train into": (
        ["train", "clip-shapes", "pairs.csv", "photos"],
        1,
        "photos is not empty. Choose another",
    ),
    "no model to train": (["train", "empty", "pairs.csv", "out"], 1, "empty has no config.json"),
    "no settings": ([*TRAIN, "--config", "absent.yaml"], 1, "got absent.yaml, which does not exist"),
    "no folder to verify": (["verify", "clip-shapes", "absent"], 1, "absent has no config.json"),
    "no vocabulary": (["convert", "clip-shapes", "out", "--tokenizer", "absent"], 1, "absent is no file here"),
    "a size that does not fit": (
        ["convert", "clip-shapes", "out", "--image-size", "99"],
        1,
        "--image-size 99 makes 12",
    ),
    "a folder to convert into": (["convert", "clip-shapes", "photos"], 1, "photos is not empty"),
    "pictures to export": (
        ["export", "photos", "a.pt", "--format", "openai"],
        1,
        "photos: expected a file, or a folder",
    ),
    "pictures to push": (["push", "photos", "me/photos", "--dry-run"], 1, "photos is not a model folder to push"),
    "pictures to search": (["search", "photos", "a cat"], 1, "photos"),
    "nothing to embed": (["embed", "clip-shapes", "empty", "--out", "out"], 1, "in the folder empty, got none"),
    "an index into pictures": (["embed", "clip-shapes", "photos", "--out", "photos"], 1, "photos"),
    "nothing to evaluate": (["evaluate", "clip-shapes", "absent"], 1, "absent"),
    "a table to evaluate in another encoding": (["evaluate", "clip-shapes", "latin-1.csv"], 1, "not in UTF-8"),
    "no second model": (["average", "clip-shapes", "empty", "--out", "out"], 1, "empty has no config.json"),
    "a file for an average": (["average", "clip-shapes", "clip-shapes", "--out", "cat.jpg"], 1, "cat.jpg is a file"),
    "a full folder for a graph": (["onnx", "clip-shapes", "photos"], 1, "photos"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained_in_one_line(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path)
    for name_of_table, rows in {"one": "cat.jpg,grün", "pairs": "cat.jpg,a cat\nphotos/more/red.png,red"}.items():
        (tmp_path / f"{name_of_table}.csv").write_text(f"file_name,text\n{rows}\n", encoding="utf-8")
    (tmp_path / "latin-1.csv").write_text("file_name,text\ncat.jpg,grün\n", encoding="latin-1")
    before = sorted(tmp_path.rglob("*"))
    arguments, expected, message = MISTAKES[name]
    code, output, errors = run(*arguments)
    assert (code, output) == (expected, "")
    assert message in errors
    assert "Errno" not in errors
    assert expected == 2 or errors.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


class TestList:
    def test_fits_a_terminal_of_80_columns(self, run: Run) -> None:
        code, output, _ = run("list")
        assert code == 0
        assert max(map(len, output.splitlines())) <= 80
        assert "*" not in output  # nothing is marked: every entry can be converted
        assert "Of 9 of these 60 files a hash is published" in output

    def test_verbose_and_json_have_addresses(self, run: Run) -> None:
        assert all(entry.address in run("list", "--verbose")[1] for entry in CATALOGUE.values())
        assert all(row["address"] for row in json.loads(run("list", "--json")[1]))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_number_is_lost_in_a_narrow_terminal(width: int) -> None:
    from rich.console import Console

    columns = [
        "twinlens / float64",
        "twinlens, bfloat16 weights / float64",
        "twinlens, bfloat16 weights / transformers",
    ]
    line = ["image.last_hidden_state", "3e-05", "1.1e-07", "2.2e-03", "3.3e-01 FAIL"]
    console = Console(width=width, file=io.StringIO())
    console.print(TerminalTable("Parity of a file", False, [["output", "tolerance", *columns], line]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(cell in text for cell in line[1:])
    assert "…" not in text or width < 60
    assert text.count("Parity of a file") == 1


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(80, "update 16/400  loss 1.155  scale 30.9"), (38, "update 16/400  loss 1.155  scale 30.9"),
     (37, "update 16/400  loss 1.155"), (9, "update 1")],
)  # fmt: skip
def test_a_live_line_shows_whole_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, shown: str
) -> None:
    from twinlens.training.progress import ShowProgress

    monkeypatch.setenv("COLUMNS", str(columns))
    ShowProgress()._draw("update 16/400  loss 1.155  scale 30.9")
    assert capsys.readouterr().err == f"\r\x1b[K{shown}"


@pytest.fixture(scope="module")
def clip() -> tuple[Any, Any]:
    """The bundled CLIP by its name, and its processor."""
    return (
        twinlens.DualEncoderModel.from_pretrained("clip-shapes"),
        twinlens.DualEncoderProcessor.from_pretrained("clip-shapes"),
    )


class TestPython:
    def test_what_no_processor_has_read(self, clip: tuple[Any, Any]) -> None:
        model, processor = clip
        picture = Image.new("RGB", (64, 64))
        for image in (picture, [picture], "cat.jpg", Path("cat.jpg")):
            with pytest.raises(TypeError, match=r"encode_image\(\*\*processor\(images=images\)\)"):
                model.encode_image(image)
        for text in ("a cat", ["a cat"]):
            with pytest.raises(TypeError, match=r"got (str|list): model\.encode_text\(\*\*processor\(text=texts\)\)"):
                model.encode_text(text)
        with pytest.raises(TypeError, match="got all in one"):
            model.encode_image(processor(images=picture))

    def test_misspelt_names_and_those_of_the_other_modality(self, clip: tuple[Any, Any]) -> None:
        model, processor = clip
        inputs = processor(images=Image.new("RGB", (64, 64)), text=["a cat"])
        with pytest.raises(TypeError, match=r"no input named interpolate_pos_encodin\. Did you mean interpolate_pos_"):
            model.encode_image(**inputs, interpolate_pos_encodin=True)
        with pytest.raises(TypeError, match=r"no input named attention_masks\. Did you mean attention_mask\?"):
            model.encode_text(**inputs, attention_masks=None)
        assert model.encode_image(**inputs).shape == model.encode_text(**inputs, labels=None).shape

    def test_a_length_that_has_no_effect_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        processor = twinlens.DualEncoderProcessor.from_pretrained("siglip-shapes")
        length = processor.tokenizer.model_max_length
        for settings in ({}, {"max_length": length}, {"max_length": 8}, {"max_length": 8}):
            assert processor(text="a cat", **settings)["input_ids"].shape == (1, length)
        assert caplog.messages == [
            f"max_length=8 has no effect: this model was trained with texts padded to {length} tokens, and takes no "
            "others."
        ]
