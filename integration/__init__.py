"""In other libraries: transformers' Auto classes and its own models, clients written for earlier versions of them."""

import lazy_loader

from ..configuration import check_versions  # first: what is installed may be too old for all else

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
