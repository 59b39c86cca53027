"""`model.encode` and `Embedder`: any number of texts or images, equal to `encode_text` and `encode_image` by row."""

import io
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch
import transformers
from accelerate import cpu_offload
from datasets import Dataset
from datasets.fingerprint import Hasher
from helpers import families, other_families
from helpers.photographs import PHOTOGRAPHS, cat
from PIL import Image, ImageSequence
from torch import Tensor
from torch.utils.data import DataLoader

import twinlens
from twinlens.catalogue import BUNDLED
from twinlens.inference import Embedder, embedding
from twinlens.processing import (
    DualEncoderProcessor,
    Siglip2ImageProcessor,
    Siglip2Processor,
    SiglipImageProcessor,
    SiglipProcessor,
)

Pair = tuple[twinlens.DualEncoderModel, DualEncoderProcessor]

# Of one token, of as many as are read, of more, and some twice.
TEXTS = ["star", "a red star", "a picture of a green circle and a white arrow", "star", "star " * 40, "", "a red star"]


def load(source: str | Path) -> Pair:
    return twinlens.DualEncoderModel.from_pretrained(source), DualEncoderProcessor.from_pretrained(source)


@pytest.fixture(scope="module", params=BUNDLED)
def pair(request: pytest.FixtureRequest) -> Pair:
    return load(request.param)


@pytest.fixture(scope="module")
def clip() -> Pair:
    return load("clip-shapes")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    for number, photograph in enumerate([*PHOTOGRAPHS.values()][:5]):
        photograph.save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@torch.no_grad()
def one_by_one(pair: Pair, **items: list[Any]) -> Tensor:
    """The embeddings of items that are alone in their batch."""
    model, processor = pair
    process: Callable[..., dict[str, Tensor]] = processor
    ((name, values),) = items.items()
    encode: Callable[..., Tensor] = model.encode_text if name == "text" else model.encode_image
    return torch.cat([encode(**process(**{name: [value]})) for value in values])


def assert_equal(found: Any, expected: Tensor) -> None:
    assert isinstance(found, Tensor)
    assert (found.dtype, found.device.type, found.requires_grad) == (torch.float32, "cpu", False)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


