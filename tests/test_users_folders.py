"""Files, folders, configurations and uploads: each test fails with transformers' class and passes with ours."""

import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import families
from helpers.builders import TINY_CLIP, write_openai
from helpers.differences import SILENT, difference, same
from helpers.official_outputs import FIXTURES, official_outputs
from transformers import dynamic_module_utils

import twinlens
from twinlens.conversion import convert, push
from twinlens.parity import verify

# --- official files ---------------------------------------------------------------------------------------------------


@difference(
    "sources",
    "big_vision's `.npz`",
    "an error: no class reads it",
    "`from_pretrained` and `twinlens convert`, within the tolerances of big_vision's own outputs",
    "what authors publish",
    fails=((OSError, ValueError), "Repo id|valid JSON"),
)
def test_files_of_big_vision(library: Any) -> None:
    images, ids, expected = official_outputs("siglip_v1")
    model = library.SiglipModel.from_pretrained(FIXTURES / "siglip_v1" / "checkpoint.npz")
    logits = model(**images, input_ids=ids).logits_per_image
    same(logits.double(), torch.from_numpy(expected["f64/logits_per_image"]), tolerance=1e-4)


@difference(
    "sources",
    "OpenAI's archives",
    "an error; `torch.load(weights_only=True)` refuses them too",
    "read, and nothing in them is run",
    "their weights are plain tensors",
    fails=((OSError, ValueError), "Repo id|valid JSON"),
)
def test_archives_of_openai(library: Any, tmp_path: Path) -> None:
    tensors = write_openai(tmp_path / "clip.pt", **TINY_CLIP)
    with pytest.raises(Exception, match=r"weights_only|TorchScript"):
        torch.load(tmp_path / "clip.pt", weights_only=True)
    model = library.CLIPModel.from_pretrained(tmp_path / "clip.pt")
    assert torch.equal(model.visual_projection.weight, tensors["visual.proj"].T.float())


@difference(
    "sources",
    "a folder with another activation than its weights were trained with",
    "loaded, silently",
    "loaded, for nothing in it says so; `verify` refuses it, and `convert` writes none",
    "OpenAI's and open_clip's files use the same names for quick and exact GELU",
    fails=(AssertionError, "assert not True"),
)
def test_a_wrong_activation_is_found(library: Any, tmp_path: Path) -> None:
    write_openai(tmp_path / "clip.pt", **TINY_CLIP)
    convert(tmp_path / "clip.pt", tmp_path / "folder", verify=False)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    for part in ("vision_config", "text_config"):
        config[part]["hidden_act"] = "gelu"
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    library.CLIPModel.from_pretrained(tmp_path / "folder")
    is_accepted = library is not twinlens or verify(tmp_path / "clip.pt", tmp_path / "folder").passed
    assert not is_accepted


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@difference(
    "sources",
    "a pickle that runs code",
    "refused",
    "the same",
    "a checkpoint is data; upstream is right here",
    fails=None,
)
def test_pickles_are_not_run(library: Any, tmp_path: Path) -> None:
    families.config("CLIP").save_pretrained(tmp_path)
    weights = {**families.model("CLIP").state_dict(), "extra": Touch(tmp_path / "touched")}
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(weights))
    with pytest.raises(Exception, match=r"(?i)unpickl|weights|refuse|zip|protocol"):
        library.CLIPModel.from_pretrained(tmp_path)
    assert not (tmp_path / "touched").exists()


# --- folders ----------------------------------------------------------------------------------------------------------


@difference(
    "folders",
    "the folder of another family or tower",
    "the weights whose names and shapes fit, the rest random, with a report at most",
    "an error with the class that loads it",
    "nobody wants them",
    fails=SILENT,
)
def test_folders_of_another_family(library: Any, tmp_path: Path) -> None:
    families.model("Siglip", "TextModel", library).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Load it with SiglipTextModel"):
        library.CLIPTextModel.from_pretrained(tmp_path)


@difference(
    "folders",
    "a folder in which a whole tower is missing",
    "random weights and a report",
    "an error; `output_loading_info=True` shows what is missing",
    "nobody wants them",
    fails=SILENT,
)
def test_folders_without_a_tower(library: Any, tmp_path: Path) -> None:
    model = families.model("CLIP", library=library)
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("text_model.")}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="none of the weights"):
        library.CLIPModel.from_pretrained(tmp_path)


@difference(
    "folders",
    "projections of CLIP's towers in old folders",
    "as wide as the tower's part of the configuration says, or 512: an error",
    "as wide as the dual encoder says",
    "the weights are",
    fails=(RuntimeError, "size mismatch|ignore_mismatched_sizes"),
)
def test_projections_of_old_folders(library: Any, tmp_path: Path) -> None:
    families.model("CLIP", library=library).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for part in ("vision_config", "text_config"):
        values[part]["projection_dim"] = 512
    (tmp_path / "config.json").write_text(json.dumps(values))
    tower = library.CLIPTextModelWithProjection.from_pretrained(tmp_path)
    assert tower.text_projection.weight.shape == (24, 32)


