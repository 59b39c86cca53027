"""What a source of open_clip states about its pixels: made as open_clip makes them, or refused by name; and written."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers import open_clip_preprocess
from helpers.builders import (
    TINY_CLIP,
    TINY_CLIP_JSON,
    TINY_SIGLIP_JSON,
    TINY_TRUNK,
    TRUNK_OPTIONS,
    open_clip_tensors,
    timm_tensors,
    trunk_tensors,
    write_openai,
)
from helpers.photographs import cat
from helpers.processes import finish, start
from helpers.released_files import released_package
from PIL import Image

from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.catalogue import CATALOGUE
from twinlens.configuration import CLIPConfig, Siglip2Config, SiglipConfig
from twinlens.conversion import convert, export
from twinlens.formats import FormatError, read_checkpoint, read_source, source, write_tensors
from twinlens.processing import build_processor

SIZE = 32  # pixels per side of the tiny CLIP
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
CASES: dict[str, dict[str, Any]] = {
    f"{mode}-{interpolation}": {"resize_mode": mode, "interpolation": interpolation, "mean": MEAN, "std": STD}
    for mode in ("shortest", "squash", "longest")
    for interpolation in ("bicubic", "bilinear", "random")
}
CASES |= {"nothing": {}, "one number": {"mean": 0.5, "std": 0.25}, "nulls": {"resize_mode": None, "mean": None}}
CASES |= {
    "zeros": {"mean": 0, "std": [0.5], "interpolation": ""},
    "fill": {"resize_mode": "longest", "fill_color": 127},
}
SIGLIP_SIZE = 48
SIGLIP_CASES = ("shortest-bilinear", "squash-bicubic", "longest-bicubic", "fill", "one number")


def write_folder(folder: Path, pixels: dict[str, Any] | None, family: str = "clip") -> Path:
    """Write a folder of open_clip whose JSON states these pixels."""
    folder.mkdir()
    model, tensors = (
        (TINY_CLIP_JSON, open_clip_tensors(**TINY_CLIP))
        if family == "clip"
        else (TINY_SIGLIP_JSON, trunk_tensors(**TINY_TRUNK))
    )
    content = {"model_cfg": model} if pixels is None else {"model_cfg": model, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    write_tensors("safetensors", tensors, folder / "open_clip_model.safetensors")
    return folder


def options(family: str) -> dict[str, Any]:
    return {} if family == "clip" else TRUNK_OPTIONS


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "preprocessor_config.json").read_text())


@pytest.fixture(scope="module")
def images() -> dict[str, Image.Image]:
    """Shapes whose margins round in every way, and the modes that Pillow resizes and fills in ways of their own."""
    photograph = cat()
    sizes = {"wide": (90, 40), "tall": (33, 77), "square": (32, 32), "odd": (101, 67), "small": (31, 17)}
    shapes = {name: photograph.resize(size) for name, size in sizes.items()}
    transparent = shapes["wide"].copy()
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    modes = {name: shapes["odd"].convert(name) for name in ("L", "1", "CMYK", "LA")}
    return {**shapes, **modes, "RGBA": transparent, "palette": shapes["tall"].quantize(30)}


@pytest.fixture(scope="module")
def official(images: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What open_clip makes of the images in every case."""
    root = tmp_path_factory.mktemp("transform")
    packages = [released_package(name) for name in ("open_clip_torch==3.3.0", "timm==1.0.31", "torchvision==0.28.0")]
    cases = {
        f"{family}/{case}": {"size": size} | {name: value for name, value in CASES[case].items() if value is not None}
        for family, size, names in (("clip", SIZE, CASES), ("siglip", SIGLIP_SIZE, SIGLIP_CASES))
        for case in names
    }
    (root / "cases.json").write_text(json.dumps(cases))
    (root / "images").write_bytes(pickle.dumps(images))
    files = [root / name for name in ("images", "cases.json", "outputs.npz")]
    process = start(open_clip_preprocess.main, packages, *files, output=root / "log")
    assert finish(process) == 0, (root / "log").read_text()
    return np.load(files[-1])


