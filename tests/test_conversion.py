"""Conversion: the folder and its proof, mistakes that must not pass, and refusals that must leave nothing behind."""

import copy
import importlib
import io
import json
import math
import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from helpers.builders import TINY_CLIP, TINY_SIGLIP, openai_tensors, write_big_vision, write_npz, write_openai
from helpers.checkpoints import assert_same
from helpers.processes import finish, start
from helpers.text_corpus import official_siglip, trained_sentencepiece
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

import twinlens.processing
from twinlens.catalogue import PHOTOGRAPH
from twinlens.conversion import ParityError, convert
from twinlens.formats import Checkpoint, FormatError, inspect_source, read_checkpoint
from twinlens.formats.reader import read_files
from twinlens.modeling import DualEncoderModel
from twinlens.parity import Certificate, certify

CLIP: dict[str, dict[str, Any]] = {
    "archive": {"container": "torchscript"},
    "archive-float32": {"container": "torchscript", "half": False},
    "state-dict": {"container": "torch"},
    "state-dict-safetensors": {"container": "safetensors"},
}
SIGLIP: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2-scanned": {"scan_image": True, "scan_text": True},
    "text-scanned": {"scan_text": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "old": {"prefix": "", "old_positions": True},
    "no-head": {"head": False},
    "patch-14": {"patch": 14},
    "unequal-widths": {"text_width": 32, "text_heads": 2},
    "text-length-64": {"text_length": 64},
    "naflex": {"naflex": True, "scan_image": True},
}


# The layouts that take a sample, and all of them under --thorough.
LAYOUTS = ("archive", "state-dict-safetensors", "v1", "v2-scanned", "old", "no-head", "patch-14")


def write(path: Path, case: str) -> Path:
    if case in CLIP:
        write_openai(path, **{**TINY_CLIP, **CLIP[case]})
    else:
        write_big_vision(path, **{**TINY_SIGLIP, **SIGLIP[case]})
    return path


def native_class(config: Any) -> Any:
    families = {
        "clip": transformers.CLIPModel,
        "siglip": transformers.SiglipModel,
        "siglip2": transformers.Siglip2Model,
    }
    return families[config.model_type]


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    return write(tmp_path / "clip.pt", "archive")


@pytest.fixture
def siglip_file(tmp_path: Path) -> Path:
    return write(tmp_path / "siglip.npz", "v1")


