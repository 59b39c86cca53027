"""What people bring as images: every form of a file, clips, empty crops, rare formats; processors in threads."""

import base64
import io
import json
import re
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
from helpers.architecture import ROOT, sources
from helpers.photographs import cat, cat_levels
from helpers.released_files import released_file
from PIL import Image, ImageFile, ImageSequence, features
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from twinlens.inference.embedding import encode
from twinlens.processing import (
    CLIPImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    SiglipProcessor,
    image_steps,
)
from twinlens.processing.image_files import is_image_name
from twinlens.processing.image_input import READ_ERRORS
from twinlens.training import ContrastiveCollator

SQUARE = {"height": 32, "width": 32}
PROCESSORS: dict[str, Any] = {  # small, for speed
    "CLIP": partial(CLIPImageProcessor, size={"shortest_edge": 32}, crop_size=SQUARE),
    "SigLIP": partial(SiglipImageProcessor, size=SQUARE),
    "NaFlex": partial(Siglip2ImageProcessor, max_num_patches=16),
}
ENGINES = ("pillow", "torch", "official")
LEVELS: dict[str, Any] = {"do_rescale": False, "do_normalize": False}


def small(seed: int = 0, height: int = 50, width: int = 70) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


class Pixels(torch.nn.Module):
    """In place of a model: the embeddings are the pixels."""

    device = torch.device("cpu")

    def encode_image(self, pixel_values: torch.Tensor, **options: object) -> torch.Tensor:
        return pixel_values.flatten(1)


def stored(image: Image.Image, form: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def fade_in() -> np.ndarray:
    """Return a clip of float levels (4, height, width, 3) whose first frame has no level above 1."""
    levels = cat_levels()[::6, ::6].astype(np.float32)
    return np.stack([np.clip(levels * share, 0, 255).round() for share in (1 / 255, 0.2, 0.6, 1.0)])


class TestClips:
    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("family", PROCESSORS)
    def test_a_dark_frame_stays_dark(self, family: str, engine: str) -> None:
        """The same as the frames in uint8, in which there is nothing to guess."""
        processor, clip = PROCESSORS[family](resize_engine=engine), fade_in()
        expected = processor(list(clip.astype(np.uint8)))["pixel_values"]
        tensor = torch.from_numpy(clip)
        forms: list[Any] = [
            clip,
            clip.transpose(0, 3, 1, 2),
            clip.astype(np.float64),
            clip.astype(">f4"),
            tensor,
            tensor.permute(0, 3, 1, 2).half(),
            tensor.bfloat16(),
            tensor.clone().requires_grad_(),
            [clip[:0], clip],
        ]
        for form in forms:
            assert torch.equal(processor(form)["pixel_values"], expected)

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [(CLIPImageProcessor, CLIPImageProcessorPil), (SiglipImageProcessor, SiglipImageProcessorPil)],
    )
    def test_equal_to_transformers(self, ours: Any, theirs: Any) -> None:
        expected = theirs()(list(fade_in().astype(np.uint8)), return_tensors="pt")["pixel_values"]
        assert torch.equal(ours()(fade_in())["pixel_values"], expected)

    def test_fractions_have_one_scale_too(self) -> None:
        processor = SiglipImageProcessor()
        expected = processor(fade_in().astype(np.uint8))["pixel_values"]
        for settings in ({}, {"do_rescale": False}):
            assert torch.equal(processor(fade_in() / 255, **settings)["pixel_values"], expected)

    def test_embedding_in_batches(self) -> None:
        """The frame that tells the scale is in another batch than the dark one."""
        model: Any = Pixels()
        expected = SiglipImageProcessor()(fade_in().astype(np.uint8))["pixel_values"].flatten(1)
        for clip in (fade_in(), torch.from_numpy(fade_in())):
            embeds = encode(model, clip, SiglipProcessor(SiglipImageProcessor()), batch_size=1)
            assert torch.equal(embeds, expected)

    def test_two_scales_in_one_call_are_said(self) -> None:
        frames = list(fade_in())
        with pytest.warns(UserWarning, match="Image 0 of 4 taken for fractions of 0..1, Image 1 of 4 and 2 more for"):
            SiglipImageProcessor()(frames)
        with pytest.warns(UserWarning, match="Image 0 of 5 taken for fractions"):
            SiglipImageProcessor()([frames[0], fade_in()])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SiglipImageProcessor()([*frames[1:], np.zeros_like(frames[0])])  # black is 0 on either scale
            SiglipImageProcessor()([frames[0], cat(), cat_levels(), cat_levels()[..., 0] > 128])

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint16, torch.uint32, torch.float16])
    def test_types_of_levels(self, dtype: torch.dtype) -> None:
        levels = torch.from_numpy(cat_levels())
        expected = SiglipImageProcessor()(cat())["pixel_values"]
        assert torch.equal(SiglipImageProcessor()(levels.to(dtype))["pixel_values"], expected)


