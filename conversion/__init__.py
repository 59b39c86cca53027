"""From official checkpoints to transformers folders, with measured proof that nothing changed."""

from .certificate import Certificate, Comparison, Row, certify
from .convert import ParityError, convert
from .inspection import inspect_source
from .reference import Reference, TowerReference, reference_forward

__all__ = [
    "Certificate",
    "Comparison",
    "ParityError",
    "Reference",
    "Row",
    "TowerReference",
    "certify",
    "convert",
    "inspect_source",
    "reference_forward",
]
