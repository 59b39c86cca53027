"""The way back: every official file through a folder bit by bit, and what is written or refused without a memory."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.builders import (
    TINY_CLIP,
    TINY_CLIP_JSON,
    TINY_SIGLIP,
    big_vision_tensors,
    open_clip_tensors,
    openai_tensors,
    write_beside,
    write_big_vision,
    write_openai,
)
from helpers.checkpoints import CASES, assert_same, bits, read, write
from helpers.released_files import released_module
from torch import Tensor

import twinlens
from twinlens.conversion import convert, export
from twinlens.formats import FormatError, read_checkpoint
from twinlens.formats.reader import read_files

BACK_DAILY = [
    *(
        "archive",
        "state-dict-legacy",
        "state-dict-safetensors",
        "v1",
        "v2-scanned",
        "bfloat16-scanned-no-head",
        "old-no-head",
        "naflex",
    ),
    *("open_clip", "open_clip-training", "open_clip-siglip-no-head", "transformers-clip", "transformers-siglip"),
]
BACK_THOROUGH = [pytest.param(case, marks=pytest.mark.thorough) for case in CASES if case not in [*BACK_DAILY, "timm"]]
SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors"}


def tensors_of(path: Path) -> Mapping[str, Tensor]:
    return read_files([path])[1]


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A CLIP converted from an archive, which forgot that."""
    write_openai(tmp_path / "clip.pt", **TINY_CLIP)
    convert(tmp_path / "clip.pt", tmp_path / "clip", verify=False)
    (tmp_path / "clip" / "official_layout.json").unlink()
    return tmp_path / "clip"


@pytest.fixture
def siglip_folder(tmp_path: Path) -> Path:
    """A SigLIP converted from a scanned checkpoint without a prefix, which forgot that."""
    write_big_vision(tmp_path / "siglip.npz", **TINY_SIGLIP, scan_text=True, prefix="")
    convert(tmp_path / "siglip.npz", tmp_path / "siglip", verify=False)
    (tmp_path / "siglip" / "official_layout.json").unlink()
    return tmp_path / "siglip"


class TestBackToTheSource:
    @pytest.mark.parametrize("case", [*BACK_DAILY, *BACK_THOROUGH])
    def test_bit_by_bit(self, case: str, tmp_path: Path) -> None:
        source = tmp_path / "source"
        written = write(source, case)
        checkpoint = read(source, case)
        convert(source, tmp_path / "folder", verify=False, **checkpoint.options)
        container = checkpoint.layout.container
        (tmp_path / "out").mkdir()
        target = tmp_path / "out" / f"weights{SUFFIXES.get(container, '.pt')}"
        files = export(tmp_path / "folder", target, format=checkpoint.format)  # type: ignore[arg-type]
        assert sorted(files) == sorted(target.parent.iterdir())
        assert read_files([target])[0] == container
        assert_same(bits(tensors_of(target)), bits(written))
        if (beside := tmp_path / "open_clip_config.json").is_file():
            model = json.loads((target.parent / beside.name).read_text())["model_cfg"]
            assert model == json.loads(beside.read_text())["model_cfg"]

    @pytest.mark.parametrize("case", ["archive", "bfloat16", "old"])
    def test_weights_that_were_trained_on(self, case: str, tmp_path: Path) -> None:
        write(tmp_path / "source", case)
        folder = tmp_path / "folder"
        convert(tmp_path / "source", folder, verify=False)
        model = twinlens.DualEncoderModel.from_pretrained(folder)
        with torch.no_grad():
            model.text_model.embeddings.position_embedding.weight += 1
        model.save_pretrained(folder)
        format = read_checkpoint(tmp_path / "source").format
        target = tmp_path / ("again.npz" if format == "big_vision" else "again.pt")
        export(folder, target, format=format, dtype="float32")  # type: ignore[arg-type]
        again = read_checkpoint(target).state_dict()
        for name, weight in model.state_dict().items():
            assert torch.equal(again[name], weight), name


