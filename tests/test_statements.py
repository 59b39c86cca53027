"""What a source states about texts is followed or refused by name, and the certificate measures both pixels and ids."""

import json
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from helpers.builders import (
    TINY_CLIP,
    TINY_CLIP_JSON,
    TINY_SIGLIP_JSON,
    TINY_TRUNK,
    TRUNK_OPTIONS,
    open_clip_tensors,
    trunk_tensors,
)
from helpers.released_files import released_package
from helpers.text_corpus import AWKWARD, CLEANUPS, SENTENCES, trained_sentencepiece
from PIL import Image

from twinlens import DualEncoderProcessor
from twinlens.configuration import CLIPConfig
from twinlens.conversion import ParityError, convert
from twinlens.formats import Checkpoint, FormatError, read_checkpoint, read_source, write_tensors
from twinlens.parity.preprocessing import Choices, _pixels, check_preprocessing
from twinlens.parity.reference_pixels import big_vision_steps, naflex_steps
from twinlens.parity.reference_texts import Vocabulary, clip_ids, siglip_ids
from twinlens.processing import (
    CLIPTokenizer,
    Siglip2ImageProcessor,
    Siglip2Processor,
    SiglipTokenizer,
    build_processor,
)

SPECIAL = ["<end_of_text> a", "a<end_of_text><start_of_text>", "!<end_of_text>", "a <|endoftext|>", "_<|startoftext|>"]
TEXTS = [*AWKWARD, *SENTENCES[:20], *SPECIAL, "It'S WE'RE I'LL", "<b>&eacute;&amp;amp;</b>", "", "one red cat " * 60]

BY_DAY = [*(pytest.param(clean, marks=pytest.mark.thorough) for clean in ("lower", "whitespace")), "canonicalize"]


@pytest.fixture(scope="module")
def open_clip_tokenizer() -> Any:
    """The module `open_clip.tokenizer` itself."""
    path = released_package("open_clip_torch==3.3.0") / "open_clip" / "tokenizer.py"
    spec = spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")  # it changes the environment when it is imported
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_sentencepiece(tmp_path_factory.mktemp("sentencepiece"), "unigram")


