"""JSON in a folder: config.json and what lies beside it, each beside sound weights."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from .trial import Case

DEEP = "[" * 100_000
VALUES: dict[str, str] = {  # as JSON
    "null": "null",
    "true": "true",
    "text": '"many"',
    "list": "[1, 2]",
    "object": '{"a": 1}',
    "zero": "0",
    "minus one": "-1",
    "fraction": "1.5",
    "NaN": "NaN",
    "infinity": "1e999",
    "2**31": str(2**31),
    "2**40": str(2**40),
    "10**15": str(10**15),
    "10**30": str(10**30),
    "10**5000": "1" + "0" * 5000,
    "controls": '"\\u001b[2J\\n\\u0000"',
    "megabyte": '"' + "a" * 1_000_000 + '"',
    "deep": DEEP + "]" * 100_000,
}
WHOLE: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "deep": DEEP.encode(),
    "deep object": b'{"a":' * 100_000,
    "binary": bytes(range(256)),
    "utf-16": '{"model_type": "siglip"}'.encode("utf-16"),
    "20 MB of lists": b'{"model_type":' + b"[" + b"[]," * 7_000_000 + b"[]]}",
}
TOWER_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps",
    "attention_dropout", "model_type",
)  # fmt: skip
FIELDS: dict[str, tuple[str, ...]] = {  # by the part of config.json, "" being the outermost
    "": ("model_type", "projection_dim", "vision_config", "text_config", "initializer_factor", "dtype", "num_labels",
         "id2label", "architectures", "auto_map", "quantization_config", "transformers_version"),
    "vision_config": (*TOWER_FIELDS, "image_size", "patch_size", "num_channels", "vision_use_head"),
    "text_config": (*TOWER_FIELDS, "vocab_size", "max_position_embeddings", "projection_size", "eos_token_id",
                    "pad_token_id"),
}  # fmt: skip
BESIDE = {
    "preprocessor_config.json": ("size", "image_mean", "image_std", "resample", "do_resize", "rescale_factor",
                                 "image_processor_type", "crop_size"),
    "tokenizer_config.json": ("tokenizer_class", "model_max_length", "text_cleanup", "pad_token", "eos_token",
                              "added_tokens_decoder"),
    "official_layout.json": ("format", "sizes", "dtypes", "integer_buffers", "merged_sources", "image_layers",
                             "text_layers", "prefix", "container", "sidecar_json"),
    "processor_config.json": ("processor_class", "image_processor"),
    "model.safetensors.index.json": ("weight_map", "metadata"),
    "special_tokens_map.json": ("pad_token", "eos_token"),
}  # fmt: skip
READ = (("inspect", "{path}"), ("classify", "{path}", "{path}/picture.png", "--labels", "a,b"))


@cache
def sound_folder() -> Path:
    """A folder that `convert` wrote, of a bundled checkpoint, with a picture in it. It ends with the process."""
    import atexit
    import tempfile

    from PIL import Image

    from twinlens.conversion import convert

    root = Path(tempfile.mkdtemp(prefix="sound-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder: Path = root / "model"
    convert("siglip-shapes", folder, verify=False)
    Image.new("RGB", (20, 20), (200, 0, 0)).save(folder / "picture.png")
    return folder


def _replace(file: str, part: str, field: str, value: str, folder: Path) -> None:
    """Copy the sound folder and set one field of one of its files to a value in JSON."""
    shutil.copytree(sound_folder(), folder / "file")
    path = folder / "file" / file
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    marker = "a value to be replaced"
    (content[part] if part else content)[field] = marker
    path.write_text(json.dumps(content).replace(json.dumps(marker), value))


def _write_whole(file: str, content: bytes, folder: Path) -> None:
    shutil.copytree(sound_folder(), folder / "file")
    (folder / "file" / file).write_bytes(content)


def _named() -> Mapping[str, Callable[[Path], None]]:
    named: dict[str, Callable[[Path], None]] = {}
    for part, fields in FIELDS.items():
        for field in fields:
            for name, value in VALUES.items():
                named[f"config.json {part} {field}: {name}"] = partial(_replace, "config.json", part, field, value)
    for file, fields in BESIDE.items():
        for field in fields:
            for name, value in VALUES.items():
                named[f"{file} {field}: {name}"] = partial(_replace, file, "", field, value)
    for file in ("config.json", *BESIDE, "tokenizer.json"):
        for name, content in WHOLE.items():
            named[f"{file}: {name}"] = partial(_write_whole, file, content)
    return named


NAMED = _named()
SAMPLE = tuple(NAMED)[::131]
ALL = tuple(NAMED)  # five minutes


def cases(names: Iterable[str]) -> dict[str, Case]:
    sound_folder()
    return {name: Case(NAMED[name], commands=READ) for name in names}
