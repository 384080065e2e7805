"""Archives and image layers as the files of a model."""

import gzip
import shutil
import zlib
from pathlib import Path
from typing import BinaryIO, Final, cast

from headrace.core import ArtifactCorruptError, InvalidArgumentError, PayloadTooLargeError
from headrace.core.untar import content_of, plain_files, write_file

_GZIP: Final = b"\x1f\x8b"
_MODELS: Final = "models"
"""Directory of an image that holds the model, as KServe expects it."""
# https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"


def unpack_archive(
    archive: Path, target: Path, *, where: str, max_bytes: int, is_layer: bool
) -> None:
    """Unpack the plain files of a tar archive, compressed by gzip or not, into `target`.

    Args:
        where: Name of the archive for messages.
        max_bytes: Limit of the content.
        is_layer: Whether it is an image's layer: only its files below `/models` are unpacked; they
            replace those of earlier layers, and what the layer removes is removed.

    Raises:
        ArtifactCorruptError: It is no tar archive, is too large, or has an entry that is refused.
    """
    try:
        with archive.open("rb") as raw:
            is_gzip = raw.read(len(_GZIP)) == _GZIP
        with gzip.open(archive) if is_gzip else archive.open("rb") as opened:
            file = cast("BinaryIO", opened)
            below = _MODELS if is_layer else ""
            for parts, member in plain_files(file, max_bytes=max_bytes, below=below):
                path = target.joinpath(*parts[1 if is_layer else 0 :])
                if is_layer and path.name.startswith(_WHITEOUT):
                    _remove(path)
                    continue
                if is_layer:
                    path.unlink(missing_ok=True)
                write_file(path, content_of(file, member), name=member.name)
    except (InvalidArgumentError, PayloadTooLargeError, EOFError, zlib.error) as error:
        raise ArtifactCorruptError(f"{where} cannot be unpacked: {error}") from None
    except OSError as error:
        if error.errno is not None and not isinstance(error, IsADirectoryError):
            raise
        raise ArtifactCorruptError(f"{where} cannot be unpacked: {error}") from None


def _remove(whiteout: Path) -> None:
    """Remove the file or directory that a whiteout file names, or the whole content beside it."""
    parent = whiteout.parent
    if whiteout.name == _OPAQUE:
        removed = list(parent.iterdir()) if parent.is_dir() else []
    else:
        name = whiteout.name.removeprefix(_WHITEOUT)
        if name in {"", ".", ".."}:
            raise InvalidArgumentError(f"{whiteout.name!r} removes no file")
        removed = [parent / name]
    for path in removed:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
