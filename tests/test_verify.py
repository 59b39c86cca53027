"""Proof, any time again: `verify`, its plot, the official code as a reference, and names as sources."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from helpers import open_clip_models
from helpers.builders import (
    TINY_CLIP,
    TINY_CLIP_JSON,
    TINY_SIGLIP,
    openai_tensors,
    write_beside,
    write_big_vision,
    write_openai,
)
from helpers.official_outputs import FIXTURES, NAFLEX
from helpers.processes import finish, start
from helpers.released_files import released_module, released_package
from helpers.versions import places_one_column
from PIL import Image

from twinlens.catalogue import official_checkpoint
from twinlens.catalogue.official_checkpoint import Tower, Vocabulary
from twinlens.conversion import convert
from twinlens.formats import read_checkpoint
from twinlens.parity import plot_certificate, verify
from twinlens.parity.measurement import Pairing, measure, model_subject, reference_subject

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source and its folder, to read only."""
    path = tmp_path_factory.mktemp("clip")
    write_openai(path / "clip.pt", **TINY_CLIP)
    convert(path / "clip.pt", path / "clip")
    return path / "clip.pt", path / "clip"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source and its folder, to read only."""
    path = tmp_path_factory.mktemp("siglip")
    write_big_vision(path / "siglip.npz", **{**TINY_SIGLIP, "patch": 14})
    convert(path / "siglip.npz", path / "siglip", image_size=44)
    return path / "siglip.npz", path / "siglip"


@pytest.fixture(scope="module")
def naflex(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source and its folder, to read only."""
    source, folder = FIXTURES / NAFLEX / "checkpoint.npz", tmp_path_factory.mktemp("naflex") / "folder"
    convert(source, folder)
    return source, folder


