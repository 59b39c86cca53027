"""The build command of setuptools, with what it has to leave out because the root of this repository is the package.

setup.cfg names the class, and setuptools loads it from this path. A `setup.py` in the root would be packed as a
module of twinlens.
"""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

ROOT_MODULES = {"__init__", "__main__", "_version", "compat", "messages"}


class BuildPackage(build_py):
    """Copy the package, without other files of the root and without what an earlier build has left.

    setuptools takes every `*.py` of a package's folder, a scratch file in the checkout too, and packs all that lies in
    `build/lib`, modules removed since the last build too.
    """

    def run(self) -> None:
        """Start from an empty folder; an editable installation copies nothing."""
        if not self.editable_mode and Path(self.build_lib).exists():
            shutil.rmtree(self.build_lib)
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return (package, module, path) of a package's modules."""
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if package != "twinlens" or module[1] in ROOT_MODULES]
