"""Reading, making and replacing files where others may have put something else."""

import os
import stat
from pathlib import Path

import pytest

from data_pipeline.base.durable import read_file, replace_file, temporary_folder, unlinked
from data_pipeline.base.records import RecordWriter, read_records
from data_pipeline.base.terminal import for_stream, visible


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_a_temporary_folder_has_the_permissions_of_any_other(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made, plain = temporary_folder(tmp_path, ".x-"), tmp_path / "plain"
        plain.mkdir()
        replace_file(tmp_path / "file", b"1")
        (tmp_path / "written").write_bytes(b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert temporary_folder(tmp_path, ".x-") != made


@pytest.mark.parametrize("dangling", [False, True])
def test_links_are_not_written_through(tmp_path: Path, dangling: bool) -> None:
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(victim)
    for mode in ("w", "a", "ab+", "wb"):
        with pytest.raises(OSError, match="symbolic link"), open(link, mode, opener=unlinked):
            pass
    with pytest.raises(OSError, match="symbolic link"):
        RecordWriter(link, 1)
    replace_file(link, b"new")
    assert link.read_bytes() == b"new"
    assert not link.is_symlink()
    assert victim.exists() != dangling
    assert dangling or victim.read_bytes() == b"precious"


def test_pipes_are_neither_read_nor_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for call in (read_file, read_records, lambda path: RecordWriter(path, 1)):
        with pytest.raises(OSError, match="no regular file"):
            call(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        read_file("/dev/zero")
    assert read_records(tmp_path / "missing") == []


def test_a_pipe_of_the_shell_is_read() -> None:
    """As bash names that of `<(...)`."""
    read, write = os.pipe()
    os.write(write, b"run: {}")
    os.close(write)
    assert read_file(f"/dev/fd/{read}") == b"run: {}"
    os.close(read)


class _Terminal:
    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n中 é 😀", "a\tb\n中 é 😀"),
        ("\x1b[2J\x1b]0;x\x07", r"\x1b[2J\x1b]0;x\x07"),
        ("a\rb\x08\x00\x7f", r"a\x0db\x08\x00\x7f"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
    ],
)
def test_control_characters_on_a_terminal(text: str, shown: str) -> None:
    assert visible(text) == for_stream(text, _Terminal(True)) == shown
    assert for_stream(text, _Terminal(False)) == text
