"""Steps that decode images to pixels in the same way as the model's training.

A progressive JPEG refines its image in scans, usually about ten. Only the file's size limits their
number: a megabyte can hold ten thousand empty ones, each of them a pass over all pixels. See
libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf

Uses Pillow because most training code does (torchvision, Keras, Hugging Face), so that pixels are
equal; it decodes without the GIL and is well maintained.
"""

import importlib
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    TensorSpec,
)
from headrace.pipeline.spec import ImageSpec

if TYPE_CHECKING:
    from PIL import Image

MAX_SCANS: Final = 100
"""Limit of scans, as in libtiff and GDAL."""
_START: Final = b"\xff\xd8"
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Markers followed by a length, and the end marker, but not markers within a scan's data."""
_END: Final = 0xD9
_SCAN: Final = 0xDA


def has_too_many_scans(raw: bytes | bytearray | memoryview) -> bool:
    """Whether bytes are a JPEG file with too many scans; data after its end is ignored."""
    if raw[:2] != _START:
        return False
    count, offset = 0, len(_START)
    while count <= MAX_SCANS:
        marker = _MARKER.search(raw, offset)
        if marker is None or raw[marker.end() - 1] == _END:
            return False
        count += raw[marker.end() - 1] == _SCAN
        length = int.from_bytes(raw[marker.end() : marker.end() + 2], "big")
        offset = marker.end() + max(length, 2)
    return True


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
"""By format, Pillow's module that reads it, and the library that Pillow must be built with."""
_ORIENTATION: Final = 0x0112
_TURNS: Final = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Exif's orientation to `Image.Transpose`."""
_SIXTEEN_BITS: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_MAX_REASON: Final = 200


def import_pillow(formats: tuple[str, ...]) -> Any:  # noqa: ANN401  # a module
    """Return Pillow's `Image` module, able to read these formats.

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
                msg = f"the installed Pillow lacks support for {name}; remove it from 'formats'"
                raise FailedPreconditionError(msg)
    except ImportError as error:
        raise FailedPreconditionError(_NEEDED) from error
    return library


class PictureReader:
    """Image decoder. Safe to share between threads.

    Args:
        shrink_to: Least size along both sides to which formats that support it (JPEG) may reduce an
            image while decoding; 0 for never.
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
        """Return the image in `raw`, the first of several; 8 bits per channel, without alpha.

        Raises:
            InvalidArgumentError: It is not an accepted image; the message names its row.
        """
        if not isinstance(raw, bytes | bytearray | memoryview):
            raise _refused(row, f"it has the type {type(raw).__name__}, not bytes")
        if not raw:
            raise _refused(row, "it is empty")
        if has_too_many_scans(raw):
            raise _refused(row, f"its JPEG data has more than {MAX_SCANS} scans; save it again")
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
            raise _refused(row, f"it is not one of {', '.join(self._formats)}") from None
        except (library.DecompressionBombError, library.DecompressionBombWarning):
            raise self._too_large(row) from None
        except Exception as error:
            # Pillow follows the data, so damaged data raises any exception.
            text = " ".join(str(error).split()) or type(error).__name__
            raise _refused(row, text[:_MAX_REASON]) from error

    def check_pixels(self, width: int, height: int, row: int) -> None:
        """Raise InvalidArgumentError if an image of this size exceeds the pixel limit."""
        if width * height > self._max_pixels:
            msg = (
                f"image {row} is so narrow that it would be resized to {width} x {height}, "
                f"more than max_pixels ({self._max_pixels}): crop it"
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
            f"image {row} has too many pixels{size}: at most {self._max_pixels} "
            "(max_pixels); send a smaller one"
        )

    def _upright(self, picture: "Image.Image") -> "Image.Image":
        """Return the image as `ImageOps.exif_transpose` does; unreadable Exif is ignored."""
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
            raise _refused(row, "its pixels are floating-point numbers of unknown range")
        if picture.mode in _SIXTEEN_BITS:
            # Pillow's own conversion would clip at 255; the upper byte is used, as Pillow does for
            # colours.
            upper = np.clip(np.asarray(picture, np.int64), 0, 65_535) >> 8
            picture = self._library.fromarray(upper.astype(np.uint8))
        if picture.mode == self._mode:
            return picture
        picture.info.pop("transparency", None)  # like alpha; conversions would warn of it
        colored = picture.convert("RGB")
        return colored if self._mode == "RGB" else colored.convert("L")


def _refused(row: int, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"image {row} is not a valid image: {reason}")


IMAGE: Final = "image"
PIXELS: Final = "pixels"
_PLAIN_SCALE: Final = 1 / 255
_SHORT_SIDE: Final = 64


