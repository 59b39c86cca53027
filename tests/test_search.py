"""Search: exact answers, thumbnails, the page, models that may ask an index, LanceDB, and the command."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import twinlens
from twinlens.index import (
    Index,
    PageItem,
    Searcher,
    ShardContent,
    Thumbnail,
    exact_search,
    make_page,
    make_thumbnail,
    make_thumbnails,
    search,
    weights_fingerprint,
    write_index,
    write_shard,
)
from twinlens.index.originals import split_member
from twinlens.inference import load_exact_model, load_processor

Array = npt.NDArray[Any]
Run = Callable[..., tuple[int, str, str]]

COLOURS = ("red", "blue", "green", "yellow", "purple", "white")
NAMES = (
    "plain.png",
    "<script>document.title='run'<",
    "x\" onerror=\"document.title='run'\" '&amp;.png",
    "two\nlines \u202egnp.png",
    "a #1?%20 é.png",
)


def write(
    folder: Path,
    embeds: Array,
    ends: Sequence[int],
    paths: Sequence[str] = (),
    weights: str = "none",
    model: str = "none",
) -> Index:
    """Write an index whose shards end before the rows `ends`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = paths or [f"{row}.png" for row in range(len(embeds))]
    hashes = [hashlib.sha256(Path(p).read_bytes()).hexdigest() if Path(p).is_file() else "0" * 64 for p in paths]
    for shard, (start, end) in enumerate(zip([0, *ends], [*ends, len(embeds)], strict=True)):
        part = slice(start, end)
        write_shard(
            folder, shard, ShardContent(embeds[part], paths[part], hashes[part], [1] * (end - start)), first_row=start
        )
    metadata = {"model": model, "weights": weights, "dim": embeds.shape[1], "dtype": str(embeds.dtype)}
    write_index(folder, {**metadata, "rows": len(embeds), "shards": len(ends) + 1})
    return Index.open(folder)


def unit_vectors(rows: int, dim: int, seed: int = 0) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def reference(embeds: Array, queries: Array, top: int) -> tuple[Array, Array]:
    """Every product in float64; a stable sort keeps rows with equal scores in order."""
    scores = (embeds.astype(np.float64)[None] * queries.astype(np.float64)[:, None]).sum(axis=2)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return rows, np.take_along_axis(scores, rows, axis=1)


