"""Files that appear when they are complete."""

import contextlib
import os
import shutil
import tempfile


def check_file(path: str) -> None:
    """Raises if a file cannot be written at `path`, before anybody waits for what goes in.

    Raises:
        OSError: If `path` is a folder, or its folder is missing or cannot be written.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"A file is expected. Received: '{path}', which is a folder.")
    _check_parent(path)


def check_new_folder(path: str) -> None:
    """Raises if a folder cannot be made at `path`.

    Raises:
        OSError: If there is something at `path`, or its folder is missing or cannot be written.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"A new folder is expected. Received: '{path}', which exists.")
    _check_parent(path)


@contextlib.contextmanager
def replacing(path: str, suffix: str = ".tmp"):
    """Yields the name of a file beside `path` to write, which then takes the place of `path`.

    If the body raises, `path` is as it was.

    Args:
        path: The file to write.
        suffix: End of the temporary name.
    """
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", suffix=suffix)
    os.close(descriptor)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def new_folder(path: str):
    """Yields the name of a folder beside `path` to fill, which then becomes `path`.

    If the body raises, there is no `path`.
    """
    temporary = tempfile.mkdtemp(dir=os.path.dirname(path) or ".", suffix=".tmp")
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _check_parent(path):
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"The folder of '{path}' does not exist: '{folder}'.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"The folder of '{path}' cannot be written: '{folder}'.")
