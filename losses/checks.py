"""What the losses ask of their inputs. A problem of one rank is an error on all, so that none is left waiting."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

LARGEST_SCALE = 9.0  # a factor of 8,103; trained models have about 100


def check(
    embeds: dict[str, Tensor],
    scalars: dict[str, Tensor],
    chunk_size: int,
    needs: tuple[bool, ...],
    group: dist.ProcessGroup | None,
) -> None:
    """Raise a ValueError for what is wrong here or on another rank; waits for the device once."""
    images, texts = embeds.values()
    problem = _problem_of_form(images, texts, scalars, chunk_size)
    if problem is None:
        form = torch.tensor([*images.shape, images.element_size(), *needs], device=images.device)
        deviations = [(_norms(vectors) - 1).abs().amax() / _tolerance(vectors) for vectors in embeds.values()]
        numbers = [*deviations, *(value.detach().reshape(()) for value in scalars.values())]
        row = torch.cat([form.float(), torch.stack([number.float() for number in numbers])])
    else:
        row = torch.full((5 + len(needs) + len(scalars),), torch.nan, device=images.device)
    own, rows = _gather(row, group)
    size = 3 + len(needs)
    problem = problem or _problem_of_values(embeds, scalars, rows[own][size:])
    if problem is not None:
        raise ValueError(problem)
    for rank, other in enumerate(rows):
        if not _are_fine(other[size:]):
            raise ValueError(f"Rank {rank} of the group refuses its inputs and says why; this is rank {own}.")
        if other[:size] != rows[own][:size]:
            raise ValueError(
                "All ranks of the group need embeddings of one shape and type, and gradients for the same inputs: "
                f"rank {own} has {_described(rows[own][:size])}, rank {rank} {_described(other[:size])}."
            )


def _gather(row: Tensor, group: dist.ProcessGroup | None) -> tuple[int, list[list[float]]]:
    """This rank, and the rows of all ranks."""
    if group is None:
        return 0, [row.tolist()]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, row, group=group)
    return dist.get_rank(group), torch.stack(rows).tolist()


def _problem_of_form(images: Tensor, texts: Tensor, scalars: dict[str, Tensor], chunk_size: int) -> str | None:
    """What shapes and types alone show."""
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


def _problem_of_values(embeds: dict[str, Tensor], scalars: dict[str, Tensor], numbers: list[float]) -> str | None:
    if _are_fine(numbers):
        return None
    for (name, vectors), deviation in zip(embeds.items(), numbers, strict=False):
        if not deviation <= 1:
            norms = _norms(vectors)
            row = int((norms - 1).abs().nan_to_num(nan=torch.inf).argmax())
            if not vectors[row].isfinite().all():
                return f"Row {row} of {name} holds NaN or infinity; a unit vector was expected."
            return (
                f"Row {row} of {name} has length {norms[row].item():.4g}, expected 1 within {_tolerance(vectors):.1g}: "
                "torch.nn.functional.normalize(x, dim=-1) makes unit vectors."
            )
    for name, number in zip(scalars, numbers[2:], strict=True):
        if not math.isfinite(number):
            return f"{name} must be finite, got {number}."
    return (
        f"logit_scale must be the logarithm of the factor, at most {LARGEST_SCALE:g}, got {numbers[2]:.4g}: "
        "give logit_scale.log() if that is the factor itself, as open_clip's models return it."
    )


def _are_fine(numbers: list[float]) -> bool:
    """Deviations of both embeddings over what is tolerated, the scale, and perhaps a bias."""
    return max(numbers[:2]) <= 1 and numbers[2] <= LARGEST_SCALE and all(map(math.isfinite, numbers))


def _norms(vectors: Tensor) -> Tensor:
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return torch.linalg.vector_norm(vectors.detach(), dim=1, dtype=dtype)


def _tolerance(vectors: Tensor) -> float:
    return max(1e-3, 4 * torch.finfo(vectors.dtype).eps)  # 0.03 for bfloat16, which has 8 bits


def _described(form: list[float]) -> str:
    batch, dim, size, *needs = map(int, form)
    return f"({batch}, {dim}) of {size} bytes each with gradients {needs}"
