"""The files beside a graph by which transformers.js and others make its inputs: configuration, pixels, tokenizer."""

import json
from pathlib import Path
from typing import Any

from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor


def save_files(model: DualEncoderModel, processor: DualEncoderProcessor | None, folder: Path) -> None:
    """Write config.json, and the processor's files in the form that transformers.js reads too."""
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = [type(model).__name__]
    # Where transformers.js would look for quantised files by default, such as in a browser, there are none.
    settings: dict[str, Any] = {"dtype": "fp32"}
    if split := [file.name.removesuffix("_data") for file in folder.glob("onnx/*.onnx_data")]:
        settings["use_external_data_format"] = dict.fromkeys(sorted(split), 1)
    config["transformers.js_config"] = settings
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if processor is None:
        return
    processor.save_pretrained(folder)
    if (tokenizer := folder / "tokenizer.json").is_file():
        content = json.loads(tokenizer.read_text(encoding="utf-8"))
        content["pre_tokenizer"] = portable_splits(content["pre_tokenizer"])
        tokenizer.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def portable_splits(pre_tokenizer: Any) -> Any:
    """Return a pre-tokenizer of tokenizer.json that splits equally in Python and in JavaScript.

    The JavaScript of `@huggingface/tokenizers` does not know `MergedWithNext`, and cuts off what should stay: "▁"
    before every word, which then has other ids. A regular expression for the parts says the same.
    """
    if not isinstance(pre_tokenizer, dict):
        return pre_tokenizer
    if parts := pre_tokenizer.get("pretokenizers"):
        return {**pre_tokenizer, "pretokenizers": [portable_splits(part) for part in parts]}
    mark = pre_tokenizer.get("pattern", {}).get("String")
    if pre_tokenizer.get("behavior") != "MergedWithNext" or mark is None or len(mark) != 1:
        return pre_tokenizer
    return {**pre_tokenizer, "pattern": {"Regex": f"{mark}[^{mark}]*|[^{mark}]+"}, "behavior": "Isolated"}
