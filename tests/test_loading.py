"""What people name to load a model: configurations, words, adapters, old folders and names; beside transformers."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from helpers.families import FAMILIES, SQUARE, config, images, model, pixels, token_ids, twins
from helpers.versions import IS_OLDEST
from torch import Tensor, nn

import twinlens
from twinlens.catalogue import bundled_checkpoint

TOWERS = [(family, part) for family in FAMILIES for part in ("vision", "text")]


def tower_name(family: str, part: str) -> str:
    return f"{family}{part.title()}Model"


def tower_input(family: str, part: str) -> dict[str, Tensor]:
    return images(family) if part == "vision" else {"input_ids": token_ids(family)}


@torch.no_grad()
def states(tower: Any, inputs: dict[str, Tensor]) -> Tensor:
    return tower.eval()(**inputs).last_hidden_state


class TestConfigurations:
    """One configuration may stand for another of the same model."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_any_form_leads_the_entry_point_to_the_family(self, family: str, tmp_path: Path) -> None:
        ours, theirs = twins(family)
        theirs.save_pretrained(tmp_path)
        both = {**images(family), "input_ids": token_ids(family)}
        with torch.no_grad():
            expected = theirs(**both).logits_per_image
            for form in (theirs.config, tmp_path, str(tmp_path / "config.json")):
                loaded = twinlens.DualEncoderModel.from_pretrained(tmp_path, config=form)
                assert type(loaded) is type(ours)
                torch.testing.assert_close(loaded(**both).logits_per_image, expected, rtol=0, atol=5e-6)

    @pytest.mark.parametrize("library", [twinlens, transformers])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_entry_point_makes_models_of_the_family(self, family: str, library: Any) -> None:
        expected = getattr(twinlens, f"{family}Model")
        assert type(twinlens.DualEncoderModel(config(family, library))) is expected
        made = twinlens.DualEncoderModel._from_config(config(family, library), attn_implementation="eager")
        assert type(made) is type(pickle.loads(pickle.dumps(made))) is expected
        assert made.text_model.config._attn_implementation == "eager"

    def test_the_kernels_of_transformers_configuration_are_kept(self) -> None:
        theirs = config("CLIP", transformers)
        theirs._attn_implementation = {"": "sdpa", "vision_config": "sdpa", "text_config": "eager"}
        made = twinlens.DualEncoderModel(theirs)
        towers = (made.vision_model, made.text_model, twinlens.CLIPTextModel(theirs))
        assert [tower.config._attn_implementation for tower in towers] == ["sdpa", "eager", "eager"]

    def test_others_are_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match=r"dual encoder \(clip, .*\) .* got 'blip'"):
            twinlens.DualEncoderModel(transformers.BlipConfig())
        with pytest.raises(ValueError, match=r"takes both towers.* has one, a CLIPVisionConfig.* with CLIPVisionModel"):
            twinlens.DualEncoderModel(config("CLIP", transformers, "Vision"))
        with pytest.raises(TypeError, match="takes a CLIPTextConfig, got a SiglipConfig"):
            twinlens.CLIPTextModel(config("Siglip", transformers))

    @pytest.mark.parametrize(("family", "part"), TOWERS)
    def test_a_tower_takes_its_part(self, family: str, part: str, tmp_path: Path) -> None:
        theirs = model(family, library=transformers)
        theirs.save_pretrained(tmp_path)
        tower = getattr(twinlens, tower_name(family, part)).from_pretrained(tmp_path, config=theirs.config)
        x = tower_input(family, part)
        expected = states(getattr(theirs, f"{part}_model"), x)
        torch.testing.assert_close(states(tower, x), expected, rtol=0, atol=5e-6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that transformers wrote, by the name of their class."""
    root = tmp_path_factory.mktemp("kinds")
    for family in FAMILIES:
        for kind in ("Model", "VisionModel", "TextModel"):
            model(family, kind, transformers).save_pretrained(root / f"{family}{kind}")
    return {folder.name: folder for folder in root.iterdir()}


class TestOtherKinds:
    """transformers' classes load them all, with random weights and a report, or even without one."""

    @pytest.mark.parametrize(
        ("name", "source", "loader"),
        [
            ("SiglipModel", "CLIPModel", "CLIPModel"),
            ("CLIPTextModel", "SiglipModel", "SiglipTextModel"),
            ("CLIPTextModel", "SiglipTextModel", "SiglipTextModel"),
            ("SiglipVisionModel", "CLIPModel", "CLIPVisionModel"),
            ("CLIPForImageClassification", "SiglipModel", "SiglipModel"),
            ("CLIPForImageClassification", "CLIPTextModel", "CLIPTextModel"),
            ("CLIPModel", "CLIPTextModel", "CLIPTextModel"),
            ("CLIPVisionModelWithProjection", "CLIPTextModel", "CLIPTextModel"),
        ],
    )
    def test_are_refused_by_name(self, folders: dict[str, Path], name: str, source: str, loader: str) -> None:
        with pytest.raises(ValueError, match=rf"Expected a .* model \('.*'\), got '.*Load it with {loader}\."):
            getattr(twinlens, name).from_pretrained(folders[source])

    def test_of_parts_that_do_not_say_it(self, folders: dict[str, Path], tmp_path: Path) -> None:
        values = json.loads((folders["SiglipModel"] / "config.json").read_text())
        del values["text_config"]["model_type"]
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match="got 'siglip_text_model'"):
            twinlens.CLIPTextModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize("family", ["CLIP", pytest.param("Siglip", marks=pytest.mark.thorough)])
    def test_of_which_a_tower_is_absent(self, folders: dict[str, Path], family: str, tmp_path: Path) -> None:
        dual_encoder = getattr(twinlens, f"{family}Model")
        with pytest.raises(ValueError, match=r"none of the weights .* for its text_model and vision_model"):
            dual_encoder.from_pretrained(folders[f"{family}VisionModel"])
        ours = dual_encoder.from_pretrained(folders[f"{family}Model"])
        weights = {name: weight for name, weight in ours.state_dict().items() if not name.startswith("text_model.")}
        ours.save_pretrained(tmp_path, state_dict=weights)
        for name in ("Model", "TextModel"):
            with pytest.raises(ValueError, match=f"none of the weights that {family}{name} needs"):
                getattr(twinlens, f"{family}{name}").from_pretrained(tmp_path)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_classifier_takes_an_image_tower(self, folders: dict[str, Path], family: str) -> None:
        tower = getattr(transformers, f"{family}VisionModel").from_pretrained(folders[f"{family}VisionModel"])
        classifier, info = getattr(twinlens, f"{family}ForImageClassification").from_pretrained(
            folders[f"{family}VisionModel"], output_loading_info=True
        )
        assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
        assert not info["unexpected_keys"]
        x = images(family)
        torch.testing.assert_close(states(classifier.vision_model, x), states(tower, x), rtol=0, atol=5e-6)


