"""The public names, and where they are."""

from .certificate import Certificate as Certificate
from .certificate import Comparison as Comparison
from .certificate import Row as Row
from .certificate import certify as certify
from .convert import ParityError as ParityError
from .convert import convert as convert
from .export import export as export
from .hub import Push as Push
from .hub import push as push
from .inspection import inspect_source as inspect_source
from .plot import plot_certificate as plot_certificate
from .reference import Reference as Reference
from .reference import TowerReference as TowerReference
from .reference import reference_forward as reference_forward
from .verify import verify as verify
