"""What the README.md of a folder says about its use: snippets for each library, and the preprocessing in words."""

from typing import NamedTuple

from ..configuration import DualEncoderConfig, TowerConfig, carries_code, family_of, is_single_tower
from .processor import DualEncoderProcessor
from .sentence_transformers import OLDEST_VERSION

_SECTION = """\
`FOLDER` is the path of this folder, or the name of its repository on the Hub.

```python
{twinlens}
```

With plain transformers{code}:

```python
{transformers}
```

{other_clients}"""
_SOURCE = '"FOLDER"'  # in a call that loads


class _Use(NamedTuple):
    """The Hub's name of a task, and a snippet that does it with each library."""

    task: str
    twinlens: str
    transformers: str


_CLASSIFY = _Use(
    "zero-shot-image-classification",
    """\
from twinlens import DualEncoderModel, DualEncoderProcessor

model = DualEncoderModel.from_pretrained("FOLDER")
processor = DualEncoderProcessor.from_pretrained("FOLDER")
logits = model.logits(model.encode_image(**processor(images=images)), model.encode_text(**processor(text=texts)))""",
    """\
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="FOLDER")
answers = classify(images, candidate_labels=texts, hypothesis_template="{}")""",
)
# transformers' pipeline pads every text of a SigLIP to this length, whatever length the model reads.
_PIPELINE_LENGTH = 64
_CLASSIFY_AT_ANOTHER_LENGTH = _CLASSIFY._replace(
    transformers="""\
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("FOLDER"), AutoProcessor.from_pretrained("FOLDER")
inputs = processor(images=images, text=texts, padding="max_length", truncation=True, return_tensors="pt")
logits = model(**inputs).logits_per_image""",
)
_EMBED = _Use(
    "image-feature-extraction",
    """\
from twinlens import DualEncoderModel, DualEncoderProcessor

model = DualEncoderModel.from_pretrained("FOLDER")
processor = DualEncoderProcessor.from_pretrained("FOLDER")
image_embeds = model.encode_image(**processor(images=images))""",
    """\
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("FOLDER")
image_processor = AutoImageProcessor.from_pretrained("FOLDER")
features = model.get_image_features(**image_processor(images=images, return_tensors="pt")).pooler_output""",
)
_EMBED_BY_A_TOWER = _Use(
    "image-feature-extraction",
    """\
from twinlens import DualEncoderProcessor, {vision_model}

model = {vision_model}.from_pretrained("FOLDER")
processor = DualEncoderProcessor.from_pretrained("FOLDER")
features = model(**processor(images=images)).pooler_output""",
    """\
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("FOLDER")
image_processor = AutoImageProcessor.from_pretrained("FOLDER")
features = model(**image_processor(images=images, return_tensors="pt")).pooler_output""",
)


class Usage(NamedTuple):
    """The Hub's name of the task of a model, and the section on its use."""

    task: str
    section: str


def describe_usage(config: DualEncoderConfig | TowerConfig, processor: DualEncoderProcessor) -> Usage:
    """Return the task, and snippets for twinlens and plain transformers that run as they are but for `FOLDER`."""
    is_tower = is_single_tower(config)
    use = _use(processor, is_tower)
    code, source = "", _SOURCE
    if carries_code(config.model_type):
        code = ", which has no class for this model and, with `trust_remote_code=True`, runs the code in this folder"
        source += ", trust_remote_code=True"
    section = _SECTION.format(
        twinlens=use.twinlens.format(vision_model=family_of(config).vision_model) if is_tower else use.twinlens,
        code=code,
        transformers=use.transformers.replace(_SOURCE, source),
        other_clients=_other_clients(processor, use).replace(_SOURCE, source),
    )
    return Usage(use.task, section)


def describe_preprocessing(processor: DualEncoderProcessor) -> str:
    """Return what happens to images and texts in twinlens, and what plain transformers does otherwise."""
    images, description = processor.image_processor, processor.describe()
    fill = getattr(images, "fill_color", None)
    if getattr(images, "openai_order", False):
        before = "" if getattr(images, "rgb_first", False) else "converts to RGB before it resizes, "
        elsewhere = f"{before}lays transparency over white, rounds the place of the crop down"
        elsewhere += ", fills up with 0" if fill else ""
    elif getattr(images, "resize_engine", None) == "official":
        by_values = images.resize_engines["official"].takes_values
        elsewhere = "rounds to levels of 0..255 as it resizes" if by_values else "always resizes with antialiasing"
    else:
        alike = (
            f"but plain transformers fills up with 0, not {fill}" if fill else "in twinlens and in transformers alike"
        )
        return f"As in the Hub's folders of this family, {alike}.\n\n{description}"
    if (getattr(processor.tokenizer, "text_cleanup", None) or "").startswith("open_clip"):
        elsewhere += "; its texts miss the repairs of ftfy and HTML entities"
    return (
        f"In twinlens, as in the official code:\n\n{description}\n\nPlain transformers cannot do all of this: "
        f"it {elsewhere}. `--preprocessing hub` converts to the pixels that it can make."
    )


def _use(processor: DualEncoderProcessor, is_tower: bool) -> _Use:
    """Return the snippets that work for every model like this one."""
    tokenizer = processor.tokenizer
    if tokenizer is None:
        return _EMBED_BY_A_TOWER if is_tower else _EMBED
    if getattr(tokenizer, "fixed_length", False) and tokenizer.model_max_length != _PIPELINE_LENGTH:
        return _CLASSIFY_AT_ANOTHER_LENGTH
    return _CLASSIFY


def _other_clients(processor: DualEncoderProcessor, use: _Use) -> str:
    sentences = [
        f'sentence-transformers, from version {OLDEST_VERSION}, reads the folder too: `SentenceTransformer("FOLDER")`.'
    ]
    if use is _CLASSIFY_AT_ANOTHER_LENGTH:
        sentences.append(
            f'`pipeline("{use.task}")` of plain transformers does not: it pads texts to {_PIPELINE_LENGTH} tokens, '
            f"and this model reads {processor.tokenizer.model_max_length}."
        )
    return "\n".join(sentences)
