"""Statements about texts in open_clip's terms, translated to settings of tokenizers.

The reference is `open_clip.get_tokenizer`: its `HFTokenizer` where a JSON has `hf_tokenizer_name`, which cleans a text
before the named tokenizer sees it, else its `SimpleTokenizer`, which is OpenAI's with a choice of cleanings.
"""

from collections.abc import Mapping
from typing import Any

from ..messages import quoted
from .errors import FormatError

_CLEANUPS = ("canonicalize", "lower", "whitespace")


def text_settings(text_cfg: Mapping[str, Any], *, is_clip: bool) -> dict[str, Any]:
    """Return what the `text_cfg` of open_clip's JSON states about texts, as settings of the family's tokenizer.

    Raises FormatError with everything that cannot be honoured.
    """
    stated = text_cfg.get("tokenizer_kwargs") or {}
    named = bool(text_cfg.get("hf_tokenizer_name"))
    if not isinstance(stated, dict):
        raise FormatError(f"text_cfg.tokenizer_kwargs is {quoted(stated)}, expected an object.")
    clean = stated.get("clean", "whitespace" if named else "lower")
    faults = [
        f"tokenizer_kwargs.{name} is {quoted(value)}" for name, value in stated.items() if value and name != "clean"
    ]
    if mode := text_cfg.get("tokenizer_mode"):
        faults.append(f"tokenizer_mode is {quoted(mode)}")
    if clean not in _CLEANUPS:
        faults.append(f"tokenizer_kwargs.clean is {quoted(clean)}, expected {' or '.join(map(repr, _CLEANUPS))}")
    if faults:
        raise FormatError(
            f"the source states texts that this version cannot make: text_cfg.{'; text_cfg.'.join(faults)}. If the "
            "model was trained with other ones, correct the JSON; otherwise make its ids with the code that it was "
            "published for."
        )
    if is_clip:
        # A named tokenizer of CLIP lower-cases, whatever open_clip did before.
        clean = "lower" if named and clean == "whitespace" else clean
    elif not named and "clean" not in stated:
        return {}  # no statement: open_clip has no tokenizer of SigLIP without a name
    return {"text_cleanup": f"open_clip_{clean}"}
