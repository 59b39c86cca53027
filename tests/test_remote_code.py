"""Folders of models that transformers has no class for: plain transformers loads them by the code that they carry."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from helpers import families
from helpers.photographs import PHOTOGRAPHS
from helpers.versions import NEEDS_AUTO_IMAGE_PROCESSOR
from torch import Tensor
from transformers import AutoModel, AutoModelForZeroShotImageClassification, dynamic_module_utils

import twinlens
from twinlens.configuration import FAMILIES, carries_code
from twinlens.configuration.remote_code import _LEFT_OUT, remote_code
from twinlens.conversion import convert, push
from twinlens.conversion.model_card import model_card
from twinlens.formats import inspect_source, read_checkpoint
from twinlens.processing import CLIPProcessor, DualEncoderProcessor, build_processor

FILES = {f"{room}_clip_resnet.py" for room in ("configuration", "formats", "losses", "modeling", "runtime")}
PACKAGE = Path(twinlens.__file__).parent


def resnet(vocabulary: int = 99) -> twinlens.CLIPResNetModel:
    """A seeded model in evaluation mode whose normalisation is not that of new weights."""
    torch.manual_seed(0)
    vision = {"hidden_size": 64, "depths": (1, 2, 1, 1), "num_attention_heads": 2, "image_size": 64}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": vocabulary}
    parts = {"vision_config": {**vision, "projection_dim": 24}, "text_config": {**text, "projection_dim": 24}}
    model = twinlens.CLIPResNetModel(twinlens.CLIPResNetConfig(**parts, projection_dim=24)).eval()
    with torch.no_grad():
        for values in (*model.parameters(), *model.buffers()):
            if values.ndim == 1 and values.is_floating_point():
                values.normal_(1, 0.2).abs_()
    return model


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    ids = torch.randint(1, 97, (2, 9))
    ids[:, -1] = 98
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 64, 64)}


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**inputs).logits_per_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    resnet().save_pretrained(folder)
    return folder


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers import the code of folders from a place of this test."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


class TestFiles:
    def test_they_import_each_other_and_what_transformers_needs_itself(self, folder: Path) -> None:
        assert {path.name for path in folder.glob("*.py")} == FILES
        for name in FILES:
            tree = ast.parse((folder / name).read_text(), feature_version=(3, 10))
            imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert {node.level for node in imported if isinstance(node, ast.ImportFrom)} <= {0, 1}
            packages = {*dynamic_module_utils.get_imports(folder / name)} - sys.stdlib_module_names
            assert packages <= {"huggingface_hub", "torch", "transformers", "typing_extensions"}
        needed = dynamic_module_utils.get_relative_import_files(folder / "modeling_clip_resnet.py")
        assert {Path(path).name for path in needed} == FILES - {"modeling_clip_resnet.py"}

    def test_ruff_finds_nothing(self, folder: Path) -> None:
        """No import without a use, no name without a definition."""
        rules = ("--isolated", "--no-cache", "--select=E,F", "--line-length=120")
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", *rules, str(folder)], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "All checks passed!\n")

    def test_they_are_the_code_of_this_package(self) -> None:
        text = remote_code("clip_resnet")["modeling_clip_resnet.py"]
        for name in ("AttentionPooling", "Bottleneck", "CLIPResNetVisionModel", "CLIPResNetModel"):
            assert inspect.getsource(getattr(twinlens.modeling.clip_resnet, name)) in text
        assert text.startswith(f"# Written by twinlens {twinlens.__version__} from its modules in modeling/.")
        assert "Apache License, Version 2.0" in text

    def test_what_is_left_out_exists(self) -> None:
        """Otherwise it has another name now, and is in the files under it."""
        trees = [
            ast.parse(path.read_text())
            for room in ("configuration", "formats", "modeling", "runtime")
            for path in (PACKAGE / room).glob("*.py")
        ]
        classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
        names = {node.name for node in classes}
        names |= {
            f"{node.name}.{inner.name}" for node in classes for inner in node.body if isinstance(inner, ast.FunctionDef)
        }
        assert names >= _LEFT_OUT
        code = "\n".join(remote_code("clip_resnet").values())
        assert not re.search(
            r"\b(import_module|class_for|LoadsOfficialFiles|AcceptsFormerNames|former_module|SiglipConfig)\b", code
        )

    @pytest.mark.thorough
    def test_they_are_the_same_in_every_process(self) -> None:
        """Although the order in which Python walks through sets of names is not."""
        script = "import hashlib; from twinlens.configuration.remote_code import remote_code as code"
        script += "; print(hashlib.sha256(str(code('clip_resnet')).encode()).hexdigest())"
        hashes = {
            subprocess.check_output([sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed})
            for seed in "01"
        }
        assert len(hashes) == 1


class TestSaving:
    @pytest.mark.parametrize("kind", ["Config", "Model", "ForImageClassification", "VisionConfig", "VisionModel"])
    def test_everything_that_transformers_does_not_know(self, kind: str, tmp_path: Path) -> None:
        config = resnet().config
        part = {"VisionConfig": config.vision_config, "VisionModel": config.vision_config}.get(kind, config)
        saved = part if kind.endswith("Config") else getattr(twinlens.modeling, f"CLIPResNet{kind}")(part)
        part.auto_map = {"AutoModel": "someone/else--modeling_other.Other"}  # as in a folder of the Hub
        saved.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.glob("*.py")} == FILES
        classes = json.loads((tmp_path / "config.json").read_text())["auto_map"]
        for name in classes.values():
            module, _, class_name = name.partition(".")
            assert f"\nclass {class_name}(" in (tmp_path / f"{module}.py").read_text()
        towers = {"AutoConfig": "CLIPResNetVisionConfig", "AutoModel": "CLIPResNetVisionModel"}
        dual_encoders = {
            "AutoConfig": "CLIPResNetConfig",
            "AutoModel": "CLIPResNetModel",
            "AutoModelForImageClassification": "CLIPResNetForImageClassification",
            "AutoModelForZeroShotImageClassification": "CLIPResNetModel",
        }
        expected = towers if kind.startswith("Vision") else dual_encoders
        assert {auto: name.partition(".")[2] for auto, name in classes.items()} == expected

    @pytest.mark.parametrize("family", families.FAMILIES)
    def test_nothing_that_transformers_knows(self, family: str, tmp_path: Path) -> None:
        families.model(family).save_pretrained(tmp_path / "dual encoder")
        families.config(family, part="Vision").save_pretrained(tmp_path / "tower")
        assert [*tmp_path.rglob("*.py")] == []
        assert not any("auto_map" in path.read_text() for path in tmp_path.rglob("config.json"))

    def test_the_text_tower_is_one_that_transformers_knows(self, tmp_path: Path) -> None:
        resnet().text_model.save_pretrained(tmp_path)
        assert not carries_code("clip_text_model")
        assert type(AutoModel.from_pretrained(tmp_path)) is transformers.CLIPTextModel

    def test_a_configuration_of_no_family(self, tmp_path: Path) -> None:
        class OwnConfig(twinlens.CLIPConfig):
            model_type = "own"

        OwnConfig().save_pretrained(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    def test_which_families(self) -> None:
        assert [name for name in FAMILIES if carries_code(name)] == ["clip_resnet"]


class TestPlainTransformers:
    @pytest.mark.usefixtures("modules_cache")
    def test_logits_and_a_second_save(self, folder: Path, inputs: dict[str, Tensor], tmp_path: Path) -> None:
        expected = logits(resnet(), inputs)
        model = AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules.")
        assert torch.equal(logits(model, inputs), expected)
        model.save_pretrained(tmp_path / "again")
        for name in (*FILES, "model.safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert torch.equal(logits(twinlens.DualEncoderModel.from_pretrained(tmp_path / "again"), inputs), expected)


class TestTrust:
    """Code of a folder runs where plain transformers is told to trust it, and never in twinlens."""

    @pytest.fixture
    def spoilt(self, folder: Path, tmp_path: Path) -> Path:
        """A folder whose code says that it runs, and stops."""
        spoilt = tmp_path / "spoilt"
        shutil.copytree(folder, spoilt)
        for path in spoilt.glob("*.py"):
            path.write_text("raise RuntimeError('code of the folder runs')")
        return spoilt

    def test_twinlens_does_not_run_it(self, spoilt: Path, inputs: dict[str, Tensor]) -> None:
        expected = logits(resnet(), inputs)
        for source in (spoilt, spoilt / "model.safetensors"):
            assert torch.equal(logits(twinlens.DualEncoderModel.from_pretrained(source), inputs), expected)
        twinlens.CLIPResNetVisionModel.from_pretrained(spoilt)
        inspect_source(spoilt)

    @pytest.mark.usefixtures("modules_cache")
    def test_plain_transformers_runs_it_where_it_is_told_to(self, spoilt: Path) -> None:
        with pytest.raises(ValueError, match="contains custom code which must be executed"):
            AutoModel.from_pretrained(spoilt, trust_remote_code=False)
        with pytest.raises(RuntimeError, match="code of the folder runs"):
            AutoModel.from_pretrained(spoilt, trust_remote_code=True)


class TestPush:
    @pytest.fixture
    def copied(self, folder: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copied"))

    def test_own_code(self, copied: Path) -> None:
        plan = push(copied, "someone/model", include_code=True, dry_run=True)
        assert plan.files.keys() >= FILES
        assert plan.code == f"as twinlens {twinlens.__version__} writes it"
        assert f"code        {plan.code}\n" in plan.describe()

    def test_other_code(self, copied: Path) -> None:
        with (copied / "losses_clip_resnet.py").open("a") as file:
            file.write("print()\n")
        (copied / "setup.py").write_text("")
        plan = push(copied, "a/b", include_code=True, dry_run=True)
        assert str(plan.code).endswith("read it before you push: losses_clip_resnet.py")
        assert plan.left_out == {"setup.py": "code that no auto_map names"}

    def test_left_out_by_default(self, copied: Path) -> None:
        plan = push(copied, "a/b", dry_run=True)
        assert not any(name.endswith(".py") for name in plan.files)
        assert plan.left_out.keys() == FILES
        assert all("--include-code uploads it" in reason for reason in plan.left_out.values())
        assert plan.code == f"left out, although auto_map names it: {', '.join(sorted(FILES))}"
        with pytest.raises(ValueError, match=r"names no file of .*: losses_clip_resnet\.py is code, .*--include-code"):
            push(copied, "a/b", include=["losses*"], dry_run=True)

    def test_missing_code(self, copied: Path) -> None:
        (copied / "losses_clip_resnet.py").unlink()
        with pytest.raises(ValueError, match=r"it has no losses_clip_resnet\.py, the code of its model"):
            push(copied, "someone/model", dry_run=True)


@NEEDS_AUTO_IMAGE_PROCESSOR
@pytest.mark.usefixtures("modules_cache")
def test_the_example_on_the_card_loads(folder: Path) -> None:
    """Without a tokenizer it is one of image features; the other is run by the pipelines below."""
    checkpoint = read_checkpoint(folder)
    processor = CLIPProcessor(build_processor(checkpoint.config).image_processor)
    processor.image_processor.save_pretrained(folder)
    twinlens_use, transformers_use = re.findall(
        r"```python\n(.*?)```", model_card(checkpoint, processor, None, ()), flags=re.DOTALL
    )
    found = []
    for code, name in ((twinlens_use, "image_embeds"), (transformers_use, "features")):
        namespace: dict[str, Any] = {"images": [PHOTOGRAPHS["square"]]}
        exec(code.replace("FOLDER", str(folder)), namespace)
        found.append(torch.nn.functional.normalize(namespace[name], dim=-1))
    assert "trust_remote_code=True" not in twinlens_use
    assert torch.allclose(found[0], found[1], atol=1e-6)


@pytest.mark.thorough
def test_a_converted_folder_where_twinlens_is_not_installed(inputs: dict[str, Tensor], tmp_path: Path) -> None:
    """What people do with a model, in a process of plain transformers; from a folder, and from the cache of the Hub."""
    resnet(49408).save_pretrained(tmp_path / "model")
    folder, labels = tmp_path / "converted", ["a red cat", "two dogs"]
    convert(tmp_path / "model", folder)
    model, processor = twinlens.DualEncoderModel.from_pretrained(folder), DualEncoderProcessor.from_pretrained(folder)
    ids = processor(text=["a cat", "a dog on the table", ""])["input_ids"]
    answers = {**inputs, "input_ids": ids, "logits": logits(model, {**inputs, "input_ids": ids}).contiguous()}
    picture = PHOTOGRAPHS["square"].convert("RGB").resize((64, 64))  # the size of the model
    hub, commit = tmp_path / "hub", "0123456789" * 4
    repository = hub / "models--some-one--CLIP-RN50.tiny"
    safetensors.torch.save_file(answers, folder / "answers.safetensors")
    picture.save(folder / "picture.png")
    (folder / "labels.json").write_text(json.dumps(labels))
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    script = Path(__file__).with_name("helpers") / "remote_code_process.py"
    settings = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, script, folder, "some-one/CLIP-RN50.tiny"],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    assert found["classes"] == ["CLIPResNetConfig", "CLIPResNetModel", "CLIPProcessor"]
    same = ("folder", "repository", "zero-shot", "device_map", "saved")
    assert {name: found[name] for name in same} == dict.fromkeys(same, 0)
    assert max(found["eager"], found["compiled"]) < 1e-5  # float32, in another order
    assert 0 < found["bfloat16"] < 0.2  # 8 bits of precision, of logits up to 15
    assert 0 < found["half"] < 0.02  # 11 bits
    prompts = [f"This is a photo of {label}." for label in labels]  # the pipeline's own
    images, texts = model.encode_image(**processor(images=[picture])), model.encode_text(**processor(text=prompts))
    expected = model.logits(images, texts).softmax(-1).flatten().tolist()
    assert found["scores"] == found["scores of objects"] == pytest.approx(expected, abs=1e-6)
    assert found["features"] == [1, model.config.projection_dim]
    assert found["classifier"] == [2, 5, True]
    assert found["without gradient"] == []
