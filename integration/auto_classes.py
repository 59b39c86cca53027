"""transformers' Auto classes return the classes of this package, from `register` until `unregister`."""

from collections.abc import Callable, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, TypeAlias

from transformers import CONFIG_MAPPING, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # also there without torchvision

from .. import modeling, processing
from ..catalogue.download import HUB_ARGUMENTS
from ..configuration import FAMILIES, carries_code, family_of
from ..configuration.remote_code import auto_map
from ..processing import DualEncoderProcessor, VocabularyNotFoundError
from ..processing.processor_loading import text_settings

# Arguments of the Auto classes that choose among transformers' own classes.
_CHOICES = ("backend", "code_revision", "trust_remote_code", "use_fast", "_commit_hash", "_from_auto")
# With one of these, something else is asked for than what a folder of ours holds.
_OTHER_SOURCES = ("gguf_file", "image_processor_filename", "mistral_format", "return_unused_kwargs", "tokenizer_type")
# Loads a processor, or a part of it, of this class: from a source with this `config.json`, with these settings.
Part: TypeAlias = Callable[[type[DualEncoderProcessor], Any, dict[str, Any], dict[str, Any]], Any]


class Registration:
    """What `register` returns: as a context manager, it takes back what that call has registered."""

    def __init__(self, is_first: bool) -> None:
        self._is_first = is_first

    def __enter__(self) -> "Registration":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_first:
            unregister()


def register() -> Registration:
    """Let transformers' Auto classes and pipelines return the classes of this package, until `unregister`.

    That is for every folder whose `config.json` names one of our families or its towers, whoever wrote it: by
    `AutoConfig`, every `AutoModelFor...` that the family has a class for, `AutoImageProcessor`, `AutoTokenizer`,
    `AutoProcessor`, and by what calls them (`pipeline`, vision-language models, other libraries). Other folders load as
    before, and so does what is asked for by its own class. A ResNet loads without `trust_remote_code`.

    As a context manager it is undone at the end of the block: `with twinlens.register(): ...`. A second call changes
    nothing.
    """
    if _undo:
        return Registration(is_first=False)
    for content, key, value in _entries():
        _undo.append(_put(content, key, value))
    for auto, part in (
        (AutoTokenizer, _tokenizer),
        (AutoImageProcessor, _image_processor),
        (AutoProcessor, _processor),
    ):
        _undo.append(_wrap(auto, part))
    return Registration(is_first=True)


def unregister() -> None:
    """Let the Auto classes return what they did before `register`; nothing happens where that was not called."""
    while _undo:
        _undo.pop()()


_undo: list[Callable[[], None]] = []  # what `unregister` calls, the last one first
_ABSENT = object()


def _put(content: dict[Any, Any], key: Any, value: Any) -> Callable[[], None]:
    """Set an entry of a table of transformers, and return what sets it back to what a user had registered."""
    before = content.get(key, _ABSENT)
    content[key] = value

    def undo() -> None:
        if content.get(key) is not value:  # somebody else has registered another class since
            return
        content.pop(key)
        if before is not _ABSENT:
            content[key] = before

    return undo


def _entries() -> Iterator[tuple[dict[Any, Any], Any, Any]]:
    """Yield a table of transformers' registrations, a key and our class, for configurations and models.

    The keys of models are our configuration and transformers' own.
    """
    configs = [
        config for family in FAMILIES.values() for config in (family.config, *family.config.sub_configs.values())
    ]
    natives = {
        config.model_type: CONFIG_MAPPING[config.model_type]
        for config in configs
        if not carries_code(config.model_type)
    }
    for config in configs:
        yield CONFIG_MAPPING._extra_content, config.model_type, config
        for table, names in _model_tables():
            name = names(config.model_type)
            model_class = getattr(modeling, name, None) if isinstance(name, str) else None
            if model_class is not None:
                for key in filter(None, (config, natives.get(config.model_type))):
                    yield table, key, model_class


def _model_tables() -> Iterator[tuple[dict[Any, Any], Callable[[str], Any]]]:
    """Yield, for every `AutoModelFor...`, its registrations and what finds the name of its class for a `model_type`."""
    for name, auto in vars(modeling_auto).items():
        is_auto = isinstance(auto, type) and issubclass(auto, _BaseAutoModelClass)
        mapping = auto._model_mapping if is_auto else None
        if mapping is None:
            continue

        def class_name(model_type: str, name: str = name, known: Any = mapping._model_mapping) -> Any:
            if carries_code(model_type):
                return auto_map(model_type).get(name, "").rpartition(".")[2]
            return known.get(model_type)

        yield mapping._extra_content, class_name


def _wrap(auto: Any, part: Part) -> Callable[[], None]:
    """Let an Auto class return our `part` where there is one; return what takes that back."""
    before, is_registered = vars(auto)["from_pretrained"], True

    @wraps(before.__func__)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        if is_registered and not args and (found := _load(part, pretrained_model_name_or_path, kwargs)) is not None:
            return found
        return before.__func__(cls, pretrained_model_name_or_path, *args, **kwargs)

    auto.from_pretrained = ours = classmethod(from_pretrained)

    def undo() -> None:
        nonlocal is_registered
        is_registered = False  # for those who have wrapped it since
        if vars(auto)["from_pretrained"] is ours:
            auto.from_pretrained = before

    return undo


def _load(part: Part, source: Any, arguments: dict[str, Any]) -> Any:
    """Return our `part` of a folder with these arguments of an Auto class; None where transformers has to load it."""
    if any(arguments.get(name) for name in _OTHER_SOURCES):
        return None
    config = arguments.get("config")
    if not isinstance(config, PreTrainedConfig):
        try:
            config_dict, _ = PreTrainedConfig.get_config_dict(
                source, **{name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
            )
        except OSError:  # there is no config.json, which alone says whose folder it is
            return None
    else:
        config_dict = config.to_dict()
    try:
        family = family_of(config_dict.get("model_type"))
    except ValueError:
        return None
    settings = {name: value for name, value in arguments.items() if name not in ("config", *_CHOICES)}
    return part(getattr(processing, family.processor), source, config_dict, settings)


def _tokenizer(
    processor: type[DualEncoderProcessor], source: Any, config_dict: dict[str, Any], settings: dict[str, Any]
) -> Any:
    try:
        return processor.tokenizer_type.from_pretrained(source, **{**text_settings(config_dict), **settings})
    except VocabularyNotFoundError:
        return None


def _image_processor(
    processor: type[DualEncoderProcessor], source: Any, config_dict: dict[str, Any], settings: dict[str, Any]
) -> Any:
    return processor.image_processor_type.from_pretrained(source, **settings)


def _processor(
    processor: type[DualEncoderProcessor], source: Any, config_dict: dict[str, Any], settings: dict[str, Any]
) -> Any:
    """Return the processor; of a source with one of its parts alone that part, as transformers does."""
    try:
        loaded = processor.from_pretrained(source, **settings)
    except OSError:  # there is no image processor
        return None
    return loaded.image_processor if loaded.tokenizer is None else loaded
