"""Graphs for programs without PyTorch: what they compute, how they are checked, and the folders that hold them."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from filelock import FileLock
from helpers import families
from helpers.other_families import other_families, write_folder
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import twinlens
from twinlens.cli.app import app
from twinlens.deployment import ExportError, GraphCheck, GraphError, export_onnx
from twinlens.deployment import export as export_module
from twinlens.deployment.check import CaseErrors, check_graph
from twinlens.deployment.graphs import FILES, Graph, Tower
from twinlens.deployment.inputs import EXAMPLE, Case, cases
from twinlens.deployment.runtimes import open_file
from twinlens.deployment.web_files import portable_splits

TOWERS: tuple[Tower, ...] = ("image", "text", "both")
LENGTH = families.TEXT["max_position_embeddings"]
OWN = (*families.FAMILIES, "CLIPResNet")
TRANSFORMERS_JS = "4.3.2"


def needs(*packages: str) -> list[pytest.MarkDecorator]:
    """Skip, with a reason, where a package of the extras is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    return [pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)} (extra onnx or openvino)")]


EXPORTER = needs("onnx", "onnxscript", "onnxruntime")
OPENVINO = needs("onnx", "onnxscript", "openvino")


def model_of(family: str) -> Any:
    """A tiny model of one of `OWN`, with random weights far from zero and one."""
    if family in families.FAMILIES:
        return families.model(family)
    torch.manual_seed(0)
    vision = {"hidden_size": 64, "depths": (1, 2, 1, 1), "num_attention_heads": 2, "image_size": 32}
    text = {**families.TEXT, **families.IDS["CLIP"]}
    common = {"projection_dim": 24}
    config = twinlens.CLIPResNetConfig(vision_config={**vision, **common}, text_config={**text, **common}, **common)
    return twinlens.CLIPResNetModel(config).eval()


def run_module(graph: Graph) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The graph in PyTorch, in the place of a runtime."""

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(graph.outputs, graph.module(*inputs.values()), strict=True))

    return run


class TestGraphs:
    """What is exported, before it is."""

    @pytest.mark.parametrize("tower", TOWERS)
    @pytest.mark.parametrize("family", OWN)
    def test_is_what_the_model_computes(self, family: str, tower: Any) -> None:
        model = model_of(family)
        graph = Graph.of(model, tower)
        check = check_graph(model, graph, run_module(graph), "a file", "PyTorch")
        assert check.passed, check.to_dict()
        assert {result.case.length for result in check.cases} == {3, LENGTH, LENGTH + 5}
        assert EXAMPLE not in [result.case for result in check.cases]

    @pytest.mark.parametrize("family", ["CLIP", "CLIP by highest id", "Siglip", "Siglip2"])
    @torch.no_grad()
    def test_texts_of_any_length(self, family: str) -> None:
        """Short, full, too long, or cut by a tokenizer that leaves out the end, as that of transformers.js does."""
        name = family.split()[0]
        model, ids = families.model(name), families.IDS[name]
        end, pad = ids["eos_token_id"], ids["pad_token_id"]
        if family != name:
            model.config.text_config.eos_token_id = model.text_model.config.eos_token_id = 2
        text_graph = Graph.of(model, "text")
        body = torch.randint(3, 97, (LENGTH + 9,)).tolist()

        def embed(tokens: list[int]) -> Tensor:
            row = torch.tensor([tokens])
            return text_graph.module(*(row, torch.ones_like(row))[: len(text_graph.inputs)])[0]

        def expected(tokens: list[int]) -> Tensor:
            full = torch.tensor([tokens + [pad] * (LENGTH - len(tokens))])
            return model.encode_text(full)

        short = [*body[:4], end]
        cut = [*body[: LENGTH - 1], end]
        for row, reference in [
            ([end], [end]),
            (short, short),
            ([*short, *[pad] * (LENGTH - 5)], short),
            ([*short, *[pad] * LENGTH], short),
            (cut, cut),
            ([*body, end], cut),
            *([] if family != name else [(body[:LENGTH], cut)]),  # without an end, its id is not known
        ]:
            torch.testing.assert_close(embed(row), expected(reference), rtol=0, atol=1e-6)

    def test_left_padded_texts(self) -> None:
        """Of transformers' Siglip2Tokenizer, in rows of any length."""
        model = families.model("Siglip2")
        text_graph = Graph.of(model, "text").module
        text = [5, 6, 7, 1]
        expected = model.encode_text(torch.tensor([text]))
        for length in (6, LENGTH, LENGTH + 3):
            padded = torch.tensor([[0] * (length - len(text)) + text])
            torch.testing.assert_close(text_graph(padded)[0], expected, rtol=0, atol=1e-6)

    def test_inputs_are_what_the_family_looks_at(self) -> None:
        patches = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        for family, images, texts in [
            ("CLIP", ("pixel_values",), ("input_ids", "attention_mask")),
            ("Siglip", ("pixel_values",), ("input_ids",)),
            ("Siglip2", patches, ("input_ids",)),
        ]:
            model = families.model(family)
            assert Graph.of(model, "image").inputs == images
            assert Graph.of(model, "text").inputs == texts
            assert Graph.of(model, "both").inputs == texts + images