@pytest.fixture(params=["archive", "v1"], ids=["clip", "siglip"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoint", request.param)


class TestFolder:
    @pytest.mark.parametrize(
        "case",
        [case if case in LAYOUTS else pytest.param(case, marks=pytest.mark.thorough) for case in (*CLIP, *SIGLIP)],
    )
    def test_every_layout_converts_and_loads_in_plain_transformers(self, case: str, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        certificate = convert(write(tmp_path / "checkpoint", case), folder)
        assert certificate.passed

        ours = DualEncoderModel.from_pretrained(folder)
        theirs = native_class(ours.config).from_pretrained(folder)
        vision = ours.config.vision_config
        if vision.flexible_size:
            images = {"pixel_values": torch.randn(2, 9, 768), "spatial_shapes": torch.tensor([[3, 3], [2, 3]])}
            images["pixel_attention_mask"] = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
        else:
            images = {"pixel_values": torch.randn(2, 3, vision.image_size, vision.image_size)}
        ids = torch.randint(3, 90, (3, ours.config.text_config.max_position_embeddings))
        ids[:, -1] = ours.config.text_config.vocab_size - 1
        with torch.no_grad():
            expected = theirs(**images, input_ids=ids).logits_per_image
            logits = ours.logits(ours.encode_image(**images), ours.encode_text(ids))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)

    def test_image_size_between_whole_patches(self, tmp_path: Path) -> None:
        """Patch 14 at 384: the grid says 378; here 3 patches of 14 and 2 pixels."""
        certificate = convert(write(tmp_path / "checkpoint", "patch-14"), tmp_path / "folder", image_size=44)
        assert certificate.passed
        assert certificate.source["geometry"]["vision"]["image_size"] == 44
        assert transformers.AutoConfig.from_pretrained(tmp_path / "folder").vision_config.image_size == 44
        preprocessor = json.loads((tmp_path / "folder" / "preprocessor_config.json").read_text())
        assert preprocessor["size"] == {"height": 44, "width": 44}

    def test_clip_folder_is_complete(self, tmp_path: Path) -> None:
        write_openai(tmp_path / "clip.pt", **{**TINY_CLIP, "vocabulary": 49408})
        certificate = convert(tmp_path / "clip.pt", tmp_path / "folder")
        assert certificate.notes == ()
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / "folder")
        assert processor.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]
        assert json.loads((tmp_path / "folder" / "parity.json").read_text()) == certificate.to_dict()
        card = (tmp_path / "folder" / "README.md").read_text()
        assert certificate.markdown() in card
        assert "license: mit" in card
        assert "pipeline(" in card

    def test_siglip_without_tokenizer_takes_images_and_says_so(
        self, siglip_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        certificate = convert(siglip_file, tmp_path / "folder")
        (note,) = certificate.notes
        assert "no tokenizer" in note
        assert "--tokenizer" in note
        assert [record.message for record in caplog.records if record.name.startswith("twinlens")] == [note]
        assert note in (tmp_path / "folder" / "README.md").read_text()
        try:
            image_processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
        except ImportError:
            pytest.skip("this version of transformers has image processors only with torchvision")
        model = transformers.AutoModel.from_pretrained(tmp_path / "folder")
        pixels = image_processor(np.zeros((20, 30, 3), np.uint8), return_tensors="pt")
        assert model.get_image_features(**pixels).pooler_output.shape == (1, 48)

    def test_siglip_with_tokenizer_takes_text(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        vocabulary = tmp_path / "vocabulary.model"
        with vocabulary.open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(["a photo of a cat", "two dogs on a sofa", "the quick brown fox"] * 5),
                model_writer=file,
                vocab_size=26,
                pad_id=1,
                eos_id=0,
                unk_id=2,
                bos_id=-1,
                minloglevel=2,
            )
        write_big_vision(tmp_path / "siglip.npz", **{**TINY_SIGLIP, "vocabulary": 26})
        convert(tmp_path / "siglip.npz", tmp_path / "folder", tokenizer=vocabulary)
        assert not [record for record in caplog.records if record.name.startswith("twinlens")]
        assert "pipeline(" in (tmp_path / "folder" / "README.md").read_text()

        processor = twinlens.processing.DualEncoderProcessor.from_pretrained(tmp_path / "folder")
        ids = processor(text=["a cat"])["input_ids"]
        assert ids.shape == (1, TINY_SIGLIP["text_length"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
        assert tokenizer(["a cat"], padding="max_length").input_ids == ids.tolist()

    def test_unverified_folder_says_so(self, source: Path, tmp_path: Path) -> None:
        assert convert(source, tmp_path / "folder", verify=False) is None
        assert "Not measured" in (tmp_path / "folder" / "README.md").read_text()
        assert not (tmp_path / "folder" / "parity.json").exists()

    def test_whoever_reads_one_file_reads_all(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "folder", verify=False)
        assert len({path.stat().st_mode for path in (tmp_path / "folder").iterdir()}) == 1

    def test_stored_weights_are_the_files(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "folder", verify=False)
        checkpoint = read_checkpoint(source)
        stored = native_class(checkpoint.config).from_pretrained(tmp_path / "folder").state_dict()
        for name, weight in checkpoint.state_dict().items():
            assert torch.equal(stored[name], weight.float()), name

    @pytest.mark.parametrize(
        ("case", "dtype"),
        [("archive", "float32"), ("v1", "float32"), ("v2-scanned", "bfloat16"), ("no-head", "float16")],
    )
    def test_model_is_what_save_pretrained_writes(self, case: str, dtype: Any, tmp_path: Path) -> None:
        source = write(tmp_path / "checkpoint", case)
        convert(source, tmp_path / "folder", dtype=dtype, verify=False)
        DualEncoderModel.from_pretrained(source, dtype=getattr(torch, dtype)).save_pretrained(tmp_path / "saved")
        assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}
        for path in (tmp_path / "saved").iterdir():
            assert (tmp_path / "folder" / path.name).read_bytes() == path.read_bytes(), path.name

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: weights.pop("logit_scale"), r"needs 1 more weights, logit_scale among them"),
            (lambda weights: weights.update(logit=torch.zeros(1)), r"logit has shape \(1,\), expected no such weight"),
            (lambda weights: weights.update(logit_scale=torch.zeros(2)), r"logit_scale has shape \(2,\), expected"),
        ],
        ids=["missing", "unexpected", "misshapen"],
    )
    def test_weights_fill_the_model_exactly(
        self, change: Callable[..., Any], message: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights = read_checkpoint(source).state_dict()
        change(weights)
        monkeypatch.setattr(Checkpoint, "weights", lambda self: iter(weights.items()))
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "folder", verify=False)
        assert not (tmp_path / "folder").exists()


