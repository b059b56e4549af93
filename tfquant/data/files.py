"""Files that appear when they are complete, where and as their owner wants them.

Imports the standard library only: `tfquant_cli.py` reads this file without importing tfquant.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile


def check_file(path: str) -> None:
    """Raises if a file cannot be written at `path`, before anybody waits for what goes in.

    Links are followed. What is there and is no regular file (a pipe, `/dev/null`) is written into.

    Raises:
        OSError: If `path` is a folder, a file that may not be written, or a name that cannot be; if
            its folder is missing or cannot be written.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"A file is expected. Received: '{path}', which is a folder.")
    mode = _mode(path)
    if mode is not None and not (mode & 0o222 and os.access(path, os.W_OK)):
        raise PermissionError(f"The file '{path}' is there and may not be written.")
    if mode is None or stat.S_ISREG(mode):
        _check_parent(path, os.path.realpath(path))


def check_new_folder(path: str) -> None:
    """Raises if a folder cannot be made at `path`.

    Raises:
        OSError: If there is something at `path`, or its folder is missing or cannot be written.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"A new folder is expected. Received: '{path}', which exists.")
    _check_parent(path, path)


@contextlib.contextmanager
def replacing(path: str, suffix: str = ".tmp"):
    """Yields the name of a file to write, which then takes the place of `path`.

    If the body raises, `path` is as it was. A link goes on leading to the file that it leads to; a
    file keeps its mode and owner, a new one has the mode that the process gives to files. What is
    no regular file stays what it is, and is written into.

    Args:
        path: The file to write.
        suffix: End of the temporary name.
    """
    mode, target = _mode(path), os.path.realpath(path)
    regular = mode is None or stat.S_ISREG(mode)
    temporary = _beside(target if regular else tempfile.gettempdir() + "/", suffix)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        if regular:
            _keep(temporary, target, mode)
            os.replace(temporary, target)
        else:
            with open(temporary, "rb") as source, open(path, "wb", buffering=0) as to:
                shutil.copyfileobj(source, to)
            os.unlink(temporary)
    except BaseException as error:
        os.unlink(temporary)
        _raise_as_system_error(error, path)
        raise


@contextlib.contextmanager
def new_folder(path: str):
    """Yields the name of a folder beside `path` to fill, which then becomes `path`.

    If the body raises, there is no `path`.
    """
    temporary = _beside(path, ".tmp")
    os.mkdir(temporary)
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary)
        _raise_as_system_error(error, path)
        raise


def _raise_as_system_error(error, path):
    """Raises an `OSError` that names the file, where a library tells of one in its own words.

    HDF5 names no file, or only the number; TensorFlow has errors of its own.
    """
    number, said = getattr(error, "errno", None), re.search(r"errno = (\d+)", str(error))
    if number is None and said:
        number = int(said.group(1))
    elif number is None and "No space left on device" in str(error):
        number = errno.ENOSPC
    if number is not None and getattr(error, "filename", None) is None:
        raise OSError(number, os.strerror(number), path) from error


def _beside(path, suffix):
    """Returns a new name in the folder of `path`."""
    return os.path.join(os.path.dirname(path), f".tfquant-{secrets.token_hex(4)}{suffix}")


def _keep(temporary, target, mode):
    """Gives a new file the mode and the owner of the one whose place it takes."""
    if mode is None:
        return
    there = os.stat(target)
    with contextlib.suppress(PermissionError):  # Only the superuser gives files away.
        os.chown(temporary, there.st_uid, there.st_gid)
    os.chmod(temporary, stat.S_IMODE(mode))


def _mode(path):
    """Returns the mode of what `path` leads to, `None` where nothing is there."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OSError(f"A file '{path}' cannot be written: {error.strerror}.") from error


def _check_parent(path, target):
    folder = os.path.dirname(target) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"The folder of '{path}' does not exist: '{folder}'.")
    try:
        if not os.access(folder, os.W_OK):
            raise PermissionError
        probe = _beside(target, ".tmp")  # Not all that refuses says so: /proc, a full disk.
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(probe)
    except OSError as error:
        raise PermissionError(f"The folder of '{path}' cannot be written: '{folder}'.") from error