class TestExactSearch:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("queries", [1, 6])
    def test_is_that_of_float64(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, queries: int
    ) -> None:
        """Over shards of any length and many strips, with rows that are equal and rows that differ by one bit."""
        monkeypatch.setattr(exact_search, "STRIP_BYTES", 4 * 24 * 7)
        monkeypatch.setattr(exact_search, "QUERIES_AT_ONCE", 4)
        embeds = unit_vectors(400, 24)
        asked = unit_vectors(queries, 24, seed=1)
        embeds[[3, 90, 91, 250, 399]] = asked[0]  # in other places of their strips
        embeds[100:140] = np.nextafter(embeds[3], np.inf)
        embeds = embeds.astype(dtype)
        index = write(tmp_path, embeds, ends=(0, 90, 90, 301))
        found = search(index, asked, top=30)
        rows, scores = reference(embeds, asked, 30)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.scores, scores.astype(np.float32))
        assert (found.rows.dtype, found.scores.dtype) == (np.int64, np.float32)
        assert [index.paths[row] for row in found.rows[0][:3]] == [f"{row}.png" for row in rows[0][:3]]

    @pytest.mark.parametrize("order", ["rising", "falling", "equal"])
    def test_worst_orders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
        """Every row is better than all before it, or as good as they are."""
        monkeypatch.setattr(exact_search, "STRIP_BYTES", 4 * 2 * 16)
        angles = np.zeros(200) if order == "equal" else np.linspace(1, 0, 200)[:: 1 if order == "rising" else -1]
        embeds = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        found = search(write(tmp_path, embeds, ends=(70,)), np.array([1, 0], np.float32), top=5)
        expected = [199, 198, 197, 196, 195] if order == "rising" else [0, 1, 2, 3, 4]
        assert found.rows.tolist() == [expected]

    def test_few_rows_and_none(self, tmp_path: Path) -> None:
        embeds = unit_vectors(3, 8)
        found = search(write(tmp_path / "few", embeds, ends=()), torch.from_numpy(embeds[1]).bfloat16(), top=20)
        assert found.rows.shape == (1, 3)
        assert found.rows[0, 0] == 1
        found = search(write(tmp_path / "none", embeds[:0], ends=()), embeds, top=20)
        assert found.rows.shape == found.scores.shape == (3, 0)

    @pytest.mark.parametrize(
        ("query", "top", "message"),
        [
            (np.zeros(7), 1, r"shape \(queries, 8\) as the index has, got \(1, 7\)"),
            (np.zeros((1, 1, 8)), 1, r"got \(1, 1, 8\)"),
            (np.full(8, np.nan), 1, "finite numbers"),
            (np.zeros(8), 0, "at least 1, got 0"),
        ],
        ids=["length", "dimensions", "NaN", "top"],
    )
    def test_wrong_queries(self, tmp_path: Path, query: Array, top: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            search(write(tmp_path, unit_vectors(3, 8), ends=()), query, top)

    def test_vectors_that_are_none(self, tmp_path: Path) -> None:
        embeds = unit_vectors(3, 8)
        embeds[1] = np.nan
        with pytest.raises(ValueError, match="has vectors with NaN"):
            search(write(tmp_path, embeds, ends=()), embeds[0])

    def test_products_of_a_lower_precision_are_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """PyTorch may compute them in bfloat16 on some processors, after `set_float32_matmul_precision("medium")`."""
        embeds = unit_vectors(50, 64)
        product = torch.mv
        monkeypatch.setattr(torch, "mv", lambda a, b: product(a.bfloat16(), b.bfloat16()).float())
        with pytest.raises(RuntimeError, match='set_float32_matmul_precision\\("highest"\\)'):
            search(write(tmp_path, embeds, ends=()), embeds[0])

    @pytest.mark.thorough
    def test_is_that_of_faiss(self, tmp_path: Path) -> None:
        faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
        embeds, asked = unit_vectors(20_000, 256), unit_vectors(50, 256, seed=1)
        flat = faiss.IndexFlatIP(256)
        flat.add(embeds)
        scores, rows = flat.search(asked, 20)
        found = search(write(tmp_path, embeds, ends=(7000,)), asked, 20)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-6)

    @pytest.mark.thorough
    def test_memory(self, tmp_path: Path) -> None:
        """Less than a fifth of the file comes on top of its mapped pages, even where all vectors are equal."""
        embeds = np.tile(unit_vectors(1, 768), (100_000, 1))
        write(tmp_path, embeds, ends=(60_000,))
        script = """
import sys, torch
from twinlens.index import Index, search
peak = lambda: int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]) * 1024
query = torch.nn.functional.normalize(torch.ones(1, 768))
query @ torch.ones(768, 768)  # what libraries allocate for themselves
before = peak()
search(Index.open(sys.argv[1]), query)
print(peak() - before)
"""
        output = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
        assert embeds.nbytes / 2 < int(output.stdout) < 1.2 * embeds.nbytes


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixel(thumbnail: Thumbnail, place: tuple[int, int]) -> Any:
    with Image.open(BytesIO(thumbnail.jpeg)) as image:
        assert image.format == "JPEG"
        assert image.size == thumbnail.size
        return image.convert("RGB").getpixel(place)


class TestThumbnails:
    def test_files_and_members_of_archives(self, tmp_path: Path) -> None:
        """In the order asked for, whatever the order in the archive; "::" may be a part of a name too."""
        picture = {colour: encoded(Image.new("RGB", (400, 100), colour), "PNG") for colour in COLOURS}
        (tmp_path / "a::b.png").write_bytes(picture["red"])
        (tmp_path / "damaged.png").write_bytes(picture["red"][:60])
        for name in ("one.tar", "two.tar.gz"):
            with (
                tarfile.open(tmp_path / name, "w:gz")
                if name.endswith("gz")
                else tarfile.open(tmp_path / name, "w") as tar
            ):
                for colour in ("blue", "green", "yellow"):
                    member = tarfile.TarInfo(f"in/{colour}.png")
                    member.size = len(picture[colour])
                    tar.addfile(member, BytesIO(picture[colour]))
        (tmp_path / "cut.tar").write_bytes((tmp_path / "one.tar").read_bytes()[:700])
        names = (
            *("one.tar::in/yellow.png", "a::b.png", "two.tar.gz::in/green.png", "one.tar::in/blue.png"),
            *(
                "one.tar::in/yellow.png",
                "one.tar::gone",
                "no.tar::a",
                "damaged.png",
                "gone.png",
                "cut.tar::in/green.png",
            ),
        )
        thumbnails = make_thumbnails([str(tmp_path / name) for name in names], side=200)
        expected = ((255, 255, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0))
        for thumbnail, levels in zip(thumbnails, expected, strict=False):
            assert thumbnail.size == (200, 50)
            assert pixel(thumbnail, (100, 25)) == pytest.approx(levels, abs=3)
        for thumbnail, problem in zip(
            thumbnails[5:], ("has no member gone", "not there", "", "not there", ""), strict=True
        ):
            assert thumbnail.jpeg == b""
            assert thumbnail.problem
            assert problem in thumbnail.problem

    def test_names_with_the_separator(self, tmp_path: Path) -> None:
        folder = tmp_path / "a::b"
        folder.mkdir()
        (folder / "c.png").touch()
        (folder / "d.tar").touch()
        assert split_member(f"{folder}/c.png") == (f"{folder}/c.png", "")
        assert split_member(f"{folder}/d.tar::e::f.png") == (f"{folder}/d.tar", "e::f.png")
        assert split_member("gone.tar::e::f.png") == ("gone.tar", "e::f.png")

    def test_upright_on_white_in_eight_bits(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by a quarter
        lying = make_thumbnail(encoded(Image.new("RGB", (90, 30), "red"), "JPEG", exif=exif))
        assert lying.size == (30, 90)
        clear = make_thumbnail(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
        assert pixel(clear, (4, 4)) == (255, 255, 255)
        deep = make_thumbnail(encoded(Image.fromarray(np.full((8, 8), 32768, np.uint16)), "PNG"))
        assert pixel(deep, (4, 4)) == pytest.approx((128, 128, 128), abs=2)


class Elements(HTMLParser):
    """All start tags of a page with their attributes, and the texts between tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(folder: Path) -> str:
    """A page of images with names that are hard to show, one of which is gone."""
    items = []
    for name, colour in zip(NAMES, COLOURS, strict=False):
        file = folder / name
        Image.new("RGB", (64, 64), colour).save(file, "PNG")
        items.append(PageItem(str(file), 0.5, make_thumbnail(file.read_bytes()), caption=f"<b>{name}</b>"))
    gone = PageItem(f"{folder}/arch&.tar::in/<i>.png", -0.25, Thumbnail(problem="<u>gone</u>"))
    return make_page("</title><script>document.title='run'</script>", [*items, gone], "<note>", items[0].thumbnail)


class TestPage:
    def test_shows_everything_and_loads_nothing(self, tmp_path: Path) -> None:
        page = Elements(page_of(tmp_path))
        tags = {tag for tag, _ in page.tags}
        assert tags.isdisjoint({"script", "b", "i", "u", "note", "link", "iframe", "object"})
        addresses = [
            value
            for _, found in page.tags
            for name, value in found.items()
            if name in ("src", "href", "srcset", "data")
        ]
        assert len(addresses) == 1 + 2 * len(NAMES)  # the query, and each image with its link
        assert all(str(address).startswith(("data:image/jpeg;base64,", "file:///")) for address in addresses)
        assert not any(name.startswith("on") for _, found in page.tags for name in found)
        shown = "".join(page.texts)
        for text in ("<script>document.title", "two\\nlines \\u202egnp.png", "a #1?%20 é.png", "<u>gone</u>", "<note>"):
            assert text in shown
        assert "-0.250" in page.texts

    def test_links_lead_to_the_files(self, tmp_path: Path) -> None:
        from urllib.parse import unquote

        links = [found["href"] for tag, found in Elements(page_of(tmp_path)).tags if tag == "a"]
        assert [unquote(str(link)).removeprefix("file://") for link in links] == [
            str(tmp_path / name) for name in NAMES
        ]

    def test_names_that_are_no_text(self) -> None:
        page = make_page("a", [PageItem("/x/caf\udce9.png", 1, Thumbnail(problem="gone"))])
        assert b"caf\\udce9.png" in page.encode()

    @pytest.mark.thorough
    def test_in_a_browser(self, tmp_path: Path) -> None:
        """Opened as a file: every image is drawn, no name has run, nothing is wider than a phone."""
        chromium = shutil.which("chromium")
        if chromium is None:
            pytest.skip("chromium is not installed")
        file = tmp_path / "page.html"
        file.write_text(page_of(tmp_path), encoding="utf-8")
        picture = tmp_path / "page.png"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path}/user",
        ]
        command = [chromium, *options, "--window-size=500,1600"]
        subprocess.run(
            [*command, f"--screenshot={picture}", file.as_uri()], check=True, capture_output=True, timeout=60
        )
        with Image.open(picture) as drawn:
            colours = {colour: count for count, colour in drawn.convert("RGB").getcolors(2**24)}
        for colour in ((254, 0, 0), (0, 0, 254), (0, 128, 1), (255, 255, 0), (128, 0, 127)):
            near = sum(
                count
                for other, count in colours.items()
                if max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 4
            )
            assert near > 150 * 150, colour
        dump = subprocess.run(
            [*command, "--dump-dom", file.as_uri()], check=True, capture_output=True, timeout=60
        ).stdout.decode()
        assert "<title>&lt;/title&gt;&lt;script&gt;" in dump
        assert dump.count("<figure") == len(NAMES) + 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour, in a folder and in an archive, and `index`, their index by a small model."""
    folder = tmp_path_factory.mktemp("search")
    paths = []
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (64, 64), "black")
        picture.paste(colour, (20, 20, 44, 44))
        picture.save(folder / f"{colour}.png")
        paths.append(str(folder / f"{colour}.png"))
        if number >= 4:
            with tarfile.open(folder / f"{colour}.tar", "w") as tar:
                tar.add(folder / f"{colour}.png", f"in/{colour}.png")
            paths[-1] = f"{folder}/{colour}.tar::in/{colour}.png"
    model, processor = load_exact_model("siglip-shapes"), load_processor("siglip-shapes")
    embeds = model.encode([folder / f"{colour}.png" for colour in COLOURS], processor, convert_to_numpy=True)
    write(folder / "index", embeds, (4,), paths, weights_fingerprint(model), "siglip-shapes")
    return folder


class TestSearcher:
    def test_texts_and_images(self, world: Path) -> None:
        searcher = Searcher.open(world / "index")
        results = searcher.nearest(searcher.embed_text("a blue square"), top=2)
        assert len(results) == 2
        assert results[0].path == f"{world}/blue.png"
        (result,) = searcher.nearest(searcher.embed_image(world / "white.png"), top=1)
        assert result.path == f"{world}/white.tar::in/white.png"
        assert result.score == pytest.approx(1, abs=1e-6)
        with pytest.raises(ValueError, match="got one without words"):
            searcher.embed_text(" ")

    def test_other_weights_are_refused_and_other_dtypes_are_not(self, world: Path, tmp_path: Path) -> None:
        model, processor = load_exact_model("siglip-shapes"), load_processor("siglip-shapes")
        model.bfloat16().save_pretrained(tmp_path / "half")
        processor.save_pretrained(tmp_path / "half")
        assert weights_fingerprint(model) != Index.open(world / "index").metadata["weights"]
        assert Searcher.open(world / "index", tmp_path / "half").model.dtype == torch.bfloat16
        first, second = (weights_fingerprint(load_exact_model(name))[:12] for name in ("siglip-shapes", "clip-shapes"))
        names = rf"embedded by siglip-shapes with the weights {first}, and clip-shapes has the weights {second}"
        with pytest.raises(ValueError, match=rf"{names}; they embed an image differently \(cosine -?0\.\d+\): pass"):
            Searcher.open(world / "index", "clip-shapes")

    def test_without_images_to_compare(self, world: Path, tmp_path: Path) -> None:
        """Pictures that have changed since say nothing."""
        index = shutil.copytree(world / "index", tmp_path / "index")
        embeds = np.concatenate([np.asarray(shard) for shard in Index.open(index).shards])
        Image.new("RGB", (64, 64)).save(tmp_path / "changed.png")
        write(index, embeds, (4,), ["gone.png"] * 6, "0" * 64, "siglip-shapes")
        with pytest.raises(ValueError, match="no image of the index is there to compare their vectors"):
            Searcher.open(index)


class TestCommand:
    def test_text(self, world: Path, run: Run, tmp_path: Path) -> None:
        page = tmp_path / "new" / "out.html"
        code, output, errors = run("search", world / "index", "a red square", "--top", 3, "--html", page)
        assert (code, errors) == (0, "")
        first, *others, wrote = output.splitlines()
        assert wrote == f"Wrote {page}"
        assert re.fullmatch(rf" \d\.\d{{4}}  {re.escape(str(world))}/red\.png", first)
        assert len(others) == 2
        written = page.read_text(encoding="utf-8")
        assert written.count("<figure") == written.count("data:image/jpeg;base64,") == 3
        assert "<h1>a red square</h1>" in written
        assert "3 of 6 images, embedded by siglip-shapes" in written

    def test_image_as_json(self, world: Path, run: Run, tmp_path: Path) -> None:
        page = tmp_path / "out.html"
        arguments = "search", world / "index", "--image", world / "green.png", "--html", page, "--json"
        code, output, errors = run(*arguments)
        assert (code, errors) == (0, "")
        answer = json.loads(output)
        assert answer["query"] == {"image": str(world / "green.png")}
        assert (answer["images"], answer["page"], len(answer["results"])) == (6, str(page), 6)
        assert answer["results"][0] == {"row": 2, "path": str(world / "green.png"), "score": pytest.approx(1)}
        assert page.read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 7

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ([], 2, "Pass either a text"),
            (["a", "--image", "red.png"], 2, "Pass either a text"),
            (["a", "--top", "0"], 2, "top"),
            ([" "], 1, "got one without words"),
            (["--image", "gone.png"], 1, "gone.png, which is not there"),
            (["a", "--html", "red.png"], 1, "such as out.html, got red.png"),
            (["a", "--model", "nowhere"], 1, "nowhere"),
            (["a", "--model", "clip-shapes"], 1, "clip-shapes has the weights"),
        ],
        ids=["nothing", "both", "top", "blank", "image", "page", "model", "other model"],
    )
    def test_mistakes(
        self, world: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
    ) -> None:
        monkeypatch.chdir(world)
        before = sorted(world.rglob("*"))
        got, output, errors = run("search", "index", *arguments)
        assert (got, output) == (code, "")
        assert message in errors
        assert code == 2 or errors.count("\n") == 1
        assert sorted(world.rglob("*")) == before

    def test_a_model_that_is_gone(self, world: Path, run: Run, tmp_path: Path) -> None:
        embeds = unit_vectors(2, 64)
        write(tmp_path / "index", embeds, (), model=str(tmp_path / "model.npz"))
        code, _, errors = run("search", tmp_path / "index", "a")
        assert code == 1
        assert "is not within reach, pass it with --model" in errors
        code, _, errors = run("search", tmp_path, "a")
        assert code == 1
        assert "expected a folder that `twinlens embed` wrote" in errors

    def test_without_lancedb(self, world: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lancedb", None)
        for option in (["--approximate"], ["--where", "row > 1"]):
            code, output, errors = run("search", world / "index", "a", *option)
            assert (code, output) == (1, "")
            assert errors.count("\n") == 1
            assert "pip install '.[search]'" in errors
        assert not list((world / "index").glob("*lance*"))


@pytest.mark.thorough
class TestLanceDB:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("lancedb", reason="lancedb is not installed")

    def test_conditions(self, world: Path, run: Run, tmp_path: Path) -> None:
        """All that fulfil them, with the scores of the exact search; of an index that has changed, its new vectors."""
        folder = shutil.copytree(world / "index", tmp_path / "index")
        command = "search", folder, "a red square", "--json"
        exact = json.loads(run(*command)[1])["results"]
        code, output, errors = run(*command, "--where", "path LIKE '%.tar::%' OR row = 0")
        assert (code, errors) == (0, "")
        assert json.loads(output)["results"] == [one for one in exact if one["row"] in (0, 4, 5)]
        embeds = np.concatenate([np.asarray(shard) for shard in Index.open(folder).shards])
        metadata = Index.open(folder).metadata
        write(folder, embeds[::-1], (4,), weights=metadata["weights"], model="siglip-shapes")
        assert json.loads(run(*command, "--where", "row = 5")[1])["results"] == [
            {**exact[0], "row": 5, "path": "5.png"}
        ]
        assert run(*command[:-1], "--where", "row = 9") == (0, "", "No image fulfils the condition.\n")
        code, output, errors = run(*command, "--where", "colour = 'red'")
        assert (code, output) == (1, "")
        assert "Expected a condition on row, path, hash, size in SQL, got \"colour = 'red'\"" in errors

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_approximate_answers(self, tmp_path: Path, dtype: str) -> None:
        """Of vectors in clusters, nearly all that the exact search finds, with the same scores."""
        generator = np.random.default_rng(0)
        embeds = unit_vectors(200, 64)[generator.integers(0, 200, 12_000)] + generator.normal(0, 0.05, (12_000, 64))
        embeds = (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(dtype)
        index = write(tmp_path, embeds, (5000,))
        asked = embeds[:20].astype(np.float32)
        exact = search(index, asked, 10)
        hits = 0
        for query, rows, scores in zip(asked, exact.rows, exact.scores, strict=True):
            found = twinlens.index.search_table(index, query, 10)
            hits += len({*found.rows[0]} & {*rows})
            same = twinlens.index.search_table(index, query, 10, approximate=False)
            np.testing.assert_array_equal(same.scores[0], scores)
        assert hits >= 190
