"""Reader of untrusted tar archives: models and backups.

Python's `tarfile` understands links, devices, sparse files and headers of any length, and
trusts them. This reader rejects an entry that is no plain file or directory before it writes any of
it, and validates every number before use.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from headrace.core import InvalidArgumentError, PayloadTooLargeError

MAX_MEMBERS: Final = 100_000
MAX_NAME_BYTES: Final = 1024
MAX_PART_BYTES: Final = 255
MAX_PARTS: Final = 32
_MAX_HEADER_BYTES: Final = 64 << 10
"""Limit for the records of one extended header (POSIX pax, or GNU's long names)."""
_BLOCK: Final = 512
_COPY_BYTES: Final = 1 << 20
_SPECIAL_MODE: Final = 0o7000
_NUMBER_END: Final = b" \0"
_PLAIN: Final = frozenset({b"0", b"\0", b"7"})
_REFUSED: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device file",
    b"4": "a device file",
    b"6": "a named pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveMember:
    """One entry of an archive; `size` bytes of content follow its header."""

    name: str
    kind: bytes
    mode: int
    size: int


def unpack(archive: Path, target: Path, *, max_bytes: int, ignores_case: bool = True) -> None:
    """Write the plain files of a tar archive under `target`, and nothing outside it.

    Files that were written before an error remain; the caller removes `target`.

    Args:
        ignores_case: Refuse names that differ only in case or composition of letters.

    Raises:
        InvalidArgumentError: The archive is incomplete, or contains entries other than plain files
            and directories inside it, or an entry twice.
        PayloadTooLargeError: The content is larger than allowed.
    """
    with archive.open("rb") as file:
        for parts, member in plain_files(file, max_bytes=max_bytes, ignores_case=ignores_case):
            path = target.joinpath(*parts)
            write_file(path, content_of(file, member), name=member.name)


def plain_files(
    file: BinaryIO, *, max_bytes: int, ignores_case: bool = True, below: str = ""
) -> Iterator[tuple[tuple[str, ...], ArchiveMember]]:
    """Yield the checked path of each plain file of an archive, with `file` at its content.

    Args:
        max_bytes: Limit of the total size, of skipped entries too.
        below: Directory; entries outside of it are skipped, whatever they are, and there may be
            none inside. Empty for the whole archive.

    Raises the errors of `unpack`, except for duplicate files and truncated content.
    """
    names: dict[str, str] = {}
    total = count = 0
    for member in _members(file, below):
        count += 1
        if count > MAX_MEMBERS:
            raise InvalidArgumentError(f"the archive holds more than {MAX_MEMBERS} entries")
        total += member.size
        if total > max_bytes:
            raise PayloadTooLargeError(limit_bytes=max_bytes)
        if not _is_below(member.name, below):
            continue
        parts = _parts(member)
        if member.kind == b"5":
            continue
        # Names may collide where case or Unicode composition is ignored.
        name = "/".join(parts)
        folded = unicodedata.normalize("NFC", name).casefold() if ignores_case else name
        other = names.setdefault(folded, name)
        if other != name:
            message = f"{_display(name)} and {_display(other)} are one name on some file systems"
            raise InvalidArgumentError(message)
        yield parts, member
    if not names and not below:
        raise InvalidArgumentError("the archive holds no file")


def content_of(file: BinaryIO, member: ArchiveMember) -> Iterator[bytes]:
    """Yield the content of a plain file in parts.

    Raises:
        InvalidArgumentError: The archive ends within it.
    """
    left = member.size
    while left:
        chunk = file.read(min(_COPY_BYTES, left))
        if not chunk:
            raise _broken("it ends within a file")
        left -= len(chunk)
        yield chunk


def _is_below(name: str, directory: str) -> bool:
    return not directory or name.removeprefix("./").startswith(f"{directory}/")


def _members(file: BinaryIO, below: str) -> Iterator[ArchiveMember]:
    """Yield each file and directory, with the position behind its header; skip its content."""
    extended: dict[str, str] = {}
    headers = 0
    while True:
        header = file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise _broken("it ends within a header" if header else "its end is missing")
        if not header.strip(b"\0"):
            return
        kind = header[156:157]
        size = _number(header[124:136])
        if header[148:156].strip(_NUMBER_END) == b"" or _number(header[148:156]) != (
            sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
        ):
            raise _broken("a header's checksum is wrong")
        if kind in {b"x", b"g", b"L", b"K"}:
            headers += 1
            if headers > MAX_MEMBERS:
                raise InvalidArgumentError(f"the archive holds more than {MAX_MEMBERS} entries")
            extended |= _extended(file, kind, size)
            continue
        member = _member(header, kind, size, extended, below)
        extended = {}
        start = file.tell()
        yield member
        file.seek(start + member.size + -member.size % _BLOCK)


def _member(
    header: bytes, kind: bytes, size: int, extended: dict[str, str], below: str
) -> ArchiveMember:
    name = extended.get("path")
    if name is None:
        prefix = (
            header[345:500] if header[257:262] == b"ustar" and header[262:263] == b"\0" else b""
        )
        whole = b"/".join(part for part in (_text(prefix), _text(header[:100])) if part)
        name = _decoded(whole)
    is_taken = _is_below(name, below)
    if is_taken and any(key.startswith("GNU.sparse") for key in extended):
        raise _refused(name, "a sparse file")
    if is_taken and kind not in _PLAIN and kind != b"5":
        raise _refused(name, _REFUSED.get(kind, f"of a kind that is not known ({kind!r})"))
    if kind in _PLAIN and name.endswith("/"):
        kind = b"5"  # the oldest tars write directories like this
    if "size" in extended:
        if not extended["size"].isascii() or not extended["size"].isdigit():
            raise _broken("a size is not a number")
        size = int(extended["size"][:20])
    mode = _number(header[100:108])
    if is_taken and mode & _SPECIAL_MODE and kind != b"5":
        raise _refused(name, "marked as setuid, setgid or sticky")
    return ArchiveMember(name=name, kind=kind, mode=mode, size=0 if kind == b"5" else size)


def _extended(file: BinaryIO, kind: bytes, size: int) -> dict[str, str]:
    """Return the fields that an extended header sets for the next entry."""
    if size > _MAX_HEADER_BYTES:
        raise _broken(f"a header of {size} bytes")
    data = file.read(size + -size % _BLOCK)[:size]
    if len(data) < size:
        raise _broken("it ends within a header")
    match kind:
        case b"L":
            return {"path": _decoded(data.rstrip(b"\0"))}
        case b"K" | b"g":  # link targets and global headers: links are rejected anyway
            return {}
        case _:
            return _records(data)


def _records(data: bytes) -> dict[str, str]:
    """Return the records of a pax header: `LENGTH KEY=VALUE`, each terminated by a newline."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > len(str(_MAX_HEADER_BYTES)):
            raise _broken("a header cannot be read")
        length = int(digits)
        record = data[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length > len(data) or not equals or not value.endswith(b"\n"):
            raise _broken("a header cannot be read")
        if key in {b"path", b"size"} or key.startswith(b"GNU.sparse"):
            records[_decoded(key)] = _decoded(value[:-1])
        data = data[length:]
    return records


def _parts(member: ArchiveMember) -> tuple[str, ...]:
    """Return the checked path of a member."""
    name = member.name
    if "\0" in name or not name.isprintable():
        raise _refused(name, "named with characters that cannot be printed")
    if name.startswith("/"):
        raise _refused(name, "an absolute path")
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in parts:
        raise _refused(name, "a path that leads out")
    if not parts and member.kind != b"5":
        raise _refused(name, "without a name")
    if len(name.encode()) > MAX_NAME_BYTES or len(parts) > MAX_PARTS:
        message = f"longer than {MAX_NAME_BYTES} bytes or {MAX_PARTS} directories"
        raise _refused(name, message)
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise _refused(name, f"named with more than {MAX_PART_BYTES} bytes")
    return parts


def write_file(path: Path, content: Iterable[bytes], *, name: str) -> None:
    """Write a new file and its parent directories.

    Raises:
        InvalidArgumentError: The file exists, or a parent is a file; the message contains `name`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        message = f"{_display(name)} lies in what is a file in the archive"
        raise InvalidArgumentError(message) from None
    try:
        with path.open("xb") as copy:
            for chunk in content:
                copy.write(chunk)
    except FileExistsError:
        message = f"{_display(name)} is in the archive twice"
        raise InvalidArgumentError(message) from None


def _number(field: bytes) -> int:
    """Return a number in tar's encoding: octal digits, or GNU's binary form."""
    if field[0] == 0x80:  # noqa: PLR2004  # the mark of the binary form; 0xff would be negative
        return int.from_bytes(field[1:], "big")
    digits = field.strip(_NUMBER_END)
    if not digits:
        return 0
    try:
        return int(digits.decode("ascii"), 8) if digits.isdigit() else _bad_number()
    except ValueError:
        return _bad_number()


def _bad_number() -> int:
    raise _broken("a number in a header cannot be read")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _broken(f"a name is not UTF-8 ({data[:40]!r})") from None


def _refused(name: str, description: str) -> InvalidArgumentError:
    message = f"{_display(name)} is not allowed in the archive: it is {description}"
    return InvalidArgumentError(f"{message}; plain files inside it are taken")


def _broken(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"invalid tar archive: {reason}")


def _display(name: str) -> str:
    return repr(name if len(name) <= 200 else f"{name[:200]}…")  # noqa: PLR2004  # enough to find it


__all__ = ["MAX_MEMBERS", "content_of", "plain_files", "unpack", "write_file"]
