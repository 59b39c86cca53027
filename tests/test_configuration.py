import json

import pytest
import transformers
from helpers.families import FAMILIES, config

import twinlens
from twinlens.configuration import is_single_tower

CONFIGS = [
    *("CLIPConfig", "CLIPTextConfig", "CLIPVisionConfig"),
    *("SiglipConfig", "SiglipTextConfig", "SiglipVisionConfig"),
]


def saved(instance, folder) -> dict:
    instance.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    for config_dict in (written, written.get("vision_config", {})):
        if config_dict.get("model_type") in ("siglip_vision_model", "siglip2_vision_model"):
            config_dict.setdefault("vision_use_head", True)  # not a field of transformers before 5.23, but always so
    return written


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["", "Vision", "Text"])
def test_json_holds_the_values_of_transformers(family, part, tmp_path):
    ours = saved(config(family, twinlens, part), tmp_path / "ours")
    theirs = saved(config(family, transformers, part), tmp_path / "theirs")
    assert ours == theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_are_those_of_transformers_except_siglips_special_ids(name, tmp_path):
    ours = saved(getattr(twinlens, name)(), tmp_path / "ours")
    theirs = saved(getattr(transformers, name)(), tmp_path / "theirs")
    if name.startswith("SiglipT"):
        # 49406 and 49407, copied from CLIP, lie outside SigLIP's 32000 pieces.
        assert (ours.pop("bos_token_id"), ours.pop("eos_token_id")) == (None, 1)
        assert (theirs.pop("bos_token_id"), theirs.pop("eos_token_id")) == (49406, 49407)
    if name == "SiglipConfig":
        for text_config, expected in ((ours["text_config"], (None, 1)), (theirs["text_config"], (49406, 49407))):
            assert (text_config.pop("bos_token_id"), text_config.pop("eos_token_id")) == expected
    assert ours == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_interoperate(family, tmp_path):
    ours, theirs = config(family), config(family, transformers)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    for loaded in (
        twinlens.DualEncoderConfig.from_pretrained(tmp_path / "theirs"),
        type(ours).from_pretrained(tmp_path / "theirs"),
        type(ours).from_pretrained(tmp_path / "ours"),
    ):
        assert type(loaded) is type(ours)
        assert loaded.to_dict() == ours.to_dict()
    assert saved(type(theirs).from_pretrained(tmp_path / "ours"), tmp_path / "again") == saved(
        theirs, tmp_path / "theirs"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_reads_its_part_of_a_dual_folder(family, tmp_path):
    config(family).save_pretrained(tmp_path)
    vision = type(config(family, part="Vision")).from_pretrained(tmp_path)
    assert vision.to_dict() == {
        **config(family).vision_config.to_dict(),
        "transformers_version": vision.to_dict()["transformers_version"],
    }


def test_a_misspelt_name_is_refused_with_the_right_one():
    with pytest.raises(TypeError, match=r"SiglipVisionConfig has no field 'hiden_size'\. Did you mean 'hidden_size'\?"):
        twinlens.SiglipVisionConfig(hiden_size=64)
    with pytest.raises(TypeError, match="'hiden_size'"):
        twinlens.SiglipConfig(vision_config={"hiden_size": 64})


def test_an_unknown_name_in_a_file_is_kept_and_named(tmp_path, caplog):
    instance = twinlens.SiglipConfig.from_dict({"model_type": "siglip", "text_config": {"colour": "red"}})
    assert "colour" in caplog.text
    instance.save_pretrained(tmp_path)
    assert twinlens.SiglipConfig.from_pretrained(tmp_path).text_config.colour == "red"


def test_old_names_are_accepted():
    old = {"torch_dtype": "float16", "torchscript": False, "use_bfloat16": False, "top_k": 50, "is_decoder": False}
    instance = twinlens.CLIPConfig(
        **old,
        text_config={**old, "dropout": 0.0, "eos_token_id": 2},
        text_config_dict={"hidden_size": 768, "num_attention_heads": 12},
    )
    assert str(instance.dtype) == "torch.float16"
    assert (instance.text_config.hidden_size, instance.text_config.eos_token_id) == (768, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("CLIPVisionConfig", {"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 and num_attention_heads=4"),
        ("CLIPVisionConfig", {"image_size": 8, "patch_size": 16}, "patch_size=16 and image_size=8"),
        ("SiglipTextConfig", {"vocab_size": 10, "pad_token_id": 10}, "pad_token_id=10 and vocab_size=10"),
        ("CLIPTextConfig", {"vocab_size": 10, "eos_token_id": 11}, "eos_token_id=11 and vocab_size=10"),
        ("SiglipTextConfig", {"pad_token_id": None}, "pad_token_id must be given"),
        ("SiglipVisionConfig", {"intermediate_size": 0}, "intermediate_size must be at least 1, got 0"),
    ],
)
def test_contradictions_are_refused_with_both_values(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(twinlens, name)(**arguments)


def test_types_are_checked():
    with pytest.raises(Exception, match="expected int, got str"):
        twinlens.SiglipVisionConfig(hidden_size="64")
    with pytest.raises(TypeError, match="takes a SiglipVisionConfig or a dict as vision_config"):
        twinlens.SiglipConfig(vision_config=twinlens.CLIPVisionConfig())


def test_special_ids_lie_inside_the_vocabulary():
    clip = twinlens.CLIPTextConfig(vocab_size=1000)
    assert (clip.bos_token_id, clip.eos_token_id) == (998, 999)
    extended = (library.CLIPTextConfig(vocab_size=49410) for library in (twinlens, transformers))
    assert [(config.bos_token_id, config.eos_token_id) for config in extended] == [(49406, 49407)] * 2
    siglip = twinlens.SiglipTextConfig(bos_token_id=49406, eos_token_id=49407)  # as transformers writes them
    assert (siglip.bos_token_id, siglip.eos_token_id) == (None, 1)
    gemma = twinlens.SiglipTextConfig(vocab_size=256000, eos_token_id=49407)  # inside, so somebody may mean it
    assert gemma.eos_token_id == 49407
    # A NaFlex model has Gemma's vocabulary always; transformers' defaults, which its folders state, are others' ids.
    naflex = twinlens.Siglip2TextConfig(**transformers.Siglip2TextConfig(vocab_size=256000).to_dict())
    assert (naflex.pad_token_id, naflex.bos_token_id, naflex.eos_token_id) == (0, None, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_traits_stay_out_of_the_json(family):
    text = json.dumps(config(family).to_dict())
    for trait in (
        "pooling",
        "causal",
        "num_class_tokens",
        "norm_first",
        "logit_shape",
        "initialization",
        "embedding_std",
        "ends_at_highest_id",
        "fixed_length",
    ):
        assert trait not in text


def test_the_entry_point_names_the_families_it_knows(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError,
        match=r"dual encoder \(clip, clip_resnet, siglip, siglip2, align, .*\), got \'bert\'",
    ):
        twinlens.DualEncoderConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_told_from_dual_encoders(family):
    assert not is_single_tower(config(family))
    assert is_single_tower(config(family, part="Vision"))
    assert is_single_tower(config(family, part="Text"))
