"""Texts, tokenizers and zero-shot answers: each test fails with transformers' class and passes with ours."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from helpers import families
from helpers.differences import difference, same
from helpers.photographs import PHOTOGRAPHS
from helpers.text_corpus import trained_sentencepiece
from tokenizers import Tokenizer, normalizers, pre_tokenizers

import twinlens
from twinlens.catalogue import bundled_checkpoint

PAD, EOS, LENGTH = 0, 1, families.TEXT["max_position_embeddings"]  # of the tiny SigLIP
LABELS = ["a red star", "a blue circle", "a cat"]
PIECES = bundled_checkpoint("siglip-shapes").weights.with_name("shapes.model")


def zero_shot(library: Any, family: str, folder: Path) -> Any:
    """transformers' pipeline with the model of a library."""
    model = getattr(library, f"{family}Model").from_pretrained(folder)
    parts = {
        "tokenizer": transformers.AutoTokenizer.from_pretrained(folder),
        "image_processor": twinlens.DualEncoderProcessor.from_pretrained(folder).image_processor,
    }
    return transformers.pipeline("zero-shot-image-classification", model=model, **parts)


def sentencepiece_tokenizer() -> Any:
    """SigLIP's tokenizer as the first folders on the Hub have it: a SentencePiece file, and nothing about padding."""
    return transformers.SiglipTokenizer(str(PIECES), model_max_length=16)


# --- texts ------------------------------------------------------------------------------------------------------------


@difference(
    "texts",
    "SigLIP text that is not padded to its full length, padded on the left, or passed with a mask",
    "another embedding, silently",
    "the embedding that it was trained to have",
    "training had neither masks nor short texts",
    fails=(AssertionError, "not close"),
)
@pytest.mark.parametrize("way", ["short", "left", "mask"])
def test_siglip_texts_in_any_form(library: Any, way: str) -> None:
    model, text = families.model("Siglip", library=library), [5, 6, 7, EOS]
    padding = [PAD] * (LENGTH - len(text))
    trained = torch.tensor([text + padding])
    ids = {"short": torch.tensor([text]), "left": torch.tensor([padding + text]), "mask": trained}[way]
    mask = (ids != PAD).long() if way == "mask" else None
    same(model.get_text_features(ids, mask).pooler_output, model.get_text_features(trained).pooler_output)


@difference(
    "texts",
    "the processor of SigLIP without a word about padding",
    "texts as long as they are, although the model has to see them padded",
    "padded and cut to the length of the model",
    "the default is what training had",
    fails=(AssertionError, r"== \(1, 16\)"),
)
def test_siglip_processor_pads_by_itself(library: Any) -> None:
    processor = library.SiglipProcessor(library.SiglipImageProcessorPil(), sentencepiece_tokenizer())
    assert torch.as_tensor(processor(text=["a red star"])["input_ids"]).shape == (1, 16)


@difference(
    "texts",
    "SigLIP ids that are too long (the zero-shot pipeline asks for 64 tokens even of models with 16)",
    "an error",
    "cut, keeping the end of text",
    "the official tokenizer does",
    fails=(ValueError, "Sequence length must be less than max_position_embeddings"),
)
def test_siglip_texts_that_are_too_long(library: Any, folders: dict[str, Path]) -> None:
    classify = zero_shot(library, "Siglip", folders["siglip-shapes"])
    answers = classify(PHOTOGRAPHS["square"], candidate_labels=LABELS)
    processor = twinlens.DualEncoderProcessor.from_pretrained(folders["siglip-shapes"])
    expected = classify.model(**processor(PHOTOGRAPHS["square"], [f"This is a photo of {x}." for x in LABELS]))
    scores = {answer["label"]: answer["score"] for answer in answers}
    same(torch.tensor([scores[label] for label in LABELS]), expected.logits_per_image[0].sigmoid())


@difference(
    "texts",
    "SigLIP 2 of one image size, whose folder has a plain Gemma tokenizer",
    "letters keep their case",
    "ASCII letters are lower-cased, with a note",
    "training lower-cased them",
    fails=(AssertionError, "assert "),
)
def test_siglip_2_texts_are_lower_cased(library: Any, tmp_path: Path) -> None:
    pieces = trained_sentencepiece(tmp_path, "bpe")
    gemma = Tokenizer.from_str(twinlens.SiglipTokenizer.from_sentencepiece(pieces).backend_tokenizer.to_str())
    gemma.normalizer = normalizers.Replace(" ", "▁")
    gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    gemma.save(str(tmp_path / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**special, "tokenizer_class": "GemmaTokenizer"}))
    families.config("Siglip").save_pretrained(tmp_path)
    auto = {"transformers": transformers.AutoTokenizer, "twinlens": twinlens.SiglipTokenizer}[library.__name__]
    tokenizer = auto.from_pretrained(tmp_path)
    assert tokenizer("A Red STAR")["input_ids"] == tokenizer("a red star")["input_ids"]


