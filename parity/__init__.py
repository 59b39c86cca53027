"""Measured proof that a conversion changed nothing: the float64 reference, the certificate, its plot."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
