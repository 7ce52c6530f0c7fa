"""Files that are written whole or not at all, and read whole or refused."""

from __future__ import annotations

import contextlib
import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from robustkit.errors import RobustkitError


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes the place of ``path`` only once it is written whole and lies on the disk.

    A crash, a full disk or Ctrl-C leaves what stood at ``path`` before.

    Args:
        path: the file to write; its folder is made where it is missing.
        mode: ``"w"`` for text (UTF-8) or ``"wb"`` for bytes.

    Yields:
        The open temporary file.

    Raises:
        RobustkitError: the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # after a success there is none; a lost disk has been reported already
            temporary.unlink()


def read_maybe_gzipped(path: Path) -> bytes:
    """Read a file, unpacked where its name ends in ``.gz``.

    Args:
        path: the file.

    Raises:
        RobustkitError: it is absent, cannot be read, or is damaged or cut short.
    """
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise RobustkitError(f"expected a file at {path}, found none; check the path") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RobustkitError(f"{path} is damaged or cut short ({error}); copy or download it again") from None
    except OSError as error:
        raise RobustkitError(f"cannot read {path}: {error.strerror or error}; check the path") from None


def _umask() -> int:
    """Read the process's file mode mask; the only way to is to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> RobustkitError:
    reason = error.strerror or str(error)
    return RobustkitError(f"cannot write {path}: {reason}; give a folder with space that you may write to with --out")
