"""The page in the browser: what it answers, the command that serves it, and the page itself in Chromium."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from twinlens.index import ShardContent, weights_fingerprint, write_index, write_shard
from twinlens.inference import load_exact_model, load_processor
from twinlens.web import Answers

Run = Callable[..., tuple[int, str, str]]

COLOURS = ("red", "blue", "green")
EVIL = "<img src=x onerror=alert(1)>.png"  # as a file may be called
EVIL_LABEL = "${alert(2)}{{value}}<img src=x onerror=alert(3)>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of three colours, `EVIL`, which is red, and their index by a small model; blue.png is gone since."""
    folder = tmp_path_factory.mktemp("web")
    for name, colour in zip([*(f"{colour}.png" for colour in COLOURS), EVIL], [*COLOURS, "red"], strict=True):
        picture = Image.new("RGB", (64, 64), "black")
        picture.paste(colour, (20, 20, 44, 44))
        picture.save(folder / name)
    (folder / "notes.png").write_text("no image")
    paths = [str(folder / name) for name in ("red.png", "blue.png", "green.png", EVIL)]
    model, processor = load_exact_model("siglip-shapes"), load_processor("siglip-shapes")
    embeds = model.encode(paths, processor, kind="image", convert_to_numpy=True)
    (folder / "index").mkdir()
    write_shard(folder / "index", 0, ShardContent(embeds, paths, ["0" * 64] * 4, [1] * 4), first_row=0)
    facts = {"model": "siglip-shapes", "weights": weights_fingerprint(model), "dim": embeds.shape[1]}
    write_index(folder / "index", {**facts, "dtype": "float32", "rows": 4, "shards": 1})
    (folder / "blue.png").unlink()
    return folder


@pytest.fixture(scope="module")
def answers(world: Path) -> Answers:
    return Answers.open("siglip-shapes", world / "index")


