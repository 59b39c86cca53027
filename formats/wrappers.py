"""Names of weights as training code leaves them: below a prefix, or with wrappers among their parts."""

import logging
import re
from collections.abc import Iterable, Mapping

from ..messages import listed, quoted, shown
from .errors import SeveralModelsError

logger = logging.getLogger(__name__)

# Modules that stand around others and have nothing of their own: DataParallel, `torch.compile`, FSDP, checkpointing.
_WRAPPERS = re.compile(r"(?<=\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIX = r"((?:[^./]+[./])*?)"
# How names begin in every format; in a file of one tower, where none begins so, only some names are told apart.
_DUAL_ENCODER = re.compile(rf"{_PREFIX}(?:visual\.|(?:vision|text)_model\.|(?:img|txt)/|attn_pool\.latent$)")
_ONE_TOWER = re.compile(rf"{_PREFIX}(?:embeddings\.\w+_embedding\b|token_embedding\.weight$|class_embedding$)")
_BIG_VISION = "params/"  # part of a format, and no wrapper


def model_prefixes(names: Iterable[str]) -> list[str]:
    """Return everything that stands before the names of a dual encoder, or of a tower, among `names`; [] without one.

    The weights of one model have one prefix, which may be empty. Two prefixes are two models: a model and its moving
    average, or a teacher and a student.
    """
    names = list(names)
    for beginning in (_DUAL_ENCODER, _ONE_TOWER):
        if prefixes := {match[1] for name in names if (match := beginning.match(name))}:
            return sorted(prefixes)
    return []


def unwrap_names(names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the prefix of a model's names, and the names in the file by those that the model's own code has.

    Raises SeveralModelsError where they have several prefixes, or where others lie beside the prefix: nothing is
    guessed.
    """
    names = list(names)
    prefixes = model_prefixes(names) or [""]
    if len(prefixes) > 1:
        raise SeveralModelsError(
            f"its names begin in {len(prefixes)} ways, {listed(map(quoted, prefixes), ' and ')}, as those of two "
            "models do, such as a model and its moving average; save the one that you want alone."
        )
    prefix = prefixes[0]
    if beside := [name for name in names if not name.startswith(prefix)]:
        raise SeveralModelsError(
            f"the names of the model begin with {quoted(prefix)}, and beside them "
            f"{', '.join(map(shown, beside[:3]))} is not expected ({len(beside)} of {len(names)} names); save the "
            "model's state dict alone."
        )
    unwrapped: dict[str, str] = {}
    for name in names:
        own_name = _WRAPPERS.sub("", name[len(prefix) :])
        if own_name in unwrapped:
            raise SeveralModelsError(f"{name} and {unwrapped[own_name]} are both {own_name}, one of them in a wrapper.")
        unwrapped[own_name] = name
    return prefix, unwrapped


def without_former_prefix(
    names: Iterable[str], former_prefix: str, own_names: Iterable[str], adapter: str
) -> dict[str, str]:
    """Return the names that a tower's weights have now, by those of `names` that begin with `former_prefix`.

    An adapter's files do not say its name. peft adds it to the names that it knows, which the former ones are not. So
    it is taken from `own_names`, those that the tower has with the `adapter` in it.
    """
    part = re.compile(rf"\.{re.escape(adapter)}(?=(\.\w+)?$)")
    own = {part.sub("", name): name for name in own_names}
    short_names = {name: name.removeprefix(former_prefix) for name in names if name.startswith(former_prefix)}
    return {name: own.get(short, short) for name, short in short_names.items()}


def log_unwrapped(source: object, prefix: str, names: Mapping[str, str]) -> bool:
    """Say, and return, whether `unwrap_names` left out anything of the names in a file."""
    inside = (part for name in names.values() for part in _WRAPPERS.findall(name.removeprefix(prefix)))
    removed = [part for part in dict.fromkeys((prefix, *inside)) if part not in ("", _BIG_VISION)]
    if removed:
        logger.warning("%s: the names of the weights are read without %s.", source, " and ".join(map(repr, removed)))
    return bool(removed)
