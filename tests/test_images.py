"""Pixels: equal to Pillow, OpenAI's code, big_vision and transformers, whatever is given; and clear refusals."""

import io
import json
import pickle
import warnings
import zipfile
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from helpers import open_clip_preprocess, openai_preprocess
from helpers.photographs import PHOTOGRAPHS, cat, cat_levels
from helpers.processes import finish, start
from helpers.released_files import released_package
from PIL import Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from twinlens.processing import CLIPImageProcessor, Siglip2ImageProcessor, SiglipImageProcessor, resizing

IMAGE_PROCESSORS = {
    "CLIP": (CLIPImageProcessor, CLIPImageProcessorPil),
    "SigLIP": (SiglipImageProcessor, SiglipImageProcessorPil),
    "NaFlex": (Siglip2ImageProcessor, Siglip2ImageProcessorPil),
}
FAMILIES = ("CLIP", "SigLIP")
OFFICIAL = Path(__file__).parent / "fixtures" / "official_pixels.npz"
LEVELS: dict[str, Any] = {"do_rescale": False, "do_normalize": False}
SIZES = {
    "1x1": (1, 1),
    "1xN": (1, 60),
    "Nx1": (60, 1),
    "2x3": (2, 3),
    "wide": (300, 4),
    "tall": (4, 300),
    "upscaled": (31, 50),
    "exact": (224, 224),
    "odd": (227, 224),
    "odder": (223, 301),
    "even": (640, 480),
}


def stored(image: Image.Image, form: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def opened(image: Image.Image, form: str, **settings: Any) -> Image.Image:
    return Image.open(io.BytesIO(stored(image, form, **settings)))


@cache
def pictures() -> dict[str, Image.Image]:
    """Return an image of every mode, format and shape that behaves unlike the others."""
    image = cat()
    alpha = Image.fromarray(np.linspace(0, 255, image.width * image.height).reshape(300, 451).astype(np.uint8))
    see_through = image.copy()
    see_through.putalpha(alpha)
    quantize = partial(Image.Image.quantize, method=Image.Quantize.FASTOCTREE)  # the default takes 0.3 s
    paletted = quantize(image, 64)
    frames = [quantize(image, 32), quantize(image.rotate(90), 32)]
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {
        **{
            mode: image.convert(mode)
            for mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
        },
        "LA": see_through.convert("LA"),
        "La": see_through.convert("LA").convert("La"),
        "RGBA": see_through,
        "RGBa": see_through.convert("RGBa"),
        "PA": see_through.convert("PA"),
        "16-bit": Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16)),
        "P with transparency": opened(paletted, "PNG", transparency=3),
        "RGB with transparency": opened(image, "PNG", transparency=image.getpixel((5, 5))),
        "animated": opened(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "turned by EXIF": opened(image, "JPEG", exif=exif),
        "JPEG": opened(image, "JPEG"),
        "CMYK JPEG": opened(image.convert("CMYK"), "JPEG"),
        "1-bit PNG": opened(image.convert("1"), "PNG"),
    }
    return found | {name: image.resize(size) for name, size in SIZES.items()}


TRANSPARENT = ("LA", "La", "RGBA", "RGBa", "PA", "P with transparency", "RGB with transparency")