def write_clip(folder: Path, text_cfg: dict[str, Any], **geometry: Any) -> Path:
    folder.mkdir()
    model_cfg = TINY_CLIP_JSON | {"text_cfg": {**TINY_CLIP_JSON["text_cfg"], **text_cfg}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    write_tensors("safetensors", open_clip_tensors(**TINY_CLIP | geometry), folder / "open_clip_model.safetensors")
    return folder


def write_siglip(folder: Path, text_cfg: dict[str, Any], vocabulary: Path) -> Path:
    """Write a folder of open_clip with a tokenizer beside the weights, as on the Hub."""
    tokenizer = SiglipTokenizer.from_file(vocabulary, text_cleanup="none", model_max_length=12)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    text_cfg = {**TINY_SIGLIP_JSON["text_cfg"], "vocab_size": len(tokenizer), **text_cfg}
    model_cfg = TINY_SIGLIP_JSON | {"text_cfg": text_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    tensors = trunk_tensors(**TINY_TRUNK | {"vocabulary": len(tokenizer)})
    write_tensors("safetensors", tensors, folder / "open_clip_model.safetensors")
    return folder


class TestTexts:
    @pytest.mark.parametrize("clean", BY_DAY)
    def test_ids_of_clip_are_open_clips(self, clean: str, open_clip_tokenizer: Any, tmp_path: Path) -> None:
        """Also once saved and loaded."""
        expected = open_clip_tokenizer.SimpleTokenizer(clean=clean)(TEXTS).tolist()
        tokenizer = CLIPTokenizer.from_official(text_cleanup=f"open_clip_{clean}")
        tokenizer.save_pretrained(tmp_path)
        for ours in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path)):
            assert ours(TEXTS, padding="max_length")["input_ids"] == expected

    @pytest.mark.parametrize("clean", BY_DAY)
    def test_ids_of_siglip_are_open_clips(self, clean: str, open_clip_tokenizer: Any, unigram: Path) -> None:
        """open_clip's cleaning, then SentencePiece, the end and padding."""
        clean_text = open_clip_tokenizer.get_clean_fn(clean)
        pieces = sentencepiece.SentencePieceProcessor(str(unigram))
        rows = [[*pieces.encode(clean_text(text))[:63], pieces.eos_id()] for text in TEXTS]
        tokenizer = SiglipTokenizer.from_file(unigram, text_cleanup=f"open_clip_{clean}")
        assert tokenizer(TEXTS)["input_ids"] == [row + [tokenizer.pad_token_id] * (64 - len(row)) for row in rows]

    @pytest.mark.parametrize(
        ("text_cfg", "cleanup"),
        [
            ({}, "open_clip_lower"),
            ({"tokenizer_kwargs": {"clean": "canonicalize"}}, "open_clip_canonicalize"),
            ({"tokenizer_kwargs": {"clean": "whitespace", "strip_sep_token": False}}, "open_clip_whitespace"),
            ({"hf_tokenizer_name": "openai/clip-vit-base-patch32"}, "open_clip_lower"),
        ],
    )
    def test_clip_cleans_as_stated(self, text_cfg: dict[str, Any], cleanup: str, tmp_path: Path) -> None:
        checkpoint = read_checkpoint(write_clip(tmp_path / "source", text_cfg))
        assert checkpoint.text_settings == {"text_cleanup": cleanup}

    def test_a_tokenizer_of_another_name_is_not_clips(self, tmp_path: Path) -> None:
        checkpoint = read_checkpoint(write_clip(tmp_path / "source", {"hf_tokenizer_name": "bert-base-uncased"}))
        assert build_processor(CLIPConfig(), checkpoint).tokenizer is None

    def test_siglip_takes_the_tokenizer_beside_its_weights(self, unigram: Path, tmp_path: Path) -> None:
        stated = {"hf_tokenizer_name": "someone/there", "tokenizer_kwargs": {"clean": "canonicalize"}}
        source = write_siglip(tmp_path / "source", stated, unigram)
        certificate = convert(source, tmp_path / "folder", **TRUNK_OPTIONS)
        assert certificate.preprocessing is not None
        assert certificate.preprocessing.texts is not None
        assert certificate.preprocessing.texts.equal
        pieces = sentencepiece.SentencePieceProcessor(str(unigram))
        expected = [*pieces.encode("its a café"), pieces.eos_id()]
        for place in (source, tmp_path / "folder"):
            processor = DualEncoderProcessor.from_pretrained(place, **(TRUNK_OPTIONS if place == source else {}))
            ids = processor(text="IT'S a _caf&eacute;_!")["input_ids"][0].tolist()
            assert ids[: len(expected)] == expected
        assert "rid of punctuation, as in open_clip" in (tmp_path / "folder" / "README.md").read_text()

    @pytest.mark.parametrize(
        ("text_cfg", "message"),
        [
            ({"tokenizer_kwargs": {"clean": "upper"}}, "tokenizer_kwargs.clean is 'upper', expected 'canonicalize' or"),
            ({"tokenizer_kwargs": {"strip_sep_token": True}}, "text_cfg.tokenizer_kwargs.strip_sep_token is True"),
            ({"tokenizer_kwargs": {"reduction_mask": "simple"}}, "tokenizer_kwargs.reduction_mask is 'simple'"),
            ({"tokenizer_mode": "clips"}, "text_cfg.tokenizer_mode is 'clips'"),
            ({"tokenizer_kwargs": ["lower"]}, r"tokenizer_kwargs is \['lower'\], expected an object"),
        ],
    )
    def test_what_cannot_be_made_is_refused(self, text_cfg: dict[str, Any], message: str, tmp_path: Path) -> None:
        """By whoever makes ids; the weights can be read."""
        folder = write_clip(tmp_path / "source", text_cfg)
        with pytest.raises(FormatError, match=message):
            convert(folder, tmp_path / "folder")
        with pytest.raises(FormatError, match=message):
            DualEncoderProcessor.from_pretrained(folder)
        read_checkpoint(folder)

    def test_what_open_clip_does_not_read_is_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = write_clip(tmp_path / "source", {})
        file = folder / "open_clip_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "preprocess_cfg": {"crop_pct": 0.9}}))
        convert(folder, tmp_path / "folder", verify=False)
        assert "states preprocess_cfg.crop_pct, which open_clip does not read, nor twinlens" in caplog.text