@difference(
    "texts",
    "the tokenizer of a NaFlex SigLIP 2",
    "lower-cases",
    "the same, for ASCII letters alone",
    "training did; upstream is right here",
    fails=None,
)
def test_siglip_2_naflex_texts_are_lower_cased(library: Any, tmp_path: Path) -> None:
    pieces = trained_sentencepiece(tmp_path, "bpe")
    own = twinlens.Siglip2Tokenizer.from_sentencepiece(pieces)
    model = json.loads(own.backend_tokenizer.to_str())["model"]
    tokenizer = own
    if library is transformers:
        merges = [tuple(pair) for pair in model["merges"]]
        tokenizer = transformers.Siglip2Tokenizer(vocab=model["vocab"], merges=merges)
    assert tokenizer("A Red STAR")["input_ids"] == tokenizer("a red star")["input_ids"]


@difference(
    "texts",
    "punctuation in SigLIP's texts",
    "always removed",
    "kept; removed where the source or `--text-cleanup canonicalize` says so",
    "training kept it; only big_vision's zero-shot evaluation removes it",
    fails=(AssertionError, "assert "),
)
def test_siglip_texts_keep_their_punctuation(library: Any, tmp_path: Path) -> None:
    sentencepiece_tokenizer().save_pretrained(tmp_path)
    tokenizer = library.SiglipTokenizer.from_pretrained(tmp_path)
    expected = sentencepiece.SentencePieceProcessor(str(PIECES)).encode("a red star, a blue ring!")
    assert tokenizer("A red star, a blue ring!")["input_ids"][: len(expected)] == expected


def pooled_position(model: Any, ids: list[int], mask: list[int] | None = None) -> int:
    """The position whose hidden state is the pooled one."""
    output = model(torch.tensor([ids]), None if mask is None else torch.tensor([mask]))
    distances = (output.last_hidden_state[0] - output.pooler_output).abs().amax(dim=-1)
    return int(distances.argmin())


@difference(
    "texts",
    "CLIP text without an end of text, cut or with ids of another vocabulary",
    "its first token is pooled, which is the same for all texts, silently",
    "its last token is pooled, with a warning",
    "the start of a causal text knows nothing of the rest",
    fails=(AssertionError, "assert 0 == 3"),
)
def test_clip_text_without_an_end(library: Any) -> None:
    assert pooled_position(families.model("CLIP", "TextModel", library), [97, 5, 6, 7]) == 3


@difference(
    "texts",
    "CLIP text padded on the left with the end of text",
    "the padding is pooled",
    "the end that `attention_mask` shows is pooled",
    "padding says nothing",
    fails=(AssertionError, "assert 0 == 4"),
)
def test_clip_text_padded_on_the_left(library: Any) -> None:
    model = families.model("CLIP", "TextModel", library)
    assert pooled_position(model, [98, 98, 97, 5, 98], [0, 0, 1, 1, 1]) == 4


# --- tokenizers -------------------------------------------------------------------------------------------------------


@difference(
    "tokenizers",
    "SigLIP's tokenizer of a SentencePiece file",
    "slow, in Python, without offsets",
    "fast, with the same ids as SentencePiece",
    "labels by the thousand, and the place of a word in a text",
    fails=(KeyError, "offset_mapping"),
)
def test_siglip_tokenizer_knows_offsets(library: Any, tmp_path: Path) -> None:
    sentencepiece_tokenizer().save_pretrained(tmp_path)
    tokenizer = library.SiglipTokenizer.from_pretrained(tmp_path)
    offsets = tokenizer("red star", return_offsets_mapping=True)["offset_mapping"]
    assert max(end for _, end in offsets) == len("red star")


@difference(
    "tokenizers",
    "entities and mojibake in CLIP's texts",
    "read as they are written",
    "repaired",
    "OpenAI's tokenizer calls ftfy and `html.unescape`",
    fails=(AssertionError, "assert "),
)
@pytest.mark.parametrize(("written", "meant"), [("a &amp;amp; b", "a & b"), ("cafÃ©", "café")])
def test_clip_texts_are_repaired(library: Any, written: str, meant: str, tmp_path: Path) -> None:
    twinlens.CLIPTokenizer.from_official().save_pretrained(tmp_path)
    tokenizer = library.CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer(written)["input_ids"] == tokenizer(meant)["input_ids"]


