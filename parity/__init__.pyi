"""The public names, and where they are."""

from .certificate import Certificate as Certificate
from .certificate import Comparison as Comparison
from .certificate import OutputError as OutputError
from .files import FileCheck as FileCheck
from .files import verify_files as verify_files
from .measurement import certify as certify
from .plot import check_plot as check_plot
from .plot import plot_certificate as plot_certificate
from .reference import Reference as Reference
from .reference import TowerReference as TowerReference
from .reference import reference_forward as reference_forward
from .verify import verify as verify