class TestChecks:
    @pytest.mark.parametrize("fault", ["small", "nan", "missing", "shape"])
    def test_a_wrong_output_fails(self, fault: str) -> None:
        model = families.model("CLIP")
        graph = Graph.of(model, "text")
        right = run_module(graph)

        def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            outputs = right(inputs)
            embeds = outputs.pop("text_embeds")
            if fault == "missing":
                return outputs
            changed = {"small": embeds + 3e-5, "nan": embeds * torch.nan, "shape": embeds[:, :-1]}
            return {**outputs, "text_embeds": changed[fault]}

        check = check_graph(model, graph, run, "x.onnx", "PyTorch")
        assert not check.passed
        assert check.worst[0] == "text_embeds"
        assert check.to_dict()["verdict"] == "fail"
        json.dumps(check.to_dict(), allow_nan=False)

    def test_the_error_names_file_output_and_runtime(self) -> None:
        check = GraphCheck("x.onnx", "a runtime", ("input_ids",), (CaseErrors(EXAMPLE, {"text_embeds": 0.5}),))
        with pytest.raises(GraphError, match=r"x.onnx is wrong: text_embeds is 5.0e-01 .* in a runtime.*2e-05"):
            raise GraphError(check)


@pytest.fixture
def without_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that holds nothing in the place of the exporter, and the graph in PyTorch in that of the runtime."""
    graphs: dict[Path, Graph] = {}

    def write(model: Any, graph: Graph, file: Path, format: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"a graph")
        graphs[file] = graph

    monkeypatch.setattr(export_module, "write_graph", write)
    monkeypatch.setattr(export_module, "check_installed", lambda format, verify: None)
    monkeypatch.setattr(export_module, "runtime_name", lambda format: "PyTorch")
    monkeypatch.setattr(export_module, "open_file", lambda file, format: run_module(graphs[file]))


@pytest.mark.usefixtures("without_exporter")
class TestFolders:
    def test_files_are_where_transformers_js_looks(self, tmp_path: Path) -> None:
        out = tmp_path / "new" / "out"
        model, processor = (
            twinlens.DualEncoderModel.from_pretrained("siglip-shapes"),
            twinlens.DualEncoderProcessor.from_pretrained("siglip-shapes"),
        )
        checks = export_onnx(model, out, processor, towers=TOWERS)
        assert [check.file for check in checks] == [f"onnx/{FILES[tower]}.onnx" for tower in TOWERS]
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        beside = {"config.json", "preprocessor_config.json", "processor_config.json"}
        assert found == {check.file for check in checks} | beside | {"tokenizer.json", "tokenizer_config.json"}
        config = json.loads((out / "config.json").read_text())
        assert config["model_type"] == "siglip"
        assert config["architectures"] == ["SiglipModel"]
        assert config["transformers.js_config"] == {"dtype": "fp32"}
        assert type(transformers.AutoConfig.from_pretrained(out)) is transformers.SiglipConfig
        texts = ["A Red  star ", "it's 12 o'clock", "_a ▁▁b"]
        again = twinlens.DualEncoderProcessor.from_pretrained(out)
        assert again(text=texts)["input_ids"].equal(processor(text=texts)["input_ids"])

    def test_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A graph that is wrong at the second file: the first is not left either."""
        opened = export_module.open_file

        def wrong(file: Path, format: Any) -> Any:
            right = opened(file, format)
            is_wrong = "text" in file.name
            return lambda inputs: {name: value + 1e-3 * is_wrong for name, value in right(inputs).items()}

        monkeypatch.setattr(export_module, "open_file", wrong)
        with pytest.raises(GraphError, match="Nothing was written"):
            export_onnx(families.model("CLIP"), tmp_path / "new" / "out", towers=["image", "text"])
        assert [*tmp_path.iterdir()] == []
        export_onnx(families.model("CLIP"), tmp_path / "out", towers=["image", "text"], verify=False)
        assert (tmp_path / "out" / "onnx" / "text_model.onnx").is_file()

    def test_a_folder_is_replaced_when_asked(self, tmp_path: Path) -> None:
        model = families.model("CLIP")
        export_onnx(model, tmp_path / "out", towers=["text"])
        with pytest.raises(FileExistsError, match="not empty"):
            export_onnx(model, tmp_path / "out", towers=["image"])
        export_onnx(model, tmp_path / "out", towers=["image"], overwrite=True)
        assert os.listdir(tmp_path / "out" / "onnx") == ["vision_model.onnx"]

    def test_the_folder_with_the_weights_is_spared(self, tmp_path: Path) -> None:
        families.model("CLIP").save_pretrained(tmp_path / "model")
        model = twinlens.DualEncoderModel.from_pretrained(tmp_path / "model")
        with pytest.raises(FileExistsError, match="lies in"):
            export_onnx(model, tmp_path / "model", overwrite=True)

    def test_optimised_models_are_refused(self, tmp_path: Path) -> None:
        model = families.model("CLIP").optimize_for_inference()
        with pytest.raises(ValueError, match=r"restore\(\)"):
            export_onnx(model, tmp_path / "out")
        export_onnx(model.restore(), tmp_path / "out", towers=["text"])

    def test_models_in_any_state(self, tmp_path: Path) -> None:
        """Half precision and training: exported in float32 and evaluation mode, and left as they were."""
        model = families.model("CLIP").to(torch.bfloat16).train()
        model.vision_model.eval()
        (check,) = export_onnx(model, tmp_path / "out", towers=["both"])
        assert check.passed
        assert model.dtype == torch.bfloat16
        assert (model.training, model.text_model.training, model.vision_model.training) == (True, True, False)

    @pytest.mark.parametrize("towers", ["both", [], ["vision"]])
    def test_wrong_towers(self, towers: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="towers must be a list of both, image, text"):
            export_onnx(families.model("CLIP"), tmp_path / "out", towers=towers)
        with pytest.raises(ValueError, match="format must be one of onnx, openvino, got 'tflite'"):
            export_onnx(families.model("CLIP"), tmp_path / "out", format="tflite")  # type: ignore[arg-type]


