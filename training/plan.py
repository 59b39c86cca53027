"""The settings of a training run, which are the options of `twinlens train` and the names in its YAML file."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..messages import quoted

REQUIRED = ("model", "data", "output")
_PATHS = ("model", "data", "eval_data", "zero_shot", "tokenizer")
_MAX_YAML = 1 << 20  # bytes
_CHOSEN = " By default it is chosen from what is trained, and on how many pairs."


def _setting(help: str, default: Any = None, *, minimum: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "minimum": minimum})


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The settings of a training run. Raises ValueError for a value that no run can have."""

    model: str = _setting("The model to start from: a folder, a Hub id or an official checkpoint file.", "")
    data: str = _setting(
        "The pairs of images and captions: a folder, a .csv, .tsv or .jsonl file, a data set on the Hub, or tars such "
        "as 'shards-{000..009}.tar'.",
        "",
    )
    output: str = _setting("The folder to write.", "")
    eval_data: str | None = _setting("The pairs to measure retrieval on, in any form that DATA can have.")
    zero_shot: str | None = _setting(
        "A folder with one folder of images for each class, to measure zero-shot accuracy on as well."
    )
    template: str = _setting("The sentence around the name of a class; {} stands for the name.", "a photo of a {}.")
    split: str = _setting("The split to train on, if DATA is a data set.", "train")
    eval_split: str = _setting("The split to measure on, if EVAL_DATA is a data set.", "test")
    streaming: bool = _setting("Read a data set on the Hub while training, without downloading it first.", False)
    skip_corrupt: bool = _setting(
        "Replace a pair that cannot be read by the next one, and count it; otherwise it ends the run.", False
    )
    image_column: str | None = _setting("The column that holds the images, if its name is not a usual one.")
    text_column: str | None = _setting("The column that holds the captions, if its name is not a usual one.")
    tokenizer: str | None = _setting("The vocabulary, if MODEL has none: a file or folder as for `twinlens convert`.")
    from_scratch: bool = _setting("Start from random weights; only the geometry of MODEL is used.", False)
    freeze: Literal["image", "text"] | None = _setting("The tower to freeze, with its projection (LiT).")
    unlocked_layers: int = _setting(
        "How many of the last layers of the frozen tower are trained all the same, with what follows them.",
        0,
        minimum=0,
    )
    lora_rank: int | None = _setting(
        "Train only low-rank updates (LoRA) of this rank, which are merged into the weights at the end.", minimum=1
    )
    epochs: float | None = _setting(f"The number of passes over the data.{_CHOSEN}")
    steps: int | None = _setting("The number of updates, instead of epochs; streamed data needs it.", minimum=1)
    batch_size: int | None = _setting(
        "The number of pairs in one update of one process. By default a sixth of the pairs, within 16 and 64.",
        minimum=1,
    )
    gradient_cache_size: int | None = _setting(
        "The number of pairs that are embedded at a time; the memory needed then depends on it, not on the batch size.",
        minimum=1,
    )
    learning_rate: float | None = _setting(
        "The highest learning rate. By default it is chosen from what is trained, and the size of the model."
    )
    schedule: Literal["cosine", "linear", "constant"] = _setting(
        "The curve along which the learning rate falls after the warm-up.", "cosine"
    )
    warmup: float | None = _setting(
        "How long the learning rate rises first: below 1 a share of the run, from 1 on a number of updates. By default "
        "a tenth of the run.",
        minimum=0,
    )
    optimizer: str = _setting("The optimizer: adamw, or any name that `optim` of transformers' Trainer takes.", "adamw")
    max_grad_norm: float | None = _setting(
        "The norm to which a larger gradient is scaled down; 0 scales none. By default 1 with LoRA and 0 otherwise, as "
        "CLIP and open_clip train.",
        minimum=0,
    )
    weight_decay: float = _setting(
        "The weight decay of AdamW; norms, biases, and the scale and bias of the logits have none.", 0.1, minimum=0
    )
    layer_decay: float = _setting(
        "The factor by which the learning rate falls from each layer to the layer below it.", 1.0
    )
    adam_beta2: float = _setting("The second beta of AdamW.", 0.98, minimum=0)
    min_crop_area: float | None = _setting(
        "The smallest share of an image that a random crop keeps; 1 crops nothing. By default 0.9 from "
        "scratch and 1 otherwise."
    )
    patch_dropout: float = _setting("The share of the patches of an image that are left out at random.", 0.0, minimum=0)
    duplicates_as_negatives: bool = _setting(
        "Count an image and an equal caption of another image as a pair that does not match, as other libraries do; "
        "otherwise they are not compared.",
        False,
    )
    bf16: bool = _setting("Compute in bfloat16; the weights and the loss stay float32.", False)
    gradient_checkpointing: bool = _setting(
        "Keep no activations inside the layers and compute them twice: less memory, and about a third more time.", False
    )
    compile: bool = _setting("Compile the model with torch.compile, which needs a C++ compiler on CPUs.", False)
    seed: int = _setting("The seed of random weights, of the order of the pairs, and of random crops.", 0, minimum=0)
    workers: int = _setting("The number of processes that read data; 0 reads in the training process.", 0, minimum=0)
    log_steps: int = _setting("The number of updates between two points of the curves.", 10, minimum=1)
    eval_steps: int | None = _setting(
        "The number of updates between two evaluations; by default a tenth of the run, or an epoch if it is longer.",
        minimum=1,
    )
    save_steps: int | None = _setting(
        "The number of updates between two checkpoints; by default a tenth of the run, or an epoch if it is longer.",
        minimum=1,
    )
    report_to: str = _setting(
        "Where the curves go while the run lasts: tensorboard, wandb or another name that `report_to` of transformers' "
        "Trainer takes, several of them with commas, or none.",
        "tensorboard",
    )
    resume: bool = _setting("Continue from the last checkpoint of an interrupted run in OUTPUT.", False)

    def __post_init__(self) -> None:
        if missing := [name for name in REQUIRED if not getattr(self, name)]:
            pronoun = "it as an argument" if len(missing) == 1 else "them as arguments"
            raise ValueError(f"A training run needs {', '.join(missing)}: pass {pronoun} or in the YAML file.")
        types = get_type_hints(type(self))
        for item in fields(self):
            value, minimum = getattr(self, item.name), item.metadata["minimum"]
            _check_type(item.name, value, types[item.name])
            if minimum is not None and value is not None and not value >= minimum:
                raise ValueError(f"{item.name} must be at least {minimum}, got {value}.")
        if self.zero_shot and not self.eval_data:
            raise ValueError("zero_shot is measured along with eval_data, which is missing.")
        if self.streaming and Path(self.data).exists():
            raise ValueError(f"streaming is for data sets on the Hub, and {self.data} is here: leave it out.")
        for name in ("epochs", "learning_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, or the run would train nothing, got {value}.")
        for name in ("layer_decay", "min_crop_area"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}.")
        if not self.patch_dropout < 1:
            raise ValueError(f"patch_dropout must be below 1, or no patch would be left, got {self.patch_dropout}.")
        if self.unlocked_layers and not self.freeze:
            raise ValueError(
                f"unlocked_layers={self.unlocked_layers} are those of a frozen tower: name it with --freeze."
            )
        if self.from_scratch and (self.lora_rank or self.freeze):
            raise ValueError(
                f"from_scratch makes random weights, and {'lora_rank' if self.lora_rank else 'freeze'} would leave "
                "most of them as they are: leave out one of the two."
            )
        if "{}" not in self.template:
            raise ValueError(f"Expected a template with {{}} where the class goes, got {self.template!r}.")

    def changed(self) -> dict[str, Any]:
        """Return the settings that are not defaults, and without epochs where steps count in their place.

        Paths are reduced to their names, because folders are private.
        """
        left_out = ("output", "resume", "epochs") if self.steps else ("output", "resume")
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        defaults = {item.name: item.default for item in fields(self)}
        return {
            name: Path(value).name if value and name in _PATHS else value
            for name, value in values.items()
            if value != defaults[name]
        }

    @classmethod
    def read(cls, file: str | Path | None, on_command_line: Mapping[str, Any]) -> "TrainingPlan":
        """Build a plan from a YAML file, if there is one, and from the command line, whose values win.

        Raises FileNotFoundError for a file that does not exist, and ValueError for one that is not YAML, an unknown
        name, or a value of the wrong type.
        """
        return cls(**{**(_read_yaml(Path(file)) if file is not None else {}), **on_command_line})


