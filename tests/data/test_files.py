"""Files are written whole, and stay what their owner made them."""

import errno
import os
import pathlib
import stat
import subprocess
import sys
import threading

import pytest

from tfquant.data.files import check_file, check_new_folder, new_folder, replacing


def write(path, content=b"new"):
    check_file(str(path))
    with replacing(str(path)) as temporary:
        pathlib.Path(temporary).write_bytes(content)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def umask():
    """A function that sets the umask, which the test's end puts back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_and_a_new_folder_have_the_mode_of_the_umask(umask, tmp_path, mask):
    umask(mask)
    write(tmp_path / "file")
    with new_folder(str(tmp_path / "folder")) as temporary:
        (pathlib.Path(temporary) / "inside").write_text("x")
    assert mode(tmp_path / "file") == 0o666 & ~mask
    assert mode(tmp_path / "folder") == 0o777 & ~mask
    assert sorted(x.name for x in tmp_path.rglob("*")) == ["file", "folder", "inside"]


@pytest.mark.parametrize("before", [0o600, 0o644, 0o755, 0o200])
def test_a_file_keeps_its_mode(umask, tmp_path, before):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(before)
    write(path)
    assert mode(path) == before
    path.chmod(0o600)
    assert path.read_bytes() == b"new"


def test_a_file_that_may_not_be_written_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)  # The superuser may all the same; the owner meant it.
    with pytest.raises(PermissionError, match=r"file' is there and may not be written"):
        check_file(str(path))
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_goes_on_leading_to_its_file(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("elsewhere/file")
    write(link)
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert [x.name for x in target.parent.iterdir()] == ["file"]


def test_a_link_into_nowhere_is_named(tmp_path):
    (tmp_path / "link").symlink_to("missing/file")
    with pytest.raises(FileNotFoundError, match=r"folder of '.*link' does not exist"):
        check_file(str(tmp_path / "link"))


def test_a_pipe_stays_a_pipe_and_is_written_into(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write(pipe, b"x" * 200_000)  # More than a pipe holds.
    reader.join(20)
    assert read == [b"x" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [x.name for x in tmp_path.iterdir()] == ["pipe"]


def test_devices_stay_devices(tmp_path):
    before = set(os.listdir("/dev"))
    write("/dev/null")
    (tmp_path / "link").symlink_to("/dev/null")
    write(tmp_path / "link")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and (tmp_path / "link").is_symlink()
    assert set(os.listdir("/dev")) == before


@pytest.mark.parametrize("path", ["/proc/x", "/proc/self/x", "/sys/x"])
def test_a_folder_that_takes_no_files_is_known_before(path):
    if not os.path.isdir(os.path.dirname(path)):
        pytest.skip(f"needs {os.path.dirname(path)}")
    with pytest.raises(PermissionError, match=f"folder of '{path}' cannot be written"):
        check_file(path)
    with pytest.raises(PermissionError, match=f"folder of '{path}' cannot be written"):
        check_new_folder(path)


@pytest.mark.parametrize("length", [255, 256])
def test_names_may_be_as_long_as_the_system_takes(tmp_path, length):
    path = tmp_path / ("n" * length)
    if length > 255:
        with pytest.raises(OSError, match=r"cannot be written: File name too long"):
            check_file(str(path))
    else:
        write(path)
        assert path.read_bytes() == b"new"


def test_what_goes_wrong_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(str(path)) as temporary:
        pathlib.Path(temporary).write_bytes(b"half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), new_folder(str(tmp_path / "folder")):
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


WRITES = """
import resource, signal, sys
import h5py, numpy
from tfquant.data.files import replacing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # As of a disk that is full.
try:
    with replacing(sys.argv[1]) as temporary:
        with h5py.File(temporary, "w") as file:
            file["x"] = numpy.arange(200_000.0)
except OSError as error:
    print(error.errno, error.filename)
"""


def test_what_a_library_says_of_a_full_disk_is_an_error_of_the_system(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    call = [sys.executable, "-c", WRITES, str(path)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == [str(errno.EFBIG), str(path)], done.stderr[-600:]
    assert path.read_bytes() == b"old" and [x.name for x in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError("x, errno = 28, y"), ValueError("no disk at all")])
def test_only_errors_of_the_system_are_made_such(tmp_path, error):
    kind = OSError if "errno" in str(error) else ValueError
    for writing in (replacing, new_folder):
        with pytest.raises(kind), writing(str(tmp_path / "file")):
            raise error
    assert list(tmp_path.iterdir()) == []
