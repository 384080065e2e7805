"""A step that takes encoded pictures and gives pixels, as a model's training had them."""

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from headrace.core import VARIABLE, Array, Datatype, ModelSignature, Tensors, TensorSpec
from headrace.pipeline.pictures import PictureReader, import_pillow
from headrace.pipeline.step_specs import ImageSpec

IMAGE: Final = "image"
PIXELS: Final = "pixels"
_PLAIN_SCALE: Final = 1 / 255
_SHORT_SIDE: Final = 64


class ImageStep:
    """`image` BYTES [N] to `pixels` [N, channels, height, width]. Implements `Model`.

    Values are as torchvision's `ToTensor` and `Normalize` have them, to the bit.
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
        """Decode and resize one batch, one picture after the other."""
        del outputs
        encoded = inputs[IMAGE].reshape(-1).tolist()
        pixels = np.empty((len(encoded), *self._shape), self._dtype)
        for row, raw in enumerate(encoded):
            pixels[row] = self._arranged(self._resized(self._reader.read(raw, row), row))
            if self._dtype.kind == "f":
                self._normalize(pixels[row])
        return {PIXELS: pixels}

    def example_inputs(self, *, rows: int, variable: int) -> Tensors:
        """The same small picture in each row."""
        del variable
        made = np.empty(rows, np.object_)
        made[:] = [self._example] * rows
        return {IMAGE: made}

    def close(self) -> None:
        """Holds nothing but memory."""

    def _resized(self, picture: Any, row: int) -> Any:  # noqa: ANN401  # Pillow's picture
        """As the model takes it: height and width are those of the spec."""
        spec = self._spec
        height, width = spec.size
        if spec.resize == "stretch":
            return picture.resize((width, height), self._resample)
        if spec.resize == "pad":
            inner = _within(picture.size, (width, height))
            sheet = self._library.new(picture.mode, (width, height), (spec.fill,) * self._channels)
            at = ((width - inner[0]) // 2, (height - inner[1]) // 2)
            sheet.paste(picture.resize(inner, self._resample), at)
            return sheet
        outer = _around(picture.size, (width, height), spec.shorter_side)
        self._reader.check_pixels(*outer, row)
        left, top = round((outer[0] - width) / 2.0), round((outer[1] - height) / 2.0)
        resized = picture.resize(outer, self._resample)
        return resized.crop((left, top, left + width, top + height))

    @property
    def _channels(self) -> int:
        return 1 if self._spec.color == "gray" else 3

    def _arranged(self, picture: Any) -> Array:  # noqa: ANN401  # Pillow's picture
        array: Array = np.asarray(picture, np.uint8)
        if array.ndim == 2:  # noqa: PLR2004  # gray
            array = array[..., np.newaxis]
        if self._spec.color == "bgr":
            array = array[..., ::-1]
        return array.transpose(2, 0, 1) if self._spec.layout == "nchw" else array

    def _normalize(self, pixels: Array) -> None:
        if self._spec.scale == _PLAIN_SCALE:
            pixels /= np.float32(255)  # rounds otherwise than a product, and as torchvision does
        else:
            pixels *= np.float32(self._spec.scale)
        if self._mean is not None:
            pixels -= self._mean
        if self._std is not None:
            pixels /= self._std

    def _make_example(self) -> bytes:
        """A picture of about the model's size with something in it, so that its timing is real."""
        height, width = self._spec.size
        noise = np.random.default_rng(0).integers(0, 256, (_SHORT_SIDE, _SHORT_SIDE, 3), np.uint8)
        picture = self._library.fromarray(noise).resize((width, height))
        written = io.BytesIO()
        picture.save(written, self._spec.formats[0])
        return written.getvalue()


def open_image(spec: ImageSpec) -> ImageStep:
    """The step that `spec` describes.

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
    """What a picture is resized to, so that `target` lies within. Rounds as torchvision does."""
    width, height = size
    if shorter is not None:
        if width <= height:
            return shorter, int(shorter * height / width)
        return int(shorter * width / height), shorter
    if target[0] * height >= target[1] * width:
        return target[0], max(int(target[0] * height / width), target[1])
    return max(int(target[1] * width / height), target[0]), target[1]


def _within(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the picture's form that lies within `target`."""
    ratio = min(target[0] / size[0], target[1] / size[1])
    width, height = (
        min(max(round(side * ratio), 1), most) for side, most in zip(size, target, strict=True)
    )
    return width, height