def write_changed(folder: Path, theirs: Any, change: Any) -> None:
    """Write a folder of transformers whose config.json is `change` of what it should be."""
    theirs.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(values)))


def leave_out_widths(values: dict) -> dict:
    for part in ("vision_config", "text_config"):
        del values[part]["projection_dim"]
    return values


def state_other_widths(values: dict) -> dict:
    return values | {part: values[part] | {"projection_dim": 512} for part in ("vision_config", "text_config")}


def move_parts(values: dict) -> dict:
    parts = {part: values.pop(part) for part in ("vision_config", "text_config")}
    return values | dict.fromkeys(parts) | {f"{part}_dict": parts[part] for part in parts}


def contradict_parts(values: dict) -> dict:
    """The values of `..._config_dict` win, as in transformers."""
    parts = {part: values[part] for part in ("vision_config", "text_config")}
    deeper = {part: parts[part] | {"num_hidden_layers": 5, "projection_dim": 7} for part in parts}
    return values | deeper | {f"{part}_dict": parts[part] for part in parts}


class TestOldFolders:
    @pytest.mark.parametrize(
        "change",
        [leave_out_widths, contradict_parts]
        + [pytest.param(change, marks=pytest.mark.thorough) for change in (state_other_widths, move_parts)],
    )
    def test_the_dual_encoder_says_how_wide_the_projections_are(self, change: Any, tmp_path: Path) -> None:
        """transformers' towers take 512, or what the tower's part says, and do not load; its dual encoder does."""
        write_changed(tmp_path, model("CLIP", library=transformers), change)
        theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
        pictures, ids = pixels(), token_ids("CLIP")
        ours = twinlens.CLIPModel.from_pretrained(tmp_path)
        vision = twinlens.CLIPVisionModelWithProjection.from_pretrained(tmp_path)
        text = twinlens.CLIPTextModelWithProjection.from_pretrained(tmp_path, config=theirs.config)
        with torch.no_grad():
            expected = theirs.get_image_features(pictures).pooler_output, theirs.get_text_features(ids).pooler_output
            for image_embeds, text_embeds in (
                (vision(pictures).image_embeds, text(ids).text_embeds),
                (ours.get_image_features(pictures).pooler_output, ours.get_text_features(ids).pooler_output),
            ):
                torch.testing.assert_close((image_embeds, text_embeds), expected, rtol=0, atol=5e-6)

    def test_a_saved_folder_says_it_for_transformers_too(self, tmp_path: Path) -> None:
        write_changed(tmp_path / "old", model("CLIP", library=transformers), state_other_widths)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "old")
        twinlens.CLIPModel.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
        theirs = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "new")
        assert theirs.text_projection.weight.shape == (24, 32)


