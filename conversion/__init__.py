"""From official checkpoints to transformers folders, with measured proof that nothing changed."""

import lazy_loader

from ..configuration import check_versions  # first: what is installed may be too old for all else

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
