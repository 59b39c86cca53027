"""Devices by their names."""

import os

import torch


def device_named(name: str | None) -> torch.device:
    """Return a device by its name, and for None the accelerator of this process, or the CPU where there is none.

    Raises ValueError for one that is not there.
    """
    present = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cpu") if present is None else torch.device(present.type, rank)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:1 or the like, got {name!r}.") from error
    if device.type != "cpu" and (present is None or device.type != present.type):
        raise ValueError(f"device must be one of this machine, {present or 'cpu'}, got {name!r}.")
    return device
