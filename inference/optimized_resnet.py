"""The convolutions of an optimised ResNet: with batch norm, activation and residual in one product, channels last."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..modeling.clip_resnet import Bottleneck, Convolution
from ..runtime.pickling import has_hooks
from .optimization import WithoutWeights
from .products import is_plain


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
        convolve: Any = torch.ops.mkldnn._convolution_pointwise.binary
        return convolve(x, residual, self.weight, self.bias, *self.shape, "add", 1.0, "relu", [], "")


class OptimizedConvolution(WithoutWeights, Convolution):
    """A convolution that is folded. Its own weights stay, for the way back: folding is not undone exactly."""

    products: FoldedConvolution

    def forward(self, x: Tensor) -> Tensor:
        if not is_plain(self, x) or has_hooks(self):
            return super().forward(x)
        return self.products(x, "relu" if self.active else "none")


class OptimizedBottleneck(Bottleneck):
    """A residual block that adds and applies its last ReLU inside the last convolution."""

    def forward(self, x: Tensor) -> Tensor:
        last: Any = self.conv3
        if not is_plain(self, x) or has_hooks(last):
            return super().forward(x)
        y = self.conv2(self.conv1(x))
        if self.stride > 1:
            x, y = avg_pool2d(x, self.stride), avg_pool2d(y, self.stride)
        return last.products.added_to(self.downsample(x) if hasattr(self, "downsample") else x, y)