def empty_pictures() -> list[Any]:
    return [
        Image.new("RGB", (0, 0)),
        cat().crop((5, 5, 5, 20)),
        Image.new("L", (7, 0)),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.float32),
        np.zeros((3, 0, 3), np.uint8),
        np.zeros((0, 0), np.uint8),
        torch.zeros(3, 5, 0),
        torch.zeros(1, 3, 0, 0),
        np.zeros((1, 0, 5, 3), np.float32),
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", PROCESSORS)
def test_empty_pictures_are_refused(family: str, engine: str) -> None:
    processor = PROCESSORS[family](resize_engine=engine)
    for empty in empty_pictures():
        with pytest.raises(ValueError, match=r"^Image 1 of 3: Expected an image .*at least one pixel, got"):
            processor([small(), empty, small()])
        with pytest.raises(ValueError, match=r"^Expected an image .*at least one pixel, got"):
            processor(empty)


class TestForms:
    def test_every_form_of_a_file(self, tmp_path: Path) -> None:
        """Text as transformers reads it, which takes base64 and data URIs; the rest as the same PIL image."""
        image = small()
        png = stored(image, "PNG")
        plain = base64.b64encode(png).decode()
        uri = f"data:image/png;base64,{plain}"
        path = tmp_path / "a cat ü%20.png"
        path.write_bytes(png)
        theirs = SiglipImageProcessorPil()
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        for text in (plain, uri, str(path)):
            assert torch.equal(theirs(text, return_tensors="pt")["pixel_values"], expected)
        at_end = io.BytesIO(png)
        at_end.seek(0, io.SEEK_END)
        objects = np.empty(1, dtype=object)
        objects[0] = image
        column = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())["image"]
        undecoded = {"bytes": png, "path": None}
        with path.open("rb") as file:
            forms: dict[str, Any] = {
                "base64": plain,
                "without padding": plain.rstrip("="),
                "URL-safe": base64.urlsafe_b64encode(png).decode(),
                "lines": base64.encodebytes(png).decode(),
                "bytes of base64": plain.encode(),
                "data URI": uri,
                "in capitals": uri.replace("data:image/png;base64", "DATA:image/png;BASE64"),
                "percent-encoded": uri.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
                "without ;base64": uri.replace(";base64", ""),
                "bytes of a data URI": uri.encode(),
                "open file of a data URI": io.BytesIO(uri.encode()),
                "data URI after spaces": f"\n {uri}",
                "bytes": png,
                "bytearray": bytearray(png),
                "memoryview": memoryview(png),
                "BytesIO": io.BytesIO(png),
                "BytesIO at its end": at_end,
                "open file": file,
                "file URI": path.as_uri(),
                "file:// and a path": f"file://{path}",
                "path": path,
                "array of paths": np.array([str(path)]),
                "array without dimensions": np.array(str(path)),
                "array of two dimensions": np.array([[str(path)]]),
                "array of bytes": np.array([plain.encode()]),
                "array of objects": objects,
                "table of objects": objects[None],
                "generator": (item for item in [image]),
                "column": column,
                "undecoded": undecoded,
                "undecoded path": {"bytes": None, "path": str(path)},
                "nested": [[image]],
            }
            for name, form in forms.items():
                assert torch.equal(SiglipImageProcessor()(form)["pixel_values"], expected), name

    def test_frames_of_an_animation(self) -> None:
        """Pillow's iterator yields one object, which changes."""
        frames = [small(seed).quantize(16) for seed in range(3)]
        animation = Image.open(io.BytesIO(stored(frames[0], "GIF", save_all=True, append_images=frames[1:])))
        copies = [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
        found = SiglipImageProcessor()(ImageSequence.Iterator(animation))["pixel_values"]
        assert torch.equal(found, SiglipImageProcessor()(copies)["pixel_values"])

    def test_no_payload_is_shown(self) -> None:
        jpeg = stored(cat(), "JPEG")
        damaged = base64.b64encode(jpeg[:-3000]).decode()
        for payload, error in (
            (damaged, ValueError),
            (f"data:image/jpeg;base64,{damaged}", ValueError),
            (base64.b64encode(b"not an image " * 6).decode(), ValueError),
            (f"data:text/plain;base64,{base64.b64encode(b'hello').decode()}", ValueError),
            ("a caption, not a path, " * 20, FileNotFoundError),
        ):
            with pytest.raises(error, match=rf"^Image 1 of 2: .* of {len(payload)} characters") as raised:
                SiglipImageProcessor()([cat(), payload])
            assert payload[-20:-4] not in str(raised.value)
            assert len(str(raised.value)) < 250

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        closed, image = io.BytesIO(), small()
        closed.close()
        image.save(tmp_path / "cat.png")
        with Image.open(tmp_path / "cat.png") as unread:
            pass
        cases: tuple[tuple[Any, type[Exception], str], ...] = (
            (tmp_path, IsADirectoryError, f"got {tmp_path}, which is a folder: pass the files in it"),
            (tmp_path.as_uri(), IsADirectoryError, "which is a folder"),
            ("nowhere", FileNotFoundError, "got nowhere, which is not there"),
            ("", FileNotFoundError, "which is not there"),
            (io.StringIO("cat"), TypeError, r"opened as binary \('rb'\), got a StringIO"),
            (closed, ValueError, "got a BytesIO that cannot be read: I/O operation on closed file"),
            (unread, ValueError, r"got .*cat\.png, which was closed before it was read"),
            ({"bytes": None, "path": None}, TypeError, "got NoneType"),
        )
        for given, error, message in cases:
            with pytest.raises(error, match=f"^Image 1 of 2: .*{message}"):
                SiglipImageProcessor()([image, given])


class TestPlaces:
    """Errors of every step name the image."""

    def test_every_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        good = small()
        clear = good.convert("RGBA")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)
        cases: tuple[tuple[Any, dict[str, Any], type[Exception], str], ...] = (
            (tmp_path / "cat.jpg", {}, FileNotFoundError, "which is not there"),
            (stored(Image.new("1", (700, 700)), "PNG"), {}, Image.DecompressionBombError, "exceeds limit"),
            (np.full((5, 6, 3), 300), {}, ValueError, "got values of 300..300"),
            (Image.new("RGB", (9000, 1)), {}, ValueError, "An image of 9000x1 becomes"),
            (clear, {"do_convert_rgb": False}, ValueError, "for each of the 4 channels"),
            (Image.new("I;16", (5, 5)), {"do_convert_rgb": False}, ValueError, "image of mode I;16: switch on"),
        )
        for bad, settings, error, message in cases:
            for workers in (0, 3):
                with pytest.raises(error, match=f"^Image 2 of 4: .*{message}"):
                    CLIPImageProcessor(num_workers=workers, **settings)([good, good, bad, good])
        with pytest.raises(ValueError, match=r"\(first in Image 2 of 4, Image 0 of 4\)"):
            CLIPImageProcessor(do_resize=False, do_center_crop=False)([good, good, good.crop((0, 0, 9, 9)), good])

    def test_the_first_of_several(self) -> None:
        """The same in every run, however many threads there are."""
        images = [small(), b"", small(), b"a", b"b", b"c"] * 4
        for _ in range(8):
            with pytest.raises(ValueError, match=r"^Image 1 of 24: Expected an image, got 0 bytes"):
                PROCESSORS["SigLIP"](num_workers=4)(images)

    def test_embedding_names_the_place_in_all_images(self, tmp_path: Path) -> None:
        model: Any = Pixels()
        processor = SiglipProcessor(SiglipImageProcessor())
        for batch_size in (1, 2, 64):
            with pytest.raises(FileNotFoundError, match=r"^Image 3 of 4: .*cat\.jpg, which is not there"):
                encode(model, [small()] * 3 + [tmp_path / "cat.jpg"], processor, batch_size=batch_size)

    @pytest.mark.parametrize("augmented", [False, True])
    def test_training_names_the_sample(self, augmented: bool, tmp_path: Path) -> None:
        (tmp_path / "cat.png").write_bytes(stored(cat(), "PNG")[:5000])
        processor: Any = Mock(return_value={}, image_processor=SiglipImageProcessor())
        crop: Any = (lambda image, _: image) if augmented else None
        collator = ContrastiveCollator(processor, augmentation=crop)
        samples: Any = [
            {"image": image, "text": "a cat", "index": index}
            for index, image in ((17, cat()), (4, str(tmp_path / "cat.png")))
        ]
        with pytest.raises(ValueError, match=r"^Sample 4: Expected an image, got .*cat\.png, which is damaged"):
            collator(samples)


