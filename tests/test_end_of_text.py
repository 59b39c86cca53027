"""Where CLIP's texts end: vocabularies with added tokens, cut texts, padding; against the rules of the sources' code.

OpenAI's (clip/model.py) and open_clip's (text_global_pool) take `text.argmax(-1)`, open_clip with `pool_type` "eos" the
first `eos_id`; transformers takes the first `eos_token_id`, or argmax for 2.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.builders import (
    TINY_CLIP,
    TINY_CLIP_JSON,
    TINY_TRUNK,
    TRUNK_OPTIONS,
    open_clip_tensors,
    openai_tensors,
    trunk_tensors,
    write_beside,
    write_openai,
)
from helpers.families import model, twins

import twinlens
from twinlens.conversion import convert
from twinlens.formats import FormatError, read_checkpoint
from twinlens.parity import certify, verify

EXTENDED = {**TINY_CLIP, "vocabulary": 102}  # 97 and 98 are start and end; 99, 100 and 101 were added
TEXTS = torch.tensor(
    [
        [97, 5, 6, 98, 7, 8, 0, 0, 0, 0, 0, 0],  # ids after the end, none of them added
        [97, 5, 101, 98, 7, 8, 0, 0, 0, 0, 0, 0],
        [97, 5, 100, 6, 99, 98, 101, 0, 0, 0, 0, 0],
        [97, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 98],
        [97, 98, 6, 98, 8, 0, 0, 0, 0, 0, 0, 0],  # two ends
    ]
)
FIRST_END = torch.tensor([3, 3, 5, 11, 1])


def write_extended(folder: Path, source: str) -> Path:
    """Write a checkpoint with added tokens: of OpenAI, or of open_clip with a JSON."""
    folder.mkdir()
    text_cfg: dict[str, Any] = {**TINY_CLIP_JSON["text_cfg"], "vocab_size": 102}
    if source == "open_clip, eos":
        text_cfg |= {"pool_type": "eos", "eos_id": 98}
    if source == "openai":
        write_openai(folder / "weights", **EXTENDED)
    else:
        model_cfg = {**TINY_CLIP_JSON, "text_cfg": text_cfg}
        tensors = open_clip_tensors(**EXTENDED)
        write_beside(folder / "weights", tensors, "safetensors", "open_clip_config.json", {"model_cfg": model_cfg})
    return folder / "weights"


def pooled_positions(tower: Any, ids: list[list[int]], mask: list[list[int]] | None = None) -> list[list[int]]:
    """Return the positions whose hidden state is what the tower pooled: one for each text."""
    arguments = {"input_ids": torch.tensor(ids), "attention_mask": None if mask is None else torch.tensor(mask)}
    with torch.inference_mode():
        outputs = tower(**arguments)
    same = (outputs.last_hidden_state - outputs.pooler_output[:, None]).abs().amax(-1) < 1e-6
    return [row.nonzero().flatten().tolist() for row in same]


class TestAddedTokens:
    @pytest.mark.parametrize(
        ("source", "options", "eos", "position"),
        [
            ("openai", {}, 2, TEXTS.argmax(-1)),
            pytest.param("open_clip", {}, 2, TEXTS.argmax(-1), marks=pytest.mark.thorough),
            ("open_clip, eos", {}, 98, FIRST_END),
            pytest.param("open_clip", {"eos_token_id": 98}, 98, FIRST_END, marks=pytest.mark.thorough),
        ],
    )
    def test_rule_of_the_source(
        self, source: str, options: dict[str, Any], eos: int, position: torch.Tensor, tmp_path: Path
    ) -> None:
        """In the file, in the converted folder, and for transformers' class on it."""
        weights = write_extended(tmp_path / "source", source)
        assert convert(weights, tmp_path / "folder", **options).passed
        for loaded in (
            twinlens.DualEncoderModel.from_pretrained(weights, **options),
            twinlens.CLIPModel.from_pretrained(tmp_path / "folder"),
            transformers.CLIPModel.from_pretrained(tmp_path / "folder"),
        ):
            assert loaded.config.text_config.eos_token_id == eos
            assert pooled_positions(loaded.text_model, TEXTS.tolist()) == position[:, None].tolist()

    @pytest.mark.parametrize(("source", "wrong"), [("openai", 101), ("openai", 98), ("open_clip, eos", 2)])
    def test_a_wrong_rule_fails_the_proof(self, source: str, wrong: int, tmp_path: Path) -> None:
        checkpoint = read_checkpoint(write_extended(tmp_path / "source", source))
        assert certify(checkpoint, twinlens.CLIPModel.from_pretrained(checkpoint.path)).passed
        checkpoint.config.text_config.eos_token_id = wrong
        mistaken = twinlens.CLIPModel.from_pretrained(checkpoint.path, config=checkpoint.config)
        assert not certify(checkpoint, mistaken).passed

    def test_option_that_contradicts_the_file(self, tmp_path: Path) -> None:
        weights = write_extended(tmp_path / "source", "open_clip, eos")
        with pytest.raises(FormatError, match="--eos-token-id 97 was given, but the end of a text can only be 98"):
            read_checkpoint(weights, eos_token_id=97)

    @pytest.mark.thorough
    @pytest.mark.parametrize("vocabulary", [256_000, 256_003])
    def test_siglip_2(self, vocabulary: int, tmp_path: Path) -> None:
        """Added tokens change neither the padding of SigLIP 2 nor its activation."""
        sizes = {**TINY_TRUNK, "vocabulary": vocabulary, "text_width": 64, "text_layers": 1}
        write_beside(tmp_path / "weights", trunk_tensors(**sizes), "torch")
        text = read_checkpoint(tmp_path / "weights", **TRUNK_OPTIONS).config.text_config
        assert (text.pad_token_id, text.eos_token_id, text.hidden_act) == (0, 1, "gelu_pytorch_tanh")

    @pytest.mark.parametrize("vocabulary", [49408, 49410])
    def test_sizes_of_openai(self, vocabulary: int, tmp_path: Path) -> None:
        write_beside(tmp_path / "weights", openai_tensors(**{**TINY_CLIP, "vocabulary": vocabulary}), "torch")
        text = read_checkpoint(tmp_path / "weights").config.text_config
        assert (text.bos_token_id, text.eos_token_id) == (49406, {49408: 49407, 49410: 2}[vocabulary])

    def test_tokens_that_are_added_to_a_converted_folder(self, tmp_path: Path) -> None:
        assert convert("clip-shapes", tmp_path / "folder").passed
        ours = twinlens.CLIPModel.from_pretrained(tmp_path / "folder")
        end = ours.config.text_config.eos_token_id
        assert end == ours.config.text_config.vocab_size - 1
        assert verify("clip-shapes", tmp_path / "folder").passed
        ours.resize_token_embeddings(end + 3)
        ours.save_pretrained(tmp_path / "resized")
        theirs = transformers.CLIPTextModel.from_pretrained(tmp_path / "resized")
        again = twinlens.CLIPTextModelWithProjection.from_pretrained(tmp_path / "resized")
        ids = [[end - 1, 5, end + 2, end, 0, 0], [end - 1, 5, 6, 7, end + 1, end]]
        assert pooled_positions(again.text_model, ids) == pooled_positions(theirs, ids) == [[3], [5]]

    def test_tokenizer_states_the_end(self, tmp_path: Path) -> None:
        """Where the vocabulary ends with it; otherwise a note says what becomes of the tokens behind it."""
        checkpoint = read_checkpoint(write_extended(tmp_path / "source", "openai"))
        ends = {end: checkpoint.with_end_of_text(end) for end in (98, 101)}
        assert [stated.config.text_config.eos_token_id for stated in ends.values()] == [2, 101]
        assert "--eos-token-id 98 pools it at its end" in ends[98].notes[0]
        assert not ends[101].notes

    def test_folder_of_transformers(self, tmp_path: Path) -> None:
        """transformers leaves the default id out of what it saves, or states it; 49407 is the end in both."""
        config = {"vocab_size": 49410, "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
        theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config, intermediate_size=8))
        theirs.save_pretrained(tmp_path)
        ours = twinlens.CLIPTextModel.from_pretrained(tmp_path)
        ids = [[49406, 320, 49409, 49407, 7, 7], [49406, 49408, 5, 6, 7, 49407]]
        assert pooled_positions(ours, ids) == pooled_positions(theirs, ids) == [[3], [5]]