class TestDType:
    def test_mixed_file_is_stored_in_float32(self, clip_file: Path, tmp_path: Path) -> None:
        convert(clip_file, tmp_path / "folder", verify=False)
        assert inspect_source(tmp_path / "folder")["dtypes"].keys() == {"float32"}

    def test_rounding_is_measured_but_not_checked(self, clip_file: Path, tmp_path: Path) -> None:
        certificate = convert(clip_file, tmp_path / "folder", dtype="bfloat16")
        assert certificate.passed
        rounding = certificate.comparisons[1]
        assert not rounding.checked
        assert rounding.worst_layers["logits_per_image"].error > 1e-3
        assert "rounded to bfloat16" in certificate.notes[-1]
        assert inspect_source(tmp_path / "folder")["dtypes"].keys() == {"bfloat16"}

    def test_keep(self, tmp_path: Path) -> None:
        certificate = convert(write(tmp_path / "checkpoint", "bfloat16"), tmp_path / "folder", dtype="keep")
        assert all(comparison.checked for comparison in certificate.comparisons)
        assert inspect_source(tmp_path / "folder")["dtypes"].keys() == {"bfloat16"}

    def test_keep_needs_one_dtype(self, clip_file: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"dtype keep needs a file with one dtype, .* has float16, float32"):
            convert(clip_file, tmp_path / "folder", dtype="keep")

    def test_unknown(self, clip_file: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"dtype must be one of float32, .*, got 'int8'"):
            convert(clip_file, tmp_path / "folder", dtype="int8")  # type: ignore[call-overload]

    def test_values_beyond_the_range(self, tmp_path: Path) -> None:
        tensors = openai_tensors(**TINY_CLIP, half=False)
        tensors["visual.class_embedding"][0] = 1e5
        torch.save(tensors, tmp_path / "checkpoint")
        with pytest.raises(ValueError, match=r"class_embedding has values beyond the range of torch.float16"):
            convert(tmp_path / "checkpoint", tmp_path / "folder", dtype="float16")
        assert not (tmp_path / "folder").exists()