def dds(flags: int, kind: bytes) -> bytes:
    """Return the header of a DirectDraw surface of 4x4 whose pixels have that format."""
    head = struct.pack("<7I44x", 124, 0x1007, 4, 4, 0, 0, 0)
    return b"DDS " + head + struct.pack("<2I4s5I", 32, flags, kind, 0, 0, 0, 0, 0) + bytes(20) + bytes(64)


def tiff(levels: np.ndarray, bits: int) -> bytes:
    """Return a grey TIFF of levels (height, width) of 9 to 16 bits, 12 of which are packed."""
    height, width = levels.shape
    if bits == 12:
        pairs = levels.reshape(-1, 2).astype(np.uint32)
        triples = (pairs[:, :1] << 12 | pairs[:, 1:]) >> np.array([16, 8, 0])
        data = triples.astype(np.uint8).tobytes()
    else:
        data = levels.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data += bytes(len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


class TestDecoders:
    @pytest.mark.parametrize(
        ("form", "contents"),
        [
            ("EPS", EPS),
            ("DDS", dds(4, b"ABCD")),
            ("BLP", b"BLP2" + struct.pack("<i4b2i", 1, 9, 0, 0, 0, 4, 4) + bytes(2000)),
            ("WMF", b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH6x", 0, 0, 9, 9, 72) + b"\1\0\t\0\0\3" + bytes(40)),
            ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
        ],
    )
    def test_formats_that_are_not_opened(self, form: str, contents: bytes, tmp_path: Path) -> None:
        """Whatever the name of a file says; and they are not called damaged."""
        (tmp_path / "cat.jpg").write_bytes(contents)
        for given in (tmp_path / "cat.jpg", contents, base64.b64encode(contents).decode()):
            with pytest.raises(
                ValueError,
                match=f"^Image 1 of 2: Expected an image, got .*, which is {form}, a format that is not opened",
            ):
                SiglipImageProcessor()([small(), given])

    def test_no_program_is_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even for an image that the caller has opened, which Ghostscript would draw now."""
        monkeypatch.setattr(subprocess, "Popen", lambda *command, **settings: pytest.fail(f"{command} is started"))
        with Image.open(io.BytesIO(EPS)) as image:
            assert image.format == "EPS"
            with pytest.raises(ValueError, match="which Pillow cannot decode here: a program would have to decode EPS"):
                SiglipImageProcessor()(image)

    def test_what_pillow_does_not_decode_is_not_called_damaged(self) -> None:
        bitmap = bytearray(stored(small(), "BMP"))
        bitmap[30] = 4  # JPEG inside
        with pytest.raises(
            ValueError, match=r"^Expected an image, got .* bytes, which Pillow cannot decode here: Unsup"
        ):
            SiglipImageProcessor()(bytes(bitmap))

    def test_only_one_place_opens_files(self) -> None:
        """Of those that are not our own photograph."""
        calls = [
            f"{path}: {line.strip()}"
            for path in sources()
            for line in (ROOT / path).read_text(encoding="utf-8").splitlines()
            if re.search(r"\bImage\.open\((?!PHOTOGRAPH)|\burlopen\(", line)
        ]
        assert [call.partition(":")[0] for call in calls] == ["processing/image_formats.py"]

    @pytest.mark.parametrize("name", ["cat.eps", "cat.pdf", "cat.h5", "cat"])
    def test_other_names_are_not_of_images(self, name: str) -> None:
        assert not is_image_name(name)
        assert is_image_name("cat.JPEG")
        assert is_image_name("cat.webp")

    @pytest.mark.parametrize("scans", [100, 101])
    def test_a_jpeg_of_many_scans(self, scans: int) -> None:
        """Each is a few bytes, and passes over all of the pixels."""
        jpeg = stored(small(), "JPEG", progressive=True)
        assert SiglipImageProcessor()(jpeg)["pixel_values"].shape == (1, 3, 224, 224)
        last = jpeg.rindex(b"\xff\xda")
        repeated = jpeg[:-2] + jpeg[last:-2] * (scans - jpeg.count(b"\xff\xda")) + jpeg[-2:]
        if scans > 100:
            with pytest.raises(ValueError, match="which is damaged: it has 101 scans, more than 100"):
                SiglipImageProcessor()(repeated)
        else:
            SiglipImageProcessor()(repeated)

    def test_too_little_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before an image is decoded, and afterwards, it is the fault of one image."""

        def no_memory(*image: object) -> Any:
            raise MemoryError

        places: tuple[tuple[object, str], ...] = ((ImageFile.ImageFile, "load"), (image_steps, "to_rgb"))
        for owner, name in places:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, no_memory)
                with pytest.raises(ValueError, match=r"^Image 0 of 2.* takes more memory than there is\.$"):
                    SiglipImageProcessor()([stored(small(), "PNG")] * 2)

    @pytest.mark.parametrize("family", PROCESSORS)
    @pytest.mark.parametrize(
        "form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "ICO", "TGA", "PCX", "PPM"]
    )
    def test_damages_at_random(self, form: str, family: str, thorough: bool) -> None:
        """Whatever becomes of a file, it is an image or an error for which it is left out."""
        sound, random = stored(small(), form), np.random.default_rng(0)
        processor = PROCESSORS[family](do_exif_transpose=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(700 if thorough else 15):
                damaged = bytearray(sound[: random.integers(1, len(sound))] if random.random() < 0.3 else sound)
                for place in random.integers(0, min(len(damaged), random.choice([100, 1 << 20])), 3):
                    damaged[place] = random.integers(0, 256)
                with suppress(*READ_ERRORS):
                    processor(bytes(damaged))

    @pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
    def test_damaged_avif(self) -> None:
        """libavif's RuntimeErrors, too, are the reader's ValueError."""
        avif, random = stored(small(height=16, width=16), "AVIF"), np.random.default_rng(1)
        refused = 0
        processor = PROCESSORS["SigLIP"]()
        for _ in range(150):
            damaged = bytearray(avif)
            for place in random.integers(0, len(avif), 3):
                damaged[place] = random.integers(0, 256)
            try:
                processor(bytes(damaged))
            except ValueError as error:
                assert str(error).startswith("Expected an image")  # noqa: PT017
                refused += 1
        assert refused > 5

    @pytest.mark.parametrize("bits", [9, 12, 16])
    def test_the_upper_eight_bits(self, bits: int) -> None:
        """A TIFF says how many bits there are: the level is the upper eight, as TensorFlow takes of 16."""
        grey = np.asarray(cat().convert("L"))[:100, :100]
        levels = grey.astype(np.uint16) << (bits - 8)
        expected = SiglipImageProcessor(resize_engine="official")(grey, **LEVELS)["pixel_values"]
        if bits == 9:  # which Pillow reads from JPEG 2000 alone, and scales to 16 bits
            image = Image.fromarray(grey.astype(np.uint16) << 8)
        else:
            image = Image.open(io.BytesIO(tiff(levels, bits)))
            assert image.mode == "I;16"
            assert np.array_equal(np.asarray(image), levels)
        found = SiglipImageProcessor(resize_engine="official")(image, **LEVELS)["pixel_values"]
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("processor", [SiglipImageProcessor, Siglip2ImageProcessor])
    def test_twelve_bits_that_no_file_states(self, processor: Any) -> None:
        levels = np.asarray(cat().convert("L")).astype(np.uint16) << 4
        for image in (Image.fromarray(levels), Image.open(io.BytesIO(tiff(levels, 16)))):
            with pytest.warns(UserWarning, match="mode I;16 becomes all but black, .* of levels up to 3104"):
                processor(resize_engine="official")(image)

    @pytest.mark.parametrize("engine", ["pillow", "official"])
    def test_lost_levels_are_looked_for_before_the_resize(self, engine: str) -> None:
        """One bright pixel is lost although its neighbours hide it afterwards; an overshoot of bicubic is not one."""
        bright = np.zeros((600, 600), np.int32)
        bright[300, 300] = 400
        edges = np.kron(np.indices((20, 20)).sum(0) % 2, np.full((5, 5), 255)).astype(np.int32)
        processor = CLIPImageProcessor(resize_engine=engine)
        with pytest.warns(UserWarning, match="mode I has levels above 255, which Pillow turns into white"):
            processor(Image.fromarray(bright))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            processor(Image.fromarray(edges))
        with pytest.warns(UserWarning, match="mode F has levels of at most 1, which Pillow turns into black"):
            processor(Image.fromarray(cat_levels()[..., 0] / np.float32(255)))


class TestOldFiles:
    """Settings of older preprocessor files."""

    @pytest.mark.parametrize("name", ["bicubic", "BICUBIC", "PIL.Image.BICUBIC", "bilinear", "lanczos"])
    def test_filters_by_name(self, name: str, tmp_path: Path) -> None:
        resample = Image.Resampling[name.rpartition(".")[2].upper()]
        expected = CLIPImageProcessorPil(resample=resample)(small(), return_tensors="pt")["pixel_values"]
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"image_processor_type": "CLIPFeatureExtractor", "size": 224, "resample": name})
        )
        loaded = CLIPImageProcessor.from_pretrained(tmp_path)
        assert torch.equal(loaded(small())["pixel_values"], expected)
        assert torch.equal(CLIPImageProcessor()(small(), resample=name)["pixel_values"], expected)
        assert json.loads(loaded.to_json_string())["resample"] == int(resample)
        with pytest.raises(ValueError, match=r"resample must be one of nearest, .*, got 'smooth'"):
            CLIPImageProcessor(resample="smooth")

    def test_filters_by_name_in_transformers(self) -> None:
        """They are taken for bilinear in silence there."""
        named, bilinear = (
            CLIPImageProcessorPil(resample=resample)(small(), return_tensors="pt")["pixel_values"]
            for resample in ("bicubic", Image.Resampling.BILINEAR)
        )
        assert torch.equal(named, bilinear)

    @pytest.mark.parametrize("cropped", [True, False])
    def test_a_longest_edge(self, cropped: bool) -> None:
        for edges in ((40, 50), (40, 400), (224, 224), (50, 70), (60, 60), (7, 90)):
            settings = {"size": dict(zip(("shortest_edge", "longest_edge"), edges, strict=True))}
            for image in (small(), small(height=70, width=50), small(height=60, width=60), small(height=9, width=200)):
                found = CLIPImageProcessor(do_center_crop=cropped, **settings)(image)["pixel_values"]
                theirs = CLIPImageProcessorPil(do_center_crop=cropped, **settings)
                assert torch.equal(found, theirs(image, return_tensors="pt")["pixel_values"]), (edges, image.size)
        assert "a shorter side of 7, or a longer side of 90 if it" in CLIPImageProcessor(**settings).describe()

    @pytest.mark.parametrize("engine", ["pillow", "torch"])
    def test_a_longest_edge_leaves_a_pixel(self, engine: str) -> None:
        """Of a line, where the rounding of transformers leaves none."""
        processor = CLIPImageProcessor(
            size={"shortest_edge": 224, "longest_edge": 300}, resize_engine=engine, do_center_crop=False
        )
        shape = processor(Image.new("RGB", (700, 1), "red"))["pixel_values"].shape
        assert shape == (1, 3, 1, 700)  # a shorter side that stays leaves the longer one, as in transformers