class TestReleasedLayouts:
    def test_openai(self, clip_folder: Path, tmp_path: Path) -> None:
        """The names, dtypes and integers of the released files, and the numbers of the official code."""
        export(clip_folder, tmp_path / "out.pt", format="openai")
        assert_same(tensors_of(tmp_path / "out.pt"), openai_tensors(**TINY_CLIP))
        official = released_module("openai-clip==1.0.1", "clip/model.py").build_model(torch.load(tmp_path / "out.pt"))
        pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(1, 90, (3, 12))
        ids[:, 7] = 98
        model = twinlens.DualEncoderModel.from_pretrained(clip_folder)
        with torch.no_grad():
            theirs = official.float()(pixels, ids)[0]
            ours = model(pixel_values=pixels, input_ids=ids).logits_per_image
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)

    def test_big_vision(self, siglip_folder: Path, tmp_path: Path) -> None:
        export(siglip_folder, tmp_path / "out.npz", format="big_vision")
        expected = big_vision_tensors(**TINY_SIGLIP)
        assert_same(tensors_of(tmp_path / "out.npz"), expected)

    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_transformers(self, family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        folder = request.getfixturevalue(f"{family}_folder")
        export(folder, tmp_path / "model.safetensors", format="transformers", dtype="bfloat16")
        exported, kept = tensors_of(tmp_path / "model.safetensors"), tensors_of(folder / "model.safetensors")
        assert_same(bits(exported), bits({name: tensor.bfloat16() for name, tensor in kept.items()}))

    def test_folder_of_transformers_alone(self, tmp_path: Path) -> None:
        sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "num_hidden_layers": 1}
        config = transformers.CLIPConfig(
            vision_config={**sizes, "image_size": 32, "patch_size": 16},
            text_config={
                **sizes,
                "vocab_size": 99,
                "max_position_embeddings": 12,
                "eos_token_id": 98,
                "bos_token_id": 97,
            },
        )
        model = transformers.CLIPModel(config)
        model.save_pretrained(tmp_path / "folder")
        export(tmp_path / "folder", tmp_path / "out.safetensors", format="openai", dtype="float32")
        assert_same(read_checkpoint(tmp_path / "out.safetensors").state_dict(), dict(model.state_dict()))


