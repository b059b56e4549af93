"""Keras files without the air that is in them."""

import shutil
import zipfile

from tfquant.data.files import replacing


def compress(path: str) -> None:
    """Compresses the members of a Keras file, which Keras stores as they are.

    A packed layer has a few bytes of weights, and about 4 KB of HDF5 groups and of settings around
    them, nearly all zeros and repeated words. Keras reads both kinds of file.

    Args:
        path: A `.keras` file; it is replaced.
    """
    with (
        replacing(path, suffix=".keras") as temporary,
        zipfile.ZipFile(path) as stored,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as deflated,
    ):
        for name in stored.namelist():
            # The size is not known before: force_zip64 lets a member be of any.
            with stored.open(name) as source, deflated.open(name, "w", force_zip64=True) as to:
                shutil.copyfileobj(source, to, length=1 << 20)