@difference(
    "folders",
    "tables of positions that are not saved",
    "made again on loading; they held garbage in former versions",
    "there are none",
    "a buffer that is not saved is whatever lies in memory; upstream is right here",
    fails=None,
)
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("family", families.SQUARE)
def test_nothing_is_read_from_fresh_memory(library: Any, family: str, tmp_path: Path) -> None:
    model = families.model(family, library=library)
    model.save_pretrained(tmp_path)
    inputs = {"pixel_values": families.pixels(), "input_ids": families.token_ids(family)}
    loaded = type(model).from_pretrained(tmp_path)
    same(loaded(**inputs).logits_per_image, model(**inputs).logits_per_image)


@difference(
    "folders",
    "OpenAI's ResNet CLIPs",
    "no class",
    "`CLIPResNetModel`",
    "they are CLIP too",
    fails=(AttributeError, "CLIPResNetModel"),
)
def test_resnets(library: Any, tmp_path: Path) -> None:
    vision = {"hidden_size": 64, "num_attention_heads": 2, "image_size": 32, "depths": [1, 1, 1, 1]}
    config = {"vision_config": vision, "text_config": families.TEXT, "projection_dim": 24}
    model, pixels = library.CLIPResNetModel(library.CLIPResNetConfig(**config)).eval(), families.pixels()
    model.save_pretrained(tmp_path)
    same(library.CLIPResNetModel.from_pretrained(tmp_path).encode_image(pixels), model.encode_image(pixels))


_CONFIGURATION = """
import transformers

class OwnConfig(transformers.CLIPConfig):
    model_type = "own"
"""
_MODEL = """
import transformers
from ..configuration.own import OwnConfig

class OwnModel(transformers.CLIPModel):
    config_class = OwnConfig
"""


def model_of_two_rooms(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model whose class stands in one folder of a package, and the class of its configuration in another."""
    for name, text in {"configuration/own.py": _CONFIGURATION, "modeling/own.py": _MODEL}.items():
        (folder / "rooms" / name).parent.mkdir(parents=True)
        (folder / "rooms" / name).write_text(text)
    monkeypatch.syspath_prepend(folder)
    own = importlib.import_module("rooms.modeling.own")
    own.OwnConfig.register_for_auto_class()
    own.OwnModel.register_for_auto_class("AutoModel")
    return own.OwnModel(own.OwnConfig(**families.settings("CLIP")))


@difference(
    "folders",
    "a model of one's own whose code stands in several folders, saved for `trust_remote_code=True`",
    "an error when it is saved or loaded: the loader reads files of one folder",
    "for the models that carry their code, each room becomes one file beside the weights",
    "code in rooms is read more easily, and loads like any other",
    fails=((OSError, ImportError), r"own|configuration"),
)
def test_code_in_folders(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "transformers_modules", raising=False)
    if library is twinlens:
        vision = {"hidden_size": 64, "num_attention_heads": 2, "image_size": 32, "depths": [1, 1, 1, 1]}
        model: Any = twinlens.CLIPResNetModel(
            twinlens.CLIPResNetConfig(vision_config=vision, text_config=families.TEXT)
        )
    else:
        model = model_of_two_rooms(tmp_path, monkeypatch)
    model.save_pretrained(tmp_path / "saved")
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert "transformers_modules" in type(loaded).__module__
    same(loaded.state_dict(), model.state_dict(), tolerance=0)


@difference(
    "folders",
    "special ids of SigLIP's text configuration",
    "49406 and 49407, outside 32000 pieces",
    "inside the vocabulary",
    "copied from CLIP",
    fails=(AssertionError, "49406"),
)
def test_special_ids_lie_in_the_vocabulary(library: Any) -> None:
    config = library.SiglipTextConfig()
    ids = [getattr(config, f"{name}_token_id") for name in ("pad", "bos", "eos")]
    assert [number for number in ids if number is not None and number >= config.vocab_size] == []


@difference(
    "folders",
    "unknown names given to a configuration",
    "become attributes",
    "an error that names the nearest field",
    "they were misspelt",
    fails=SILENT,
)
def test_misspelt_fields(library: Any) -> None:
    with pytest.raises(TypeError, match="hidden_size"):
        library.SiglipVisionConfig(hiden_size=64)


# --- uploads ----------------------------------------------------------------------------------------------------------


@difference(
    "uploads",
    "what else lies in a model's folder: keys, caches, links to other places, tables of people",
    "all of it is sent by `upload_folder` of huggingface_hub",
    "`twinlens push` sends what a model is loaded from, and names the rest; `--dry-run` lists both",
    "an upload is public",
    fails=(AssertionError, r"\.env"),
    library="huggingface_hub",
)
def test_only_the_model_is_sent(library: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    families.model("CLIP").save_pretrained(folder)
    model_files = {path.name for path in folder.iterdir()}
    for name in (".env", "id_rsa", "people.csv", "notes/diary.txt", "__pycache__/own.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / "vocab.json").symlink_to(tmp_path / "elsewhere.json")
    if library is twinlens:
        plan = push(folder, "someone/model", dry_run=True)
        sent = {*plan.files}
        assert {*plan.left_out} == {".env", "id_rsa", "people.csv", "notes/diary.txt", "__pycache__", "vocab.json"}
    else:
        operations = library.HfApi()._prepare_upload_folder_additions(folder, path_in_repo="", repo_type="model")
        sent = {operation.path_in_repo for operation in operations}
    assert sent == model_files
