"""The settings of a training run: the command line's options and the names in a YAML file, said once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

_PATHS = ("model", "data", "eval_data", "zero_shot", "tokenizer")


def _option(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The settings of a run; the command line's options, and the names in a YAML file, are these fields."""

    model: str = _option("What to start from: a folder, a Hub id or an official file.", default="")
    data: str = _option(
        "Pairs: a folder, a .csv, .tsv or .jsonl file, a data set of the Hub, or tars such as 'shards-{000..009}.tar'.",
        default="",
    )
    output: str = _option("The folder to write.", default="")
    eval_data: str | None = _option("Pairs to measure retrieval on, as for DATA.")
    zero_shot: str | None = _option("Images in one folder for each class, to measure accuracy on as well.")
    template: str = _option("The sentence around the name of such a class.", default="a photo of a {}.")
    split: str = _option("The split of a data set to train on.", default="train")
    eval_split: str = _option("The split of EVAL_DATA, where that is a data set.", default="test")
    streaming: bool = _option("Read a data set of the Hub while training, without downloading it first.", default=False)
    skip_corrupt: bool = _option("Train on the next pair where one cannot be read, and count it.", default=False)
    image_column: str | None = _option("The column with images, where a source has several.")
    text_column: str | None = _option("The column with captions, where a source has several.")
    tokenizer: str | None = _option("The vocabulary, where MODEL has none, as for convert.")
    from_scratch: bool = _option("Take the geometry of MODEL, not its weights.", default=False)
    freeze: Literal["image", "text"] | None = _option("Lock one tower (LiT).")
    lora_rank: int | None = _option("Train low-rank updates of this rank only; they are merged at the end.")
    epochs: float = _option("Passes over the data.", default=1.0)
    steps: int | None = _option("Updates, instead of epochs; streamed data needs it.")
    batch_size: int = _option("Pairs in one update and process.", default=64)
    gradient_cache_size: int | None = _option("Embed so many pairs at a time: memory follows this, not the batch.")
    learning_rate: float = _option("At its peak; it falls along a cosine.", default=1e-5)
    warmup: float = _option("Share of the run, below 1, or number of updates before the peak.", default=0.05)
    weight_decay: float = _option("Of weights; norms, biases and the logits' scale have none.", default=0.1)
    layer_decay: float = _option("Factor of the learning rate from each layer to the one below.", default=1.0)
    adam_beta2: float = _option("Of AdamW.", default=0.98)
    min_crop_area: float = _option("Smallest share of an image that a random crop keeps; 1 crops nothing.", default=0.9)
    bf16: bool = _option("Compute in bfloat16; weights and loss stay float32.", default=False)
    seed: int = _option("Of first weights, order and crops.", default=0)
    workers: int = _option("Processes that read data; 0 reads in this one.", default=0)
    log_steps: int = _option("Updates between two points of the curves.", default=10)
    eval_steps: int | None = _option("Updates between two evaluations; an epoch unless given.")
    save_steps: int | None = _option("Updates between two checkpoints; an epoch unless given.")
    resume: bool = _option("Go on from the last checkpoint of an interrupted run in OUTPUT.", default=False)

    def __post_init__(self) -> None:
        if missing := [name for name in ("model", "data", "output") if not getattr(self, name)]:
            raise ValueError(f"A training run needs {', '.join(missing)}; give it as an argument or in the YAML file.")
        if self.zero_shot and not self.eval_data:
            raise ValueError("zero_shot is measured along with eval_data, which is missing.")
        if self.streaming and Path(self.data).exists():
            raise ValueError(f"streaming is for data sets of the Hub, and {self.data} is here: leave it out.")
        if not 0 < self.min_crop_area <= 1:
            raise ValueError(f"min_crop_area must be in (0, 1], got {self.min_crop_area}.")
        if "{}" not in self.template:
            raise ValueError(f"Expected a template with {{}} where the class goes, got {self.template!r}.")

    def changed(self) -> dict[str, Any]:
        """The settings that are not defaults; of paths only their names, for whoever reads this is elsewhere."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("output", "resume")}
        defaults = {item.name: item.default for item in fields(self)}
        return {
            name: Path(value).name if name in _PATHS else value
            for name, value in values.items()
            if value != defaults[name]
        }

    @classmethod
    def read(cls, file: str | Path | None, given: Mapping[str, Any]) -> "TrainingPlan":
        """Build it from a YAML file and what is given beside it, which wins. Raises ValueError for unknown names."""
        import yaml  # not for `twinlens --help`

        settings: Any = {}
        if file is not None:
            try:
                settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ValueError(f"{file} is not YAML: {error}") from error
            if not isinstance(settings, dict):
                raise ValueError(f"Expected names and values in {file}, such as `batch_size: 64`, got {settings!r}.")
        known = {item.name: item for item in fields(cls)}
        if unknown := [str(name) for name in settings if name not in known]:
            raise ValueError(f"{file} has settings without a meaning: {', '.join(unknown)}. Known: {', '.join(known)}.")
        for name, value in settings.items():
            default = known[name].default
            if isinstance(default, float) and isinstance(value, str | int) and not isinstance(value, bool):
                try:
                    settings[name] = float(value)  # YAML reads 1e-5 as text
                except ValueError as error:
                    raise ValueError(f"Expected a number for {name} in {file}, got {value!r}.") from error
            elif default is not None and not isinstance(value, type(default)):
                raise ValueError(f"Expected a {type(default).__name__} for {name} in {file}, got {value!r}.")
        return cls(**{**settings, **given})