class TestTextWithoutAnEnd:
    @pytest.mark.parametrize("eos", [98, 2])
    def test_last_token_and_one_warning(self, eos: int, caplog: pytest.LogCaptureFixture) -> None:
        tower = model("CLIP", "TextModel")
        tower.config.eos_token_id = eos
        assert pooled_positions(tower, [[97, 5, 98, 1, 1]]) == [[2]]
        assert not caplog.records
        assert pooled_positions(tower, [[97, 5, 6, 1, 1], [97, 5, 6, 7, 8]]) == [[2], [4]]
        assert pooled_positions(tower, [[97, 5, 6, 7, 8]], [[1, 1, 1, 1, 0]]) == [[3]]
        assert pooled_positions(tower, [[1, 1, 97, 5, 6]], [[0, 0, 1, 1, 1]]) == [[4]]
        assert [record.name for record in caplog.records] == ["twinlens.modeling.pooling"]
        assert "pooled at its last token" in caplog.records[0].message

    def test_every_class(self, caplog: pytest.LogCaptureFixture) -> None:
        ids, cut = torch.tensor([[97, 5, 6]]), torch.tensor([[97, 5, 98]])
        for kind in ("TextModel", "TextModelWithProjection", "Model"):
            clip = model("CLIP", kind)
            tower = clip if kind == "TextModel" else clip.text_model
            assert pooled_positions(tower, ids.tolist()) == pooled_positions(tower, cut.tolist()) == [[2]]
        assert len(caplog.records) == 3

    def test_proof_keeps_quiet(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        checkpoint = read_checkpoint(write_extended(tmp_path / "source", "openai"))
        clip = twinlens.CLIPModel.from_pretrained(checkpoint.path)
        assert certify(checkpoint, clip).passed
        assert not caplog.records
        pooled_positions(clip.text_model, [[97, 5, 6]])
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("eos", [98, 2])
    def test_padding_on_the_left_with_the_end(self, eos: int) -> None:
        """transformers takes the padding for the end."""
        ours, theirs = twins("CLIP", "TextModel")
        for twin in (ours, theirs):
            twin.config.eos_token_id = twin.eos_token_id = eos
        text = [[98, 98, 97, 5, 98]], [[0, 0, 1, 1, 1]]
        assert pooled_positions(ours, *text) == [[4]]
        assert pooled_positions(theirs, *text) == [[0]]

    @pytest.mark.thorough
    @pytest.mark.parametrize("eos", [98, 2])
    def test_compiled_in_one_graph_and_exported(self, eos: int) -> None:
        tower = model("CLIP", "TextModel")
        tower.config.eos_token_id = eos
        ids = torch.tensor([[97, 5, 6, 1, 1], [97, 5, 98, 1, 1]])
        expected = tower(ids).pooler_output
        compiled = torch.compile(tower, fullgraph=True, backend="eager")
        assert torch.equal(compiled(ids).pooler_output, expected)
        exported = torch.export.export(tower, (ids,)).module()
        torch.testing.assert_close(exported(ids).pooler_output, expected, rtol=0, atol=1e-6)
        assert tower.to("meta")(ids.to("meta")).pooler_output.shape == expected.shape


def test_a_folder_with_another_end_is_not_verified(tmp_path: Path) -> None:
    """A folder that an earlier version made of a file with added tokens has their last as the end."""
    weights = write_extended(tmp_path / "source", "openai")
    convert(weights, tmp_path / "folder", verify=False)
    config = twinlens.CLIPConfig.from_pretrained(tmp_path / "folder")
    config.text_config.eos_token_id = 101
    config.save_pretrained(tmp_path / "folder")
    assert not verify(weights, tmp_path / "folder").passed
