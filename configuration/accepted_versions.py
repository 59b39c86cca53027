"""The versions of PyTorch and transformers that this package works with, checked before anything of them is used."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .._version import __version__

SUPPORTED = {"torch": ">=2.11", "transformers": ">=5.12,<6"}  # as in setup.cfg


def check_versions() -> None:
    """Raise ImportError for an installed version that is too old, or of a new major of transformers."""
    for package, supported in SUPPORTED.items():
        try:
            installed = version(package)
        except PackageNotFoundError:  # which its import says
            continue
        # Without the suffixes of vendors' builds, such as 2.11.0a0+nv26.
        if not SpecifierSet(supported).contains(Version(installed).base_version):
            raise ImportError(
                f"Expected {package}{supported} for twinlens {__version__}, got {installed}: "
                f"pip install '{package}{supported}'.",
                name=package,
            )


check_versions()