class TestTexts:
    @pytest.mark.parametrize("batch_size", [1, 3, 64])
    def test_each_row_is_that_of_its_text(self, pair: Pair, batch_size: int) -> None:
        model, processor = pair
        assert_equal(model.encode(TEXTS, processor, batch_size=batch_size), one_by_one(pair, text=TEXTS))

    @pytest.mark.parametrize(
        "form",
        [
            tuple,
            iter,
            np.array,
            lambda texts: np.array(texts, dtype=object),
            pandas.Series,
            lambda texts: pandas.Series(texts, index=range(len(texts), 0, -1)),
            pyarrow.array,
            lambda texts: Dataset.from_dict({"text": texts})["text"],
            lambda texts: dict.fromkeys(texts).keys(),
        ],
        ids=["tuple", "iterator", "array", "objects", "series", "other-index", "arrow", "datasets", "keys"],
    )
    def test_columns_of_any_kind(self, clip: Pair, form: Callable[[list[str]], Any]) -> None:
        model, processor = clip
        texts = list(dict.fromkeys(TEXTS))
        assert_equal(model.encode(form(texts), processor), model.encode(texts, processor))

    def test_one_text_is_one_vector(self, pair: Pair) -> None:
        model, processor = pair
        assert_equal(model.encode("a red star", processor), one_by_one(pair, text=["a red star"])[0])
        assert model.encode(["a red star"], processor).shape == (1, 64)

    def test_equal_texts_are_encoded_once_and_long_ones_first(
        self, clip: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, processor = clip
        lengths: list[int] = []
        encode = model.encode_text

        def watch(input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
            lengths.extend(attention_mask.sum(dim=1).tolist())
            return encode(input_ids, attention_mask, **options)

        monkeypatch.setattr(model, "encode_text", watch)
        model.encode(TEXTS * 10, processor, batch_size=2)
        assert len(lengths) == len(set(TEXTS))
        assert lengths == sorted(lengths, reverse=True)

    def test_an_iterator_is_read_in_windows(self, clip: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        model, processor = clip
        expected = model.encode(TEXTS, processor)
        read: list[int] = []
        encode = model.encode_text
        most = 0

        def texts() -> Iterator[str]:
            for place, text in enumerate(TEXTS):
                read.append(place)
                yield text

        def watch(**inputs: Tensor) -> Tensor:
            nonlocal most
            most = most or len(read)
            return encode(**inputs)

        monkeypatch.setattr(embedding, "TEXTS_AT_ONCE", 3)
        monkeypatch.setattr(model, "encode_text", watch)
        assert_equal(model.encode(texts(), processor, batch_size=2), expected)
        assert most == 3

    def test_path_like_texts_are_not_taken_for_words(
        self, clip: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor for images: the caller says which. A text that only looks like a name is a text."""
        model, processor = clip
        cat().save(tmp_path / "cat.JPG")
        (tmp_path / "star").mkdir()
        monkeypatch.chdir(tmp_path)
        for text in ("cat.JPG", str(tmp_path / "cat.JPG"), "https://host/a.png?size=3", "data:image/png;base64,AAAA"):
            for items in (text, [text], iter([text, "a star"])):
                with pytest.raises(ValueError, match=re.escape(repr(text)) + " names an image, .* kind='image'"):
                    model.encode(items, processor)
            assert model.encode([text], processor, kind="text").shape == (1, 64)
        assert_equal(
            model.encode(["cat.JPG"], processor, kind="image"), model.encode([tmp_path / "cat.JPG"], processor)
        )
        for text in ("dog.jpg", "star", "https://host/", "https://host/a.png is a picture"):
            assert_equal(model.encode([text], processor), one_by_one(clip, text=[text]))


class TestImages:
    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_each_row_is_that_of_its_image(self, pair: Pair, photographs: list[Path], batch_size: int) -> None:
        model, processor = pair
        found = model.encode(photographs, processor, batch_size=batch_size)
        assert_equal(found, one_by_one(pair, images=photographs))

    @pytest.mark.parametrize(
        "form",
        [
            lambda path: Image.open(path),
            lambda path: path.read_bytes(),
            lambda path: io.BytesIO(path.read_bytes()),
            lambda path: {"bytes": path.read_bytes(), "path": None},
            lambda path: np.asarray(Image.open(path).convert("RGB")),
            lambda path: torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1),
        ],
        ids=["Pillow", "bytes", "open", "datasets", "array", "tensor"],
    )
    def test_images_of_any_form(self, clip: Pair, photographs: list[Path], form: Callable[[Path], Any]) -> None:
        model, processor = clip
        expected = model.encode(photographs[:2], processor)
        assert_equal(model.encode(form(photographs[0]), processor), expected[0])
        assert_equal(model.encode([form(path) for path in photographs[:2]], processor), expected)

    @pytest.mark.parametrize("stack", [np.stack, lambda images: torch.from_numpy(np.stack(images))])
    def test_a_stack_has_one_scale(self, clip: Pair, stack: Callable[[list[Any]], Any]) -> None:
        """The dark image would be bright if it was read alone."""
        model, processor = clip
        levels = [np.full((9, 9, 3), level, dtype=np.float32) for level in (1, 200)]
        expected = model.encode([image.astype(np.uint8) for image in levels], processor)
        assert_equal(model.encode(stack(levels), processor, batch_size=1), expected)
        assert model.encode(stack(levels)[:0], processor).shape == (0, 64)

    def test_strings_are_files_where_that_is_said(self, clip: Pair, photographs: list[Path]) -> None:
        model, processor = clip
        mixed = [str(photographs[0]), photographs[1]]
        assert_equal(model.encode(mixed, processor, kind="image"), model.encode(photographs[:2], processor))
        assert model.encode(str(photographs[0]), processor, kind="image").shape == (64,)

    def test_frames_of_one_file(self, clip: Pair) -> None:
        """Pillow's iterator yields one image again and again, and changes it."""
        model, processor = clip
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "white")]
        frames[0].save(file := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
        found = model.encode(ImageSequence.Iterator(Image.open(file)), processor)
        assert_equal(found, model.encode(frames, processor))

    def test_a_generator_is_read_batch_by_batch(self, clip: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        model, processor = clip
        drawn, encode = [0], model.encode_image
        seen: list[int] = []

        def images() -> Iterator[Image.Image]:
            for level in range(20):
                drawn[0] += 1
                yield Image.new("RGB", (8, 8), (level, 0, 0))

        def watch(pixel_values: Tensor, **options: Any) -> Tensor:
            seen.append(drawn[0])
            return encode(pixel_values, **options)

        monkeypatch.setattr(model, "encode_image", watch)
        assert model.encode(images(), processor, batch_size=6).shape == (20, 64)
        assert seen == [6, 12, 18, 20]

    def test_patches_of_any_grid(self) -> None:
        model = families.model("Siglip2")
        processor = Siglip2Processor(Siglip2ImageProcessor(patch_size=8, max_num_patches=16))
        images = [cat().resize(size) for size in ((32, 32), (70, 30), (20, 90))]
        found = model.encode(images, processor, batch_size=2)
        assert_equal(found, one_by_one((model, processor), images=images))


class TestAnswer:
    def test_numpy(self, clip: Pair) -> None:
        model, processor = clip
        for items in ("a star", TEXTS, [cat()], []):
            found = model.encode(items, processor, convert_to_numpy=True)
            assert isinstance(found, np.ndarray)
            assert found.dtype == np.float32
            assert np.array_equal(found, model.encode(items, processor).numpy())

    def test_it_can_be_learnt_from(self, clip: Pair) -> None:
        """Tensors of inference mode could not."""
        model, processor = clip
        weights = torch.zeros(64, requires_grad=True)
        (model.encode(TEXTS, processor) @ weights).sum().backward()
        assert weights.grad is not None

    @pytest.mark.parametrize("empty", [[], (), iter([]), np.array([]), pandas.Series([], dtype=object)])
    def test_none_at_all(self, clip: Pair, empty: Any) -> None:
        model, processor = clip
        assert model.encode(empty, processor).shape == (0, 64)
        assert model.encode([], processor, kind="text").shape == (0, 64)

    @pytest.mark.parametrize("fails", [False, True])
    def test_every_module_has_its_mode_afterwards(self, fails: bool) -> None:
        """Dropout changes nothing, and of a model of which a part is frozen, that part stays in evaluation mode."""
        model = families.model("CLIP").train()
        model.text_model.eval()
        before = {name: module.training for name, module in model.named_modules()}
        processor = SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}))
        model.config.vision_config.attention_dropout = 0.5
        seen: list[bool] = []
        model.vision_model.register_forward_hook(lambda module, *_: seen.append(module.training))
        images: list[Any] = [cat(), b"" if fails else cat()]
        if fails:
            with pytest.raises(ValueError, match=r"^Image 1 of 2"):
                model.encode(images, processor, batch_size=1)
        else:
            first, second = model.encode(images, processor, batch_size=1)
            assert torch.equal(first, second)
        assert seen == [False] * (1 if fails else 2)
        assert {name: module.training for name, module in model.named_modules()} == before

    def test_calls_that_overlap_share_evaluation_mode(self) -> None:
        model, other = families.model("CLIP").train(), families.model("CLIP").train()
        other.text_model = model.text_model.train()
        model.vision_model.eval()
        before = [(module, module.training) for one in (model, other) for module in one.modules()]
        calls = [embedding._evaluation_mode(one) for one in (model, model, other)]
        for call in calls:
            call.__enter__()
        for call in calls:
            assert not (model if call is not calls[2] else other).text_model.training
            call.__exit__(None, None, None)
        assert [(module, module.training) for module, _ in before] == before

    def test_half_precision_and_off_loaded_weights(self, clip: Pair) -> None:
        model, processor = load("clip-shapes")
        half = model.to(torch.bfloat16)
        assert half.encode(TEXTS, processor).dtype == torch.float32
        torch.testing.assert_close(
            half.encode([cat()], processor), clip[0].encode([cat()], processor), rtol=0, atol=0.1
        )
        model, processor = load("clip-shapes")
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert model.device.type == "meta"
        assert_equal(model.encode(TEXTS, processor), clip[0].encode(TEXTS, processor))
        assert_equal(model.encode([cat()], processor), clip[0].encode([cat()], processor))

    def test_progress(self, clip: Pair, capsys: pytest.CaptureFixture[str]) -> None:
        model, processor = clip
        transformers.logging.enable_progress_bar()
        try:
            model.encode(TEXTS, processor)
            assert capsys.readouterr().err == ""
            model.encode(TEXTS * 3, processor, batch_size=2, show_progress_bar=True)
            assert "21/21" in capsys.readouterr().err
            model.encode(iter([cat()] * 3), processor, batch_size=2, show_progress_bar=True)
            assert "3 images [" in capsys.readouterr().err
        finally:
            transformers.logging.disable_progress_bar()


class TestRefusals:
    @pytest.mark.parametrize(
        ("items", "options", "error", "message"),
        [
            (None, {}, TypeError, r"^Expected a text or an image, got None"),
            (3, {}, TypeError, r"^Expected a text or an image, got int"),
            (["a", None], {}, TypeError, r"^Item 1 of 2: expected a text or an image, got None: leave it out"),
            ([None], {}, TypeError, r"^Expected a text or an image, got None: leave it out"),
            (pandas.Series(["a", float("nan")]), {}, TypeError, r"^Item 1 of 2: .*got nan: leave it out"),
            (["a", "b", cat()], {}, TypeError, r"^Item 2 of 3: expected texts, got Image: encode texts and images in"),
            (iter([cat(), "b"]), {}, TypeError, r"^Item 1: expected images, got str: .*kind='image'"),
            ([Path("a"), "b"], {"kind": "text"}, TypeError, r"^Item 0 of 2: expected texts, got PosixPath"),
            ({"text": ["a"]}, {}, TypeError, r"^Expected a text or an image, got dict: pass one of its columns"),
            ([{"text": "a"}], {}, TypeError, r"got dict: pass one of its columns"),
            (pandas.DataFrame({"text": ["a"]}), {}, TypeError, r"got DataFrame: pass one of its columns"),
            (Dataset.from_dict({"text": ["a"]}), {}, TypeError, r"got dict: pass one of its columns"),
            ({"a", "b"}, {}, TypeError, r"got set: it has no order; pass a list"),
            ([["a"], ["b"]], {}, TypeError, r"^Item 0 of 2: expected a text or an image, got list: pass one flat list"),
            ([np.zeros((2, 9, 9, 3))], {}, TypeError, r"got ndarray: pass one flat list"),
            (["a", "b\ud800"], {}, ValueError, r"half of a surrogate pair.* at \[1\] of the list"),
            ([cat(), b"abc", cat()], {}, ValueError, r"^Image 1 of 3: Expected an image, got 3 bytes"),
            (iter([cat()] * 3 + [b"abc"]), {"batch_size": 2}, ValueError, r"^Image 3: Expected an image"),
            (["none.png"], {"kind": "image"}, FileNotFoundError, r"none\.png, which is not there"),
            (["a"], {"kind": "video"}, ValueError, r"^kind must be one of image, text or None, got 'video'"),
            (["a"], {"batch_size": 0}, ValueError, r"^batch_size must be a whole number of at least 1, got 0"),
            (["a"], {"batch_size": 1.5}, ValueError, r"^batch_size must be a whole number of at least 1, got 1\.5"),
            (["a"], {"batch_size": "2"}, ValueError, r"^batch_size must be a whole number of at least 1, got '2'"),
        ],
    )
    def test_wrong_items_and_options(
        self, clip: Pair, items: Any, options: Any, error: type[Exception], message: str
    ) -> None:
        model, processor = clip
        with pytest.raises(error, match=message):
            model.encode(items, processor, **options)

    def test_processors(self, clip: Pair) -> None:
        model, processor = clip
        with pytest.raises(TypeError, match="Expected a processor of twinlens, got CLIPTokenizer: load it with"):
            model.encode(TEXTS, processor.tokenizer)
        with pytest.raises(ValueError, match="This processor takes images only"):
            model.encode(TEXTS, type(processor)(processor.image_processor))
        with pytest.raises(ValueError, match=r"Images must be 64x64 .*, got 224x224"):
            model.encode([cat()], SiglipProcessor(SiglipImageProcessor()))


@pytest.mark.parametrize("family", other_families.other_families())
def test_other_families(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of different lengths are padded to the longest of their batch, which changes nothing."""
    other_families.write_folder(family, tmp_path)
    pair = load(tmp_path)
    model, processor = pair
    texts = ["a photo of the red star", "star", "a", "the small green circle is left of the big blue square ."]
    images = other_families.draw_images(3)
    lengths, encode = [], model.encode_text

    def watch(**inputs: Tensor) -> Tensor:
        lengths.append(inputs["input_ids"].shape[1])
        return encode(**inputs)

    monkeypatch.setattr(model, "encode_text", watch)
    expected = one_by_one(pair, text=texts)
    assert_equal(model.encode(texts, processor, batch_size=1), expected)
    assert lengths[4:] == sorted(lengths[:4], reverse=True)
    for batch_size in (2, 64):
        assert_equal(model.encode(texts, processor, batch_size=batch_size), expected)
    for batch_size in (1, 2, 64):
        assert_equal(model.encode(images, processor, batch_size=batch_size), one_by_one(pair, images=images))
    for kind in ("image", "text"):
        assert model.encode([], processor, kind=kind).shape == (0, model.encode("a", processor).shape[0])


@pytest.fixture(scope="module")
def folder(clip: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for part in clip:
        part.save_pretrained(folder)
    return folder


class TestEmbedder:
    BATCH = {"image": [cat(), cat().rotate(90)], "text": ["a star", "a circle"], "label": [0, 1]}

    def rows(self) -> Any:
        return [dict(zip(self.BATCH, row, strict=True)) for row in zip(*self.BATCH.values(), strict=True)]

    def expected(self, clip: Pair) -> dict[str, Any]:
        model, processor = clip
        return {
            f"{kind}_embeds": model.encode(self.BATCH[kind], processor, convert_to_numpy=True)
            for kind in ("image", "text")
        }

    def assert_right(self, found: dict[str, Any], clip: Pair) -> None:
        expected = self.expected(clip)
        assert found.keys() == expected.keys()
        for name, embeds in expected.items():
            np.testing.assert_allclose(np.asarray(found[name]), embeds, rtol=0, atol=5e-6)

    def test_columns_of_a_batch(self, clip: Pair, folder: Path, photographs: list[Path]) -> None:
        model, processor = clip
        for embed in (Embedder(folder), Embedder(str(folder)), Embedder("clip-shapes"), Embedder(model, processor)):
            self.assert_right(embed(self.BATCH), clip)
            self.assert_right(embed(self.rows()), clip)
            assert embed({"text": np.array(["a", "b"], dtype=object)}).keys() == {"text_embeds"}
        self.assert_right(embed(pandas.DataFrame(self.BATCH)), clip)  # type: ignore[arg-type]
        only = Embedder(model, processor, image_column="picture", text_column=None)
        found = only({"picture": [str(photographs[0])], "text": [3]})
        assert {name: embeds.shape for name, embeds in found.items()} == {"image_embeds": (1, 64)}
        assert embed({"image": [], "text": []})["text_embeds"].shape == (0, 64)

    def test_wrong_use(self, clip: Pair) -> None:
        with pytest.raises(ValueError, match="a column 'image' or 'text', got jpg, txt"):
            Embedder(*clip)({"jpg": [], "txt": []})
        for arguments in ({}, {"processor": clip[1], "device": "cpu"}, {"processor": clip[1], "dtype": torch.half}):
            with pytest.raises(ValueError, match="An Embedder of a model needs its processor, and takes neither"):
                Embedder(clip[0], **arguments)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="needs image_column or text_column, got None for both"):
            Embedder(*clip, image_column=None, text_column=None)
        with pytest.raises(ValueError, match="Sample 1 of 2 has no 'text', which the first one has"):
            Embedder(*clip)([{"text": "a"}, {"image": "b.png"}])

    def test_pickles(self, clip: Pair, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder.parent)
        embed = Embedder(folder.name, dtype=torch.float64)
        before = pickle.dumps(embed)
        assert len(before) < 3000
        embed(self.BATCH)
        assert pickle.dumps(embed) == before
        monkeypatch.chdir(tmp_path)  # a worker may run elsewhere
        again = pickle.loads(before)
        self.assert_right(again(self.BATCH), clip)
        assert again._loaded[0].dtype == torch.float64
        self.assert_right(pickle.loads(pickle.dumps(Embedder(*clip)))(self.BATCH), clip)

    def test_fingerprints(self, clip: Pair, tmp_path: Path) -> None:
        """`datasets` finds earlier results by them: the same after use, and others for other weights."""
        for part in clip:
            part.save_pretrained(tmp_path)
        embeds = Embedder(tmp_path), Embedder(*clip)
        before = [Hasher.hash(embed) for embed in embeds]
        for embed in embeds:
            embed(self.BATCH)
        assert [Hasher.hash(embed) for embed in embeds] == before
        assert Hasher.hash(Embedder(tmp_path)) == before[0]
        assert Hasher.hash(Embedder(tmp_path, text_column="caption")) != before[0]
        families.model("CLIP").save_pretrained(tmp_path)
        assert Hasher.hash(Embedder(tmp_path)) != before[0]

    def test_datasets(self, clip: Pair, folder: Path) -> None:
        dataset = Dataset.from_dict(self.BATCH).map(Embedder(folder), batched=True, batch_size=1, num_proc=2)
        assert dataset.column_names == [*self.BATCH, "image_embeds", "text_embeds"]
        assert dataset.features["text_embeds"].feature.dtype == "float32"
        self.assert_right(dataset.select_columns(["image_embeds", "text_embeds"]).to_dict(), clip)

    def test_workers_of_a_loader(self, clip: Pair, folder: Path) -> None:
        loader: Any = DataLoader(self.rows(), batch_size=2, num_workers=1, collate_fn=Embedder(folder))
        (found,) = loader
        self.assert_right(found, clip)
