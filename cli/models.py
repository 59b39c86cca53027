"""The argument MODEL of the commands that use a model: a path, a name of the list, or a repository on the Hub."""

from pathlib import Path

MODEL_FILES = ("config.json", "open_clip_config.json", "adapter_config.json")  # of which every model folder has one
FILE_SUFFIXES = (".bin", ".npz", ".pt", ".pth", ".safetensors")  # no repository is named like a file of weights


def check_model(model: str) -> None:
    """Raise OSError unless MODEL is a file, a folder with a model, in `twinlens list`, or on the Hub or in its cache.

    transformers would look for several files one after the other, with pauses between retries for each of them.
    """
    if (path := Path(model)).is_dir():
        if not any((path / name).is_file() for name in MODEL_FILES):
            content = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(f"{model} has no config.json, expected a folder with a model. It holds {content}.")
        return
    if path.is_file():
        return
    from ..catalogue.download import is_name, is_on_hub, suggest_names

    if is_name(model):
        return
    with suggest_names(model):
        if model.endswith(FILE_SUFFIXES) or not is_on_hub(model, "config.json"):
            raise FileNotFoundError(
                f"{model} is neither a file nor a folder here, nor a model on the Hub within reach."
            )
