"""Models for programs without PyTorch: graphs in ONNX and OpenVINO's IR, checked by the runtimes that will run them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