LABELS = {0: "cat", 1: "dog", 2: "bird"}
WORDS: list[dict[str, Any]] = [
    {"num_labels": 3, "output_hidden_states": True, "config": None, "state_dict": None},
    {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}, "dtype": torch.bfloat16},
    {"problem_type": "regression", "vision_config": {"attention_dropout": 0.25}, "attn_implementation": "eager"},
]


@pytest.fixture(scope="module", params=SQUARE)
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    file = Path(bundled_checkpoint(f"{request.param.lower()}-shapes").weights)
    folder = tmp_path_factory.mktemp("words")
    twinlens.DualEncoderModel.from_pretrained(file).save_pretrained(folder)
    return request.param, file, folder


class TestWordsBesideFiles:
    """What transformers takes beside a folder, twinlens takes beside the official file of the same weights."""

    @pytest.mark.parametrize("words", WORDS, ids=lambda words: "-".join(words))
    def test_they_reach_the_configuration(self, sources: tuple[str, Path, Path], words: dict[str, Any]) -> None:
        family, file, folder = sources
        name = f"{family}ForImageClassification"
        ours, theirs = (
            getattr(library, name).from_pretrained(source, **words)
            for library, source in ((twinlens, file), (transformers, folder))
        )
        assert ours.classifier.weight.shape == theirs.classifier.weight.shape
        assert ours.dtype == theirs.dtype
        for attribute in ("num_labels", "id2label", "label2id", "problem_type", "output_hidden_states"):
            assert getattr(ours.config, attribute) == getattr(theirs.config, attribute)
        assert ours.config.vision_config.attention_dropout == theirs.config.vision_config.attention_dropout
        assert ours.config._attn_implementation == theirs.config._attn_implementation

    def test_towers_take_theirs(self, sources: tuple[str, Path, Path]) -> None:
        family, file, folder = sources
        name, words = f"{family}VisionModel", {"attention_dropout": 0.25, "output_hidden_states": True}
        ours = getattr(twinlens, name).from_pretrained(file, **words)
        theirs = getattr(transformers, name).from_pretrained(folder, **words)
        x = torch.randn(1, 3, 64, 64)
        assert len(ours(x).hidden_states) == len(theirs(x).hidden_states)
        assert ours.config.attention_dropout == theirs.config.attention_dropout == 0.25
        if family == "Siglip":
            headless = twinlens.SiglipVisionModel.from_pretrained(file, vision_use_head=False)
            theirs = transformers.SiglipVisionModel.from_pretrained(folder, vision_use_head=False)
            assert headless(x).pooler_output is theirs(x).pooler_output is None
            assert set(headless.state_dict()) == set(theirs.state_dict())

    @pytest.mark.parametrize("name", ["Model", "VisionModel", "TextModel"])
    def test_unknown_ones_are_refused_alike(self, sources: tuple[str, Path, Path], name: str) -> None:
        family, file, folder = sources
        messages = []
        for source in (file, folder):
            with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'") as refusal:
                getattr(twinlens, family + name).from_pretrained(source, bogus=1)
            messages.append(str(refusal.value))
        assert messages[0] == messages[1]


