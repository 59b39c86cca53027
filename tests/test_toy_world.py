"""The world of shapes: what it shows, what it says, what it keeps back; its vocabularies against the references."""

import gzip
import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from itertools import combinations, permutations
from math import dist
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from helpers.released_files import released_module

from twinlens import CLIPTokenizer, SiglipTokenizer, catalogue
from twinlens.toy_world import HELD_OUT, KINDS, Scene, ShapesDataset, SingleShapeDataset, Thing, describe_kind, render
from twinlens.toy_world.evaluation import Question, count_questions, gallery, relation_questions
from twinlens.toy_world.recipe import RECIPES, Recipe
from twinlens.toy_world.vocabulary import MERGES, SENTENCEPIECE, captions, write_merges, write_sentencepiece
from twinlens.toy_world.world import COLOURS, COUNTS, SEEN, SHAPES, SIZES

ASSETS = Path(str(files(catalogue))) / "assets"
NOUN = (
    rf"(?:(an?|{'|'.join(COUNTS)}) )?(?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?"
    rf"({'|'.join(SHAPES)}|thing)(?:s|es)?"
)
KIND = rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
SOMETHING = rf"something ({'|'.join(COLOURS)})"
SENTENCE = re.compile(
    rf"(?:a photo of |a picture of |an image of |i can see |there (?:is|are) )?(?P<what>{NOUN}|{SOMETHING})"
    rf"(?: (?P<place>in the .+)| (?P<lies>left of|right of|above|below|and) (?P<other>{NOUN}|{SOMETHING}))?"
)


@pytest.fixture(scope="module")
def training() -> list[tuple[Scene, str]]:
    pairs = ShapesDataset("train", 2000)
    return [pairs.describe(index) for index in range(len(pairs))]


def meant(noun: str, scene: Scene) -> list[Thing]:
    """The things of a scene that a noun may speak of; none where it gives another number of them."""
    if match := re.fullmatch(SOMETHING, noun):
        return [thing for thing in scene.things if thing.colour == match[1]]
    match = re.fullmatch(NOUN, noun)
    assert match is not None, noun
    count, size, colour, shape = match.groups()
    things = [
        thing
        for thing in scene.things
        if size in (None, thing.size) and colour in (None, thing.colour) and shape in ("thing", thing.shape)
    ]
    return things if len(things) == (1 if count in ("a", "an") else COUNTS.index(count) + 1) else []


def lies(first: Thing, word: str, second: Thing) -> bool:
    across, down = second.x - first.x, second.y - first.y
    ahead, aside = {
        "left of": (across, down),
        "right of": (-across, down),
        "above": (down, across),
        "below": (-down, across),
        "and": (1, 0),
    }[word]
    return ahead > abs(aside)


def is_in(thing: Thing, place: str) -> bool:
    if place == "in the middle":
        return dist((thing.x, thing.y), (0.5, 0.5)) < 0.2
    vertical, horizontal = place.removeprefix("in the ").split()
    return {"top": thing.y < 0.4, "bottom": thing.y > 0.6}[vertical] and {
        "left": thing.x < 0.4,
        "right": thing.x > 0.6,
    }[horizontal]


def is_true(caption: str, scene: Scene) -> bool:
    """Whether a caption holds, read anew from the words and the geometry."""
    match = SENTENCE.fullmatch(caption)
    assert match is not None, caption
    things = meant(match["what"], scene)
    if match["place"]:
        return any(is_in(thing, match["place"]) for thing in things)
    if match["lies"]:
        others = meant(match["other"], scene)
        return any(
            one in things and other in others and lies(one, match["lies"], other)
            for one, other in permutations(scene.things, 2)
        )
    return bool(things)


