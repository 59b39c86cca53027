"""An index: the embeddings of many images in files, the job that writes them, and the reader for those who use them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
