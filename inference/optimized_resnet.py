"""The convolutions of an optimised ResNet: with batch norm, activation and residual in one product, channels last."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d
from torch.nn.functional import avg_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..modeling.clip_resnet import BatchNorm, Bottleneck, Convolution
from ..runtime.pickling import has_hooks
from .optimization import OptimizedModule, is_usual


class FoldedConvolution:
    """A convolution with batch norm in its weights, which are in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: Sequence[int], padding: int) -> None:
        self.bias, self.stride, self.padding = bias, [*stride], padding
        self.shape = ([padding] * 2, self.stride, [1, 1], 1)  # as oneDNN takes them, with dilation and groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.shape, [])

    @classmethod
    def of(cls, module: Convolution) -> "FoldedConvolution":
        """Fold the batch norm of a plain module; computed in float64, so that rounding is that of the result."""
        conv, norm = copy.deepcopy(module.conv).double(), copy.deepcopy(module.norm).double()
        folded: Any = fuse_conv_bn_eval(conv, norm)
        weight, bias = (x.detach().to(module.conv.weight) for x in (folded.weight, folded.bias))
        return cls(weight, bias, conv.stride, conv.kernel_size[0] // 2)

    def __reduce__(self) -> Any:
        """Pickle and copy weights in their usual layout, since oneDNN's is that of a processor."""
        return FoldedConvolution, (self.weight.to_dense(), self.bias, self.stride, self.padding)

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """Return the activation of the convolution of `x` (batch, channels, rows, columns), channels last."""
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.shape, activation, [], "")

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return the ReLU of `residual` plus the convolution of `x`, channels last both."""
        if x.shape[-2:].numel() == 1:  # which PyTorch 2.11 cannot do in one product
            return (residual + self(x, "none")).relu_()
        convolve: Any = torch.ops.mkldnn._convolution_pointwise.binary
        return convolve(x, residual, self.weight, self.bias, *self.shape, "add", 1.0, "relu", [], "")


def can_be_folded(module: Any) -> bool:
    """Return whether a convolution is what its class makes, and not what somebody put there."""
    conv, norm = module.conv, module.norm
    if not is_usual(conv, Conv2d) or not is_usual(norm, BatchNorm) or {*norm._parameters} != {"weight", "bias"}:
        return False
    usual = ((1, 1), 1, "zeros", (conv.kernel_size[0] // 2,) * 2)
    return (conv.dilation, conv.groups, conv.padding_mode, conv.padding) == usual and "weight" in conv._parameters


class OptimizedConvolution(OptimizedModule, Convolution):
    """A convolution that is folded. Its own weights stay, for the way back: folding is not undone exactly."""

    products: FoldedConvolution

    def forward(self, x: Tensor) -> Tensor:
        is_taken, product = self.takes(x), vars(self).get("products")
        if product is None or not is_taken or has_hooks(self):
            return Convolution.forward(self, x)
        return product(x, "relu" if self.active else "none")

    def is_as_left(self) -> bool:
        return super().is_as_left() and vars(self).get("versions") in (None, versions(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "versions": None}  # a copy counts anew


def versions(module: Convolution) -> list[int]:
    """Return how often what is folded has been written, as far as PyTorch counts it: not through `data`."""
    return [x._version for x in (*module.parameters(), *module.buffers()) if not x.is_inference()]


class OptimizedBottleneck(OptimizedModule, Bottleneck):
    """A residual block that adds and applies its last ReLU inside the last convolution."""

    def forward(self, x: Tensor) -> Tensor:
        last: Any = self.conv3
        is_taken = self.takes(x) and last.takes(x)
        product = vars(last).get("products")
        if product is None or not is_taken or has_hooks(last):
            return Bottleneck.forward(self, x)
        y = self.conv2(self.conv1(x))
        if self.stride > 1:
            x, y = avg_pool2d(x, self.stride), avg_pool2d(y, self.stride)
        return product.added_to(self.downsample(x) if hasattr(self, "downsample") else x, y)
