"""twinlens: CLIP, SigLIP and SigLIP 2 on one encoder. Its names are imported when they are first used."""

import lazy_loader

from ._version import __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
