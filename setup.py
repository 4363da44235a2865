"""Puts the workflow and the presets into the package: in a checkout they are beside it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("Snakefile", "workflow", "config", "profiles")


class BuildWithWorkflow(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "copra" / "shipped"
        for name in SHIPPED:
            source = Path(__file__).parent / name
            if source.is_dir():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
            elif source.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder)


setup(cmdclass={"build_py": BuildWithWorkflow})