class TestTorchEngine:
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    @pytest.mark.parametrize("side", [64, 128])
    def test_enlargements(self, mode: str, side: int) -> None:
        """Where both neighbours of a value are one level off, which happens in flat parts, it would be two off."""
        image = cat().convert(mode).resize((side, side))
        processor = SiglipImageProcessor(resample=Image.Resampling.BILINEAR, **LEVELS)
        expected, found = (processor(image, resize_engine=name)["pixel_values"].int() for name in ("pillow", "torch"))
        assert (expected - found).abs().max() <= 1

    @pytest.mark.thorough
    def test_the_worst_picture(self) -> None:
        """A photograph of the moon, grey and flat: two levels in 6 of 100,000 values, as documented."""
        moon = Image.open(released_file("scikit-image==0.26.0", "data/moon.png"))
        processor = SiglipImageProcessor(**LEVELS)
        expected, found = (processor(moon, resize_engine=name)["pixel_values"].int() for name in ("pillow", "torch"))
        apart = (expected - found).abs()
        assert apart.max() == 2
        assert (apart == 2).float().mean() <= 6e-5


SHARED_CALLS: tuple[tuple[Callable[[list[Image.Image]], Any], dict[str, Any]], ...] = (
    (lambda images: images, {}),
    (lambda images: images[0], {"do_normalize": False}),
    (lambda images: [images[0]] * 3, {"num_workers": 3}),
    (lambda images: images[1:], {"image_mean": [0.1, 0.2, 0.3], "resample": "bilinear"}),
    (lambda images: images[0], {"do_exif_transpose": True, "return_tensors": "np"}),
    (lambda images: images, {"resize_engine": "torch", "background": (1, 2, 3)}),
    (lambda images: images[::-1], {"resize_engine": "official", "do_rescale": False}),
)