@pytest.mark.parametrize(
    ("family", "case"), [*(("clip", case) for case in CASES), *(("siglip", case) for case in SIGLIP_CASES)]
)
def test_pixels_are_those_of_open_clip(
    family: str, case: str, official: Any, images: dict[str, Image.Image], tmp_path: Path
) -> None:
    """From the file, and from the converted folder."""
    folder = write_folder(tmp_path / "source", CASES[case], family)
    convert(folder, tmp_path / "folder", verify=False, **options(family))
    for place in (folder, tmp_path / "folder"):
        processor = DualEncoderProcessor.from_pretrained(place, **(options(family) if place == folder else {}))
        for name, image in images.items():
            ours = processor(images=image)["pixel_values"][0]
            expected = official[f"{family}/{case}/{name}"]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6, err_msg=name)


def test_a_statement_with_gaps_has_open_clips_defaults(tmp_path: Path) -> None:
    """Also for SigLIP: `PreprocessCfg()` is OpenAI's mean and deviation, bicubic, the shorter side and a crop."""
    folder = write_folder(tmp_path / "source", {"interpolation": "bilinear"}, "siglip")
    images = DualEncoderProcessor.from_pretrained(folder, **TRUNK_OPTIONS).image_processor
    assert images.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert images.image_std == (0.26862954, 0.26130258, 0.27577711)
    assert (images.size["shortest_edge"], images.do_center_crop) == (SIGLIP_SIZE, True)


def test_hub_pixels_fit_plain_transformers(tmp_path: Path) -> None:
    """The mode "longest" without a colour is what transformers' own resize and crop do, to the pixel."""
    source = write_folder(tmp_path / "source", {"resize_mode": "longest", "mean": MEAN}, "siglip")
    convert(source, tmp_path / "folder", preprocessing="hub", **TRUNK_OPTIONS)
    try:
        theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    except ImportError:
        pytest.skip("this version of transformers has image processors only with torchvision")
    ours = DualEncoderProcessor.from_pretrained(tmp_path / "folder")
    for size in ((90, 40), (33, 77), (101, 67), (31, 17)):
        image = cat().resize(size)
        expected = torch.as_tensor(theirs(images=image, return_tensors="np")["pixel_values"])
        torch.testing.assert_close(ours(images=image)["pixel_values"], expected, rtol=0, atol=1e-5)


def test_plain_transformers_squashes_too(tmp_path: Path) -> None:
    """All of the picture is seen: its outermost columns, too, which a crop would drop."""
    convert(write_folder(tmp_path / "source", {"resize_mode": "squash"}), tmp_path / "folder", verify=False)
    settings = settings_of(tmp_path / "folder")
    assert settings["size"] == {"height": SIZE, "width": SIZE}
    assert settings["do_center_crop"] is False
    assert f"Resized to {SIZE}x{SIZE}, whatever the aspect" in (tmp_path / "folder" / "README.md").read_text()
    levels = np.zeros((64, 192, 3), np.uint8)
    levels[:, :24] = levels[:, -24:] = 255
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    except ImportError:
        pytest.skip("this version of transformers has image processors only with torchvision")
    theirs = torch.as_tensor(processor(images=Image.fromarray(levels), return_tensors="np")["pixel_values"])
    ours = DualEncoderProcessor.from_pretrained(tmp_path / "folder")(images=Image.fromarray(levels))["pixel_values"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours[0, :, :, 0] > 1.5).all()
    assert (ours[0, :, :, -1] > 1.5).all()