def swap_query_and_key(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    swapped = {".q_proj.": ".k_proj.", ".k_proj.": ".q_proj."}
    part = next(name for name in weights if "layers.1.self_attn.q_proj.weight" in name)
    other = part.replace(".q_proj.", swapped[".q_proj."])
    return weights | {part: weights[other], other: weights[part]}


def transpose(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: weights | {name: weights[name].T.contiguous()}


def zero(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: weights | {name: torch.zeros_like(weights[name])}


ATTENTION = "vision_model.encoder.layers.0.self_attn"
CLIP_MISTAKES = {
    "transposed kernel": transpose(f"{ATTENTION}.out_proj.weight"),
    "swapped query and key": swap_query_and_key,
    "missing key bias": zero("text_model.encoder.layers.1.self_attn.q_proj.bias"),
    "missing MLP bias": zero("text_model.encoder.layers.1.mlp.fc2.bias"),
    "missing positions": zero("text_model.embeddings.position_embedding.weight"),
    "missing scale": zero("logit_scale"),
}
SIGLIP_MISTAKES = {
    "transposed kernel": transpose(f"{ATTENTION}.out_proj.weight"),
    "transposed pooling kernel": transpose("vision_model.head.attention.out_proj.weight"),
    "transposed text head": transpose("text_model.head.weight"),
    "swapped query and key": swap_query_and_key,
    "missing patch bias": zero("vision_model.embeddings.patch_embedding.bias"),
    "missing pooling bias": zero("vision_model.head.mlp.fc2.bias"),
    "missing bias of the logits": zero("logit_bias"),
}
SETTINGS = {
    "archive": {
        "eps of SigLIP": {"layer_norm_eps": 1e-6},
        "exact GELU": {"hidden_act": "gelu"},
        "tanh GELU": {"hidden_act": "gelu_pytorch_tanh"},
    },
    "v1": {
        "eps of CLIP": {"layer_norm_eps": 1e-5},
        "exact GELU": {"hidden_act": "gelu"},
        "quick GELU": {"hidden_act": "quick_gelu"},
        "heads of another width": {"num_attention_heads": 4},
    },
}
TOWERS = ("text_config", "vision_config")


class TestMistakes:
    """Deliberate mistakes in an otherwise sound conversion: each must exceed a tolerance of what users see."""

    @staticmethod
    def assert_refused(source: Path) -> None:
        folder = source.parent / "folder"
        with pytest.raises(ParityError, match=r"The conversion is wrong: .* the tolerance is .*--no-verify") as failure:
            convert(source, folder)
        assert sorted(source.parent.iterdir()) == [source]
        summary = failure.value.certificate.comparisons[0].worst_layers
        assert not all(summary[name].passed for name in ("image.embeds", "text.embeds", "logits_per_image"))

    @pytest.mark.parametrize(
        ("case", "mistake"),
        [
            *(pytest.param("archive", mistake, id=f"clip-{name}") for name, mistake in CLIP_MISTAKES.items()),
            *(pytest.param("v1", mistake, id=f"siglip-{name}") for name, mistake in SIGLIP_MISTAKES.items()),
        ],
    )
    def test_in_the_weights(
        self, case: str, mistake: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sound = Checkpoint.weights
        monkeypatch.setattr(Checkpoint, "weights", lambda self: iter(mistake(dict(sound(self))).items()))
        self.assert_refused(write(tmp_path / "checkpoint", case))

    @pytest.mark.parametrize(
        ("case", "tower", "settings"),
        [
            *(
                pytest.param(
                    *(case, tower, settings),
                    id=f"{case}-{tower}-{name}",
                    marks=[pytest.mark.thorough] * ((number + TOWERS.index(tower)) % 2),  # a sample: one tower of each
                )
                for case, mistakes in SETTINGS.items()
                for number, (name, settings) in enumerate(mistakes.items())
                for tower in TOWERS
            ),
            pytest.param("archive", "text_config", {"eos_token_id": 5}, id="archive-end of text"),
            pytest.param("archive", "vision_config", {"num_attention_heads": 1}, id="archive-one wide head"),
        ],
    )
    def test_in_the_settings(
        self, case: str, tower: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def mistaken(path: Path, **kwargs: Any) -> Checkpoint:
            checkpoint = read_checkpoint(path, **kwargs)
            for name, value in settings.items():
                setattr(getattr(checkpoint.config, tower), name, value)
            return checkpoint

        monkeypatch.setattr(importlib.import_module("twinlens.formats.source"), "read_checkpoint", mistaken)
        self.assert_refused(write(tmp_path / "checkpoint", case))

    @pytest.mark.parametrize(
        ("case", "tower", "pooling"),
        [
            ("archive", "CLIPTextConfig", "last_token"),
            ("archive", "CLIPVisionConfig", "last_token"),
            ("v1", "SiglipTextConfig", "class_token"),
            ("v1", "SiglipVisionConfig", "class_token"),
        ],
    )
    def test_in_the_pooling(
        self, case: str, tower: str, pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint = read_checkpoint(write(tmp_path / "checkpoint", case))
        model = DualEncoderModel.from_pretrained(checkpoint.path)
        assert certify(checkpoint, model).passed
        monkeypatch.setattr(getattr(twinlens, tower), "pooling", pooling)
        assert not certify(checkpoint, model).passed

    def test_doubled_positions_added_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write(tmp_path / "checkpoint", "old")
        positions = read_checkpoint(source).tensors["txt/pos_embedding"][0]
        name = "text_model.embeddings.position_embedding.weight"
        sound = Checkpoint.weights
        monkeypatch.setattr(Checkpoint, "weights", lambda self: iter((dict(sound(self)) | {name: positions}).items()))
        self.assert_refused(source)


class TestCertificate:
    @pytest.fixture
    def certificate(self, source: Path) -> Certificate:
        return certify(read_checkpoint(source), DualEncoderModel.from_pretrained(source))

    def test_every_layer_is_in_it(self, certificate: Certificate) -> None:
        (comparison,) = certificate.comparisons
        names = [output.name for output in comparison.outputs]
        for tower, layers in (("image", 3), ("text", 2)):
            states = [f"{tower}.hidden_states.{layer}" for layer in range(layers + 1)]
            outputs = [*states, *(f"{tower}.{name}" for name in ("last_hidden_state", "pooler_output", "embeds"))]
            assert [name for name in names if name.startswith(tower)] == outputs
        assert names[-1] == "logits_per_image"

    def test_is_repeatable_and_names_no_machine(self, source: Path, certificate: Certificate) -> None:
        again = certify(read_checkpoint(source), DualEncoderModel.from_pretrained(source))
        assert again == certificate
        assert str(source.parent) not in json.dumps(certificate.to_dict())

    def test_renders(self, certificate: Certificate) -> None:
        console = Console(width=200, file=io.StringIO())
        console.print(certificate.table())
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "pass" in text
        assert "FAIL" not in text
        lines = certificate.markdown().splitlines()
        assert len(lines) == 2 + len(certificate.comparisons[0].worst_layers)
        assert len({line.count("|") for line in lines}) == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_fails(self, value: float, source: Path, tmp_path: Path) -> None:
        checkpoint = read_checkpoint(source)
        model = copy.deepcopy(DualEncoderModel.from_pretrained(source))
        with torch.no_grad():
            model.get_parameter("text_model.encoder.layers.0.mlp.fc2.bias")[0] = value
        certificate = certify(checkpoint, model)
        assert not certificate.passed
        assert math.isnan(certificate.worst[1].error)
        assert "FAIL" in certificate.markdown()
        certificate.save(tmp_path / "parity.json")
        written = json.loads((tmp_path / "parity.json").read_text(), parse_constant=pytest.fail)
        assert written["verdict"] == "fail"
        assert any(output["error"] is None for output in written["comparisons"][0]["outputs"])

    def test_a_missing_layer_fails(self, source: Path) -> None:
        checkpoint = read_checkpoint(source)
        model = DualEncoderModel.from_pretrained(source)
        last = model.vision_model.encoder.layers[-1]
        model.vision_model.encoder.layers[-1] = nn.Sequential()  # type: ignore[assignment]
        model.vision_model.encoder.layers[-1].forward = lambda states, *args, **kwargs: states
        certificate = certify(checkpoint, model)
        assert last is not model.vision_model.encoder.layers[-1]
        assert not certificate.passed
        assert math.isnan(certificate.comparisons[0].outputs[3].error)

    @pytest.mark.parametrize("case", ["archive", "v1"])
    def test_massive_activations_do_not_fail(self, case: str, tmp_path: Path) -> None:
        """A channel of 1e3, as trained towers have: its float32 spacing alone is twice the tolerance."""
        source = write(tmp_path / "sound", case)
        checkpoint = read_checkpoint(source)
        tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()} | {
            **checkpoint.layout.integer_buffers
        }
        bias = {
            "archive": "visual.transformer.resblocks.0.mlp.c_proj.bias",
            "v1": "params/img/Transformer/encoderblock_0/MlpBlock_0/Dense_1/bias",
        }[case]
        tensors[bias][7] = 1000.3
        massive = tmp_path / "massive"
        torch.save(tensors, massive) if case == "archive" else write_npz(massive.with_suffix(".npz"), tensors)
        massive = massive if case == "archive" else massive.with_suffix(".npz")
        certificate = certify(read_checkpoint(massive), DualEncoderModel.from_pretrained(massive))
        assert certificate.passed
        assert max(output.error for output in certificate.comparisons[0].outputs) > 3e-5

    def test_another_dtype_is_refused(self, source: Path) -> None:
        model = DualEncoderModel.from_pretrained(source, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match=r"tolerances hold for float32 on the CPU. Got a model in torch.bfloat16"):
            certify(read_checkpoint(source), model)


class Hostile:
    """Unpickling this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def _hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"visual.proj": Hostile(path.parent / "executed")}))


def _foreign_object(path: Path) -> None:
    torch.save({**openai_tensors(**TINY_CLIP), "note": Hostile(path.parent / "executed")}, path)


def _truncated(path: Path) -> None:
    write(path, "archive")
    path.write_bytes(path.read_bytes()[:-2000])


def _object_array(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{"params/t": np.array([Hostile(path.parent / "executed")], object)})  # type: ignore[arg-type]


def _changed(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def write_changed(path: Path) -> None:
        tensors = openai_tensors(**TINY_CLIP)
        change(tensors)
        torch.save(tensors, path)

    return write_changed


def _other_pooling(path: Path) -> None:
    write(path, "v1")
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files if "MAPHead_0" not in name}
    with path.open("wb") as file:
        np.savez(file, **kept)


BAD_SOURCES = {
    "pickle that runs code": _hostile_pickle,
    "foreign object beside the weights": _foreign_object,
    "truncated archive": _truncated,
    "object arrays": _object_array,
    "NaN": _changed(lambda tensors: tensors["visual.proj"].fill_(math.nan)),
    "missing key": _changed(lambda tensors: tensors.pop("visual.proj")),
    "extra key": _changed(lambda tensors: tensors.update(extra=torch.zeros(2))),
    "empty file": lambda path: path.write_bytes(b""),
    "text file": lambda path: path.write_text("not a checkpoint, only words\n" * 20),
    "no such path": lambda path: None,
    "another pooling": _other_pooling,
}


class TestRefusals:
    @pytest.mark.parametrize("write_bad", BAD_SOURCES.values(), ids=BAD_SOURCES)
    def test_source(self, write_bad: Callable[[Path], Any], tmp_path: Path) -> None:
        source = tmp_path / "checkpoint"
        write_bad(source)
        before = sorted(tmp_path.iterdir())
        with pytest.raises((FormatError, FileNotFoundError)) as refusal:
            convert(source, tmp_path / "new" / "folder")
        assert str(source) in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert sorted(tmp_path.iterdir()) == before  # no folder, no parent of it, no trace of executed code

    def test_tokenizer(self, siglip_file: Path, tmp_path: Path) -> None:
        with pytest.raises((OSError, ValueError)):
            convert(siglip_file, tmp_path / "folder", tokenizer=tmp_path / "missing.model")
        assert sorted(tmp_path.iterdir()) == [siglip_file]

    def test_existing_folder(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "config.json").write_text("precious")
        with pytest.raises(FileExistsError, match=r"folder is not empty.*--overwrite"):
            convert(source, tmp_path / "folder")
        assert [path.read_text() for path in (tmp_path / "folder").iterdir()] == ["precious"]

    def test_overwrite_spares_what_is_no_model_folder(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "thesis.txt").write_text("precious")
        with pytest.raises(FileExistsError, match=r"no config.json.*--overwrite spares it"):
            convert(source, tmp_path / "folder", overwrite=True)
        assert (tmp_path / "folder" / "thesis.txt").read_text() == "precious"

    def test_overwrite_spares_its_own_source(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "config.json").write_text("{}")
        source = write(tmp_path / "folder" / "clip.pt", "archive")
        with pytest.raises(FileExistsError, match=r"lies in .*folder, which --overwrite would remove"):
            convert(source, tmp_path / "folder", overwrite=True)
        assert source.exists()

    def test_unknown_option(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"no option called 'image_szie'\. Did you mean image_size"):
            convert(source, tmp_path / "folder", image_szie=32)  # type: ignore[call-overload]

    def test_destination_is_a_file(self, source: Path) -> None:
        with pytest.raises(FileExistsError, match=r"is a file, expected a folder"):
            convert(source, source)
        with pytest.raises(OSError, match=r"Writing .*folder failed: .*Not a directory"):
            convert(source, source / "folder")


def convert_and_die(source: Path, number: signal.Signals) -> None:
    def die(step: str) -> None:
        if step == "running transformers":
            os.kill(os.getpid(), number)

    convert(source, source.parent / "folder", progress=die)


def convert_without_space(source: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    convert(source, source.parent / "folder")


class TestAllOrNothing:
    def test_overwrite(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "folder", verify=False)
        (tmp_path / "folder" / "stale").touch()
        convert(source, tmp_path / "folder", overwrite=True)
        assert not (tmp_path / "folder" / "stale").exists()
        assert sorted(tmp_path.iterdir()) == [source, tmp_path / "folder"]

    def test_empty_folder_is_filled(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        convert(source, tmp_path / "folder", verify=False)
        assert (tmp_path / "folder" / "config.json").exists()

    def test_failed_overwrite_leaves_the_old_folder(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        convert(source, tmp_path / "folder", verify=False)
        before = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
        sound = Checkpoint.weights
        mistake = zero("logit_scale")
        monkeypatch.setattr(Checkpoint, "weights", lambda self: iter(mistake(dict(sound(self))).items()))
        with pytest.raises(ParityError):
            convert(source, tmp_path / "folder", overwrite=True)
        assert {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == before
        assert sorted(tmp_path.iterdir()) == [source, tmp_path / "folder"]

    def test_interrupt(self, source: Path, tmp_path: Path) -> None:
        def interrupt(step: str) -> None:
            if step == "running transformers":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "new" / "folder", progress=interrupt)
        assert sorted(tmp_path.iterdir()) == [source]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
    def test_kill(self, number: signal.Signals, siglip_file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Killed when every file is written but the proof is not."""
        code = finish(start(convert_and_die, siglip_file, number, output=tmp_path_factory.mktemp("log") / "log"))
        left = [path for path in siglip_file.parent.iterdir() if path != siglip_file]
        if number == signal.SIGTERM:
            assert code == 128 + number
            assert left == []
        else:
            assert code == -number
            (partial,) = left
            assert partial.name.startswith(".folder.")
            assert partial.name.endswith(".partial")

    def test_no_space(self, siglip_file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        log = tmp_path_factory.mktemp("log") / "log"
        assert finish(start(convert_without_space, siglip_file, output=log)) == 1
        assert "OSError: Writing" in log.read_text().splitlines()[-1]
        assert [*siglip_file.parent.iterdir()] == [siglip_file]


class TestInspection:
    def test_file_and_folder_agree(self, source: Path, tmp_path: Path) -> None:
        file = inspect_source(source)
        convert(source, tmp_path / "folder", verify=False)
        folder = inspect_source(tmp_path / "folder")
        for name in ("family", "geometry", "parameters"):
            assert file[name] == folder[name]
        assert sum(file["dtypes"].values()) == file["parameters"]
        assert file["files"][0]["bytes"] == source.stat().st_size
        assert (file["format"], folder["format"]) == (read_checkpoint(source).format, "transformers")

    def test_layout_in_words(self, tmp_path: Path) -> None:
        assert inspect_source(write(tmp_path / "a", "archive"))["layout"] == "torchscript"
        assert inspect_source(write(tmp_path / "b", "v2-scanned"))["layout"].startswith("npz, ")
        assert "text scanned" in inspect_source(write(tmp_path / "c", "text-scanned"))["layout"]
        assert "image scanned" not in inspect_source(write(tmp_path / "d", "text-scanned"))["layout"]

    def test_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(ValueError, match=r"a folder with config.json and .safetensors files. .* holds notes.txt"):
            inspect_source(tmp_path)

    def test_damaged_weights(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "folder", verify=False)
        (tmp_path / "folder" / "model.safetensors").write_bytes(b"\xff" * 20)
        with pytest.raises(ValueError, match=r"folder: this is not a checkpoint; expected a PyTorch file"):
            inspect_source(tmp_path / "folder")


def test_naflex_from_a_file_to_an_answer_and_back(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    vocabulary, source, folder = trained_sentencepiece(tmp_path, "bpe"), tmp_path / "naflex.npz", tmp_path / "folder"
    pieces = sentencepiece.SentencePieceProcessor(str(vocabulary)).get_piece_size()
    written = write_big_vision(source, **{**TINY_SIGLIP, "vocabulary": pieces, "naflex": True, "scan_text": True})
    code, output, errors = run("convert", source, folder, "--tokenizer", vocabulary)
    assert code == 0, errors
    assert "Parity of naflex.npz: pass" in output
    assert "Ids of 12 texts: equal to SentencePiece" in output
    assert json.loads((folder / "config.json").read_text())["text_config"]["pad_token_id"] == 0

    code, output, errors = run("classify", folder, PHOTOGRAPH, "--labels", "a cat,a dog", "--template", "{}", "--json")
    assert code == 0, errors
    processor = twinlens.processing.DualEncoderProcessor.from_pretrained(folder)
    theirs = transformers.AutoModel.from_pretrained(folder)
    assert type(theirs) is transformers.Siglip2Model
    ids = torch.tensor(official_siglip(vocabulary, ["a cat", "a dog"], pad=0, length=16))
    with torch.no_grad(), Image.open(PHOTOGRAPH) as image:
        scores = theirs(**processor(images=image), input_ids=ids).logits_per_image.sigmoid()[0].tolist()
    assert json.loads(output)[0]["scores"] == pytest.approx(
        dict(zip(["a cat", "a dog"], scores, strict=True)), rel=1e-4
    )

    assert run("export", folder, tmp_path / "back.npz", "--format", "big_vision")[0] == 0
    assert_same(read_files([tmp_path / "back.npz"])[1], written)