@pytest.mark.parametrize("family", PROCESSORS)
def test_one_processor_and_its_images_in_eight_threads(family: str) -> None:
    """Images are read when they are first used, here by several threads at once: the same pixels as alone."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        stored(small(0, 90, 110), "JPEG", exif=exif),
        stored(small(1, 80, 60).quantize(16), "PNG", transparency=3),
        stored(small(2, 75, 75), "PNG"),
    ]

    def opened() -> list[Image.Image]:
        return [Image.open(io.BytesIO(file)) for file in files]

    processor = PROCESSORS[family]()
    expected = [processor(choose(opened()), **settings)["pixel_values"] for choose, settings in SHARED_CALLS]
    faults: list[str] = []

    def work(thread: int, shared: list[list[Image.Image]]) -> None:
        for turn, images in enumerate(shared):
            number = (thread + turn) % len(SHARED_CALLS)
            choose, settings = SHARED_CALLS[number]
            try:
                found = processor(choose(images), **settings)["pixel_values"]
                if not np.array_equal(found, expected[number]):
                    faults.append(f"call {number}: other pixels")
            except Exception as error:
                faults.append(f"call {number}: {error!r}")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        shared = [opened() for _ in range(6)]
        threads = [Thread(target=work, args=(number, shared)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert faults == []
