import errno
import os
import tempfile
from pathlib import Path

import pytest

from robustkit.errors import RobustkitError
from robustkit.files import replacing


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as file:
        file.write(text)


def test_a_file_is_written_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    with replacing(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["c.txt"]  # noqa: PTH208


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_a_failure_inside_leaves_the_old_file_and_nothing_else(tmp_path: Path, raised: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = RobustkitError if raised is OSError else raised
    with pytest.raises(expected), replacing(path) as file:
        file.write("half")
        raise raised("broken off")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RobustkitError, match=r"cannot write .*a\.txt: No space left on device; .* --out") as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:  # root may write anywhere, so the refusal is played
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(RobustkitError, match=r"cannot write .*: Permission denied") as caught:
        write(tmp_path / "a.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RobustkitError, match="Permission denied"):
        write(tmp_path / "a.txt")


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    for path in (tmp_path / "a" / "b.txt", tmp_path / "a" / "b" / "c.txt"):
        with pytest.raises(RobustkitError, match="cannot write") as caught:
            write(path)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "a").read_text() == "old"


def test_a_path_that_is_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(RobustkitError, match=r"cannot write .*directory"):
        write(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_lost_folder_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    with pytest.raises(RobustkitError, match=r"cannot write .*No such file"), replacing(path):
        for part in path.parent.iterdir():
            part.unlink()
        path.parent.rmdir()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_users_file_mode_mask_is_kept(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "a.txt")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode
