"""Which weights a model has, in one text: embeddings of other weights do not belong together."""

import hashlib

import torch
from torch import nn


def weights_fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of the weights' names, dtypes, shapes and values, as 64 hexadecimal digits.

    A model loaded in another dtype has other values, so it is taken of the model as `load_exact_model` loads it.
    `optimize_for_inference` does not change it.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