REFUSED = [
    ("clip", {"resize_mode": "longest", "fill_color": 256}, "fill_color is 256, expected a level of 0..255, or three"),
    ("siglip", {"fill_color": 0.5}, "fill_color is 0.5, expected a level"),
    ("siglip", {"fill_color": [1, 2]}, r"fill_color is \[1, 2\], expected a level"),
    ("siglip", {"resize_mode": "longest", "fill_color": [7]}, r"fill_color is \[7\], expected a level"),
    ("siglip", {"resize_mode": "crop"}, "resize_mode is 'crop', expected 'shortest' or 'squash' or 'longest'"),
    ("clip", {"std": [0.5, 0.5, 0]}, r"std is \[0.5, 0.5, 0\], expected three numbers"),
    ("clip", {"resize_mode": ["squash"]}, r"resize_mode is \['squash'\], expected"),
    ("clip", {"interpolation": "lanczos"}, r"interpolation is 'lanczos', expected 'bicubic' or 'bilinear' or 'random'"),
    ("clip", {"mode": "L"}, r"mode is 'L', expected 'RGB'"),
    ("clip", {"size": 48}, r"size is 48, but the model takes 32 pixels per side"),
    ("clip", {"size": [32, 48]}, r"size is \[32, 48\], but the model takes 32"),
    ("clip", {"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\], expected three numbers"),
    ("clip", {"std": "0.5"}, r"std is '0.5', expected three numbers"),
    ("siglip", {"interpolation": "nearest"}, r"interpolation is 'nearest', expected"),
]


@pytest.mark.parametrize(("family", "pixels", "message"), REFUSED)
def test_what_cannot_be_made_is_refused(family: str, pixels: dict[str, Any], message: str, tmp_path: Path) -> None:
    """By whoever makes pixels; the model itself loads."""
    folder = write_folder(tmp_path / "source", {"mean": MEAN, **pixels}, family)
    stated = rf"source: the source states pixels that this version cannot make: preprocess_cfg\.{message}"
    with pytest.raises(FormatError, match=stated + ".*correct the JSON"):
        convert(folder, tmp_path / "folder", **options(family))
    assert not (tmp_path / "folder").exists()
    with pytest.raises(FormatError, match=stated):
        DualEncoderProcessor.from_pretrained(folder, **options(family))
    DualEncoderModel.from_pretrained(folder, **options(family))


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "source", {"resize_mode": "fit", "interpolation": "box", "mode": "L"})
    with pytest.raises(FormatError, match=r"interpolation is 'box'.*; .*resize_mode is 'fit'.*; .*mode is 'L'"):
        DualEncoderProcessor.from_pretrained(folder)


def test_pixels_that_are_no_object(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"preprocess_cfg of open_clip_config.json is \['squash'\], expected an obj"):
        DualEncoderProcessor.from_pretrained(write_folder(tmp_path / "source", ["squash"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("preprocessing", ["official", "hub"])
def test_siglip_states_what_it_does(interpolation: str, preprocessing: Any, tmp_path: Path) -> None:
    """As the published ones: Pillow's pixels by the stated filter, which was trained on, and not big_vision's."""
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": interpolation, "resize_mode": "squash"}
    folder = write_folder(tmp_path / "source", pixels, "siglip")
    convert(folder, tmp_path / "folder", verify=False, preprocessing=preprocessing, **TRUNK_OPTIONS)
    settings = settings_of(tmp_path / "folder")
    resample = Image.Resampling[interpolation.upper()]
    assert settings["size"] == {"height": 48, "width": 48}
    assert (settings["resample"], settings["image_mean"]) == (resample, [0.5] * 3)
    image = cat()
    by_pillow = np.asarray(image.resize((48, 48), resample), np.float32).transpose(2, 0, 1) / 127.5 - 1
    for source_or_folder in (folder, tmp_path / "folder"):
        processor = DualEncoderProcessor.from_pretrained(source_or_folder, **TRUNK_OPTIONS)
        assert abs(processor(images=image)["pixel_values"][0].numpy() - by_pillow).max() < 1e-6
    assert f"{interpolation} with antialiasing, by Pillow" in processor.describe()


TIMM_CASES: dict[str, tuple[dict[str, Any], tuple[int, int], tuple[int, ...]]] = {
    # pretrained_cfg; the size to which `timm.data.create_transform` resizes an image of 90x40; its fill
    "crop": ({"crop_pct": 0.9}, (119, 53), ()),
    "timm's default": ({}, (121, 54), ()),
    "squash": ({"crop_pct": 1.0, "crop_mode": "squash"}, (48, 48), ()),
    "border": ({"crop_pct": 1.0, "crop_mode": "border"}, (48, 21), (102, 128, 153)),
}


@pytest.mark.parametrize("case", TIMM_CASES)
def test_timm_states_crop_and_values(case: str, tmp_path: Path) -> None:
    """Sizes by `timm/data/transforms_factory.py`, `transforms_imagenet_eval`: 48 / crop_pct rounded down."""
    stated, resized, fill = TIMM_CASES[case]
    stated = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "input_size": [3, 48, 48], **stated}
    folder = write_timm(tmp_path / "timm", stated)
    photograph = cat().resize((90, 40))
    transparent = photograph.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(photograph.size))
    convert(folder, tmp_path / "folder", verify=False, **TRUNK_OPTIONS)
    processor = DualEncoderProcessor.from_pretrained(tmp_path / "folder")
    for image in (photograph, photograph.quantize(30), photograph.convert("1"), transparent):
        levels = image.convert("RGB").resize(resized, Image.Resampling.BILINEAR)  # as timm's `ImageDataset` opens it
        expected = Image.new("RGB", (48, 48), fill or None)
        left, top = ((48 - side) // 2 if side < 48 else -round((side - 48) / 2) for side in resized)
        expected.paste(levels, (left, top))
        values = (np.asarray(expected, np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        ours = processor(images=image)["pixel_values"][0]
        np.testing.assert_allclose(ours, values.transpose(2, 0, 1), rtol=0, atol=1e-6, err_msg=image.mode)
    steps = processor.describe()
    assert steps.index("Converted to RGB by Pillow; transparency is dropped.") < steps.index("Resized to")
    assert "in the image's own mode" not in steps


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
        ({"crop_pct": 0.9, "crop_mode": "nine"}, "crop_mode 'nine'"),
        ({"crop_pct": "all"}, "crop_pct is 'all'"),
        ({"input_size": [3, 64, 64], "mean": MEAN}, r"size is \[64, 64\], but the model takes 48"),
    ],
)
def test_timm_refusals(stated: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_timm(tmp_path / "timm", stated), **TRUNK_OPTIONS)
    with pytest.raises(FormatError, match=message):
        _ = checkpoint.image_settings


def write_timm(folder: Path, stated: dict[str, Any]) -> Path:
    tower = {name: TINY_TRUNK[name] for name in ("grid", "patch", "width", "layers", "mlp")}
    folder.mkdir()
    write_tensors("safetensors", timm_tensors(**tower), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "tiny", "pretrained_cfg": stated}))
    return folder