class TestIndependentReferences:
    """The restated pixels and ids, against what the official code recorded or computes."""

    def test_big_vision(self) -> None:
        recorded = np.load(Path(__file__).parent / "fixtures" / "official_pixels.npz")
        for name in [name for name in recorded if name.startswith("siglip/32x32/")]:
            picture = Image.fromarray(recorded[f"source/{name.split('/')[-1]}"])
            pixels = big_vision_steps(32).apply(picture).transpose(1, 2, 0)
            np.testing.assert_array_equal(np.round(pixels * 127.5 + 127.5), recorded[name], err_msg=name)

    def test_naflex(self) -> None:
        recorded = np.load(Path(__file__).parent / "fixtures" / "official_pixels.npz")
        names = [name.removesuffix("/patches") for name in recorded if name.endswith("/patches")]
        assert len(names) == 19
        for name in names:
            _, most, picture = name.split("/")
            pixels = naflex_steps(4, int(most)).apply(Image.fromarray(recorded[f"source/{picture}"]))
            rows, columns = (recorded[f"{name}/{axis}"].max() + 1 for axis in ("yidx", "xidx"))
            assert pixels.shape == (3, 4 * rows, 4 * columns), name
            patches = pixels.reshape(3, rows, 4, columns, 4).transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)
            is_patch = recorded[f"{name}/type"] == 1
            np.testing.assert_allclose(patches, recorded[f"{name}/patches"][is_patch], rtol=0, atol=1e-6, err_msg=name)

    @pytest.mark.parametrize("resolution", [(63, 320, 14), (399, 7, 8), (1, 300, 32)])
    def test_naflex_where_the_scale_is_rounded(self, resolution: tuple[int, int, int]) -> None:
        """TensorFlow has 1 / (new / old) in float32, which is not old / new: up to 1e-4 in values at these sizes."""
        height, width, patch = resolution
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
        processor = Siglip2ImageProcessor(resize_engine="official", patch_size=patch, max_num_patches=100)
        pixels = _pixels(Siglip2Processor(processor), picture)
        np.testing.assert_allclose(pixels, naflex_steps(patch, 100).apply(picture), rtol=0, atol=5e-6)

    def test_clip(self, open_clip_tokenizer: Any) -> None:
        vocabulary, theirs = Vocabulary.official_clip(), open_clip_tokenizer.SimpleTokenizer()
        for text in TEXTS:
            ids = clip_ids(text, vocabulary, cleanup="open_clip_lower", length=77)
            assert ids == theirs([text])[0].tolist()[: len(ids)], text

    @pytest.mark.parametrize("kind", ["unigram", "bpe"])
    def test_siglip(self, kind: str, tmp_path: Path) -> None:
        path = trained_sentencepiece(tmp_path, kind)
        SiglipTokenizer.from_file(path).save_pretrained(tmp_path)
        vocabulary = Vocabulary.from_tokenizer_json(tmp_path / "tokenizer.json", is_clip=False)
        theirs = sentencepiece.SentencePieceProcessor(str(path))
        for text in SENTENCES:
            expected = theirs.encode(CLEANUPS["lower"](text))
            ids = siglip_ids(text, vocabulary, cleanup="lower", length=64, pad=0)
            assert ids[: ids.index(theirs.eos_id())] == expected[:63], text


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of both families, to read only."""
    path = tmp_path_factory.mktemp("converted")
    convert("clip-shapes", path / "clip")
    convert("siglip-shapes", path / "siglip", verify=False)
    return {family: path / family for family in ("clip", "siglip")}


def checked(checkpoint: Checkpoint, folder: Path) -> Any:
    return check_preprocessing(checkpoint, folder, DualEncoderProcessor.from_pretrained(folder))


WRONG_BY_DAY: list[tuple[str, str, dict[str, Any]]] = [
    ("clip", "preprocessor_config.json", {"openai_order": False}),
    ("siglip", "preprocessor_config.json", {"resize_engine": "pillow"}),
    ("siglip", "tokenizer_config.json", {"text_cleanup": "canonicalize"}),
]
WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("clip", "preprocessor_config.json", {"resample": 2}),
    ("clip", "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
    ("clip", "preprocessor_config.json", {"background": [255, 255, 255]}),
    ("clip", "preprocessor_config.json", {"do_center_crop": False, "size": {"height": 32, "width": 32}}),
    ("clip", "preprocessor_config.json", {"do_rescale": False}),
    ("clip", "preprocessor_config.json", {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}),
    ("clip", "tokenizer_config.json", {"text_cleanup": "open_clip_whitespace"}),
    ("siglip", "preprocessor_config.json", {"openai_order": True, "resize_engine": "pillow"}),
    ("siglip", "preprocessor_config.json", {"image_std": [0.25, 0.25, 0.25]}),
    ("siglip", "tokenizer_config.json", {"text_cleanup": "none"}),
]


class TestCertificate:
    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_a_right_processor_passes(self, family: str, converted: dict[str, Path]) -> None:
        result = checked(read_source(f"{family}-shapes")[0], converted[family])
        assert result.passed
        assert result.images.error < 1e-6
        assert (result.images.count, result.texts.count, result.texts.names) == (8, 12, ())

    @pytest.mark.parametrize(
        ("family", "file", "change"),
        [*WRONG_BY_DAY, *(pytest.param(*wrong, marks=pytest.mark.thorough) for wrong in WRONG)],
    )
    def test_a_wrong_processor_fails(
        self, family: str, file: str, change: dict[str, Any], converted: dict[str, Path], tmp_path: Path
    ) -> None:
        other = shutil.copytree(converted[family], tmp_path / "folder")
        (other / file).write_text(json.dumps(json.loads((other / file).read_text()) | change))
        result = checked(read_source(f"{family}-shapes")[0], other)
        assert not result.passed
        assert result.to_dict()["verdict"] == "fail"
        at_fault = result.images if file == "preprocessor_config.json" else result.texts
        assert any(at_fault.names[0] in sentence for sentence in result.describe())

    def test_it_is_part_of_the_proof(self, converted: dict[str, Path], run: Any, tmp_path: Path) -> None:
        """In parity.json, on the terminal, in the card and in the exit code."""
        folder = converted["clip"]
        proof = json.loads((folder / "parity.json").read_text())
        assert proof["schema_version"] == 3
        part = proof["preprocessing"]
        assert part["verdict"] == "pass"
        assert {"reference", "count", "error", "worst", "tolerance"} == part["images"].keys()
        assert part["texts"]["equal"] is True
        assert "Ids of 12 texts: equal to " in (folder / "README.md").read_text()
        wrong = shutil.copytree(folder, tmp_path / "folder")
        file = wrong / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 2}))
        code, output, _ = run("verify", "clip-shapes", wrong)
        assert code == 1
        assert "the tolerance is 1e-05)." in output

    @pytest.mark.parametrize("preprocessing", [pytest.param("official", marks=pytest.mark.thorough), "hub"])
    def test_choices_are_recorded(self, preprocessing: Any, tmp_path: Path) -> None:
        convert("siglip-shapes", tmp_path / "folder", preprocessing=preprocessing, text_cleanup="canonicalize")
        recorded = json.loads((tmp_path / "folder" / "official_layout.json").read_text())["choices"]
        assert Choices(**recorded) == Choices(preprocessing, "canonicalize", True)
        checkpoint = read_source("siglip-shapes")[0]
        assert checked(checkpoint, tmp_path / "folder").passed
        (tmp_path / "folder" / "official_layout.json").unlink()  # as in older folders
        assert checked(checkpoint, tmp_path / "folder").passed

    def test_a_statement_of_its_size_alone(self, tmp_path: Path) -> None:
        """It is a statement: the rest has open_clip's defaults, for the processor and for the certificate."""
        (tmp_path / "source").mkdir()
        content = {"model_cfg": TINY_SIGLIP_JSON, "preprocess_cfg": {"size": [48, 48]}}
        (tmp_path / "source" / "open_clip_config.json").write_text(json.dumps(content))
        write_tensors("safetensors", trunk_tensors(**TINY_TRUNK), tmp_path / "source" / "open_clip_model.safetensors")
        checkpoint = read_checkpoint(tmp_path / "source", **TRUNK_OPTIONS)
        processor = build_processor(checkpoint.config, checkpoint)
        assert processor.image_processor.image_mean == (0.48145466, 0.4578275, 0.40821073)
        images = check_preprocessing(checkpoint, tmp_path, processor, Choices()).images
        assert images is not None
        assert images.reference.startswith("open_clip")
        assert images.error < 1e-6

    def test_convert_writes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(CLIPTokenizer, "clean", lambda self, text: text.strip())
        with pytest.raises(ParityError, match=r"The conversion is wrong: .*Ids of 12 texts: other for .*HTML entities"):
            convert("clip-shapes", tmp_path / "folder")
        assert not (tmp_path / "folder").exists()
