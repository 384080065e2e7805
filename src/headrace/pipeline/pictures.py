"""Bytes of anybody's to a picture of one mode: what is no picture is refused, never guessed.

By Pillow: it is what most training code reads pictures with (torchvision, Keras, Hugging Face), so
that pixels come out as they did there; it decodes without the GIL and is well kept.
"""

import importlib
import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.pipeline.jpeg_scans import MAX_SCANS, has_too_many_scans

if TYPE_CHECKING:
    from PIL import Image

_NEEDED: Final = "pictures need the package pillow: pip install 'headrace[image]'"
_PLUGINS: Final = {
    "JPEG": ("JpegImagePlugin", "jpg"),
    "PNG": ("PngImagePlugin", "zlib"),
    "WEBP": ("WebPImagePlugin", "webp"),
    "GIF": ("GifImagePlugin", ""),
    "BMP": ("BmpImagePlugin", ""),
    "TIFF": ("TiffImagePlugin", "libtiff"),
    "AVIF": ("AvifImagePlugin", "avif"),
}
"""Of each format the module that reads it, and what Pillow has to be built with for it."""
_ORIENTATION: Final = 0x0112
_TURNS: Final = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Exif's orientation to `Image.Transpose`."""
_SIXTEEN_BITS: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MAX_REASON: Final = 200


def import_pillow(formats: tuple[str, ...]) -> Any:  # noqa: ANN401  # a module
    """Pillow's `Image` module, able to read these formats.

    Raises:
        FailedPreconditionError: It is not installed, or built without one of them.
    """
    try:
        library = importlib.import_module("PIL.Image")
        features = importlib.import_module("PIL.features")
        for name in formats:
            module, needed = _PLUGINS[name]
            importlib.import_module(f"PIL.{module}")
            if needed and not features.check(needed):
                msg = f"this Pillow is built without {name}; take it from 'formats'"
                raise FailedPreconditionError(msg)
    except ImportError as error:
        raise FailedPreconditionError(_NEEDED) from error
    return library


class PictureReader:
    """Decodes one picture after the other. Safe to share between threads.

    Args:
        shrink_to: Formats that can (JPEG) may give a picture smaller, to no less than this along
            both sides; 0 for never.
    """

    def __init__(
        self,
        library: Any,  # noqa: ANN401  # a module
        *,
        formats: tuple[str, ...],
        max_pixels: int,
        orient: bool,
        gray: bool,
        shrink_to: int = 0,
    ) -> None:
        self._library = library
        self._formats = formats
        self._max_pixels = max_pixels
        self._orients = orient
        self._mode = "L" if gray else "RGB"
        self._shrink_to = shrink_to

    def read(self, raw: object, row: int) -> "Image.Image":
        """The picture in `raw`, the first one of several; 8 bits a channel, alpha left away.

        Raises:
            InvalidArgumentError: It is none that may be sent; the message names its row.
        """
        if not isinstance(raw, bytes | bytearray | memoryview):
            raise _refused(row, f"it is of the type {type(raw).__name__}, not bytes")
        if not raw:
            raise _refused(row, "it is empty")
        if has_too_many_scans(raw):
            raise _refused(row, f"its JPEG data has more than {MAX_SCANS} scans; save it anew")
        library = self._library
        try:
            with library.open(io.BytesIO(raw), formats=self._formats) as picture:
                self._check_size(picture.size, row)
                if self._shrink_to:
                    picture.draft(None, (self._shrink_to, self._shrink_to))
                picture.load()
                return self._converted(self._upright(picture), row)
        except (InvalidArgumentError, MemoryError):
            raise
        except library.UnidentifiedImageError:
            raise _refused(row, f"it is none of {', '.join(self._formats)}") from None
        except (library.DecompressionBombError, library.DecompressionBombWarning):
            raise self._too_large(row) from None
        except Exception as error:
            # Pillow follows what the bytes say: whatever is wrong in them comes as any exception.
            raise _refused(row, _reason(error)) from error

    def check_pixels(self, width: int, height: int, row: int) -> None:
        """Raise InvalidArgumentError if a picture of this size is more than may be made."""
        if width * height > self._max_pixels:
            msg = (
                f"image {row} is so narrow that it would be resized to {width} x {height}, more "
                f"than max_pixels ({self._max_pixels}): cut it"
            )
            raise InvalidArgumentError(msg)

    def _check_size(self, size: tuple[int, int], row: int) -> None:
        width, height = size
        if not width or not height:
            raise _refused(row, f"it has the size {width} x {height}")
        if width * height > self._max_pixels:
            raise self._too_large(row, f" with {width} x {height}")

    def _too_large(self, row: int, size: str = "") -> InvalidArgumentError:
        return InvalidArgumentError(
            f"image {row} has too many pixels{size}: at most {self._max_pixels} (max_pixels); "
            "send it smaller"
        )

    def _upright(self, picture: "Image.Image") -> "Image.Image":
        """As `ImageOps.exif_transpose`; Exif that cannot be read, which cameras write, is none."""
        orientation = 1
        if self._orients:
            with suppress(Exception):
                orientation = int(picture.getexif().get(_ORIENTATION, 1))
        turn = _TURNS.get(orientation)
        if turn is None:
            return picture
        return picture.transpose(self._library.Transpose(turn))

    def _converted(self, picture: "Image.Image", row: int) -> "Image.Image":
        if picture.mode == "F":
            raise _refused(row, "its pixels are floating-point numbers, of no known range")
        if picture.mode in _SIXTEEN_BITS:
            # Pillow's own conversion would clip at 255; the upper half is what it takes of colours.
            upper = np.clip(np.asarray(picture, np.int64), 0, 65_535) >> 8
            picture = self._library.fromarray(upper.astype(np.uint8))
        if picture.mode == self._mode:
            return picture
        picture.info.pop("transparency", None)  # as alpha; conversions would warn of it
        colored = picture.convert("RGB")
        return colored if self._mode == "RGB" else colored.convert("L")


def _refused(row: int, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"image {row} is no picture: {reason}")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:_MAX_REASON]