class TestCatalogue:
    """A name: what its entry says about pixels stands in for what its repository does not."""

    ENTRY = CATALOGUE["ViT-H-14-378-quickgelu:dfn5b"]

    def read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(source, "resolve_source", lambda name, progress: (folder, self.ENTRY))
        monkeypatch.setattr(source, "check_geometry", lambda entry, config: None)  # the weights are tiny
        return read_source(self.ENTRY.name, image_size=SIZE, vision_activation="gelu", vision_heads=2)[0]

    @pytest.mark.parametrize("pixels", [None, {}, {"mean": MEAN}, {"resize_mode": "squash"}, "no JSON"])
    def test_entry_says_squash(self, pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.ENTRY.pixels.resize_mode == "squash"
        folder = write_folder(tmp_path / "source", None if pixels == "no JSON" else pixels)
        if pixels == "no JSON":
            (folder / "open_clip_config.json").unlink()
        settings = self.read(folder, monkeypatch).image_settings
        assert settings["size"] == {"height": SIZE, "width": SIZE}
        assert settings["do_center_crop"] is False
        assert settings["resample"] == Image.Resampling.BICUBIC
        stated_mean = pixels.get("mean") if isinstance(pixels, dict) else None
        assert settings["image_mean"] == (stated_mean or list(self.ENTRY.pixels.mean))

    def test_disagreement_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = write_folder(tmp_path / "source", {"resize_mode": "shortest", "std": list(self.ENTRY.pixels.std)})
        checkpoint = self.read(folder, monkeypatch)
        assert checkpoint.image_settings["size"] == {"shortest_edge": SIZE}
        (note,) = checkpoint.notes
        assert (
            "The repository states other pixels than open_clip's own table: resize_mode 'shortest', not 'squash'."
            in note
        )
        convert(
            self.ENTRY.name,
            tmp_path / "folder",
            verify=False,
            image_size=SIZE,
            vision_activation="gelu",
            vision_heads=2,
        )
        assert note in (tmp_path / "folder" / "README.md").read_text()
        assert note in [record.message for record in caplog.records]
        assert settings_of(tmp_path / "folder")["do_center_crop"] is True

    @pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.format != "open_clip"])
    def test_the_families_own_pixels(self, name: str) -> None:
        """Entries of other formats say what their family's processor does without being told."""
        pixels = CATALOGUE[name].pixels
        families = {"clip": CLIPConfig, "clip_resnet": CLIPConfig, "siglip": SiglipConfig, "siglip2": Siglip2Config}
        images = build_processor(families[CATALOGUE[name].model_type]()).image_processor
        assert (tuple(images.image_mean), tuple(images.image_std)) == (pixels.mean, pixels.std)
        if pixels.resize_mode == "patches":
            assert images.max_num_patches == CATALOGUE[name].grid ** 2
            assert Image.Resampling(images.resample).name.lower() == pixels.interpolation
            assert images.resize_engine == "official"
            assert pixels.antialias
            return
        assert pixels.resize_mode == ("shortest" if images.do_center_crop else "squash")
        if images.resize_engine == "official":  # bilinear between the four nearest pixels, as TensorFlow computes it
            assert (pixels.interpolation, pixels.antialias) == ("bilinear", False)
        else:
            assert (pixels.interpolation, pixels.antialias) == (Image.Resampling(images.resample).name.lower(), True)


