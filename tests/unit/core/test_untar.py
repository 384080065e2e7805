"""An archive holds plain files inside itself, or nothing of it is taken."""

import contextlib
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import HeadraceError, InvalidArgumentError, PayloadTooLargeError, untar
from headrace.core.untar import unpack

Refuse = Callable[[bytes, str], None]


def entry(name: str, data: bytes = b"x", **fields: object) -> bytes:
    """One member as `tarfile` writes it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


def resealed(header: bytes) -> bytes:
    """A header that was changed, with the checksum it then has."""
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:512])
    return header[:148] + b"%06o\0 " % total + header[156:]


def patched(header: bytes, at: int, data: bytes) -> bytes:
    return resealed(header[:at] + data + header[at + len(data) :])


def pax(records: bytes, *, said: int | None = None) -> bytes:
    """An extended header of any content."""
    header = tarfile.TarInfo("pax").tobuf(tarfile.USTAR_FORMAT)
    size = len(records) if said is None else said
    header = patched(patched(header, 156, b"x"), 124, b"%011o\0" % size)
    return header + records + bytes(-len(records) % 512)


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n".encode()
    length = len(text) + 2
    return f"{length}".encode() + text if len(f"{length}") == 2 else b"%03d" % (length + 1) + text


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    def check(archive: bytes, reason: str) -> None:
        file, target = tmp_path / "a.tar", tmp_path / "in" / "model"
        file.write_bytes(archive)
        with pytest.raises(InvalidArgumentError, match=reason):
            unpack(file, target, max_bytes=1 << 20)
        outside = {path.name for path in tmp_path.iterdir()}
        assert outside <= {"a.tar", "in"}, "something was written outside"

    return check


def test_the_files_of_a_real_archive_are_unpacked(tmp_path: Path) -> None:
    stream = io.BytesIO()
    long = "/".join(["deep" * 20] * 5)
    for style in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(fileobj=stream, mode="w", format=style) as tar:
            for name, data in (
                ("./model.onnx", b"m" * 1000),
                (f"{long}/weights", b"w"),
                ("é", b""),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            folder = tarfile.TarInfo("empty")
            folder.type = tarfile.DIRTYPE
            folder.mode = 0o2755
            tar.addfile(folder)
        target = tmp_path / str(style)
        (tmp_path / "a.tar").write_bytes(stream.getvalue())
        unpack(tmp_path / "a.tar", target, max_bytes=1 << 20)
        found = {
            str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()
        }

        assert found == {"model.onnx": b"m" * 1000, f"{long}/weights": b"w", "é": b""}


@pytest.mark.parametrize(
    "name",
    ["../out", "a/../../out", "/etc/passwd", "//out", "a/..", "..", "a\nb", "\x1b[2J", "a\u202eb"],
    ids=ascii,
)
def test_paths_that_lead_out_or_hide_something_are_refused(refuse: Refuse, name: str) -> None:
    refuse(entry(name) + bytes(1024), "not allowed in the archive")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device file"),
        (tarfile.BLKTYPE, "a device file"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "of a kind that is not known"),
    ],
)
def test_only_plain_files_are_taken(refuse: Refuse, kind: bytes, what: str) -> None:
    info = tarfile.TarInfo("a")
    info.linkname = "/etc/passwd"
    refuse(patched(info.tobuf(), 156, kind) + bytes(1024), what)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1755])
def test_a_file_with_special_rights_is_refused(refuse: Refuse, mode: int) -> None:
    refuse(entry("a", mode=mode) + bytes(1024), "setuid, setgid or sticky")


def test_a_sparse_file_of_which_the_map_is_cut_off_is_refused(refuse: Refuse) -> None:
    header = patched(entry("a")[:512], 156, tarfile.GNUTYPE_SPARSE)
    refuse(patched(header, 482, b"\1"), "a sparse file")


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_a_sparse_file_in_an_extended_header_is_refused(refuse: Refuse, version: str) -> None:
    records = record(f"GNU.sparse.{'major' if version == '1.0' else 'size'}", "1" * 12)
    refuse(pax(records) + entry("a") + bytes(1024), "a sparse file")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("a", "a", "in the archive twice"),
        ("Model.py", "model.PY", "one name on some file systems"),
        ("e\u0301", "\u00e9", "one name on some file systems"),
        ("a", "a/b", "lies in what is a file"),
    ],
    ids=ascii,
)
def test_a_name_is_there_once_however_it_is_written(
    refuse: Refuse, first: str, second: str, reason: str
) -> None:
    refuse(entry(first) + entry(second) + bytes(1024), reason)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n" * 5000, "not allowed"),
        ("n" * 256, "more than 255 bytes"),
        ("/".join(["d"] * 40), "32 directories"),
        ("", "without a name"),
        (".", "without a name"),
    ],
    ids=lambda text: text[:12],
)
def test_names_have_a_length(refuse: Refuse, name: str, reason: str) -> None:
    refuse(entry(name) + bytes(1024), reason)


def test_a_null_in_a_long_name_is_refused(refuse: Refuse) -> None:
    refuse(pax(record("path", "a\0b")) + entry("a") + bytes(1024), "cannot be printed")


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"no archive",
        entry("a")[:600],
        entry("a")[:1024],
        entry("a"),
        b"\x1f\x8b" + bytes(1022),
        b"PK\3\4" + bytes(1020),
        patched(entry("a"), 124, b"77777777777\0"),
        patched(entry("a"), 124, b"-1         \0"),
        patched(entry("a"), 124, b"xyz\0"),
        pax(b"5 a=b\n"[:4]),
        pax(b"999999999 path=x\n"),
        pax(b"9 pathx=", said=9),
        pax(record("size", "-5")) + entry("a") + bytes(1024),
        pax(b"", said=1 << 30),
        pax(record("path", "a"))[:520],
        patched(entry("a"), 0, b"\xff\xfe"),
        pax(b"1" * 60_000),
        patched(entry("a"), 124, b"\xff" * 12),
    ],
    ids=range(19),
)
def test_what_is_no_whole_archive_is_refused_without_being_read_whole(
    refuse: Refuse, archive: bytes
) -> None:
    try:
        refuse(archive, "invalid tar archive")
    except PayloadTooLargeError:
        assert b"77777777777" in archive


def test_nothing_but_directories_is_no_model(refuse: Refuse) -> None:
    refuse(bytes(1024), "holds no file")
    refuse(entry("a/", b"", type=tarfile.DIRTYPE) + bytes(1024), "holds no file")


def test_sizes_are_bounded_before_anything_is_written(tmp_path: Path) -> None:
    huge = patched(entry("a"), 124, b"\x80" + struct.pack(">3xQ", 1 << 60))
    several = b"".join(entry(str(i), b"x" * 600) for i in range(3)) + bytes(1024)
    for archive in (huge, pax(record("size", str(1 << 60))) + entry("a"), several):
        (tmp_path / "a.tar").write_bytes(archive)
        with pytest.raises(PayloadTooLargeError):
            unpack(tmp_path / "a.tar", tmp_path / "model", max_bytes=1000)


@pytest.mark.parametrize("kind", ["file", "directory", "header"])
def test_entries_are_counted_whatever_they_are(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(untar, "MAX_MEMBERS", 50)
    one = {
        "file": lambda i: entry(str(i), b""),
        "directory": lambda i: entry(f"{i}/", b"", type=tarfile.DIRTYPE),
        "header": lambda _: pax(b""),
    }[kind]

    refuse(b"".join(map(one, range(60))) + bytes(1024), "more than 50 entries")


def test_entries_outside_of_the_requested_directory_are_skipped_whatever_they_are() -> None:
    archive = (
        entry("bin/sh", b"", type=tarfile.SYMTYPE, linkname="/bin/bash")
        + entry("/etc/shadow", b"root")
        + entry("models/a.onnx", b"model")
        + entry("dev/null", b"", type=tarfile.CHRTYPE)
        + bytes(1024)
    )

    files = untar.plain_files(io.BytesIO(archive), max_bytes=100, below="models")

    assert [parts for parts, _ in files] == [("models", "a.onnx")]


def test_skipped_entries_count_for_the_limit() -> None:
    archive = entry("bin/sh", bytes(2000)) + entry("models/a", b"x") + bytes(1024)

    with pytest.raises(PayloadTooLargeError):
        list(untar.plain_files(io.BytesIO(archive), max_bytes=1000, below="models"))


@pytest.mark.parametrize("name", ["models/../a", "./models/b/../../c"])
def test_entries_that_leave_the_requested_directory_are_refused(name: str) -> None:
    archive = entry(name) + bytes(1024)

    with pytest.raises(InvalidArgumentError, match="leads out"):
        list(untar.plain_files(io.BytesIO(archive), max_bytes=1000, below="models"))


@given(data=st.data())
def test_no_bytes_lead_out_or_crash_the_reader(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    whole = bytearray(
        entry("a/b", b"x" * 100) + pax(record("path", "c")) + entry("d") + bytes(1024)
    )
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for start in (0, 1024, 2048):
        if data.draw(st.booleans()):
            whole[start : start + 512] = resealed(bytes(whole[start : start + 512]))
    (folder / "a.tar").write_bytes(whole)
    with contextlib.suppress(HeadraceError):
        unpack(folder / "a.tar", folder / "in" / "model", max_bytes=10_000)

    assert {path.name for path in folder.iterdir()} <= {"a.tar", "in"}
    assert {path.name for path in folder.glob("in/*")} <= {"model"}
