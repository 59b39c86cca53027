"""JSON and YAML that is no settings of a model: indexes, adapters, open_clip's files, plans, steps of tokenizers."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from . import places
from .settings import VALUES, WHOLE, sound_folder
from .trial import Case

MARKER = "a value to be replaced"
STRANGE: dict[str, str] = {name: VALUES[name] for name in (
    "null", "text", "list", "object", "zero", "minus one", "fraction", "NaN", "10**15", "10**5000", "controls",
    "megabyte", "deep",
)} | {"other place": '"/etc/passwd"', "up": '"../../../etc"', "address": '"http://127.0.0.1:9/a"',
      "900 lists": "[" * 900 + "]" * 900, "list of texts": '["a", "b"]'}  # fmt: skip
INDEX = ("format", "version", "model", "weights", "dim", "dtype", "rows", "shards", "skipped", "job")
ADAPTER = ("base_model_name_or_path", "peft_type", "r", "target_modules", "auto_mapping", "revision", "task_type")
OPEN_CLIP: dict[str, tuple[str, ...]] = {
    "": ("model_cfg", "preprocess_cfg"),
    "model_cfg": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"),
    "vision_cfg": ("image_size", "layers", "width", "head_width", "patch_size", "timm_model_name", "act_kwargs", "a"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "hf_tokenizer_name", "tokenizer_kwargs",
                 "norm_kwargs", "pool_type", "mlp_ratio"),
    "preprocess_cfg": ("mean", "std", "size", "interpolation", "resize_mode", "fill_color", "mode"),
}  # fmt: skip
PLAN = ("model", "data", "output", "batch_size", "steps", "learning_rate", "template", "precision", "seed", "a")
STEPS: dict[str, tuple[Any, ...]] = {  # of a tokenizer.json
    "normalizer": (
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
        {"type": "Replace", "pattern": {"Regex": "("}, "content": "b"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "b" * 1000},
        {"type": "Sequence", "normalizers": []},
        {"type": "Nothing"},
        [],
    ),
    "pre_tokenizer": (
        {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": "[" * 5000}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always"},
        {"type": "ByteLevel", "add_prefix_space": 5},
        {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 10_000},
    ),
    "post_processor": ({"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {"a": 1}},),
    "decoder": ({"type": "BPEDecoder", "suffix": "a" * 300_000},),
    "added_tokens": (
        [{"id": 2**40, "content": "a", "special": True}],
        [{"id": -1, "content": "a"}],
        [{"id": n, "content": f"a{n}", "special": False, "single_word": False, "lstrip": False, "rstrip": False,
          "normalized": False} for n in range(100_000)],
        [{"id": 0, "content": "\x1b[2J" * 9, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
          "normalized": False}],
        {"a": 1},
    ),
    "model": (
        {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]},
        {"type": "BPE", "vocab": {"a": 2**31}, "merges": []},
        {"type": "WordPiece", "vocab": {}, "unk_token": "a", "max_input_chars_per_word": 2**60},
        {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e400]]},
        [],
    ),
    "version": ("9.9", 1),
}  # fmt: skip


@cache
def open_clip_folder() -> Path:
    """A small CLIP as open_clip publishes it."""
    from twinlens.conversion import convert, export

    root = sound_folder().with_name("open_clip")
    root.mkdir()
    convert("clip-shapes", root / "hub", verify=False)
    export(root / "hub", root / "file" / "open_clip_model.safetensors", format="open_clip")
    return root / "file"


def _changed(content: Any, part: str, field: str, value: str) -> str:
    """Set a field, wherever the object `part` is; return the JSON."""

    def change(here: Any, name: str) -> Any:
        if not isinstance(here, dict):
            return here
        values = {key: change(item, key) for key, item in here.items()}
        return {**values, field: MARKER} if name == part else values

    return json.dumps(change(content, "")).replace(json.dumps(MARKER), value)


def _index(field: str, value: str, folder: Path) -> None:
    path = Path(shutil.copytree(places.sound_index(), folder / "file")) / "index.json"
    path.write_text(_changed(json.loads(path.read_text()), "", field, value))


def _open_clip(part: str, field: str, value: str, folder: Path) -> None:
    path = Path(shutil.copytree(open_clip_folder(), folder / "file")) / "open_clip_config.json"
    path.write_text(_changed(json.loads(path.read_text()), part, field, value))


def _adapter(field: str, value: str, folder: Path) -> None:
    import safetensors.torch
    import torch

    base = {"base_model_name_or_path": "siglip-shapes", "peft_type": "LORA", "r": 2, "lora_alpha": 2,
            "target_modules": ["q_proj"]}  # fmt: skip
    (folder / "file").mkdir()
    (folder / "file" / "adapter_config.json").write_text(_changed(base, "", field, value))
    safetensors.torch.save_file({"a": torch.ones(1)}, folder / "file" / "adapter_model.safetensors")
    shutil.copy(sound_folder() / "picture.png", folder / "file")


def _tokenizer(field: str, value: Any, folder: Path) -> None:
    path = Path(shutil.copytree(sound_folder(), folder / "file")) / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))


def _plan(content: bytes, folder: Path) -> None:
    (folder / "file").write_bytes(content)


def _whole(source: Callable[[], Path], name: str, content: bytes, folder: Path) -> None:
    (Path(shutil.copytree(source(), folder / "file")) / name).write_bytes(content)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
YAML: Mapping[str, bytes] = {
    **{name: content for name, content in WHOLE.items() if name != "20 MB of lists"},
    **{f"{field}: {name}": f"{field}: {value}".encode() for field in PLAN for name, value in STRANGE.items()},
    "bomb": BOMB.encode(),
    "calls": b"model: !!python/object/apply:os.system ['touch executed']",
    "key of a list": b"? [a, b]\n: 1",
    "anchor of itself": b"model: &a [*a]",
    "tabs": b"\t" * 100_000,
}
CLASSIFY = ("classify", "{path}", "{path}/picture.png", "--labels", "a,b")
COMMANDS = {
    "index": places.INDEX,
    "open_clip": (("inspect", "{path}"), ("convert", "{path}", "{out}", "--no-verify")),
    "adapter": (("inspect", "{path}"), CLASSIFY),
    "tokenizer": (CLASSIFY,),
    "plan": (("train", "--config", "{path}", "--dry-run"),),
}
NAMED: dict[str, Callable[[Path], None]] = {
    **{f"index {field}: {name}": partial(_index, field, value) for field in INDEX for name, value in STRANGE.items()
       if (field, name) != ("model", "text")},  # which is looked for on the Hub
    **{
        f"open_clip {part} {field}: {name}": partial(_open_clip, part, field, value)
        for part, fields in OPEN_CLIP.items() for field in fields for name, value in STRANGE.items()
    },
    **{f"adapter {field}: {name}": partial(_adapter, field, value)
       for field in ADAPTER for name, value in STRANGE.items() if (field, name) != ("base_model_name_or_path", "text")},
    **{f"tokenizer {field}: {number}": partial(_tokenizer, field, value)
       for field, values in STEPS.items() for number, value in enumerate(values)},
    **{f"plan {name}": partial(_plan, content) for name, content in YAML.items()},
    **{f"index whole: {name}": partial(_whole, places.sound_index, "index.json", content)
       for name, content in WHOLE.items()},
    **{f"open_clip whole: {name}": partial(_whole, open_clip_folder, "open_clip_config.json", content)
       for name, content in WHOLE.items()},
}  # fmt: skip
SAMPLE = tuple(NAMED)[::71]
ALL = tuple(NAMED)


def cases(names: Iterable[str]) -> dict[str, Case]:
    import peft  # noqa: F401  (what it looks for is looked for before the canary watches)

    import twinlens.training.run  # noqa: F401

    places.sound_index()
    open_clip_folder()
    return {name: Case(NAMED[name], commands=COMMANDS[name.partition(" ")[0]]) for name in names}