class TestWorld:
    def test_captions_are_true(self, training: list[tuple[Scene, str]]) -> None:
        assert [text for scene, text in training if not is_true(text, scene)] == []

    def test_captions_of_other_scenes_are_not(self, training: list[tuple[Scene, str]]) -> None:
        scenes, texts = zip(*training, strict=True)
        true = sum(is_true(text, scene) for text, scene in zip(texts, scenes[1:] + scenes[:1], strict=True))
        assert 0 < true < 0.05 * len(training)

    def test_every_way_of_speaking_occurs(self, training: list[tuple[Scene, str]]) -> None:
        words = Counter(word for _, text in training for word in text.split())
        expected = {
            *COLOURS,
            *SHAPES,
            *SIZES,
            *COUNTS[1:],
            "above",
            "below",
            "left",
            "right",
            "top",
            "bottom",
            "middle",
        }
        assert [word for word in expected | {"something", "things", "and", "photo"} if words[word] < 10] == []

    def test_things_neither_touch_nor_leave(self, training: list[tuple[Scene, str]]) -> None:
        for scene, _ in training:
            for thing in scene.things:
                assert thing.radius < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
            for one, other in combinations(scene.things, 2):
                assert dist((one.x, one.y), (other.x, other.y)) > one.radius + other.radius

    def test_held_out_kinds(self, training: list[tuple[Scene, str]]) -> None:
        assert len(KINDS) == 100
        assert len(HELD_OUT) == 20
        assert {len([kind for kind in HELD_OUT if word in kind]) for word in (*COLOURS, *SHAPES)} == {2}
        assert {thing.kind for scene, _ in training for thing in scene.things} == set(SEEN)
        named = {pair for _, text in training for pair in re.findall(KIND, text)}
        assert HELD_OUT.isdisjoint(named)
        assert set(SEEN) <= named

    def test_unseen_kinds_are_tested(self) -> None:
        pairs = ShapesDataset("test", 1000)
        assert {thing.kind for index in range(1000) for thing in pairs.describe(index)[0].things} == set(KINDS)
        assert [SingleShapeDataset(200)[index]["label"] for index in (0, 101, 199)] == [0, 1, 99]


class TestPictures:
    def test_colours(self, training: list[tuple[Scene, str]]) -> None:
        for scene, _ in training[:200]:
            picture = np.asarray(render(scene, 256)).astype(int)
            for thing in scene.things:
                # In the body of every shape: beside the hole of a ring, on the closed side of a moon.
                x = thing.x + {"ring": 0.72, "moon": -0.6}.get(thing.shape, 0) * thing.radius
                assert abs(picture[int(256 * thing.y), int(256 * x)] - thing.paint).max() <= 1
                assert min(COLOURS, key=lambda colour: dist(COLOURS[colour], thing.paint)) == thing.colour

    def test_things_are_where_they_should_be(self, training: list[tuple[Scene, str]]) -> None:
        edge = 1 / 128  # where it is smooth
        down, across = (np.mgrid[:128, :128] + 0.5) / 128
        for scene, _ in training[:100]:
            drawn = np.asarray(render(scene, 128)) != np.asarray(render(replace(scene, things=()), 128))
            near = [np.hypot(across - thing.x, down - thing.y) < thing.radius + edge for thing in scene.things]
            assert not (drawn.any(axis=-1) & ~np.any(near, axis=0)).any()
            assert all((drawn.any(axis=-1) & place).sum() > 0.2 * place.sum() for place in near)

    def test_things_are_lighter_than_the_ground(self, training: list[tuple[Scene, str]]) -> None:
        for scene, _ in training:
            brightest = max(sum(shade) for shade in scene.ground)
            assert all(sum(thing.paint) > brightest + 50 for thing in scene.things)

    def test_shapes_differ_at_their_smallest(self) -> None:
        thing = Thing("red", "", "small", 0.5, 0.5, SIZES["small"], COLOURS["red"])
        pictures = [np.asarray(render(Scene((replace(thing, shape=shape),), ((30, 30, 30),) * 9))) for shape in SHAPES]
        for one, other in combinations(pictures, 2):
            assert (abs(one.astype(int) - other).max(axis=-1) > 60).sum() >= 10  # of some hundred pixels


class TestDataset:
    @pytest.mark.thorough
    def test_pairs_depend_on_split_seed_and_index_alone(self) -> None:
        program = (
            "import hashlib; from twinlens.toy_world import ShapesDataset;"
            "pairs = [ShapesDataset('train', 50, seed=3)[i] for i in reversed(range(50))];"
            "print(hashlib.sha256(b''.join(p['image'].tobytes() + p['text'].encode() for p in pairs)).hexdigest())"
        )
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        pairs = [ShapesDataset("train", 99, seed=3)[index] for index in range(50)]
        content = b"".join(pair["image"].tobytes() + pair["text"].encode() for pair in reversed(pairs))
        assert other.strip() == hashlib.sha256(content).hexdigest()

    @pytest.mark.parametrize("other", [{"seed": 1}, {"split": "test"}], ids=str)
    def test_another_seed_or_split_gives_other_pairs(self, other: dict) -> None:
        datasets = ShapesDataset(size=50), ShapesDataset(size=50, **other)
        one, two = ({pairs[index]["image"].tobytes() for index in range(50)} for pairs in datasets)
        assert one.isdisjoint(two)

    def test_samples(self) -> None:
        sample = ShapesDataset(size=3, image_size=48)[2]
        assert (sample["image"].size, sample["image"].mode, sample["index"]) == ((48, 48), "RGB", 2)
        assert [sample["text"] for sample in ShapesDataset(size=3)] == [  # type: ignore[attr-defined]
            ShapesDataset()[i]["text"] for i in range(3)
        ]

    def test_mistakes(self) -> None:
        with pytest.raises(ValueError, match="'train' or 'test', got 'validation'"):
            ShapesDataset("validation")  # type: ignore[arg-type]
        with pytest.raises(IndexError, match="0 to 9, got 10"):
            ShapesDataset(size=10)[10]


