"""twinlens: CLIP, SigLIP and SigLIP 2 on one encoder.

Names and rooms are imported when they are first used; `__init__.pyi` says where each of them is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
