"""Checks of the losses' inputs. A problem of one rank is an error on all ranks, so that none is left waiting."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

MAX_LOG_SCALE = 9.0  # a factor of 8,103; trained models have about 100


def check_inputs(
    embeds: dict[str, Tensor],
    scalars: dict[str, Tensor],
    chunk_size: int,
    needs_grad: tuple[bool, ...],
    group: dist.ProcessGroup | None,
) -> None:
    """Raise a ValueError that names what is wrong on this rank or on another one. Waits for the device once.

    `embeds` are images and texts by the names of their arguments, `scalars` log_scale and perhaps a bias. Each rank
    sends one row of numbers to all: the form of its inputs, then the values that `_are_valid` checks.
    """
    images, texts = embeds.values()
    form_size = 3 + len(needs_grad)
    problem = _form_problem(images, texts, scalars, chunk_size)
    if problem is None:
        form = torch.tensor([*images.shape, images.element_size(), *needs_grad], device=images.device)
        deviations = [(_norms(vectors) - 1).abs().amax() / _tolerance(vectors) for vectors in embeds.values()]
        values = [*deviations, *(value.detach().reshape(()) for value in scalars.values())]
        row = torch.cat([form.float(), torch.stack([value.float() for value in values])])
    else:
        row = torch.full((form_size + len(embeds) + len(scalars),), torch.nan, device=images.device)
    this_rank, rows = _gather_rows(row, group)
    problem = problem or _value_problem(embeds, scalars, rows[this_rank][form_size:])
    if problem is not None:
        raise ValueError(problem)
    form_here = rows[this_rank][:form_size]
    for rank, other in enumerate(rows):
        if not _are_valid(other[form_size:]):
            raise ValueError(f"Rank {rank} of the group refuses its inputs and says why; this is rank {this_rank}.")
        if other[:form_size] != form_here:
            raise ValueError(
                "All ranks of the group need embeddings of one shape and type, and gradients for the same inputs: "
                f"rank {this_rank} has {_describe_form(form_here)}, rank {rank} {_describe_form(other[:form_size])}."
            )


def _gather_rows(row: Tensor, group: dist.ProcessGroup | None) -> tuple[int, list[list[float]]]:
    """Return this rank, and the rows of all ranks."""
    if group is None:
        return 0, [row.tolist()]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, row, group=group)
    return dist.get_rank(group), torch.stack(rows).tolist()


def _form_problem(images: Tensor, texts: Tensor, scalars: dict[str, Tensor], chunk_size: int) -> str | None:
    """Return what is wrong with shapes, types or `chunk_size`, or None."""
    shapes = f"{tuple(images.shape)} and {tuple(texts.shape)}"
    if images.ndim != 2 or images.shape != texts.shape:
        return f"image_embeds and text_embeds must have one shape (batch, dim), pair by pair, got {shapes}."
    if images.numel() == 0:
        return f"A loss needs at least one pair of image_embeds and text_embeds, got shapes {shapes}."
    if not (images.is_floating_point() and texts.is_floating_point()):
        return f"image_embeds and text_embeds must be floating-point, got {images.dtype} and {texts.dtype}."
    for name, value in scalars.items():
        if value.numel() != 1:
            return f"{name} must be one number, of shape () or (1,), got shape {tuple(value.shape)}."
    if not isinstance(chunk_size, int) or chunk_size < 1:
        return f"chunk_size must be a number of images, at least 1, got {chunk_size!r}."
    return None


def _value_problem(embeds: dict[str, Tensor], scalars: dict[str, Tensor], values: list[float]) -> str | None:
    """Return what is wrong with the values of this rank, or None."""
    if _are_valid(values):
        return None
    for (name, vectors), deviation in zip(embeds.items(), values, strict=False):
        if not deviation <= 1:
            norms = _norms(vectors)
            row = int((norms - 1).abs().nan_to_num(nan=torch.inf).argmax())
            if not vectors[row].isfinite().all():
                return f"Row {row} of {name} holds NaN or infinity; a unit vector was expected."
            return (
                f"Row {row} of {name} has length {norms[row].item():.4g}, expected 1 within {_tolerance(vectors):.1g}: "
                "torch.nn.functional.normalize(x, dim=-1) makes unit vectors."
            )
    for name, value in zip(scalars, values[2:], strict=True):
        if not math.isfinite(value):
            return f"{name} must be finite, got {value}."
    return (
        f"logit_scale must be the logarithm of the factor, at most {MAX_LOG_SCALE:g}, got {values[2]:.4g}: "
        "pass logit_scale.log() if that is the factor itself, as open_clip's models return it."
    )


def _are_valid(values: list[float]) -> bool:
    """Return whether [deviation of images, of texts, log_scale, perhaps bias] are valid.

    Deviations from length 1 are given as multiples of the tolerance.
    """
    return max(values[:2]) <= 1 and values[2] <= MAX_LOG_SCALE and all(map(math.isfinite, values))


def _norms(vectors: Tensor) -> Tensor:
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return torch.linalg.vector_norm(vectors.detach(), dim=1, dtype=dtype)


def _tolerance(vectors: Tensor) -> float:
    return max(1e-3, 4 * torch.finfo(vectors.dtype).eps)  # 0.03 for bfloat16, which has 8 bits


def _describe_form(form: list[float]) -> str:
    batch, dim, element_bytes, *needs_grad = map(int, form)
    return f"({batch}, {dim}) of {element_bytes} bytes each with gradients {needs_grad}"
