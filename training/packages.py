"""The packages that logs and the card of a run need: at its end it would be too late to miss one."""

from difflib import get_close_matches

from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available
from transformers.training_args import OptimizerNames

OPTIMIZER = "adamw"  # our name of the default one


def check_packages(report_to: str) -> None:
    """Raise ImportError unless the packages are installed that only logs and the card need, at the end of a run."""
    names = report_names(report_to)
    if "tensorboard" in names and not is_tensorboard_available():
        raise ImportError("Logs need tensorboardX or tensorboard: pip install '.[train]' in the checkout of twinlens.")
    installed = {"tensorboard", *get_available_reporting_integrations()}
    if missing := [name for name in names if name not in installed]:
        raise ImportError(
            f"report_to={report_to} needs {', '.join(missing)}, and installed are {', '.join(sorted(installed))}: "
            f"pip install {' '.join(missing)}, or leave it out."
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The curves in the model card need matplotlib ({error}): "
            "pip install '.[train]' in the checkout of twinlens."
        ) from error


def check_optimizer(name: str) -> None:
    """Raise ValueError for a name that no optimizer of transformers has."""
    known = [OPTIMIZER, *(known.value for known in OptimizerNames)]
    if name not in known:
        close = get_close_matches(name, known) or known
        raise ValueError(
            f"optimizer must be {OPTIMIZER} or a name that `optim` of transformers' Trainer takes, got {name!r}. "
            f"{'Similar names' if close is not known else 'They'} are {', '.join(close)}."
        )


def report_names(report_to: str) -> list[str]:
    """Return the names in a list with commas; none of them for "none"."""
    return [name.strip() for name in report_to.split(",") if name.strip() not in ("", "none")]