class TestExport:
    @pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
    def test_what_the_folder_does_is_written(self, mode: str, tmp_path: Path) -> None:
        stated: dict[str, Any] = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": mode}
        stated |= {"fill_color": 90} if mode == "longest" else {}
        convert(write_folder(tmp_path / "source", stated), tmp_path / "folder", verify=False)
        for forgotten in (False, True):
            if forgotten:
                (tmp_path / "folder" / "official_layout.json").unlink()
            (tmp_path / f"out {forgotten}").mkdir()
            export(tmp_path / "folder", tmp_path / f"out {forgotten}" / "model.safetensors", format="open_clip")
            written = json.loads((tmp_path / f"out {forgotten}" / "open_clip_config.json").read_text())
            assert written["preprocess_cfg"] == stated

    def test_the_folder_comes_before_what_it_was_converted_from(self, tmp_path: Path) -> None:
        convert(write_folder(tmp_path / "source", {"mean": MEAN, "note": "kept"}), tmp_path / "folder", verify=False)
        settings = settings_of(tmp_path / "folder")
        settings |= {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False, "image_mean": STD}
        (tmp_path / "folder" / "preprocessor_config.json").write_text(json.dumps(settings))
        export(tmp_path / "folder", tmp_path / "model.safetensors", format="open_clip")
        written = json.loads((tmp_path / "open_clip_config.json").read_text())["preprocess_cfg"]
        assert written["resize_mode"] == "squash"
        assert (written["mean"], written["note"]) == (STD, "kept")

    def test_old_settings(self, tmp_path: Path) -> None:
        """Old folders of the Hub state sizes as one number."""
        write_openai(tmp_path / "clip.pt", **TINY_CLIP)
        convert(tmp_path / "clip.pt", tmp_path / "folder", verify=False)
        settings = settings_of(tmp_path / "folder") | {"size": SIZE, "crop_size": SIZE}
        (tmp_path / "folder" / "preprocessor_config.json").write_text(json.dumps(settings))
        export(tmp_path / "folder", tmp_path / "model.safetensors", format="open_clip")
        written = json.loads((tmp_path / "open_clip_config.json").read_text())["preprocess_cfg"]
        assert (written["resize_mode"], written["interpolation"]) == ("shortest", "bicubic")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"resample": int(Image.Resampling.LANCZOS)}, "resample lanczos"),
            (
                {"size": {"shortest_edge": 48}},
                r"size {'shortest_edge': 48} with do_center_crop True, for a model of 32",
            ),
            ({"do_center_crop": False}, "do_center_crop False"),
            ({"do_normalize": False}, "do_normalize false"),
        ],
    )
    def test_pixels_that_open_clip_cannot_make(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        convert(write_folder(tmp_path / "source", None), tmp_path / "folder", verify=False)
        settings = settings_of(tmp_path / "folder") | change
        (tmp_path / "folder" / "preprocessor_config.json").write_text(json.dumps(settings))
        (tmp_path / "out").mkdir()
        with pytest.raises(FormatError, match=f"open_clip cannot make the pixels .*: .*{message}"):
            export(tmp_path / "folder", tmp_path / "out" / "model.safetensors", format="open_clip")
        assert not list((tmp_path / "out").iterdir())
        export(tmp_path / "folder", tmp_path / "out" / "model.safetensors", format="transformers")