class TestFormerNames:
    """Before transformers 5.6, `CLIPTextModel` and its like held the tower as `text_model` or `vision_model`."""

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
    @pytest.mark.parametrize(("family", "part"), TOWERS)
    def test_hasattr_is_answered_as_by_transformers(self, family: str, part: str) -> None:
        """Code that asks whether a model is of that time must not take ours for one; code of that time still runs."""
        from peft import LoraConfig, get_peft_model

        name = f"{part}_model"
        ours, theirs = twins(family, tower_name(family, part).removeprefix(family))
        assert (hasattr(ours, name), hasattr(theirs, name)) == (False, False)
        module: Any = ours
        while hasattr(module, name):
            module = getattr(module, name)
        assert module is ours
        adapted = get_peft_model(copy.deepcopy(ours), LoraConfig(target_modules=["q_proj"]))
        wrappers: list[Any] = [adapted, torch.compile(ours)]
        for around in wrappers:  # which ask the tower for what they do not have themselves
            assert not hasattr(around, name)
            assert type(around.vision_model if part == "vision" else around.text_model) is type(ours)
        encoders = [ours.vision_model.encoder] if part == "vision" else [ours.text_model.encoder]
        assert encoders == [ours.encoder]

    @pytest.mark.parametrize(("family", "part"), TOWERS)
    def test_state_dicts_of_that_time_load(self, family: str, part: str) -> None:
        ours, theirs = twins(family, tower_name(family, part).removeprefix(family))
        former = {f"{part}_model.{name}": weight for name, weight in theirs.state_dict().items()}
        with pytest.raises(RuntimeError, match="Missing key"):
            theirs.load_state_dict(former)
        names = list(former)
        fresh, nested = type(ours)(ours.config), type(ours)(ours.config)
        fresh.load_state_dict(former)
        nn.ModuleDict({"tower": nested}).load_state_dict({f"tower.{name}": former[name] for name in names})
        assert names == list(former)  # as they were given
        for tower in (fresh, nested):
            assert all(torch.equal(tower.state_dict()[name], weight) for name, weight in theirs.state_dict().items())
        with pytest.raises(RuntimeError, match="bogus"):
            fresh.load_state_dict(former | {f"{part}_model.bogus": torch.ones(1)})


