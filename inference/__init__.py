"""Use of a model: embed images and texts, classify images by labels in words, and see where the model looks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