def over_white(name: str, image: Image.Image) -> Image.Image:
    if name not in TRANSPARENT:
        return image.convert("RGB")
    image = (image.convert("LA") if name == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def by_pillow(name: str, image: Image.Image, family: str) -> np.ndarray:
    """Pillow's own arithmetic in the order of the Hub's processors: levels (height, width, channel)."""
    image = over_white(name, image)
    if family == "SigLIP":
        return np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))
    short, long = sorted(image.size)
    longer = int(224 * long / short)
    image = image.resize((224, longer) if image.width <= image.height else (longer, 224), Image.Resampling.BICUBIC)
    left, top = int((image.width - 224) / 2), int((image.height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def levels_of(processor: Any, image: Any, **settings: Any) -> np.ndarray:
    pixels = processor(image, **LEVELS, **settings)["pixel_values"]
    assert pixels.dtype == torch.uint8
    return pixels[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", pictures())
class TestEngines:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_pillow_is_pillow_bit_for_bit(self, family: str, name: str) -> None:
        image = pictures()[name]
        assert np.array_equal(levels_of(IMAGE_PROCESSORS[family][0](), image), by_pillow(name, image, family))

    @pytest.mark.parametrize(("family", "settings"), [("CLIP", {}), ("CLIP", {"openai_order": True}), ("SigLIP", {})])
    def test_torch_is_at_most_one_level_away(self, family: str, name: str, settings: dict[str, Any]) -> None:
        processor = IMAGE_PROCESSORS[family][0](**settings)
        expected = levels_of(processor, pictures()[name]).astype(int)
        found = levels_of(processor, pictures()[name], resize_engine="torch").astype(int)
        assert abs(found - expected).max() <= 1


class TestOfficialCode:
    def test_clip_equals_openai_clip(self, tmp_path: Path) -> None:
        """Every picture through `clip.clip._transform` itself: the same float32, bit for bit."""
        images = {name: image for name, image in pictures().items() if name not in ("La", "RGBa", "PA", "LAB", "HSV")}
        # Sizes that tell the rounding of the crop: the longer side less 224 is 1, 2, 3, 4, ... 8.
        images |= {f"longer by {more}": cat().resize((224 + more, 224)) for more in range(1, 9)}
        for image in images.values():
            image.load()
        (tmp_path / "images").write_bytes(pickle.dumps(images))
        folders = [released_package("openai-clip==1.0.1"), released_package("torchvision==0.28.0")]
        arguments = [*folders, tmp_path / "images", tmp_path / "pixels.npz"]
        process = start(openai_preprocess.main, *arguments, output=tmp_path / "log")
        assert finish(process) == 0, (tmp_path / "log").read_text()
        processor = CLIPImageProcessor(resize_engine="official")
        with np.load(tmp_path / "pixels.npz") as expected:
            assert expected.keys() == images.keys()
            for name, image in images.items():
                assert np.array_equal(processor(image)["pixel_values"][0].numpy(), expected[name]), name

    def test_what_the_hub_does_otherwise_for_clip(self) -> None:
        """Up to 255 levels on modes other than RGB, and one pixel of the crop on a quarter of all sizes."""
        hub, official = CLIPImageProcessor(), CLIPImageProcessor(resize_engine="official")
        apart = {
            name: abs(levels_of(hub, image).astype(int) - levels_of(official, image))
            for name, image in pictures().items()
        }
        assert apart["JPEG"].max() == 0
        assert apart["RGBA"].max() == 255
        assert apart["P"].max() > 60
        assert apart["1"].max() > 150
        assert apart["odd"].max() > 0  # 227 - 224 = 3, of which 1.5 rounds to 2, not to 1

    def test_siglip_equals_big_vision(self) -> None:
        with np.load(OFFICIAL) as recorded:
            for name in recorded.files:
                kind, *rest = name.split("/")
                if kind not in ("siglip", "siglip_float"):
                    continue
                height, width = map(int, rest[0].split("x"))
                processor = SiglipImageProcessor(size={"height": height, "width": width}, resize_engine="official")
                settings = LEVELS if kind == "siglip" else {}
                pixels = processor(recorded[f"source/{rest[1]}"], input_data_format="channels_last", **settings)
                found = pixels["pixel_values"][0].permute(1, 2, 0).numpy()
                assert found.dtype == recorded[name].dtype
                assert np.array_equal(found, recorded[name]), name

    @pytest.mark.filterwarnings("ignore:an image shrinks")
    def test_naflex_equals_big_vision(self) -> None:
        compared = 0
        with np.load(OFFICIAL) as recorded:
            for name in recorded.files:
                if not name.endswith("/patches"):
                    continue
                _, most, picture, _ = name.split("/")
                processor = Siglip2ImageProcessor(resize_engine="official", patch_size=4, max_num_patches=int(most))
                batch = processor(recorded[f"source/{picture}"], input_data_format="channels_last")
                expected = {key: recorded[name.replace("patches", key)] for key in ("patches", "type", "yidx", "xidx")}
                # Two float32 sums in another order; a level is 8e-3.
                np.testing.assert_allclose(batch["pixel_values"][0], expected["patches"], rtol=0, atol=2e-6)
                assert batch["pixel_attention_mask"].dtype == torch.int32
                assert np.array_equal(batch["pixel_attention_mask"][0], expected["type"])
                rows, columns = batch["spatial_shapes"][0].tolist()
                assert [rows, columns] == [expected["yidx"].max() + 1, expected["xidx"].max() + 1]
                compared += 1
        assert compared == 19

    def test_grid_search_equals_big_vision(self) -> None:
        with np.load(OFFICIAL) as recorded:
            grid = recorded["naflex_grid"].tolist()
        wrong = [row for row in grid if resizing.largest_grid(*row[:4]) != tuple(row[4:])]
        assert len(grid) > 3000
        assert not wrong

    def test_sixteen_bits(self) -> None:
        """TensorFlow reads the upper byte. Pillow clips at 255: that is said, and an array is refused."""
        deep = Image.fromarray(np.asarray(cat().convert("L")).astype(np.uint16) * 257)
        official = SiglipImageProcessor(resize_engine="official")
        assert np.array_equal(levels_of(official, deep), levels_of(official, cat().convert("L")))
        with pytest.warns(UserWarning, match="mode I;16 has levels above 255, which Pillow turns into white"):
            levels = levels_of(SiglipImageProcessor(), deep)
        assert np.array_equal(
            levels, np.asarray(deep.resize((224, 224), Image.Resampling.BICUBIC).convert("RGB")) | levels
        )
        with pytest.raises(ValueError, match="16-bit levels divided by 257"):
            SiglipImageProcessor()(np.asarray(deep))


# What `open_clip_config.json` may say about pixels, and the settings that mean the same.
OPEN_CLIP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shortest": (
        {"size": 48, "resize_mode": "shortest"},
        {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}},
    ),
    "squash": (
        {"size": 48, "resize_mode": "squash"},
        {"size": {"height": 48, "width": 48}, "do_center_crop": False},
    ),
    "squash to no square, bilinear": (
        {"size": [40, 56], "resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
        {
            "size": {"height": 40, "width": 56},
            "do_center_crop": False,
            "resample": Image.Resampling.BILINEAR,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    ),
}


@pytest.fixture(scope="class")
def open_clip_images() -> dict[str, Image.Image]:
    """Pictures of all modes that torchvision's transforms can convert."""
    images = {name: image for name, image in pictures().items() if name not in ("La", "RGBa", "PA", "LAB", "HSV")}
    for image in images.values():
        image.load()
    return images


@pytest.fixture(scope="class")
def open_clip_pixels(
    open_clip_images: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """What `open_clip.transform.image_transform_v2` makes of them, by "configuration/picture"."""
    folder = tmp_path_factory.mktemp("open_clip_pixels")
    (folder / "images").write_bytes(pickle.dumps(open_clip_images))
    (folder / "configs").write_text(json.dumps({name: config for name, (config, _) in OPEN_CLIP.items()}))
    names = ("open_clip_torch==3.3.0", "timm==1.0.31", "torchvision==0.28.0")
    packages = [released_package(name) for name in names]
    files = (folder / "images", folder / "configs", folder / "pixels.npz")
    process = start(open_clip_preprocess.main, packages, *files, output=folder / "log")
    assert finish(process) == 0, (folder / "log").read_text()
    with np.load(folder / "pixels.npz") as pixels:
        return dict(pixels)


@pytest.mark.parametrize("name", OPEN_CLIP)
class TestOpenClip:
    """Each value of `resize_mode` that has settings here, on every engine, within what the engine promises."""

    def test_official_pixels_bit_for_bit(
        self, name: str, open_clip_images: dict[str, Image.Image], open_clip_pixels: dict[str, np.ndarray]
    ) -> None:
        processor = CLIPImageProcessor(resize_engine="official", **OPEN_CLIP[name][1])
        for picture, image in open_clip_images.items():
            pixels = processor(image)["pixel_values"][0].numpy()
            assert np.array_equal(pixels, open_clip_pixels[f"{name}/{picture}"]), picture

    def test_engines(
        self, name: str, open_clip_images: dict[str, Image.Image], open_clip_pixels: dict[str, np.ndarray]
    ) -> None:
        """By Pillow the same of RGB images, apart from the place of the crop; by torch at most one level off."""
        processor = CLIPImageProcessor(**OPEN_CLIP[name][1])
        one_level = 1 / 255 / min(processor.image_std) + 1e-6
        for picture, image in open_clip_images.items():
            expected = open_clip_pixels[f"{name}/{picture}"]
            if image.mode == "RGB" and (name != "shortest" or picture in ("RGB", "JPEG", "exact")):
                by_pillow = processor(image, background="ignore")["pixel_values"][0].numpy()
                assert np.array_equal(by_pillow, expected), picture
            by_torch = processor(image, resize_engine="torch", background="ignore", openai_order=True)
            assert abs(by_torch["pixel_values"][0].numpy() - expected).max() <= one_level, picture
        levels = np.asarray(open_clip_images["RGB"])
        for engine in ("pillow", "torch", "official"):
            from_array = processor(levels, resize_engine=engine, input_data_format="channels_last")["pixel_values"]
            difference = abs(from_array[0].numpy() - open_clip_pixels[f"{name}/RGB"]).max()
            assert difference <= (one_level if engine == "torch" else 0)

    def test_saved_and_loaded(
        self, name: str, open_clip_pixels: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = OPEN_CLIP[name][1]
        processor = CLIPImageProcessor(resize_engine="official", **settings)
        processor.save_pretrained(tmp_path)
        loaded = CLIPImageProcessor.from_pretrained(tmp_path)
        plain = CLIPImageProcessorPil.from_pretrained(tmp_path)
        image = pictures()["RGB"]
        assert loaded.to_dict() == processor.to_dict()
        for other in (loaded, plain):
            pixels = other(image, return_tensors="np")["pixel_values"][0]
            assert np.array_equal(pixels, open_clip_pixels[f"{name}/RGB"])
        loaded.explain()
        printed = capsys.readouterr().out
        if settings.get("do_center_crop", True):
            assert "a shorter side of 48, the aspect kept" in printed
            assert "The middle 48x48 is cut out" in printed
        else:
            size = settings["size"]
            assert f"Resized to {size['width']}x{size['height']}, whatever the aspect" in printed
            assert "cut out" not in printed


class TestNaFlex:
    @pytest.mark.parametrize("name", ["JPEG", "L", "1x1", "1xN", "Nx1", "wide", "tall", "even", "upscaled"])
    @pytest.mark.filterwarnings("ignore:an image shrinks")
    def test_equals_transformers(self, name: str) -> None:
        image = pictures()[name].convert("RGB")
        theirs = Siglip2ImageProcessorPil()(image, return_tensors="pt")
        ours = Siglip2ImageProcessor()(image)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key].dtype == theirs[key].dtype, key
            assert torch.equal(ours[key], theirs[key]), key

    def test_batches_of_any_shape(self) -> None:
        images = [cat().resize(size) for size in ((64, 64), (300, 100), (16, 900))]
        processor = Siglip2ImageProcessor(max_num_patches=64)
        batch = processor(images, num_workers=2)
        assert batch["pixel_values"].shape == (3, 64, 16 * 16 * 3)
        for row, image in enumerate(images):
            alone = processor(image)
            for key in batch:
                assert torch.equal(batch[key][row], alone[key][0])

    def test_losing_much_resolution_is_said(self) -> None:
        processor = Siglip2ImageProcessor()
        with pytest.warns(
            UserWarning, match=r"An image shrinks 8\.0 times to fit max_num_patches=256 patches of 16x16"
        ):
            processor(Image.new("RGB", (2048, 2048)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            processor(Image.new("RGB", (1000, 1000)))
            processor(Image.new("RGB", (2048, 2048)), max_num_patches=4096)

    def test_unresized_images_must_be_whole_patches(self) -> None:
        processor = Siglip2ImageProcessor(do_resize=False, max_num_patches=8)
        assert processor(Image.new("RGB", (64, 32)))["spatial_shapes"].tolist() == [[2, 4]]
        for size in ((60, 32), (64, 64)):
            with pytest.raises(ValueError, match="at most 8 whole patches of 16x16"):
                processor(Image.new("RGB", size))

    @pytest.mark.filterwarnings("ignore:an image shrinks")
    def test_grids_where_float64_decides_otherwise(self) -> None:
        """transformers searches in float64; the official code, in float32, gives this photograph one column more."""
        image = Image.new("RGB", (1143, 2629))
        assert Siglip2ImageProcessor()(image)["spatial_shapes"].tolist() == [[24, 10]]
        assert Siglip2ImageProcessorPil()(image, return_tensors="pt")["spatial_shapes"].tolist() == [[23, 10]]


class TestAcceleratorArithmetic:
    """What runs on accelerators is the same on every device, so that the CPU can show what it computes."""

    @pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
    def test_pillow_in_integers_bit_for_bit(self, resample: int) -> None:
        random = np.random.default_rng(0)
        for _ in range(60):
            height, width, new_height, new_width = (int(side) for side in random.integers(1, 400, 4))
            levels = random.choice([0, 255], (height, width, 3)).astype(np.uint8)
            expected = Image.fromarray(levels).resize((new_width, new_height), resample)
            found = resizing.resize_exactly(
                torch.from_numpy(levels).permute(2, 0, 1)[None], new_height, new_width, resample
            )
            assert np.array_equal(found[0].permute(1, 2, 0).numpy(), np.asarray(expected)), (
                height,
                width,
                new_height,
                new_width,
            )

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("family", ["CLIP", "SigLIP", "NaFlex"])
    @pytest.mark.parametrize("engine", ["torch", "official"])
    def test_tensors_stay_on_their_device(self, family: str, engine: str) -> None:
        processor = IMAGE_PROCESSORS[family][0](resize_engine=engine)
        images = torch.stack([torch.from_numpy(np.asarray(cat().rotate(angle))).permute(2, 0, 1) for angle in (0, 90)])
        expected = processor(images)
        found = processor(images.cuda())
        for key in expected:
            assert found[key].device.type == "cuda" or (family, engine) == ("CLIP", "official")
            torch.testing.assert_close(found[key].cpu(), expected[key], rtol=0, atol=0.02)  # one level, normalised
        mixed = processor([images[0].cuda(), cat()])["pixel_values"]
        assert torch.equal(mixed.cpu()[0], found["pixel_values"].cpu()[0])


class TestThreads:
    @pytest.mark.parametrize("engine", ["pillow", "torch", "official"])
    def test_any_number_of_threads_gives_the_same(self, engine: str) -> None:
        images = [image for name, image in pictures().items() if name in ("JPEG", "RGBA", "P", "tall", "L")] * 3
        for family in (CLIPImageProcessor, SiglipImageProcessor):
            processor = family(resize_engine=engine)
            one, three = (processor(images, num_workers=number)["pixel_values"] for number in (0, 3))
            assert torch.equal(one, three)

    def test_in_a_data_loader(self) -> None:
        images = [stored(cat().rotate(angle), "JPEG") for angle in range(0, 80, 10)]
        processor = CLIPImageProcessor(resize_engine="torch")
        files: Any = images  # a list is a data set
        loader = torch.utils.data.DataLoader(files, batch_size=4, num_workers=2, collate_fn=processor)
        pixels = torch.cat([batch["pixel_values"] for batch in loader])
        assert torch.equal(pixels, processor(images)["pixel_values"])

    def test_pinned_memory(self) -> None:
        pixels = SiglipImageProcessor()(cat(), pin_memory=True)["pixel_values"]
        assert pixels.is_pinned() == torch.accelerator.is_available()

    def test_no_float64_of_the_size_of_an_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Images go from bytes to float32 by one look-up."""
        sizes = []
        take = np.take

        def watched(row: np.ndarray, levels: np.ndarray, **settings: Any) -> Any:
            sizes.append((row.dtype, levels.dtype, settings["out"].dtype))
            return take(row, levels, **settings)

        monkeypatch.setattr(np, "take", watched)
        SiglipImageProcessor()(cat())
        assert sizes == [(np.float32, np.uint8, np.float32)] * 3


def test_addresses(tmp_path: Path) -> None:
    cat().save(tmp_path / "cat.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert np.array_equal(levels_of(SiglipImageProcessor(), f"{address}/cat.png"), by_pillow("", cat(), "SigLIP"))
        with pytest.raises(OSError, match=r"Expected an image at .*/dog\.png, which could not be downloaded: .* 404"):
            SiglipImageProcessor()(f"{address}/dog.png")
        server.shutdown()


class TestTransparencyAndOrientation:
    @pytest.mark.parametrize("name", TRANSPARENT)
    def test_background(self, name: str) -> None:
        image = pictures()[name]
        white, red, dropped = (
            levels_of(SiglipImageProcessor(background=background), image)
            for background in (None, [255, 0, 0], "ignore")
        )
        assert np.array_equal(white[..., 0], red[..., 0])
        assert not np.array_equal(white, red)
        plain = (image.convert("LA") if name == "La" else image).convert("RGB")
        assert np.array_equal(dropped, np.asarray(plain.resize((224, 224), Image.Resampling.BICUBIC)))

    def test_wrong_backgrounds(self) -> None:
        for background in ((1, 2), (0, 0, 256), (0.5, 0.5, 0.5)):
            with pytest.raises((TypeError, ValueError), match="background"):
                SiglipImageProcessor(background=background)

    def test_orientation_is_left_alone_unless_asked_for(self) -> None:
        turned = pictures()["turned by EXIF"]
        upright = ImageOps.exif_transpose(turned)
        assert upright.size == turned.size[::-1]
        for given in (turned, stored(cat(), "JPEG", exif=turned.getexif())):
            as_stored = levels_of(SiglipImageProcessor(), given)
            assert np.array_equal(as_stored, by_pillow("", turned, "SigLIP"))
            as_seen = levels_of(SiglipImageProcessor(do_exif_transpose=True), given)
            assert np.array_equal(as_seen, by_pillow("", upright, "SigLIP"))


class TestBadFiles:
    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, bytes]:
        jpeg, png = stored(cat(), "JPEG"), stored(cat(), "PNG")
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr("cat.txt", "cat")
        corrupt = bytearray(png)
        corrupt[len(png) // 2] ^= 255
        return {
            "truncated JPEG": jpeg[: len(jpeg) // 2],
            "truncated PNG": png[: len(png) // 2],
            "corrupt PNG": bytes(corrupt),
            "only a header": png[:30],
            "zip": archive.getvalue(),
            "text": b"this is a cat",
            "empty": b"",
        }

    def test_damaged_files(self, files: dict[str, bytes], tmp_path: Path) -> None:
        for name, contents in files.items():
            path = tmp_path / f"{name}.jpg"
            path.write_bytes(contents)
            for given in (path, str(path)):
                with pytest.raises(
                    ValueError, match=rf"Expected an image, got .*{name}\.jpg, which (is damaged|has no)"
                ):
                    SiglipImageProcessor()(given)
            with pytest.raises(ValueError, match=rf"Expected an image, got {len(contents)} bytes, which"):
                SiglipImageProcessor()(contents)
        with pytest.raises(ValueError, match="Expected an image, got the image, which is damaged"):
            SiglipImageProcessor()(Image.open(io.BytesIO(files["truncated JPEG"])))

    def test_the_bad_one_of_many_is_named(self, files: dict[str, bytes]) -> None:
        with pytest.raises(ValueError, match=r"Image 2 of 4: Expected an image, got \d+ bytes, which has no format"):
            SiglipImageProcessor()([cat(), cat(), files["zip"], cat()], num_workers=2)

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"Expected an image file, got .*cat\.jpg, which is not there"):
            SiglipImageProcessor()(tmp_path / "cat.jpg")
        with pytest.raises(IsADirectoryError, match=r"got .*, which is a folder: pass the files in it"):
            SiglipImageProcessor()(tmp_path)

    def test_decompression_bombs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bomb = stored(Image.new("1", (400, 400)), "PNG")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(Image.DecompressionBombError, match=r"bytes: Image size \(160000 pixels\) exceeds limit"):
            SiglipImageProcessor()(bomb)
        with pytest.raises(ValueError, match="An image of 20x1 becomes 4480x224 before its middle is cut out"):
            CLIPImageProcessor()(np.zeros((1, 20, 3), np.uint8), input_data_format="channels_last")


class TestExplain:
    @pytest.mark.parametrize(
        ("processor", "words"),
        [
            (
                CLIPImageProcessor(),
                ["bicubic with antialiasing, by Pillow", "rounded down", "laid over (255, 255, 255)"],
            ),
            (
                CLIPImageProcessor(resize_engine="official"),
                ["image's own mode", "half to even", "transparency is dropped"],
            ),
            (
                SiglipImageProcessor(resize_engine="official"),
                ["no antialiasing", "truncated", "224x224, whatever the aspect"],
            ),
            (
                SiglipImageProcessor(resize_engine="torch", background=(0, 0, 0)),
                ["at most one level", "over (0, 0, 0)"],
            ),
            (
                SiglipImageProcessor(do_exif_transpose=True, do_rescale=False),
                ["orientation is applied", "Levels minus 0.5"],
            ),
            (Siglip2ImageProcessor(), ["at most 256 patches of 16x16", "zeros to 256"]),
        ],
        ids=["CLIP", "CLIP official", "SigLIP official", "torch", "upright", "NaFlex"],
    )
    def test_every_choice_is_named(self, processor: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        processor.explain()
        printed = capsys.readouterr().out
        for phrase in words:
            assert phrase in printed


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request: pytest.FixtureRequest) -> Image.Image:
    return PHOTOGRAPHS[request.param]


@pytest.fixture(params=FAMILIES)
def image_processors(request: pytest.FixtureRequest) -> tuple[type, type]:
    return IMAGE_PROCESSORS[request.param]


class TestInputsAndSettings:
    def test_photographs_equal_transformers(self, image_processors: tuple[type, type], photograph: Image.Image) -> None:
        ours, theirs = (processor() for processor in image_processors)
        pixels = ours(photograph)["pixel_values"]
        assert pixels.dtype == torch.float32
        assert pixels.shape == (1, 3, 224, 224)
        assert torch.equal(pixels, theirs(photograph, return_tensors="pt")["pixel_values"])

    @pytest.mark.parametrize("size", [(224, 224), (225, 224), (37, 1000), (1000, 37), (31, 50), (1, 1), (223, 300)])
    def test_sizes_equal_transformers(self, image_processors: tuple[type, type], size: tuple[int, int]) -> None:
        ours, theirs = (processor() for processor in image_processors)
        image = cat().resize(size)
        assert torch.equal(ours(image)["pixel_values"], theirs(image, return_tensors="pt")["pixel_values"])

    @pytest.mark.parametrize(
        "settings",
        [
            {"do_resize": False},
            {"do_rescale": False},
            {"do_normalize": False},
            {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 333, "width": 500}},
            {"size": {"height": 40, "width": 56}, "do_center_crop": False},
            {"size": {"shortest_edge": 60}, "do_center_crop": False, "resample": Image.Resampling.BILINEAR},
            {"image_mean": 0.25, "image_std": [0.5, 0.4, 0.3]},
            {"do_pad": True, "pad_size": {"height": 300, "width": 300}},
        ],
        ids=lambda settings: "-".join(settings),
    )
    def test_settings_equal_transformers(self, image_processors: tuple[type, type], settings: dict[str, Any]) -> None:
        ours, theirs = (processor() for processor in image_processors)
        image = cat()
        pixels = ours(image, **settings)["pixel_values"]
        assert torch.equal(pixels, theirs(image, return_tensors="pt", **settings)["pixel_values"])

    @pytest.mark.parametrize(
        "mode",
        ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"],
    )
    def test_every_mode_is_accepted(self, image_processors: tuple[type, type], mode: str) -> None:
        ours, theirs = (processor() for processor in image_processors)
        image = cat()
        for step in {"La": ("LA", "La"), "PA": ("P", "PA"), "RGBa": ("RGBA", "RGBa")}.get(mode, (mode,)):
            image = image.convert(step)
        pixels = ours(image)["pixel_values"]
        # PIL turns La into LA and into nothing else, so that transformers fails on it.
        readable = image.convert("LA") if mode == "La" else image
        assert torch.equal(pixels, theirs(readable, return_tensors="pt")["pixel_values"])

    def test_transparent_parts_become_white(self) -> None:
        clear = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
        paletted = Image.new("P", (30, 30), 0)
        paletted.info["transparency"] = 0
        for image in (clear, paletted):
            assert torch.equal(SiglipImageProcessor()(image)["pixel_values"], torch.ones(1, 3, 224, 224))

    def test_every_kind_of_input_gives_the_same_pixels(self, tmp_path: Path) -> None:
        levels = cat_levels()
        image = Image.fromarray(levels)
        image.save(tmp_path / "cat.png")
        fractions = levels / np.float32(255)
        inputs: dict[str, Any] = {
            "height, width, channels": levels,
            "channels, height, width": levels.transpose(2, 0, 1),
            "tensor": torch.from_numpy(levels).permute(2, 0, 1),
            "wider integers": levels.astype(np.int64),
            "float levels": levels.astype(np.float32),
            "float64 fractions": fractions.astype(np.float64),
            "fractions in a tensor": torch.from_numpy(fractions),
            "path": tmp_path / "cat.png",
            "path as text": str(tmp_path / "cat.png"),
            "nested lists": [[image]],
            "batch of arrays": levels[None],
            "read-only": np.asarray(image),
        }
        for processor in (CLIPImageProcessor(), SiglipImageProcessor()):
            expected = processor(image)["pixel_values"]
            for name, given in inputs.items():
                assert torch.equal(processor(given)["pixel_values"], expected), name
            with pytest.warns(UserWarning, match="Image 5 of 12 and 1 more taken for fractions .* Image 4 of 12 for"):
                mixed = processor(list(inputs.values()))["pixel_values"]
            assert torch.equal(mixed, expected.expand(len(inputs), -1, -1, -1))

    def test_fractions_are_never_rescaled_twice(self) -> None:
        fractions = cat_levels() / 255
        processor = SiglipImageProcessor()
        once = processor(fractions, do_rescale=False)["pixel_values"]
        assert torch.equal(processor(fractions, do_rescale=True)["pixel_values"], once)

    def test_fractions_return_to_values_in_naflex_official_order(self) -> None:
        fractions, processor = cat_levels() / 255, Siglip2ImageProcessor(resize_engine="official")
        expected = processor(fractions)["pixel_values"]
        assert torch.equal(processor(fractions, do_rescale=False)["pixel_values"], expected)

    def test_grey_arrays(self) -> None:
        grey = np.array(PHOTOGRAPHS["grey"])
        expected = SiglipImageProcessor()(Image.fromarray(grey))["pixel_values"]
        for given in (grey, grey[..., None], grey[None], torch.from_numpy(grey)):
            assert torch.equal(SiglipImageProcessor()(given)["pixel_values"], expected)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (None, TypeError, "Expected PIL images.* got NoneType"),
            (np.zeros((5, 6, 7), np.uint8), ValueError, r"1, 3 or 4 channels .* got \(5, 6, 7\)"),
            (np.zeros(5, np.uint8), ValueError, r"got \(5,\)"),
            (np.zeros((0, 6, 3), np.uint8), ValueError, "at least one pixel"),
            (np.zeros((3, 6, 3), np.uint8), ValueError, r"\(3, 6, 3\): pass input_data_format"),
            (np.full((6, 6, 3), -1.0), ValueError, "got values of -1.0..-1.0"),
            (np.full((6, 6, 3), 256), ValueError, "got values of 256..256"),
            (np.full((6, 6, 3), np.nan), ValueError, "got values of nan..nan"),
            ([cat(), None], TypeError, "Image 1 of 2: Expected PIL images.* got NoneType"),
            (np.array([["cat"]]), FileNotFoundError, "got cat, which is not there"),
            (torch.zeros(3, 6, 7, dtype=torch.complex64), TypeError, "real numbers as levels, got .*complex64"),
        ],
        ids=(
            *("none", "channels", "one axis", "no pixel", "ambiguous", "negative", "too bright", "nan"),
            *("one of two", "text", "complex"),
        ),
    )
    def test_what_is_no_image_is_refused(self, given: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            SiglipImageProcessor()(given)

    def test_settings_that_cannot_work_are_refused(self) -> None:
        images = [np.zeros((8, 9, 3), np.uint8), np.zeros((7, 9, 3), np.uint8)]
        with pytest.raises(ValueError, match=r"one shape, got .* \(3, 7, 9\), \(3, 8, 9\)"):
            SiglipImageProcessor(do_resize=False)(images)
        assert len(SiglipImageProcessor(do_resize=False)(images, return_tensors=None)["pixel_values"]) == 2
        with pytest.raises(ValueError, match=r"'shortest_edge' and perhaps 'longest_edge', got \{'longest_edge': 9\}"):
            SiglipImageProcessor(size={"longest_edge": 9})(images)
        with pytest.raises(ValueError, match="return_tensors must be 'pt', 'np' or None, got 'tf'"):
            SiglipImageProcessor()(images, return_tensors="tf")
        with pytest.raises(ValueError, match="image_mean must hold one value for each of the 3 channels, got 2"):
            SiglipImageProcessor(image_mean=[0.5, 0.5])(images)

    @pytest.mark.parametrize("processor", [CLIPImageProcessor, SiglipImageProcessor, Siglip2ImageProcessor])
    def test_engines_that_do_not_exist_are_refused(self, processor: type) -> None:
        with pytest.raises(ValueError, match="resize_engine must be one of pillow, torch, official, got 'pil'"):
            processor(resize_engine="pil")
        with pytest.raises(ValueError, match=r"resizes bilinear \(2\) or bicubic \(3\), got resample=1"):
            processor(resize_engine="torch", resample=Image.Resampling.LANCZOS)(cat())

    def test_json_is_transformers_own_both_ways(self, image_processors: tuple[Any, Any], tmp_path: Path) -> None:
        ours, theirs = image_processors
        image = cat()
        settings = {"size": {"height": 50, "width": 60}, "resample": 2, "image_mean": [0.1, 0.2, 0.3]}
        ours(**settings).save_pretrained(tmp_path / "ours")
        theirs(**settings).save_pretrained(tmp_path / "theirs")
        files = [json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("ours", "theirs")]
        assert files[0] == files[1] | {"resize_engine": "pillow"}
        there, back = theirs.from_pretrained(tmp_path / "ours"), ours.from_pretrained(tmp_path / "theirs")
        assert torch.equal(back(image)["pixel_values"], there(image, return_tensors="pt")["pixel_values"])
