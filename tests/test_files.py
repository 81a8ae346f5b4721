"""Files are replaced whole, and JSON of anybody's is read or refused."""

import errno
import json
import os
from pathlib import Path

import pytest

from research.files import read_json, write_whole


def test_a_file_that_is_half_written_has_no_name_that_others_read(tmp_path: Path) -> None:
    names: list[str] = []
    write_whole(tmp_path / "events.out.tfevents.1", lambda _: names.extend(os.listdir(tmp_path)))
    assert len(names) == 1
    assert "events" not in names[0]
    assert os.listdir(tmp_path) == ["events.out.tfevents.1"]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    def fill(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "kept").write_text("old")
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'kept'}'"):
        write_whole(tmp_path / "kept", fill)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept", "old")]


def test_json_reads_back_as_it_was(tmp_path: Path) -> None:
    content = {"text": "\u00e9\ud800", "numbers": [0, -1.5, 10**300, None, True]}
    (tmp_path / "file.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "file.json", max_bytes=1000) == content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        ("\u00e9".encode("latin-1"), "utf-8"),
        ("[]".encode("utf-16"), "utf-8"),
        (b"NaN", "NaN is not a finite number"),
        (b"[-Infinity]", "-Infinity is not a finite number"),
        (b"1" * 500 + b".0", "1{20} is not a finite number"),
        (b" " * 801, "more than 800 bytes"),
    ],
)
def test_what_is_no_json_is_refused_in_one_line(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_json(tmp_path / "file.json", max_bytes=800)
    assert len(str(caught.value).splitlines()) == 1


def test_nesting_is_refused_however_deep(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b"[" * 10**6 + b"]" * 10**6)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "file.json", max_bytes=10**7)


def test_pipe_and_device_are_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(ValueError, match="no regular file"):
            read_json(tmp_path / name, max_bytes=1000)


def test_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "file.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        read_json(tmp_path / "file.json", max_bytes=1000)
