"""From official checkpoints to transformers folders, with measured proof that nothing changed."""

from .certificate import Certificate, Comparison, Row, certify
from .convert import ParityError, convert
from .export import export
from .hub import Push, push
from .inspection import inspect_source
from .plot import plot_certificate
from .reference import Reference, TowerReference, reference_forward
from .verify import verify

__all__ = [
    "Certificate",
    "Comparison",
    "ParityError",
    "Push",
    "Reference",
    "Row",
    "TowerReference",
    "certify",
    "convert",
    "export",
    "inspect_source",
    "plot_certificate",
    "push",
    "reference_forward",
    "verify",
]
