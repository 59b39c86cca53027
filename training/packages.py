"""The packages that logs and the card of a run need: at its end it would be too late to miss one."""

from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available


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


def report_names(report_to: str) -> list[str]:
    """Return the names in a list with commas; none of them for "none"."""
    return [name.strip() for name in report_to.split(",") if name.strip() not in ("", "none")]