class TestRecipes:
    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
    def test_first_weights(self, recipe: Recipe) -> None:
        model, again = recipe.model(), recipe.model()
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
        assert sum(parameter.numel() for parameter in model.parameters()) * 4 < 6_000_000  # bytes, as they are shipped
        pixels = recipe.processor()(images=[ShapesDataset()[index]["image"] for index in range(100)])["pixel_values"]
        patches = model.vision_model.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2).flatten(0, 1)
        # Whitened: no direction of a patch speaks louder than others, as brightness does in pixels.
        variances = torch.linalg.eigvalsh(torch.cov(patches.T))
        assert variances.max() < 2
        assert variances.mean() > 0.1

    def test_clip_has_the_heads_of_its_format(self) -> None:
        config = RECIPES["clip"].config()
        for tower in (config.vision_config, config.text_config):
            assert tower.num_attention_heads == tower.hidden_size // 64


class TestEvaluation:
    @pytest.mark.parametrize("questions", [count_questions, relation_questions])
    def test_one_answer_of_four_is_true(self, questions: Callable[[int], Iterator[Question]]) -> None:
        for scene, texts, answer in questions(100):
            assert [is_true(text, scene) for text in texts] == [place == answer for place in range(4)], (texts, scene)

    def test_gallery_says_no_thing_twice(self) -> None:
        scenes, texts = zip(*gallery(300), strict=True)
        assert len(set(texts)) == 300
        assert all(is_true(text, scene) for text, scene in zip(texts, scenes, strict=True))


def texts_of_the_world() -> list[str]:
    awkward = ["", "A Red Star!", "a zebra, 3 cats", "  two\n blue rings ", "jqxz-0.5", "café"]
    return [*(describe_kind(kind, count) for kind in KINDS for count in (1, 2)), *captions()[:500], *awkward]


class TestVocabularies:
    @pytest.mark.thorough
    def test_can_be_made_again(self, tmp_path: Path) -> None:
        write_sentencepiece(tmp_path / SENTENCEPIECE)
        write_merges(tmp_path / MERGES)
        assert (tmp_path / SENTENCEPIECE).read_bytes() == (ASSETS / SENTENCEPIECE).read_bytes()
        assert gzip.decompress((tmp_path / MERGES).read_bytes()) == gzip.decompress((ASSETS / MERGES).read_bytes())

    @pytest.mark.thorough
    def test_sentencepiece(self) -> None:
        reference = sentencepiece.SentencePieceProcessor(model_file=str(ASSETS / SENTENCEPIECE))
        expected = [(reference.encode(text.lower())[:15] + [1] * 16)[:16] for text in texts_of_the_world()]
        assert siglip_tokenizer()(texts_of_the_world())["input_ids"] == expected

    @pytest.mark.thorough
    def test_merges(self) -> None:
        module = released_module("openai-clip==1.0.1", "clip/simple_tokenizer.py")
        reference = module.SimpleTokenizer(str(ASSETS / MERGES))
        start, end = (reference.encoder[token] for token in ("<|startoftext|>", "<|endoftext|>"))
        expected = [[start, *reference.encode(text)[:14], end] for text in texts_of_the_world()]
        assert clip_tokenizer()(texts_of_the_world())["input_ids"] == expected

    @pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
    def test_every_word_is_one_token(self, recipe: Recipe) -> None:
        tokenizer = recipe.processor().tokenizer
        words = {word for text in captions() for word in text.split()}
        assert [word for word in words if len(tokenizer.tokenize(word)) != 1] == []

    def test_merges_that_are_missing(self, tmp_path: Path) -> None:
        lines = gzip.decompress((ASSETS / MERGES).read_bytes()).split(b"\n")
        (tmp_path / MERGES).write_bytes(gzip.compress(b"\n".join(lines[:-1])))
        with pytest.raises(ValueError, match=f"{len(lines) - 2} merges, not {len(lines) - 1}"):
            CLIPTokenizer.from_file(tmp_path / MERGES)


def siglip_tokenizer() -> SiglipTokenizer:
    return SiglipTokenizer.from_file(ASSETS / SENTENCEPIECE, model_max_length=16)


def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_file(ASSETS / MERGES, model_max_length=16)
