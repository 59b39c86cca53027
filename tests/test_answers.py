"""From a photograph to an answer: transformers' unchanged pipelines with our classes, and the command line."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from helpers.builders import TINY_CLIP, TINY_SIGLIP, write_big_vision, write_openai
from helpers.photographs import PHOTOGRAPHS
from PIL import Image

import twinlens
from twinlens.cli.checkpoints import describe_tower
from twinlens.conversion import convert

LABELS = ["a cat", "an astronaut", "a cup of coffee"]
TEMPLATE = "This is a photo of {}."  # the pipeline's own


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    paths = []
    for name in ("landscape", "square"):
        paths.append(folder / f"{name}.png")
        PHOTOGRAPHS[name].save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Path:
    """A SentencePiece model of 120 pieces with the special ids of c4_en."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "text").write_text("\n".join(f"this is a photo of {label}." for label in LABELS) * 5)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spiece"), vocab_size=TINY_SIGLIP["vocabulary"],
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return folder / "spiece.model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vocabulary) -> dict[str, Path]:
    """Small converted checkpoints: an OpenAI archive with the real vocabulary, and a SigLIP for texts of length 16."""
    folder = tmp_path_factory.mktemp("converted")
    write_openai(folder / "clip.pt", **{**TINY_CLIP, "vocabulary": 49408, "text_length": 77})
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary)).vocab_size()
    write_big_vision(folder / "siglip.npz", **{**TINY_SIGLIP, "vocabulary": pieces})
    convert(folder / "clip.pt", folder / "clip", verify=False)
    convert(folder / "siglip.npz", folder / "siglip", tokenizer=vocabulary, verify=False)
    return {"clip": folder / "clip", "siglip": folder / "siglip"}


def parts(folder: Path) -> dict:
    processor = twinlens.DualEncoderProcessor.from_pretrained(folder)
    model = twinlens.DualEncoderModel.from_pretrained(folder)
    return {"model": model, "tokenizer": processor.tokenizer, "image_processor": processor.image_processor}


def expected_scores(folder: Path, photographs: list[Path]) -> torch.Tensor:
    """By the stable surface: logits, then sigmoid or softmax by the family's loss."""
    model, processor = (
        twinlens.DualEncoderModel.from_pretrained(folder),
        twinlens.DualEncoderProcessor.from_pretrained(folder),
    )
    with torch.inference_mode():
        images = model.encode_image(**processor(images=[Image.open(path) for path in photographs]))
        texts = model.encode_text(**processor(text=[TEMPLATE.format(label) for label in LABELS]))
        logits = model.logits(images, texts)
    return logits.sigmoid() if folder.name == "siglip" else logits.softmax(-1)