class TestVerify:
    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_repeats_what_convert_measured(self, family: str, request: pytest.FixtureRequest) -> None:
        source, folder = request.getfixturevalue(family)
        certificate = verify(source, folder)
        assert certificate.passed
        kept = json.loads((folder / "parity.json").read_text())
        assert certificate.to_dict() == kept | {"notes": []}  # there, that the folder has no tokenizer
        assert certificate.inputs["images"] == 4
        assert certificate.inputs["photograph"] == "twinlens/catalogue/assets/cat.jpg, the last image"

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_rounded_folders(self, siglip: tuple[Path, Path], dtype: Any, tmp_path: Path) -> None:
        convert(siglip[0], tmp_path / "rounded", image_size=44, dtype=dtype, verify=False)
        certificate = verify(siglip[0], tmp_path / "rounded")
        assert certificate.passed
        assert [item.checked for item in certificate.comparisons] == [True, False, True]
        assert f"rounded to {dtype}" in certificate.notes[-1]
        assert not all(output.passed for output in certificate.comparisons[1].outputs)

    def test_a_changed_weight_fails(self, siglip: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
        source, folder = siglip[0], shutil.copytree(siglip[1], tmp_path / "folder")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        weights["text_model.encoder.layers.0.mlp.fc1.bias"][3] += 0.01
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        certificate = verify(source, folder)
        assert not certificate.passed
        assert certificate.notes[0].startswith("1 of ")
        code, output, errors = run("verify", source, folder, "--json")
        assert (code, errors) == (1, "")
        assert json.loads(output)["verdict"] == "fail"
        code, output, _ = run("verify", source, folder)
        assert code == 1
        assert "FAIL" in output
        assert "weights are not those of the source: text_model.encoder.layers.0.mlp.fc1.bias" in output

    @pytest.mark.parametrize(
        ("tower", "name", "value"),
        [
            ("vision_config", "layer_norm_eps", 1e-5),
            ("text_config", "hidden_act", "gelu"),
            ("text_config", "num_attention_heads", 1),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_changed_setting_fails(
        self, siglip: tuple[Path, Path], tower: str, name: str, value: Any, dtype: Any, tmp_path: Path
    ) -> None:
        convert(siglip[0], tmp_path / "other", image_size=44, dtype=dtype, verify=False)
        file = tmp_path / "other" / "config.json"
        config = json.loads(file.read_text())
        assert config[tower][name] != value
        config[tower][name] = value
        file.write_text(json.dumps(config))
        assert not verify(siglip[0], tmp_path / "other").passed

    def test_a_missing_weight_fails(self, siglip: tuple[Path, Path], tmp_path: Path) -> None:
        folder = shutil.copytree(siglip[1], tmp_path / "folder")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        del weights["text_model.head.weight"]
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        certificate = verify(siglip[0], folder)
        assert not certificate.passed
        assert "weights are not those of the source: text_model.head.weight" in certificate.notes[0]

    def test_refusals(self, clip: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"has no config.json, expected a folder that twinlens convert"):
            verify(clip[0], tmp_path)
        code, _, errors = run("verify", tmp_path / "nothing.pt", clip[1])
        assert code == 1
        assert "nothing.pt: no such file" in errors
        assert errors.count("\n") == 1


class TestPlot:
    @pytest.mark.parametrize("suffix", [".png", ".svg"])
    def test_every_layer_is_drawn(self, clip: tuple[Path, Path], suffix: str, run: Run, tmp_path: Path) -> None:
        source, folder = clip
        file = tmp_path / f"parity{suffix}"
        assert run("verify", source, folder, "--plot", file)[0] == 0
        if suffix == ".png":
            with Image.open(file) as image:
                assert image.width > 1000
                assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 50
        else:
            drawing = file.read_text()
            for text in ("layer 2", "image tower", "text tower", "tolerance", "twinlens / transformers"):
                assert f"<!-- {text} -->" in drawing

    def test_failures_are_drawn(self, clip: tuple[Path, Path], tmp_path: Path) -> None:
        certificate = json.loads((clip[1] / "parity.json").read_text())
        certificate["verdict"] = "fail"
        large, unmeasured = certificate["comparisons"][0]["outputs"][:2]
        large |= {"scaled_error": 5.0, "passed": False}
        unmeasured |= {"scaled_error": None, "passed": False}
        plot_certificate(certificate, tmp_path / "parity.svg")
        drawing = (tmp_path / "parity.svg").read_text()
        assert "<!-- failed -->" in drawing
        assert "<!-- $10^{1}$ -->" in drawing  # the axis goes as far as the largest error

    def test_refusals(self, clip: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        certificate = json.loads((clip[1] / "parity.json").read_text())
        with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf file, got .*parity\.jpg"):
            plot_certificate(certificate, tmp_path / "parity.jpg")
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[plots\]'"):
            plot_certificate(certificate, tmp_path / "parity.png")


class TestOriginalCode:
    def test_openai_clip(self, clip: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        package: Any = ModuleType("clip")
        package.model = released_module("openai-clip==1.0.1", "clip/model.py")
        monkeypatch.setitem(sys.modules, "clip", package)
        monkeypatch.setitem(sys.modules, "clip.model", package.model)
        original = importlib.import_module("twinlens.parity.original")
        monkeypatch.setattr(original, "version", {"openai-clip": "1.0.1"}.__getitem__)
        certificate = verify(*clip, reference="original")
        assert certificate.passed
        three_ways = [(item.subject, item.reference) for item in certificate.comparisons[-2:]]
        assert three_ways == [("twinlens", "openai-clip 1.0.1"), ("openai-clip 1.0.1", "float64")]
        for comparison in certificate.comparisons[-2:]:
            assert [output.name for output in comparison.outputs] == ["image.embeds", "text.embeds", "logits_per_image"]
            assert all(output.passed for output in comparison.outputs)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # TorchScript's own
    @pytest.mark.filterwarnings("ignore:`torch.jit")
    def test_torchscript_archive_runs_itself(self, tmp_path: Path) -> None:
        """A real archive: OpenAI's own class, compiled with its methods as in their releases."""
        module = released_module("openai-clip==1.0.1", "clip/model.py")
        geometry = {name: TINY_CLIP[name] for name in ("width", "text_width")}
        tensors = openai_tensors(**TINY_CLIP, half=False)
        write_openai(tmp_path / "plain.pt", container="torch", **TINY_CLIP, half=False)
        config = read_checkpoint(tmp_path / "plain.pt").config
        vision, text = config.vision_config, config.text_config
        assert (vision.hidden_size, text.hidden_size) == tuple(geometry.values())
        model = module.CLIP(
            config.projection_dim, vision.image_size, vision.num_hidden_layers, vision.hidden_size, vision.patch_size,
            text.max_position_embeddings, text.vocab_size, text.hidden_size, text.num_attention_heads,
            text.num_hidden_layers,
        ).eval()  # fmt: skip
        for name in ("input_resolution", "context_length", "vocab_size"):
            if hasattr(model, name):
                delattr(model, name)
            model.register_buffer(name, torch.tensor(int(tensors[name])))
        model.load_state_dict(tensors)
        pixels = torch.zeros(2, 3, vision.image_size, vision.image_size)
        ids = torch.zeros(2, text.max_position_embeddings, dtype=torch.long)
        inputs = {"forward": (pixels, ids), "encode_image": pixels, "encode_text": ids}
        torch.jit.save(torch.jit.trace_module(model, inputs, check_trace=False), tmp_path / "clip.pt")
        convert(tmp_path / "clip.pt", tmp_path / "folder")
        certificate = verify(tmp_path / "clip.pt", tmp_path / "folder", reference="original")
        assert certificate.passed
        assert certificate.comparisons[-1].subject == "its own TorchScript code"

    def test_open_clip(self, tmp_path: Path) -> None:
        tensors = openai_tensors(**TINY_CLIP, half=False, integers=False)
        source = tmp_path / "open_clip_model.safetensors"
        write_beside(source, tensors, "safetensors", "open_clip_config.json", {"model_cfg": TINY_CLIP_JSON})
        convert(source, tmp_path / "folder")
        names = ("open_clip_torch==3.3.0", "timm==1.0.31", "torchvision==0.28.0")
        packages = [released_package(name) for name in names]
        log = tmp_path / "log"
        process = start(open_clip_models.verify_folder, packages, source, tmp_path / "folder", output=log)
        assert finish(process) == 0, log.read_text()
        assert log.read_text().endswith("True open_clip_torch 3.3.0\n")

    def test_without_one(self, siglip: tuple[Path, Path]) -> None:
        with pytest.raises(ValueError, match="No installable package runs big_vision checkpoints"):
            verify(*siglip, reference="original")


class TestNames:
    def test_list(self, run: Run) -> None:
        lines = run("list")[1].splitlines()
        assert any(line.startswith("ViT-B/32 ") and " 151M " in line for line in lines)
        rows = json.loads(run("list", "--json")[1])
        assert {row["name"] for row in rows} >= {"ViT-B/32", "siglip-base-patch16-224"}

    def test_a_named_checkpoint_is_held_to_its_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_big_vision(tmp_path / "file.npz", **{**TINY_SIGLIP, "patch": 14})
        config = read_checkpoint(tmp_path / "file.npz").config
        towers = [
            Tower(part.hidden_size, part.num_hidden_layers, part.num_attention_heads, part.intermediate_size)
            for part in (config.vision_config, config.text_config)
        ]
        text = config.text_config
        row = replace(
            official_checkpoint("siglip-base-patch16-224"), image=towers[0], text=towers[1], patch=14, image_size=44,
            embedding=text.projection_size, text_length=text.max_position_embeddings,
            vocabulary=Vocabulary("tiny", text.vocab_size, 1, None, None, ""),
        )  # fmt: skip
        source = importlib.import_module("twinlens.formats.source")
        monkeypatch.setattr(source, "resolve_source", lambda name, progress: (tmp_path / "file.npz", row))
        convert(row.name, tmp_path / "folder")
        assert verify(row.name, tmp_path / "folder").passed
        assert json.loads((tmp_path / "folder" / "preprocessor_config.json").read_text())["size"]["height"] == 44
        assert f"base_model: google/{row.name}" in (tmp_path / "folder" / "README.md").read_text()
        other = replace(row, text_length=text.max_position_embeddings + 1)
        monkeypatch.setattr(source, "resolve_source", lambda name, progress: (tmp_path / "file.npz", other))
        with pytest.raises(ValueError, match=f"not the official {row.name}: text length 16, expected 17"):
            convert(row.name, tmp_path / "wrong")
        assert not (tmp_path / "wrong").exists()

    def test_unknown_names(self, run: Run, tmp_path: Path) -> None:
        code, _, errors = run("convert", "ViT-B/31", tmp_path / "folder")
        assert code == 1
        assert "no such file" in errors
        assert "ViT-B/32" in errors


class TestNaFlex:
    """The model that big_vision itself ran (see fixtures/README.md)."""

    def test_every_kind_of_grid_is_measured(self, naflex: tuple[Path, Path]) -> None:
        certificate = json.loads((naflex[1] / "parity.json").read_text())
        assert certificate["verdict"] == "pass"
        grids = certificate["inputs"]["grids"]
        assert len(grids) == certificate["inputs"]["images"] == 8
        assert {(4, 4), (1, 16), (16, 1), (1, 1), (3, 5)} <= {tuple(grid) for grid in grids}
        assert any("a single column of patches" in note for note in certificate["notes"])
        assert certificate["preprocessing"]["images"]["reference"].startswith("big_vision's value_range and resize_to_")
        card = (naflex[1] / "README.md").read_text()
        assert "# SigLIP 2 NaFlex converted from `checkpoint.npz`" in card
        assert "rounds to levels of 0..255 as it resizes" in card

    @pytest.mark.skipif(places_one_column(), reason="this transformers is right for a single column")
    def test_transformers_is_wrong_for_a_single_column(self, naflex: tuple[Path, Path]) -> None:
        """So that the certificate leaves such images out of this comparison, and out of this one only."""
        source, folder = naflex
        assert verify(source, folder).passed
        checkpoint = read_checkpoint(source)
        model = partial(transformers.Siglip2Model.from_pretrained, folder)
        subjects = [model_subject("transformers", model, misplaces_columns=skipped) for skipped in (True, False)]
        pairings = [Pairing(subject, reference_subject(checkpoint)) for subject in subjects]
        without, with_column = measure(checkpoint, pairings).comparisons
        assert without.passed
        errors = {output.name: output.error for output in with_column.outputs}
        assert errors["logits_per_image"] > 0.1  # the tolerance is 1e-4
        assert errors["text.embeds"] < 5e-6

    @pytest.mark.thorough
    def test_a_changed_position_fails(self, naflex: tuple[Path, Path], tmp_path: Path) -> None:
        folder = shutil.copytree(naflex[1], tmp_path / "folder")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        weights["vision_model.embeddings.position_embedding.weight"][5, 3] += 0.01
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        certificate = verify(naflex[0], folder)
        assert not certificate.passed
        assert not certificate.comparisons[0].outputs[0].passed

    @pytest.mark.thorough
    def test_another_number_of_patches_is_no_other_model(self, naflex: tuple[Path, Path], tmp_path: Path) -> None:
        """It is a setting of the processor, which the certificate measures as it is."""
        folder = shutil.copytree(naflex[1], tmp_path / "folder")
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"max_num_patches": 100}))
        certificate = verify(naflex[0], folder)
        assert certificate.passed
        file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 3}))
        certificate = verify(naflex[0], folder)
        assert not certificate.passed
        assert certificate.preprocessing is not None
        assert not certificate.preprocessing.passed
