"""Maps of attention, where they lie in a picture, the drawing, and `twinlens explain`."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.families import IDS, SQUARE, TEXT, VISION, model, twins
from PIL import Image

import twinlens
from twinlens.catalogue.bundled import PHOTOGRAPH
from twinlens.inference import (
    attention_rollout,
    draw_maps,
    encode_patches,
    explain_image,
    patch_box,
    pooling_attention,
)
from twinlens.toy_world import draw_scene, render

Run = Callable[..., tuple[int, str, str]]
SIZE, PATCH = VISION["image_size"], VISION["patch_size"]
GRID = SIZE // PATCH
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


def image_processor(family: str, side: int = SIZE, **settings: Any) -> Any:
    sizes = {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
    default = sizes if family == "CLIP" else {"size": {"height": side, "width": side}}
    return getattr(twinlens, f"{family}ImageProcessor")(**{**default, **settings})


def processor(family: str) -> twinlens.DualEncoderProcessor:
    return getattr(twinlens, f"{family}Processor")(image_processor(family))


def photograph() -> Image.Image:
    return Image.open(PHOTOGRAPH)


class TestAttention:
    @torch.inference_mode()
    def test_of_the_class_token(self) -> None:
        ours, theirs = twins("CLIP", attention="eager")
        inputs = processor("CLIP")(images=photograph())
        attention = theirs.vision_model(**inputs, output_attentions=True).attentions[-1]
        expected = attention[0].mean(dim=0)[0, 1:].view(GRID, GRID)
        torch.testing.assert_close(pooling_attention(ours, processor("CLIP"), photograph()), expected)

    @torch.inference_mode()
    def test_of_the_pooling_head(self) -> None:
        ours, theirs = twins("Siglip", attention="eager")
        tower = theirs.vision_model
        tokens = tower(**processor("Siglip")(images=photograph())).last_hidden_state
        _, expected = tower.head.attention(tower.head.probe, tokens, tokens)  # torch's own module: mean over the heads
        weights = pooling_attention(ours, processor("Siglip"), photograph())
        torch.testing.assert_close(weights, expected.view(GRID, GRID), rtol=0, atol=1e-6)
        assert weights.sum() == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("family", SQUARE)
    @torch.inference_mode()
    def test_rollout_is_the_product_of_the_paper(self, family: str) -> None:
        """Section 3 of arXiv:2005.00928, in float64; the pooling head is one more layer without a residual."""
        ours, theirs = twins(family, attention="eager")
        tower = theirs.vision_model
        outputs = tower(**processor(family)(images=photograph()), output_attentions=True)
        rollout = np.eye(outputs.attentions[0].shape[-1])
        for attention in outputs.attentions:
            rollout = (0.5 * attention[0].double().mean(dim=0).numpy() + 0.5 * np.eye(len(rollout))) @ rollout
        reached = rollout[0, 1:]
        if family == "Siglip":
            tokens = outputs.last_hidden_state
            _, pooling = tower.head.attention(tower.head.probe, tokens, tokens)
            reached = pooling[0, 0].double().numpy() @ rollout
        found = attention_rollout(ours, processor(family), photograph())
        np.testing.assert_allclose(found, reached.reshape(GRID, GRID), rtol=0, atol=1e-6)

    def test_is_of_one_image(self) -> None:
        with pytest.raises(ValueError, match="of one image, got 2"):
            pooling_attention(model("CLIP"), processor("CLIP"), [photograph()] * 2)

    @pytest.mark.thorough
    @pytest.mark.parametrize("family", SQUARE)
    def test_in_bfloat16(self, family: str) -> None:
        half = model(family).bfloat16()
        for weights in (pooling_attention, attention_rollout):
            found = weights(half, processor(family), photograph())
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, weights(half.float(), processor(family), photograph()), rtol=0, atol=0.03)
            half.bfloat16()

    @torch.inference_mode()
    def test_of_a_resnet_is_its_pooling(self) -> None:
        """The mean token, to which the pooling attends too, comes first, and is left out."""
        vision = {"hidden_size": 128, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
        resnet = twinlens.CLIPResNetModel(twinlens.CLIPResNetConfig(vision_config=vision, text_config=TEXT)).eval()
        clip = twinlens.CLIPProcessor(image_processor("CLIP", 64))
        outputs = resnet.vision_model(**clip(images=photograph()), output_pooling_attentions=True)
        expected = outputs.pooling_attentions[0].mean(dim=1)[0, 0, 1:].view(2, 2)
        assert torch.equal(pooling_attention(resnet, clip, photograph()), expected)
        with pytest.raises(ValueError, match="has no attention layers: see pooling_attention"):
            attention_rollout(resnet, clip, photograph())

    @torch.inference_mode()
    def test_of_padded_images(self) -> None:
        """Of SigLIP 2 NaFlex: patches have all the attention, and padding none."""
        vision = {**{name: value for name, value in VISION.items() if name != "image_size"}, "num_patches": 16}
        config = twinlens.Siglip2Config(text_config={**TEXT, **IDS["Siglip"]}, vision_config=vision)
        naflex = twinlens.Siglip2Model(config).eval()
        own = twinlens.Siglip2Processor(twinlens.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=30))
        picture = Image.new("RGB", (48, 16), "red")
        for weights in (pooling_attention, attention_rollout):
            found = weights(naflex, own, picture)
            assert found.shape == (3, 9)
            assert found.sum() == pytest.approx(1, abs=1e-6)
        drawing, _ = explain_image(naflex, own, picture, map="attention")
        assert drawing.width > drawing.height

    def test_of_a_tower_of_transformers_is_refused(self) -> None:
        vision = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32)
        text = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
        joined = twinlens.DualEncoderModel.from_towers(transformers.ViTModel(vision), transformers.BertModel(text))
        with pytest.raises(ValueError, match="image towers of this package; ViTModel is transformers'"):
            encode_patches(joined, {"pixel_values": torch.zeros(1, 3, 32, 32)})


PROCESSORS = {
    "CLIP": image_processor("CLIP"),
    "CLIP, official": image_processor("CLIP", resize_engine="official"),
    "CLIP, squash": image_processor("CLIP", size={"height": SIZE, "width": SIZE}, do_center_crop=False),
    "CLIP, longest": image_processor("CLIP", size={"max_height": SIZE, "max_width": SIZE}, openai_order=True),
    "CLIP, without resize": image_processor("CLIP", do_resize=False),
    "Siglip": image_processor("Siglip"),
    "Siglip, official": image_processor("Siglip", resize_engine="official"),
}


class TestPlace:
    @pytest.mark.parametrize("size", [(150, 40), (41, 150), (33, 47), (64, 64)])
    @pytest.mark.parametrize("name", PROCESSORS)
    def test_is_where_the_pixels_come_from(self, name: str, size: tuple[int, int]) -> None:
        """In a picture that gets lighter evenly, the level of every pixel says where it comes from."""
        width, height = size
        chosen = PROCESSORS[name]
        left, top, across, down = chosen.placement(height, width)
        x, y = (np.arange(side) + 0.5 for side in size)
        levels = np.stack(np.broadcast_arrays(x * 200 / width, (y * 200 / height)[:, None], 0.0), axis=-1)
        (pixels,) = chosen(Image.fromarray(levels.round().astype(np.uint8)), do_normalize=False)["pixel_values"]
        for place, start, step, side in ((0, left, across, width), (1, top, down, height)):
            expected = start + (torch.arange(SIZE) + 0.5) * step
            inside = (expected > step) & (expected < side - step)  # away from borders, which the filters repeat
            assert inside.sum() >= 7
            found = pixels[place].select(place, SIZE // 2) * 255 / 200 * side
            assert (found - expected)[inside].abs().max() < max(0.2 * step, 2 * side / 200)  # levels are rounded

    def test_of_flexible_sizes(self) -> None:
        chosen = twinlens.Siglip2ImageProcessor(patch_size=16, max_num_patches=64)
        _, _, across, down = chosen.placement(300, 600)
        rows, columns = chosen(Image.new("RGB", (600, 300)))["spatial_shapes"][0].tolist()
        assert (across, down) == (600 / (16 * columns), 300 / (16 * rows))

    def test_of_patches_that_do_not_fill_the_picture(self) -> None:
        """Patches of 14 in 38 pixels: the last ten are dropped, as the official patch convolutions do."""
        vision = {**VISION, "image_size": 38, "patch_size": 14}
        config = twinlens.SiglipConfig(text_config={**TEXT, **IDS["Siglip"]}, vision_config=vision)
        tower = twinlens.SiglipModel(config)
        square = twinlens.SiglipProcessor(image_processor("Siglip", 38))
        assert patch_box(tower, square, Image.new("RGB", (76, 19)), (2, 2)) == (0, 0, 56, 14)


class TestDrawing:
    def test_heat_lies_over_its_part_of_the_picture(self) -> None:
        """A picture of 300x150, drawn at 448x224, with a map over its second quarter, of which one patch is hot."""
        maps = torch.zeros(1, 3, 3)
        maps[0, 1, 2] = 1
        drawing = draw_maps(Image.new("RGB", (300, 150), (90, 90, 90)), maps, (75, 0, 150, 150), [""], unit="share")
        colours = np.asarray(drawing, dtype=int)
        grey = (colours == 90).all(axis=-1)
        top, left = np.argwhere(grey)[0]
        assert grey[top : top + 224, left : left + 448].all()  # the picture itself
        second = left + 448 + np.flatnonzero(grey[top, left + 448 :])[0]
        panel = colours[top : top + 224, second : second + 448]
        expected = np.zeros((224, 448), dtype=bool)
        expected[:, 112:224] = True
        assert ((panel != 90).any(axis=-1) == expected).all()
        hottest = panel.sum(axis=-1).argmax()
        y, x = divmod(int(hottest), 448)
        assert 75 <= y < 150  # the second of three rows
        assert 112 + 75 <= x < 224  # the last of three columns, up to its border
        assert (panel[10, 120] < 45).all()  # the lowest value, black over grey

    def test_interpolation_stays_between_the_patches(self) -> None:
        """A linear interpolation has no value above the highest patch or below the lowest."""
        maps = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
        drawing = draw_maps(Image.new("RGB", (400, 100), (255, 255, 255)), maps, (0, 0, 400, 100), ["x"], unit="")
        colours = np.asarray(drawing, dtype=int)
        row = colours[100, 448 + 16 :]
        heat = row[(row != 255).any(axis=-1)][:448]
        brightest = heat.sum(axis=-1).argmax()
        assert brightest == pytest.approx(448 * 1.5 / 4, abs=3)
        assert (np.diff(heat.sum(axis=-1)[brightest:]) <= 0).all()

    def test_a_word_longer_than_a_line_is_broken(self) -> None:
        """As many lines of a title as the word needs make the drawing higher, and none of it is cut."""
        image, maps = Image.new("RGB", (448, 448)), torch.zeros(1, 1, 1)
        heights = [draw_maps(image, maps, (0, 0, 448, 448), ["x" * n], unit="").height for n in (1, 40, 400)]
        assert heights[0] == heights[1]
        assert heights[2] - heights[1] >= 3 * 23

    @pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (64, 64)])
    @pytest.mark.parametrize("family", SQUARE)
    def test_pictures_of_any_shape(self, family: str, size: tuple[int, int]) -> None:
        picture = Image.new("RGBA", size, (200, 10, 10, 128))
        drawing, scores = explain_image(model(family), processor(family), picture, map="rollout")
        assert drawing.mode == "RGB"
        assert max(drawing.size) < 3000
        assert not scores

    @pytest.mark.thorough
    def test_pictures_of_the_documentation(self, tmp_path: Path, run: Run) -> None:
        """Those of docs/maps.md, as its commands draw them."""
        star = tmp_path / "red-star.png"
        render(draw_scene(Random(0), [("red", "star")], "one")).save(star)
        texts = ("--text", "a red star", "--text", "a blue ring")
        for name, arguments in (
            ("similarity", ("siglip-shapes", star, *texts)),
            ("rollout", ("clip-shapes", star, "--map", "rollout")),
        ):
            assert run("explain", *arguments, "--out", tmp_path / f"{name}.png")[0] == 0
            drawn, committed = (Image.open(folder / f"{name}.png") for folder in (tmp_path, PICTURES))
            assert drawn.size == committed.size
            difference = np.abs(np.asarray(drawn, dtype=float) - np.asarray(committed, dtype=float))
            assert difference.mean() < 1  # renderers differ by a few levels


class TestCommand:
    @pytest.mark.parametrize("name", ["siglip-shapes", pytest.param("clip-shapes", marks=pytest.mark.thorough)])
    def test_scores_are_those_of_the_model(self, name: str, tmp_path: Path, run: Run) -> None:
        texts = ["a red star", "an orange circle"]
        options = [part for text in texts for part in ("--text", text)]
        out = tmp_path / "new" / "map.png"
        code, output, errors = run("explain", name, PHOTOGRAPH, *options, "--out", out, "--json")
        assert (code, errors) == (0, "")
        loaded = twinlens.DualEncoderModel.from_pretrained(name)
        both = twinlens.DualEncoderProcessor.from_pretrained(name)
        with torch.no_grad():
            logits = loaded(**both(images=photograph(), text=texts)).logits_per_image[0]
        expected = logits.sigmoid() if name == "siglip-shapes" else logits.softmax(dim=-1)
        for score, text, logit, probability in zip(json.loads(output)["texts"], texts, logits, expected, strict=True):
            assert score["text"] == text
            assert score["logit"] == pytest.approx(logit.item(), abs=1e-4)
            assert score["probability"] == pytest.approx(probability.item(), abs=1e-5)
        assert Image.open(out).format == "PNG"

    def test_wrong_options(self, tmp_path: Path, run: Run) -> None:
        out = tmp_path / "map.png"
        for arguments in (("--out", out), ("--text", "a cat"), ("--text", "a cat", "--out", out, "--map", "heat")):
            assert run("explain", "siglip-shapes", PHOTOGRAPH, *arguments)[0] == 2
        assert not out.exists()

    def test_what_goes_wrong_is_one_line_and_leaves_nothing(self, tmp_path: Path, run: Run) -> None:
        text, picture = tmp_path / "text.png", tmp_path / "picture.png"
        text.write_text("no picture")
        Image.new("RGB", (8, 8)).save(picture)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        for message, source, image, words, out in (
            ("no format that Pillow knows", "siglip-shapes", text, "a cat", "map.png"),
            ("not there", "siglip-shapes", tmp_path / "absent.png", "a cat", "map.png"),
            ("neither a file nor a folder", "siglip-shape5/x", picture, "a cat", "map.png"),
            ("name of a picture", "siglip-shapes", picture, "a cat", "map.text"),
            ("another name", "siglip-shapes", picture, "a cat", "picture.png"),
            ("got the folder", "siglip-shapes", picture, "a cat", "folder.png"),
            ("in words, got ''", "siglip-shapes", picture, "", "map.png"),
        ):
            if out == "folder.png":
                (tmp_path / out).mkdir()
            code, output, errors = run("explain", source, image, "--text", words, "--out", tmp_path / out)
            assert (code, output) == (1, "")
            assert message in errors
            assert errors.count("\n") == 1
        (tmp_path / "folder.png").rmdir()
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_maps_without_text_need_no_vocabulary(self, tmp_path: Path, run: Run) -> None:
        folder = tmp_path / "model"
        model("Siglip").save_pretrained(folder)
        image_processor("Siglip").save_pretrained(folder)
        out = tmp_path / "map.png"
        assert run("explain", folder, PHOTOGRAPH, "--map", "attention", "--out", out)[0] == 0
        code, _, errors = run("explain", folder, PHOTOGRAPH, "--text", "a cat", "--out", out)
        assert code == 1
        assert "--tokenizer" in errors