class TestCommand:
    @pytest.mark.parametrize(("format", "extra"), [("onnx", "onnx"), ("openvino", "openvino")])
    def test_a_missing_library_is_one_line(
        self, format: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("twinlens.deployment.runtimes.find_spec", lambda name: None)
        done = CliRunner().invoke(app, ["onnx", "siglip-shapes", str(tmp_path / "out"), "--format", format])
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1
        assert f"needs onnx, onnxscript, {'onnxruntime' if format == 'onnx' else 'openvino'}:" in done.stderr
        assert f"'.[{extra}]'" in done.stderr
        assert [*tmp_path.iterdir()] == []

    def test_wrong_options(self, tmp_path: Path) -> None:
        for wrong in (["--tower", "vision"], ["--format", "tflite"]):
            assert CliRunner().invoke(app, ["onnx", "siglip-shapes", str(tmp_path / "out"), *wrong]).exit_code == 2

    @pytest.mark.usefixtures("without_exporter")
    def test_what_it_prints(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("twinlens.deployment.runtimes.find_spec", lambda name: name)
        out = str(tmp_path / "out")
        done = CliRunner().invoke(app, ["onnx", "clip-shapes", out, "--tower", "image", "--tower", "text"])
        assert done.exit_code == 0, done.output
        assert "onnx/vision_model.onnx in PyTorch: pass" in done.stdout
        assert done.stdout.endswith(f"Wrote {out}\n")
        done = CliRunner().invoke(app, ["onnx", "clip-shapes", out, "--overwrite", "--json"])
        result = json.loads(done.stdout)
        assert result["folder"] == out
        assert [check["file"] for check in result["checks"]] == ["onnx/model.onnx"]


def test_splits_for_javascript_are_the_same_splits() -> None:
    """A regular expression in the place of MergedWithNext, which JavaScript does not know."""
    before = {"type": "Split", "pattern": {"String": "▁"}, "behavior": "MergedWithNext", "invert": False}
    after = portable_splits({"type": "Sequence", "pretokenizers": [before]})["pretokenizers"][0]
    assert (before["behavior"], after["behavior"]) == ("MergedWithNext", "Isolated")

    def split(settings: dict[str, Any], text: str) -> list[tuple[str, tuple[int, int]]]:
        base = json.loads(tokenizers.Tokenizer(tokenizers.models.Unigram([("x", 0.0)], 0)).to_str())
        loaded = tokenizers.Tokenizer.from_str(json.dumps({**base, "pre_tokenizer": settings}))
        assert loaded.pre_tokenizer is not None
        return loaded.pre_tokenizer.pre_tokenize_str(text)

    generator = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(generator.choice([*"▁▁▁ab\n é"], size=generator.integers(0, 9)))
        assert split(after, text) == split(before, text), repr(text)


class TestOnnx:
    """The files, in ONNX Runtime."""

    pytestmark = EXPORTER

    @pytest.mark.thorough
    def test_a_text_tower(self, tmp_path: Path) -> None:
        """Of one layer, by day; the rest is below."""
        config = families.config("CLIP")
        config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
        torch.manual_seed(0)
        (check,) = export_onnx(twinlens.CLIPModel(config).eval(), tmp_path / "out", towers=["text"])
        assert check.passed
        assert check.runtime.startswith("onnxruntime ")
        content = (tmp_path / "out" / "onnx" / "text_model.onnx").read_bytes()
        assert b".py" not in content  # nor anything else of this machine

    @pytest.mark.thorough
    @pytest.mark.parametrize("family", families.FAMILIES)
    def test_is_what_transformers_computes(self, family: str, tmp_path: Path) -> None:
        """All towers of a family, against classes that are not ours, with the same weights and full texts."""
        ours, theirs = families.twins(family)
        checks = export_onnx(ours, tmp_path / "out", towers=TOWERS)
        assert all(check.passed for check in checks)
        images, ids = families.images(family, 4), families.token_ids(family, 6)
        with torch.no_grad():
            expected = theirs(input_ids=ids, **images)
        masks = {"attention_mask": torch.ones_like(ids)} if family == "CLIP" else {}
        run = open_file(tmp_path / "out" / "onnx" / "model.onnx", "onnx")
        outputs = run({"input_ids": ids, **masks, **images})
        assert outputs.keys() == {"logits_per_image", "logits_per_text", "text_embeds", "image_embeds"}
        for name, value in outputs.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=3e-5, msg=name)
        vision = open_file(tmp_path / "out" / "onnx" / "vision_model.onnx", "onnx")(images)
        text = open_file(tmp_path / "out" / "onnx" / "text_model.onnx", "onnx")({"input_ids": ids, **masks})
        torch.testing.assert_close(vision["image_embeds"], expected.image_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(text["text_embeds"], expected.text_embeds, rtol=0, atol=1e-5)

    @pytest.mark.thorough
    def test_resnet(self, tmp_path: Path) -> None:
        checks = export_onnx(model_of("CLIPResNet"), tmp_path / "out", towers=TOWERS)
        assert all(check.passed for check in checks)

    @pytest.mark.thorough
    @pytest.mark.parametrize("family", other_families())
    def test_other_families(self, family: str, tmp_path: Path) -> None:
        """Against transformers' own class, whose embeddings are not all of length 1."""
        native = write_folder(family, tmp_path / "model")
        model = twinlens.DualEncoderModel.from_pretrained(tmp_path / "model").eval()
        checks = export_onnx(model, tmp_path / "out", towers=TOWERS)
        assert all(check.passed for check in checks)
        inputs = Case(4, 6, 10, 0).inputs(model, Graph.of(model, "both").inputs)
        with torch.no_grad():
            expected = native(**inputs)
        outputs = open_file(tmp_path / "out" / "onnx" / "model.onnx", "onnx")(inputs)
        torch.testing.assert_close(outputs["logits_per_image"], expected.logits_per_image, rtol=1e-4, atol=1e-4)

    @pytest.mark.thorough
    def test_weights_beside_the_graph(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As for models of more than 2 GiB; config.json says so to transformers.js."""
        monkeypatch.setattr("twinlens.deployment.files.LARGEST_FILE", 1000)
        (check,) = export_onnx(families.model("Siglip"), tmp_path / "out", towers=["image"])
        assert check.passed
        assert sorted(os.listdir(tmp_path / "out" / "onnx")) == ["vision_model.onnx", "vision_model.onnx_data"]
        settings = json.loads((tmp_path / "out" / "config.json").read_text())["transformers.js_config"]
        assert settings["use_external_data_format"] == {"vision_model.onnx": 1}

    @pytest.mark.thorough
    @pytest.mark.parametrize("attention", ["eager", "flex_attention"])
    def test_models_with_another_attention(self, attention: str, tmp_path: Path) -> None:
        model = families.model("Siglip2", attention=attention)
        (check,) = export_onnx(model, tmp_path / "out", towers=["image"])
        assert check.passed
        assert model.config._attn_implementation == attention


class TestOpenvino:
    pytestmark = [*OPENVINO, pytest.mark.thorough]

    @pytest.mark.parametrize("family", OWN)
    def test_own_families(self, family: str, tmp_path: Path) -> None:
        checks = export_onnx(model_of(family), tmp_path / "out", towers=TOWERS, format="openvino")
        assert all(check.passed for check in checks)
        assert checks[0].runtime.startswith("openvino ")
        files = {f"openvino_{name}{suffix}" for name in FILES.values() for suffix in (".xml", ".bin")}
        assert {*os.listdir(tmp_path / "out" / "openvino")} == files

    @pytest.mark.parametrize("family", other_families())
    def test_other_families(self, family: str, tmp_path: Path) -> None:
        write_folder(family, tmp_path / "model")
        model = twinlens.DualEncoderModel.from_pretrained(tmp_path / "model").eval()
        if family == "align":  # the reader of OpenVINO 2026.4 ends its process at this EfficientNet
            with pytest.raises(ExportError, match="OpenVINO cannot read the graph"):
                export_onnx(model, tmp_path / "out", format="openvino")
            assert not (tmp_path / "out").exists()
            return
        checks = export_onnx(model, tmp_path / "out", towers=TOWERS, format="openvino")
        assert all(check.passed for check in checks)


@pytest.fixture(scope="module")
def javascript() -> Path:
    """A folder with transformers.js, which npm fetches once into `TWINLENS_TEST_CACHE`.

    The package of its runtime has the files for CPUs in it; what its install script would fetch is for GPUs.
    """
    if not (npm := shutil.which("npm")) or not shutil.which("node"):
        pytest.skip("needs node and npm")
    cache = Path(os.environ.get("TWINLENS_TEST_CACHE") or Path.home() / ".cache" / "twinlens-tests")
    folder = cache / f"transformers.js-{TRANSFORMERS_JS}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        if not (folder / "complete").exists():
            folder.mkdir(exist_ok=True)
            (folder / "package.json").write_text('{"private": true, "type": "module"}')
            package = f"@huggingface/transformers@{TRANSFORMERS_JS}"
            command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", package]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"npm cannot install {package}: {done.stderr.strip().splitlines()[-1]}")
            (folder / "complete").touch()
    return folder


class TestTransformersJs:
    pytestmark = [*EXPORTER, pytest.mark.thorough]

    @pytest.mark.parametrize("name", ["siglip-shapes", "clip-shapes"])
    @pytest.mark.parametrize("split", [False, True], ids=["one file", "weights beside"])
    def test_answers_as_we_do(
        self, name: str, split: bool, javascript: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Tokens, pixels, both towers, each tower, and the pipeline; also for a text that its tokenizer cuts."""
        if split:
            monkeypatch.setattr("twinlens.deployment.files.LARGEST_FILE", 1000)
        model = twinlens.DualEncoderModel.from_pretrained(name).eval()
        processor = twinlens.DualEncoderProcessor.from_pretrained(name)
        export_onnx(model, tmp_path / "out", processor, towers=TOWERS)
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # of a size to stay at
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        texts = ["A red  star ", "it's two o'clock", "a photo of " + "a very " * 20 + "big blue circle", "a café"]
        script = Path(__file__).parent / "helpers" / "transformers_js.mjs"
        shutil.copy(script, javascript / script.name)  # node looks for packages beside a script
        command = ["node", script.name, str(tmp_path / "out"), str(tmp_path / "picture.png"), *texts]
        done = subprocess.run(command, cwd=javascript, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)

        inputs = processor(text=texts, images=[Image.fromarray(pixels)])
        with torch.no_grad():
            expected = model(**inputs)
            unnormalised = {
                "vision": model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output,
                "text": model.get_text_features(inputs["input_ids"], return_dict=True).pooler_output,
            }

        def assert_near(found: Any, reference: Tensor, tolerance: float = 2e-5) -> None:
            torch.testing.assert_close(torch.tensor(found).view(reference.shape), reference, rtol=0, atol=tolerance)

        ids = torch.tensor(answers["input_ids"])
        length = ids.shape[1]
        assert length == 16
        assert ids[[0, 1, 3]].equal(inputs["input_ids"][[0, 1, 3]])
        assert ids[2, :-1].equal(inputs["input_ids"][2, :-1])
        assert ids[2, -1] != inputs["input_ids"][2, -1]  # it has cut off the end, which the graph puts back
        assert_near(answers["pixel_values"], inputs["pixel_values"], 1e-6)
        for output in ("logits_per_image", "logits_per_text"):
            assert_near(answers[output], expected[output], 1e-4)
        assert_near(answers["image_embeds"], expected.image_embeds)
        assert_near(answers["text_embeds"], expected.text_embeds)
        assert_near(answers["vision"]["image_embeds"], expected.image_embeds)
        assert_near(answers["vision"]["pooler_output"], unnormalised["vision"], 1e-4)
        assert_near(answers["text"]["text_embeds"], expected.text_embeds)
        assert_near(answers["text"]["pooler_output"], unnormalised["text"], 1e-4)
        assert_near(answers["unpadded_text_embeds"], expected.text_embeds)  # long and short ones as they are
        logits = expected.logits_per_image[0]
        scores = logits.sigmoid() if name.startswith("siglip") else logits.softmax(dim=-1)
        found = {answer["label"]: answer["score"] for answer in answers["pipeline"]}
        assert_near([found[text] for text in texts], scores)


def test_cases_have_sizes_that_the_example_has_not() -> None:
    for family in OWN:
        for case in cases(model_of(family)):
            assert all(size != of_example for size, of_example in zip(case, EXAMPLE, strict=True)), (family, case)
