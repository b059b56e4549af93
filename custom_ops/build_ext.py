"""The build commands of `pip install`: compile the ops, or leave that to their first use.

setup.cfg names them; they need no setup.py and no TensorFlow in the build environment.
"""

import importlib.util
import logging
import os
import pathlib
import shutil

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

_ROOT = pathlib.Path(__file__).resolve().parent


def _load_build():
    """tfquant/lowbit/build.py, without importing tfquant, which needs TensorFlow."""
    path = _ROOT.parent / "tfquant" / "lowbit" / "build.py"
    spec = importlib.util.spec_from_file_location("tfquant_lowbit_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildOps(build_ext):
    """Compiles custom_ops and puts its sources into the package, for a later compilation."""

    def get_ext_filename(self, fullname):
        """The library carries no Python ABI tag: it is no extension module."""
        return os.path.join(*fullname.split(".")) + ".so"

    def run(self):
        """Compiles, and copies the sources unless the package stays in its checkout."""
        super().run()
        if not self.inplace:
            for source, target in self._copies():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def copy_extensions_to_source(self):
        """Puts the library into the checkout with its stamp, without which none is loaded."""
        super().copy_extensions_to_source()
        for built, in_checkout in self.get_output_mapping().items():
            stamp = pathlib.Path(built).with_name("built.json")
            if stamp.exists():
                shutil.copyfile(stamp, pathlib.Path(in_checkout).with_name("built.json"))

    def build_extension(self, ext):
        """Compiles the library. A failure is reported; the package works without it."""
        for left in self._library(ext), self._library(ext).with_name("built.json"):
            left.unlink(missing_ok=True)  # Of an earlier build in the same folder.
        build = _load_build()
        tensorflow = build.tensorflow_folder()
        if os.environ.get("TFQUANT_BUILD") == "0":
            return self._say("TFQUANT_BUILD=0, not compiled")
        if tensorflow is None:
            return self._say("no TensorFlow yet, compiled at first use")
        try:
            build.compile_library(
                self.get_ext_fullpath(ext.name), tensorflow=tensorflow, root=_ROOT
            )
        except build.BuildError as error:
            self._say(f"not compiled. {error}")

    def get_outputs(self):
        """What there is, which may lack the library."""
        libraries = [self._library(ext) for ext in self.extensions]
        stamps = [path.with_name("built.json") for path in libraries]
        copies = [] if self.inplace else [target for _, target in self._copies()]
        return [str(path) for path in (*libraries, *stamps, *copies) if path.exists()]

    def has_library(self):
        """Whether a library was compiled."""
        return any(self._library(ext).exists() for ext in self.extensions)

    def _library(self, ext):
        return pathlib.Path(self.get_ext_fullpath(ext.name))

    def _say(self, words):
        self.announce(f"tfquant ops: {words}", level=logging.WARNING)

    def _copies(self):
        folder = pathlib.Path(self.build_lib) / "tfquant" / "lowbit" / "custom_ops"
        files = _load_build().source_files(_ROOT)
        return [(path, folder / path.relative_to(_ROOT)) for path in files]


class TaggedWheel(bdist_wheel):
    """A wheel whose tag says what is inside: `py3-none-any`, or the platform of its library."""

    def run(self):
        """Builds first: only then is it known whether there is a library."""
        self.run_command("build")
        self.root_is_pure = not self.get_finalized_command("build_ext").has_library()
        if self.root_is_pure:
            self.distribution.ext_modules = []  # They would go to the folder of a platform.
        super().run()

    def get_tag(self):
        """No Python ABI: the library is no extension module."""
        *_, platform = super().get_tag()
        return "py3", "none", platform