@pytest.fixture(
    scope="module",
    params=[TOWERS[0], *(pytest.param(tower, marks=pytest.mark.thorough) for tower in TOWERS[1:])],
    ids="-".join,
)
def former(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path, Path]:
    """A tower's folder, and an adapter of transformers' class for it under the names of before 5.6."""
    from peft import LoraConfig, get_peft_model

    family, part = request.param
    base, adapter = (tmp_path_factory.mktemp(name) for name in ("base", "adapter"))
    theirs = model(family, tower_name(family, part).removeprefix(family), transformers)
    theirs.save_pretrained(base)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    get_peft_model(type(theirs).from_pretrained(base), lora).save_pretrained(str(adapter))
    file = adapter / "adapter_model.safetensors"
    prefix = "base_model.model."
    weights = safetensors.torch.load_file(file)
    former = {f"{prefix}{part}_model.{name.removeprefix(prefix)}": weight for name, weight in weights.items()}
    safetensors.torch.save_file(former, file)
    return family, part, base, adapter


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
class TestAdapters:
    def test_those_with_former_names_are_applied(self, former: tuple[str, str, Path, Path]) -> None:
        """As transformers' `load_adapter` does; peft's own loader leaves them out of transformers' class."""
        from peft import PeftModel

        family, part, base, adapter = former
        theirs = getattr(transformers, tower_name(family, part)).from_pretrained(base)
        with pytest.warns(UserWarning, match="missing adapter keys"):
            PeftModel.from_pretrained(type(theirs).from_pretrained(base), adapter)
        x = tower_input(family, part)
        bare = states(theirs, x)
        theirs.load_adapter(adapter)
        expected = states(theirs, x)
        assert (expected - bare).abs().max() > 0.01
        tower_class = getattr(twinlens, tower_name(family, part))
        second = PeftModel.from_pretrained(tower_class.from_pretrained(base), adapter, adapter_name="one")
        second.load_adapter(adapter, adapter_name="two")
        second.set_adapter("two")
        loaded = tower_class.from_pretrained(base)
        loaded.load_adapter(adapter)
        for tower in (
            PeftModel.from_pretrained(tower_class.from_pretrained(base), adapter),
            second,
            loaded,
            tower_class.from_pretrained(adapter),
        ):
            torch.testing.assert_close(states(tower, x), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_entry_point_takes_their_folders(self, family: str, tmp_path: Path) -> None:
        from peft import LoraConfig, get_peft_model

        base, adapter = tmp_path / "base", tmp_path / "adapter"
        model(family, library=transformers).save_pretrained(base)
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(transformers.AutoModel.from_pretrained(base), lora).save_pretrained(str(adapter))
        theirs = transformers.AutoModel.from_pretrained(adapter)
        both = {**images(family), "input_ids": token_ids(family)}
        for words in ({}, {"adapter_name": "other", "config": theirs.config}, {"config": str(base)}):
            ours = twinlens.DualEncoderModel.from_pretrained(adapter, **words)
            assert type(ours) is getattr(twinlens, f"{family}Model")
            assert [*ours.peft_config] == [words.get("adapter_name", "default")]
            with torch.no_grad():
                expected = theirs(**both).logits_per_image
                torch.testing.assert_close(ours(**both).logits_per_image, expected, rtol=0, atol=1e-5)

    @pytest.mark.skipif(IS_OLDEST, reason="transformers 5.12 finds no adapter in a sub-folder of a local folder")
    def test_one_of_wrapped_weights(self, tmp_path: Path) -> None:
        """The base has its weights below a prefix; the adapter lies in a subfolder, the base does not."""
        from peft import LoraConfig, get_peft_model

        base, adapter = tmp_path / "base", tmp_path / "adapters" / "one"
        model("CLIP", library=transformers).save_pretrained(base)
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(transformers.AutoModel.from_pretrained(base), lora).save_pretrained(str(adapter))
        x = pixels()
        with torch.no_grad():
            expected = transformers.AutoModel.from_pretrained(adapter).get_image_features(x).pooler_output
        weights = safetensors.torch.load((base / "model.safetensors").read_bytes())
        wrapped = {f"module.{name}": weight for name, weight in weights.items()}
        safetensors.torch.save_file(wrapped, base / "model.safetensors", {"format": "pt"})
        for entry_point in (twinlens.DualEncoderModel, twinlens.CLIPModel):
            ours = entry_point.from_pretrained(adapter.parent, subfolder=adapter.name)
            assert ours.name_or_path == str(base)
            with torch.no_grad():
                actual = ours.get_image_features(x).pooler_output
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)

    @pytest.mark.filterwarnings(
        "ignore:Could not find a config file:UserWarning"
    )  # peft, which looks for a resized table
    def test_one_of_an_official_file_finds_it_again(self, tmp_path: Path) -> None:
        from peft import LoraConfig, get_peft_model

        file = bundled_checkpoint("clip-shapes").weights
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        trained = get_peft_model(twinlens.DualEncoderModel.from_pretrained(file), lora).eval()
        trained.save_pretrained(str(tmp_path))
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            base: Any = trained.get_base_model()
            expected = base.encode_image(images)
            loaded, _ = twinlens.DualEncoderModel.from_pretrained(tmp_path, output_loading_info=True)
            assert torch.equal(loaded.encode_image(images), expected)
            assert not torch.equal(twinlens.CLIPModel.from_pretrained(file).encode_image(images), expected)

    def test_one_that_names_no_model_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": null}')
        with pytest.raises(ValueError, match="names no base model"):
            twinlens.DualEncoderModel.from_pretrained(tmp_path)
        monkeypatch.setattr("twinlens.formats.adapters.is_peft_available", lambda: False)
        with pytest.raises(ImportError, match="pip install peft"):
            twinlens.DualEncoderModel.from_pretrained(tmp_path)
