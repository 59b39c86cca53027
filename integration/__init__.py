"""In other libraries: transformers' Auto classes and its own models, clients written for earlier versions of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