def _read_yaml(file: Path) -> dict[str, Any]:
    """Return the settings in a YAML file. `1e-5` is text in YAML, and becomes a number where a setting is a number."""
    import yaml  # not at the top: `twinlens --help` would wait for these

    from ..formats import read_small

    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"Expected a YAML file, got {file}, which {problem}.")
    try:
        settings = yaml.safe_load(read_small(file, _MAX_YAML).decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    settings = {} if settings is None else settings  # an empty file
    if not isinstance(settings, dict):
        raise ValueError(f"Expected names and values in {file}, such as `batch_size: 64`, got {quoted(settings)}.")
    # the names of the options too, --learning-rate and learning-rate, which errors of the command line show
    settings = {str(name).removeprefix("--").replace("-", "_"): value for name, value in settings.items()}
    types = get_type_hints(TrainingPlan)
    if unknown := [name for name in settings if name not in types]:
        raise ValueError(f"{file} has unknown settings: {', '.join(unknown)}. Known are {', '.join(types)}.")
    for name, value in settings.items():
        if float in (types[name], *get_args(types[name])) and isinstance(value, str):
            with suppress(ValueError):  # the plan refuses it, and says what it expected
                settings[name] = float(value)
    return settings


_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "nothing"}


def _check_type(name: str, value: object, annotation: Any) -> None:
    """Raise ValueError unless `value` has one of the types of an annotation such as `int | None` or `Literal[...]`."""
    expected: list[str] = []
    is_one = isinstance(annotation, type) or get_origin(annotation) is Literal
    for allowed in (annotation,) if is_one else get_args(annotation):
        if get_origin(allowed) is Literal:
            if value in get_args(allowed):
                return
            expected += map(repr, get_args(allowed))
        else:
            accepted = (float, int) if allowed is float else allowed
            if isinstance(value, accepted) and (allowed is bool or not isinstance(value, bool)):  # a bool is an int
                return
            expected.append(_TYPE_NAMES[allowed])
    raise ValueError(f"{name} must be {' or '.join(expected)}, got {quoted(value)}.")