class ImageStep:
    """Step from `image` BYTES [N] to `pixels` [N, channels, height, width]. Implements `Model`.

    Values are bit-identical to torchvision's `ToTensor` and `Normalize`.
    """

    concurrent = True

    def __init__(self, spec: ImageSpec, library: Any) -> None:  # noqa: ANN401  # a module
        height, width = spec.size
        channels = 1 if spec.color == "gray" else 3
        is_planar = spec.layout == "nchw"
        shape = (channels, height, width) if is_planar else (height, width, channels)
        datatype = Datatype(spec.datatype)
        self.signature = ModelSignature(
            inputs=(TensorSpec(name=IMAGE, datatype=Datatype.BYTES, shape=(VARIABLE,)),),
            outputs=(TensorSpec(name=PIXELS, datatype=datatype, shape=(VARIABLE, *shape)),),
            batched=True,
        )
        self._spec = spec
        self._shape = shape
        self._dtype = datatype.dtype
        self._library = library
        self._resample = library.Resampling[spec.interpolation.upper()]
        self._mean = _by_channel(spec.mean, is_planar=is_planar)
        self._std = _by_channel(spec.std, is_planar=is_planar)
        self._reader = PictureReader(
            library,
            formats=spec.formats,
            max_pixels=spec.max_pixels,
            orient=spec.orient,
            gray=spec.color == "gray",
            shrink_to=2 * max(*spec.size, spec.shorter_side or 0) if spec.shrink_on_load else 0,
        )
        self._example = self._make_example()

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Decode and resize one batch, one image after the other."""
        del outputs
        encoded = inputs[IMAGE].reshape(-1).tolist()
        pixels = np.empty((len(encoded), *self._shape), self._dtype)
        for row, raw in enumerate(encoded):
            pixels[row] = self._arranged(self._resized(self._reader.read(raw, row), row))
            if self._dtype.kind == "f":
                self._normalize(pixels[row])
        return {PIXELS: pixels}

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """Return the same small image in each row."""
        del variable
        pictures = np.empty(rows, np.object_)
        pictures[:] = [self._example] * rows
        return {IMAGE: pictures}

    def close(self) -> None:
        """Do nothing; the step only holds memory."""

    def _resized(self, picture: Any, row: int) -> Any:  # noqa: ANN401  # Pillow's picture
        """Return the image in the height and width of the spec."""
        spec = self._spec
        height, width = spec.size
        if spec.resize == "stretch":
            return picture.resize((width, height), self._resample)
        if spec.resize == "pad":
            inner = _within(picture.size, (width, height))
            channels = 1 if spec.color == "gray" else 3
            sheet = self._library.new(picture.mode, (width, height), (spec.fill,) * channels)
            corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
            sheet.paste(picture.resize(inner, self._resample), corner)
            return sheet
        if spec.stretched is not None:
            outer = spec.stretched[1], spec.stretched[0]
        else:
            outer = _around(picture.size, (width, height), spec.shorter_side)
        self._reader.check_pixels(*outer, row)
        left, top = (outer[0] - width) / 2.0, (outer[1] - height) / 2.0
        left, top = (
            (int(left), int(top)) if spec.crop_rounding == "down" else (round(left), round(top))
        )
        resized = picture.resize(outer, self._resample)
        return resized.crop((left, top, left + width, top + height))

    def _arranged(self, picture: Any) -> Array:  # noqa: ANN401  # Pillow's picture
        array: Array = np.asarray(picture, np.uint8)
        if array.ndim == 2:  # noqa: PLR2004  # gray
            array = array[..., np.newaxis]
        if self._spec.color == "bgr":
            array = array[..., ::-1]
        return array.transpose(2, 0, 1) if self._spec.layout == "nchw" else array

    def _normalize(self, pixels: Array) -> None:
        if self._spec.scale == _PLAIN_SCALE:
            pixels /= np.float32(255)  # rounds unlike a product, and like torchvision
        else:
            pixels *= np.float32(self._spec.scale)
        if self._mean is not None:
            pixels -= self._mean
        if self._std is not None:
            pixels /= self._std

    def _make_example(self) -> bytes:
        """Return an image of about the model's size with some content, for realistic timing."""
        height, width = self._spec.size
        noise = np.random.default_rng(0).integers(0, 256, (_SHORT_SIDE, _SHORT_SIDE, 3), np.uint8)
        picture = self._library.fromarray(noise).resize((width, height))
        written = io.BytesIO()
        picture.save(written, self._spec.formats[0])
        return written.getvalue()


def open_image(spec: ImageSpec) -> ImageStep:
    """Return the step that `spec` describes.

    Raises:
        FailedPreconditionError: Pillow is not installed, or cannot read a format.
    """
    return ImageStep(spec, import_pillow(spec.formats))


def _by_channel(values: tuple[float, ...], *, is_planar: bool) -> Array | None:
    if not values:
        return None
    array = np.array(values, np.float32)
    return array.reshape(-1, 1, 1) if is_planar else array


def _around(size: tuple[int, int], target: tuple[int, int], shorter: int | None) -> tuple[int, int]:
    """Return the resized size that covers `target`. Rounds as torchvision does."""
    width, height = size
    if shorter is not None:
        if width <= height:
            return shorter, int(shorter * height / width)
        return int(shorter * width / height), shorter
    if target[0] * height >= target[1] * width:
        return target[0], max(int(target[0] * height / width), target[1])
    return max(int(target[1] * width / height), target[0]), target[1]


def _within(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size of the image's aspect ratio within `target`."""
    ratio = min(target[0] / size[0], target[1] / size[1])
    width, height = (
        min(max(round(side * ratio), 1), maximum)
        for side, maximum in zip(size, target, strict=True)
    )
    return width, height