@difference(
    "tokenizers",
    "a text longer than the model reads, without a word about truncation",
    "ids that the model refuses",
    "cut, keeping the end; `truncation=False` is obeyed",
    "the model reads no more",
    fails=(AssertionError, "assert "),
)
def test_long_texts_are_cut(library: Any, folders: dict[str, Path]) -> None:
    tokenizer = library.CLIPTokenizer.from_pretrained(folders["clip-shapes"])
    ids = tokenizer("a red star and " * 10)["input_ids"]
    assert (len(ids), ids[-1]) == (tokenizer.model_max_length, tokenizer.eos_token_id)
    assert len(tokenizer("a red star and " * 10, truncation=False)["input_ids"]) > len(ids)


@difference(
    "threads",
    "one tokenizer in several threads",
    "a call changes the truncation and padding of the shared tokenizer: wrong ids under load, silently",
    "a call changes nothing",
    "state that is not there cannot be shared",
    fails=(AssertionError, "assert "),
)
def test_a_call_changes_no_tokenizer(library: Any, folders: dict[str, Path]) -> None:
    tokenizer = library.CLIPTokenizer.from_pretrained(folders["clip-shapes"])
    before = tokenizer.backend_tokenizer.to_str(), pickle.dumps(tokenizer)
    tokenizer(["a red star", "a"], padding=True, truncation=True, max_length=4)
    assert (tokenizer.backend_tokenizer.to_str(), pickle.dumps(tokenizer)) == before


# --- zero-shot --------------------------------------------------------------------------------------------------------


@difference(
    "zero-shot",
    "the labels of the pipeline, when there are several images",
    "encoded again for each image",
    "encoded once (`model.text_cache`)",
    "the labels stay the same",
    fails=(AssertionError, r"\[3, 3, 3\] == \[3\]"),
)
def test_labels_are_encoded_once(library: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    classify = zero_shot(library, "CLIP", folders["clip-shapes"])
    texts: list[int] = []
    embed, table = torch.nn.functional.embedding, classify.model.text_model.embeddings.token_embedding.weight

    def watched(ids: torch.Tensor, weight: torch.Tensor, *settings: Any) -> torch.Tensor:
        texts.extend([len(ids)] if weight is table else [])
        return embed(ids, weight, *settings)

    monkeypatch.setattr(torch.nn.functional, "embedding", watched)
    classify([*PHOTOGRAPHS.values()][:3], candidate_labels=LABELS)
    assert texts == [3]


@difference(
    "zero-shot",
    "logits of bfloat16 models",
    "bfloat16",
    "float32",
    "8 bits merge most probabilities",
    fails=(AssertionError, "bfloat16"),
)
def test_logits_are_float32(library: Any) -> None:
    model = families.model("Siglip", library=library).bfloat16()
    outputs = model(pixel_values=families.pixels().bfloat16(), input_ids=families.token_ids("Siglip"))
    assert outputs.logits_per_image.dtype == torch.float32


@difference(
    "zero-shot",
    "sigmoid or softmax in the pipeline",
    "by the family",
    "the same",
    "each family is trained with its own; upstream is right here",
    fails=None,
)
@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_scores_are_those_of_the_family(library: Any, family: str, folders: dict[str, Path]) -> None:
    classify = zero_shot(library, family, folders[f"{family.lower()}-shapes"])
    if family == "Siglip":
        classify.tokenizer = twinlens.SiglipTokenizer.from_pretrained(
            folders[f"{family.lower()}-shapes"]
        )  # of 16 tokens
    total = sum(answer["score"] for answer in classify(PHOTOGRAPHS["square"], candidate_labels=LABELS))
    assert (abs(total - 1) < 1e-4) == (family == "CLIP")


@difference(
    "zero-shot",
    "several templates for a label",
    "not available: one `hypothesis_template`",
    '`ZeroShotClassifier(..., templates="openai80")`, or any list of templates',
    "the published accuracies average the embeddings of many prompts",
    fails=(AttributeError, "ZeroShotClassifier"),
)
def test_templates_are_averaged(library: Any, folders: dict[str, Path]) -> None:
    model = twinlens.CLIPModel.from_pretrained(folders["clip-shapes"])
    processor = twinlens.CLIPProcessor.from_pretrained(folders["clip-shapes"])
    templates = ["a photo of {}.", "a drawing of {}."]
    classifier = library.ZeroShotClassifier(model, processor, LABELS, templates=templates)
    texts = torch.stack([model.encode([x.format(label) for label in LABELS], processor) for x in templates])
    same(classifier.class_embeds, torch.nn.functional.normalize(texts.mean(dim=0), dim=-1))