@pytest.mark.parametrize("length", [16, *(pytest.param(x, marks=pytest.mark.thorough) for x in (64, 77))])
def test_both_snippets_of_a_card_give_the_same_answers(length, vocabulary, tmp_path):
    """transformers' pipeline cuts and pads the texts of every SigLIP to 64: it fails at 16, and is wrong at 77."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary)).vocab_size()
    write_big_vision(tmp_path / "siglip.npz", **{**TINY_SIGLIP, "vocabulary": pieces, "text_length": length})
    convert(tmp_path / "siglip.npz", tmp_path / "siglip", tokenizer=vocabulary, verify=False)
    texts = [*LABELS, "a cat " * 40]
    namespaces: list[dict[str, Any]] = [
        {"images": [PHOTOGRAPHS[name].resize((48, 48)) for name in ("landscape", "square")], "texts": texts}
        for _ in range(2)
    ]
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "siglip" / "README.md").read_text(), flags=re.DOTALL)
    for code, namespace in zip(blocks, namespaces, strict=True):
        exec(code.replace("FOLDER", str(tmp_path / "siglip")), namespace)
    ours, theirs = namespaces
    assert ("answers" in theirs) == (length == 64)
    expected = ours["logits"].sigmoid()
    if length == 64:
        scores = [{answer["label"]: answer["score"] for answer in answers} for answers in theirs["answers"]]
        given = torch.tensor([[answers[text] for text in texts] for answers in scores])
    else:
        given = theirs["logits"].sigmoid()
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_zero_shot_pipeline(family, folders, photographs):
    expected = expected_scores(folders[family], photographs)
    ours = transformers.pipeline("zero-shot-image-classification", **parts(folders[family]))
    for path, row in zip(photographs, expected, strict=True):
        answers = {answer["label"]: answer["score"] for answer in ours(str(path), candidate_labels=LABELS)}
        torch.testing.assert_close(torch.tensor([answers[label] for label in LABELS]), row, rtol=1e-4, atol=1e-6)
    total = sum(answers.values())
    assert (total == pytest.approx(1)) == (family == "clip")


def test_zero_shot_pipeline_of_plain_transformers_on_the_converted_folder(folders, photographs):
    theirs = transformers.pipeline("zero-shot-image-classification", model=str(folders["clip"]))
    assert type(theirs.model).__module__.startswith("transformers.")
    answers = {answer["label"]: answer["score"] for answer in theirs(str(photographs[0]), candidate_labels=LABELS)}
    expected = expected_scores(folders["clip"], photographs[:1])[0]
    torch.testing.assert_close(torch.tensor([answers[label] for label in LABELS]), expected, rtol=1e-4, atol=1e-6)


def test_texts_of_length_16_work_in_the_pipeline_that_asks_for_64(folders, photographs):
    """The pipeline pads to 64 whatever the model is: transformers' model refuses, ours puts it right."""
    theirs = transformers.pipeline("zero-shot-image-classification", model=str(folders["siglip"]))
    with pytest.raises(ValueError, match="Sequence length must be less than max_position_embeddings"):
        theirs(str(photographs[0]), candidate_labels=LABELS)
    ours = twinlens.DualEncoderModel.from_pretrained(folders["siglip"])
    mixed = transformers.pipeline(
        "zero-shot-image-classification",
        model=ours,
        tokenizer=theirs.tokenizer,
        image_processor=parts(folders["siglip"])["image_processor"],
    )
    answers = {answer["label"]: answer["score"] for answer in mixed(str(photographs[0]), candidate_labels=LABELS)}
    expected = expected_scores(folders["siglip"], photographs[:1])[0]
    torch.testing.assert_close(torch.tensor([answers[label] for label in LABELS]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_feature_pipelines(family, folders, photographs):
    loaded = parts(folders[family])
    images = transformers.pipeline(
        "image-feature-extraction", model=loaded["model"].vision_model, image_processor=loaded["image_processor"]
    )
    features = torch.tensor(images(str(photographs[0])))
    pixels = loaded["image_processor"](Image.open(photographs[0]))["pixel_values"]
    with torch.inference_mode():
        torch.testing.assert_close(features, loaded["model"].vision_model(pixels).last_hidden_state, rtol=0, atol=1e-5)
    texts = transformers.pipeline("feature-extraction", model=loaded["model"].text_model, tokenizer=loaded["tokenizer"])
    features = torch.tensor(texts("a cat"))
    ids = loaded["tokenizer"]("a cat", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        torch.testing.assert_close(features, loaded["model"].text_model(ids).last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_image_classification_pipeline(family, folders, photographs):
    classes = {"clip": twinlens.CLIPForImageClassification, "siglip": twinlens.SiglipForImageClassification}
    model = classes[family].from_pretrained(
        folders[family], id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}
    )
    image_processor = twinlens.DualEncoderProcessor.from_pretrained(folders[family]).image_processor
    classify = transformers.pipeline("image-classification", model=model, image_processor=image_processor)
    answers = {answer["label"]: answer["score"] for answer in classify(str(photographs[0]))}
    with torch.inference_mode():
        logits = model(image_processor(Image.open(photographs[0]))["pixel_values"]).logits[0]
    torch.testing.assert_close(torch.tensor([answers["cat"], answers["dog"]]), logits.softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_classify_prints_what_the_pipeline_says(run, family, folders, photographs):
    code, output, errors = run("classify", folders[family], *photographs, "--labels", ",".join(LABELS), "--json")
    assert (code, errors) == (0, "")
    rows = json.loads(output)
    assert [row["image"] for row in rows] == [str(path) for path in photographs]
    scores = torch.tensor([[row["scores"][label] for label in LABELS] for row in rows])
    torch.testing.assert_close(scores, expected_scores(folders[family], photographs), rtol=1e-4, atol=1e-6)
    for row in rows:
        assert list(row["scores"].values()) == sorted(row["scores"].values(), reverse=True)


def test_classify_takes_an_official_file(run, folders, photographs, vocabulary):
    source = folders["siglip"].with_suffix(".npz")
    labels = ",".join(LABELS)
    code, output, errors = run("classify", source, photographs[0], "--labels", labels, "--tokenizer", vocabulary)
    assert (code, errors) == (0, "")
    assert output.splitlines()[0] == str(photographs[0])
    assert len(output.splitlines()) == 1 + len(LABELS)


def test_convert_and_inspect(run, folders, tmp_path):
    source = folders["clip"].with_suffix(".pt")
    code, output, errors = run("convert", source, tmp_path / "out")
    assert (code, errors) == (0, "")
    assert "logits_per_image" in output
    assert "pass" in output
    for target in (source, tmp_path / "out"):
        description = json.loads(run("inspect", target, "--json")[1])
        assert (description["family"], description["geometry"]["vision"]["image_size"]) == (
            "clip",
            TINY_CLIP["image_size"],
        )
    assert "patch 16" in run("inspect", source)[1]


def test_what_is_written_is_named_as_it_was_given(run, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("convert", folders["clip"].with_suffix(".pt"), "out")[1].splitlines()[-1] == "Wrote out"
    assert run("export", "out", "again.pt", "--format", "openai")[1] == "Wrote again.pt\n"
    assert Path("again.pt").is_file()


def test_classify_takes_urls_and_shows_no_payload(run, folders, photographs):
    """A URL is answered as its file is; what holds no image is an error before the model is loaded."""
    file = Path(photographs[0]).absolute()
    answers = []
    for image in (file, file.as_uri(), f"data:;base64,{base64.b64encode(file.read_bytes()).decode()}"):
        code, output, errors = run("classify", folders["clip"], image, "--labels", "a cat,a dog", "--json")
        assert (code, errors) == (0, "")
        answers.append(json.loads(output)[0]["scores"])
    for other in answers[1:]:  # each run chooses its matrix products by a measurement
        assert other == pytest.approx(answers[0], abs=1e-5)
    payload = "A" * 5000
    for image in (f"data:image/png;base64,{payload}", payload, "x y" * 2000):
        code, output, errors = run("classify", folders["clip"], image, "--labels", "a cat")
        assert (code, output) == (1, "")
        assert len(errors) < 300


def test_one_head_is_singular():
    tower = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 128}
    assert describe_tower(tower) == "64 wide, 2 layers, 1 head, MLP 128"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent.pt"], "absent.pt: no such file"),
        (["convert", "absent.npz", "out"], "absent.npz: no such file"),
        (["classify", "absent", "{clip}.pt", "--labels", "a"], "absent"),
        (["classify", "{clip}", "{clip}.pt", "--labels", "a"], "clip.pt"),
        (
            ["classify", "{clip}", "absent.jpg", "--labels", "a"],
            "got absent.jpg, which is not there.",
        ),
        (["classify", "{clip}", "{clip}", "--labels", "a"], "Expected images in the folder {clip}, got none."),
        (["classify", "{clip}", "absent.jpg", "--labels", " , "], "Expected labels"),
        (["classify", "{clip}", "absent.jpg", "--labels", "a", "--template", "a"], "Expected templates: "),
        (["convert", "{clip}.pt", "{clip}"], "is not empty"),
    ],
)
def test_failures_are_one_line_and_exit_1(run, arguments, message, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*(argument.replace("{clip}", str(folders["clip"])) for argument in arguments))
    assert (code, output) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("twinlens: ")
    assert message.replace("{clip}", str(folders["clip"])) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["convert", "convert a b --dtype int8", "explode", "demo --no", "classify a b"])
def test_wrong_options_exit_2(run, arguments):
    assert run(*arguments.split())[0] == 2


def test_a_folder_with_a_wrong_weight_is_an_error(run, folders, photographs, tmp_path):
    model = twinlens.DualEncoderModel.from_pretrained(folders["clip"])
    twinlens.DualEncoderProcessor.from_pretrained(folders["clip"]).save_pretrained(tmp_path)
    weights = model.state_dict()
    weights["text_model.bogus"] = weights.pop("logit_scale")
    model.save_pretrained(tmp_path, state_dict=weights)
    code, output, errors = run("classify", tmp_path, photographs[0], "--labels", "a cat")
    assert (code, output) == (1, "")
    (line,) = errors.splitlines()
    assert "logit_scale" in line
    assert "text_model.bogus" in line


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_a_broken_file_is_an_error(run, name, folders, photographs, tmp_path):
    twinlens.DualEncoderProcessor.from_pretrained(folders["clip"]).save_pretrained(tmp_path)
    shutil.copy(folders["clip"] / "config.json", tmp_path)
    (tmp_path / name).write_bytes((folders["clip"] / "model.safetensors").read_bytes()[:1000])
    code, output, errors = run("classify", tmp_path, photographs[0], "--labels", "a cat")
    assert (code, output) == (1, "")
    (line,) = errors.splitlines()
    assert str(tmp_path) in line
    assert "its weights are damaged" in line


def test_the_module_runs_as_a_program():
    result = subprocess.run([sys.executable, "-m", "twinlens", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"twinlens {twinlens.__version__}\n"