class TestRefusals:
    @pytest.mark.parametrize(
        ("family", "arguments", "error", "message"),
        [
            ("clip", {"format": "big_vision"}, FormatError, "big_vision files hold siglip or siglip2 models"),
            ("siglip", {"format": "openai"}, FormatError, "openai files hold clip or clip_resnet models"),
            ("siglip", {"format": "open_clip"}, FormatError, "SigLIP's image towers by timm's names, and none .* 48,"),
            ("clip", {"format": "flax"}, ValueError, "format must be one of openai, .* got 'flax'"),
            ("clip", {"format": "openai", "dtype": "int8"}, ValueError, "dtype must be one of float32, .* got 'int8'"),
            ("clip", {"format": "openai", "file": "a.npz"}, ValueError, r"named \*.safetensors or \*.pt .* got a.npz"),
            ("siglip", {"format": "big_vision", "file": "a.pt"}, ValueError, r"big_vision format is named \*.npz, got"),
        ],
    )
    def test_arguments(
        self,
        family: str,
        arguments: dict[str, Any],
        error: type,
        message: str,
        request: pytest.FixtureRequest,
        tmp_path: Path,
    ) -> None:
        folder = request.getfixturevalue(f"{family}_folder")
        before = sorted(tmp_path.iterdir())
        suffix = ".npz" if arguments["format"] == "big_vision" else ".pt"
        file = tmp_path / arguments.pop("file", f"out{suffix}")
        with pytest.raises(error, match=message):
            export(folder, file, **arguments)
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize(
        ("family", "tower", "name", "value", "format"),
        [
            ("clip", "vision_config", "hidden_act", "gelu", "openai"),
            ("clip", "text_config", "layer_norm_eps", 1e-6, "openai"),
            ("clip", "vision_config", "num_attention_heads", 4, "openai"),
            ("clip", "text_config", "hidden_act", "gelu", "open_clip"),
            ("siglip", "text_config", "hidden_act", "gelu", "big_vision"),
            ("siglip", "vision_config", "layer_norm_eps", 1e-5, "big_vision"),
        ],
    )
    def test_what_the_format_cannot_express(
        self,
        family: str,
        tower: str,
        name: str,
        value: Any,
        format: Any,
        request: pytest.FixtureRequest,
        tmp_path: Path,
    ) -> None:
        folder = request.getfixturevalue(f"{family}_folder")
        config = json.loads((folder / "config.json").read_text())
        config[tower][name] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(FormatError, match=rf"{format} cannot express .* {tower}.{name} would be .* is {value}"):
            export(folder, tmp_path / ("out.npz" if format == "big_vision" else "out.pt"), format=format)

    def test_existing_files(self, clip_folder: Path, tmp_path: Path) -> None:
        for name in ("out.pt", "open_clip_config.json"):
            (tmp_path / name).write_text("precious")
            with pytest.raises(FileExistsError, match=rf"{name} exists.*--overwrite"):
                export(clip_folder, tmp_path / "out.pt", format="open_clip")
            assert (tmp_path / name).read_text() == "precious"
            export(clip_folder, tmp_path / "out.pt", format="open_clip", overwrite=True)
            (tmp_path / "out.pt").unlink()
        weights = clip_folder / "model.safetensors"
        with pytest.raises(FileExistsError, match="holds the weights to be exported"):
            export(clip_folder, weights, format="openai", overwrite=True)

    def test_open_clip_into_one_folder(self, clip_folder: Path, tmp_path: Path) -> None:
        """Files of one model share a JSON; that of another model is refused by name, and replaced when told."""
        out = tmp_path / "out"
        for name in ("first.safetensors", "second.pt"):
            export(clip_folder, out / name, format="open_clip")
        json_file = out / "open_clip_config.json"
        before = json_file.read_bytes()
        assert_same(read_checkpoint(out / "second.pt").state_dict(), read_checkpoint(clip_folder).state_dict())
        config = json.loads((clip_folder / "config.json").read_text())
        config["text_config"]["eos_token_id"] = 90
        (clip_folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(FileExistsError, match=r"open_clip_config.json exists and describes another model.*--over"):
            export(clip_folder, out / "third.pt", format="open_clip")
        assert json_file.read_bytes() == before
        assert sorted(path.name for path in out.iterdir()) == sorted([json_file.name, "first.safetensors", "second.pt"])
        export(clip_folder, out / "second.pt", format="open_clip", overwrite=True)
        text_cfg = json.loads(json_file.read_text())["model_cfg"]["text_cfg"]
        assert (text_cfg["pool_type"], text_cfg["eos_id"]) == ("eos", 90)

    def test_added_tokens(self, clip_folder: Path, tmp_path: Path) -> None:
        """OpenAI's code pools the highest id. open_clip can be told the end, also by a JSON that said nothing."""
        config = json.loads((clip_folder / "config.json").read_text())
        config["text_config"]["eos_token_id"] = 95
        (clip_folder / "config.json").write_text(json.dumps(config))
        message = r"a text would end at its highest id, this model's at id 95 \(text_config.eos_token_id\)"
        with pytest.raises(FormatError, match=f"openai cannot express .* {message}"):
            export(clip_folder, tmp_path / "out.pt", format="openai")
        export(clip_folder, tmp_path / "out" / "a.safetensors", format="open_clip")
        assert read_checkpoint(tmp_path / "out" / "a.safetensors").config.text_config.eos_token_id == 95
        write_beside(
            tmp_path / "b.pt",
            open_clip_tensors(**TINY_CLIP),
            "torch",
            "open_clip_config.json",
            {"model_cfg": TINY_CLIP_JSON},
        )
        convert(tmp_path / "b.pt", tmp_path / "b", verify=False, eos_token_id=95)
        export(tmp_path / "b", tmp_path / "back" / "b.pt", format="open_clip")
        assert read_checkpoint(tmp_path / "back" / "b.pt").config.text_config.eos_token_id == 95

    def test_half_written(self, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_space(*arguments: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(importlib.import_module("twinlens.conversion.export"), "write_tensors", no_space)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(OSError, match=r"Writing .*out.pt failed: No space left on device"):
            export(clip_folder, tmp_path / "out.pt", format="open_clip")
        assert sorted(tmp_path.iterdir()) == before

    def test_values_beyond_the_range(self, clip_folder: Path, tmp_path: Path) -> None:
        model = twinlens.DualEncoderModel.from_pretrained(clip_folder)
        with torch.no_grad():
            model.visual_projection.weight[0, 0] = 1e5
        model.save_pretrained(clip_folder)
        with pytest.raises(ValueError, match=r"visual.proj has values beyond the range of torch.float16"):
            export(clip_folder, tmp_path / "out.pt", format="openai")
        export(clip_folder, tmp_path / "out.pt", format="openai", dtype="float32")

    def test_forged_memory(self, clip_folder: Path, tmp_path: Path) -> None:
        (clip_folder / "official_layout.json").write_text('{"format": "openai", "container": 3}')
        with pytest.raises(FormatError, match="the layout is not sound"):
            export(clip_folder, tmp_path / "out.pt", format="openai")
