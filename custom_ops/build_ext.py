"""The build command of `pip install`: compiles the ops, or leaves that to their first use.

setup.cfg names it; it needs no setup.py and no TensorFlow in the build environment.
"""

import importlib.util
import logging
import os
import pathlib
import shutil

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
        libraries = [pathlib.Path(self.get_ext_fullpath(e.name)) for e in self.extensions]
        stamps = [path.with_name("built.json") for path in libraries]
        copies = [] if self.inplace else [target for _, target in self._copies()]
        return [str(path) for path in (*libraries, *stamps, *copies) if path.exists()]

    def _say(self, words):
        self.announce(f"tfquant ops: {words}", level=logging.WARNING)

    def _copies(self):
        folder = pathlib.Path(self.build_lib) / "tfquant" / "lowbit" / "custom_ops"
        files = _load_build().source_files(_ROOT)
        return [(path, folder / path.relative_to(_ROOT)) for path in files]