class Page(HTMLParser):
    """The tags and the texts of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class TestAnswers:
    def test_labels_are_those_of_transformers_pipeline(self, world: Path, answers: Answers) -> None:
        labels = ["a red square", "a blue square", EVIL_LABEL]
        page = Page(answers.classify(world / "red.png", f"\n{labels[0]} \r\n{labels[1]}\n\n{labels[2]}\n{labels[0]}"))
        model, processor = load_exact_model("siglip-shapes"), load_processor("siglip-shapes")
        parts: Any = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
        pipeline = transformers.pipeline("zero-shot-image-classification", model=model, **parts)
        expected = pipeline(Image.open(world / "red.png"), candidate_labels=labels)
        shown = [text for entry in expected for text in (entry["label"], f"{entry['score']:.2%}")]
        assert page.texts == [*shown, "Every label is scored by itself."]
        assert page.tags.count("li") == 3
        assert "img" not in page.tags

    def test_the_sentence_is_the_askers(self, world: Path, answers: Answers) -> None:
        plain = answers.classify(world / "red.png", "red square", "a {}")
        assert plain != answers.classify(world / "red.png", "red square")
        with pytest.raises(ValueError, match=r"\{\}"):
            answers.classify(world / "red.png", "red square", "openai80")  # nor the name of a file on the server

    def test_comparison(self, world: Path, answers: Answers) -> None:
        images = [world / "green.png", world / EVIL]
        page = Page(answers.compare([*images], f"a red square\na green square\n{EVIL_LABEL}"))
        model, processor = load_exact_model("siglip-shapes"), load_processor("siglip-shapes")
        texts = ["a red square", "a green square", EVIL_LABEL]
        cosines = model.encode(images, processor, kind="image") @ model.encode(texts, processor, kind="text").t()
        assert page.texts[:3] == texts
        found = np.array([float(text) for text in page.texts[3:-1:2]]).reshape(2, 3)
        assert np.abs(found - cosines.numpy()).max() < 0.00051
        assert found[0].argmax() == 1
        assert found[1].argmax() == 0
        assert page.tags.count("img") == 2  # the thumbnails, and nothing that a name or a text added

    def test_search(self, world: Path, answers: Answers) -> None:
        found = answers.search_text("a green square", top=4)
        score, name = found[0][1].split(" ", 1)
        assert (name, found[0][0].size) == ("green.png", (64, 64))
        assert float(score) > float(found[1][1].split()[0])
        captions = " ".join(caption for _, caption in found)
        assert EVIL in captions
        assert re.search(r"blue\.png: The file is not there any more\.", captions)
        ((picture, caption),) = answers.search_image(world / "green.png", top=1)
        assert caption == "1.000 green.png"
        assert np.asarray(picture)[32, 32, 1] > 100

    @pytest.mark.parametrize(
        ("ask", "message"),
        [
            (lambda a, f: a.classify(None, "a"), "No image yet"),
            (lambda a, f: a.classify(f / "red.png", " \n "), "No label yet: write one on each line"),
            (lambda a, f: a.classify(f / "notes.png", "a"), "notes.png: Expected an image"),
            (lambda a, f: a.compare(None, "a"), "No image yet"),
            (lambda a, f: a.compare([f / "red.png"], ""), "No text yet"),
            (lambda a, f: a.search_text(" "), "No text yet"),
            (lambda a, f: a.search_image(f / "notes.png"), "notes.png: Expected an image"),
            (lambda a, f: Answers(a.model, a.processor).search_text("a"), "no index"),
        ],
        ids=["image", "labels", "file", "images", "texts", "words", "searched file", "index"],
    )
    def test_mistakes(self, world: Path, answers: Answers, ask: Callable[..., object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ask(answers, world)

    def test_another_model_than_that_of_the_index(self, world: Path) -> None:
        with pytest.raises(ValueError, match="was embedded by siglip-shapes"):
            Answers.open("clip-shapes", world / "index")


def test_without_gradio(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, output, errors = run("app", "siglip-shapes")
    assert (code, output) == (1, "")
    assert re.fullmatch(r"twinlens: The page needs gradio .*pip install '\.\[app\]'.*\n", errors)


def test_modules_are_short() -> None:
    import twinlens.web

    folder = Path(twinlens.web.__file__).parent
    assert all(len(file.read_text(encoding="utf-8").splitlines()) <= 150 for file in folder.glob("*.py"))


@pytest.fixture(scope="module")
def server(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    """`twinlens app`, whose first line of output is the address."""
    command = [sys.executable, "-m", "twinlens", "app", "siglip-shapes", "--index", str(world / "index")]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio"))}

    def heed_interrupts() -> None:  # which a shell turns off for what runs in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, preexec_fn=heed_interrupts, **pipes) as process:
        yield process
        process.kill()


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio (extra app)")
@pytest.mark.skipif(find_spec("playwright") is None, reason="needs playwright (pip install playwright)")
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_in_chromium(server: "subprocess.Popen[str]", world: Path) -> None:
    """Labels typed and answers read, thumbnails, mistakes; no script of a name runs, and nothing else is contacted."""
    from playwright.sync_api import expect, sync_playwright

    assert server.stdout is not None
    assert server.stderr is not None
    address = server.stdout.readline().split()[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        dialogs: list[str] = []
        hosts: set[str] = set()

        def dismiss(dialog: Any) -> None:
            dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", dismiss)
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.goto(address)

        def press(name: str) -> None:
            page.get_by_role("button", name=name, exact=True).click()

        def upload(*names: str) -> None:
            panel = page.locator("[role=tabpanel]:visible")
            panel.locator("input[type=file]").first.set_input_files([world / name for name in names])
            expect(panel.locator("img:visible:not(.twinlens-table img)")).to_have_count(len(names))

        problem = page.locator(".twinlens-problem:visible")
        press("Search")
        expect(problem).to_have_text("No text yet: say in words what to find.")
        page.get_by_label("Find by words").fill("a green square")
        page.keyboard.press("Enter")
        captions = page.locator(".caption-label")
        expect(captions).to_have_count(4)
        expect(captions.first).to_have_text(re.compile(r"\d\.\d{3} green\.png"))
        assert any(EVIL in text for text in captions.all_inner_texts())
        thumbnail = page.locator(".thumbnail-item img").first
        assert thumbnail.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
        expect(problem).to_have_count(0)

        page.get_by_role("tab", name="Classify").click()
        upload(EVIL)
        press("Classify")
        expect(problem).to_have_text("No label yet: write one on each line.")
        page.get_by_label("Labels").fill(f"a blue square\n{EVIL_LABEL}\na red square")
        press("Classify")
        labels = page.locator(".twinlens-bars span")
        expect(labels).to_have_count(3)
        assert labels.first.inner_text() == "a red square"
        assert EVIL_LABEL in labels.all_inner_texts()

        page.get_by_role("tab", name="Compare").click()
        upload("red.png", "green.png")
        page.get_by_label("Texts").fill(f"a red square\na green square\n{EVIL_LABEL}")
        press("Compare")
        cells = page.locator(".twinlens-table td[style]")
        expect(cells).to_have_count(6)
        colours = [cells.nth(place).evaluate("cell => getComputedStyle(cell).backgroundColor") for place in range(6)]
        assert len({*colours}) > 2
        page.locator("[role=tabpanel]:visible").get_by_label("Clear").first.click()
        upload("notes.png")
        press("Compare")
        expect(problem).to_have_text(re.compile("notes.png: Expected an image"))
        expect(cells).to_have_count(0)
        browser.close()
    assert (dialogs, hosts) == ([], {address.split("/")[2]})
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=20) == 0
    assert "Traceback" not in server.stderr.read()
