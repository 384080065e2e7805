"""Pictures come out as Pillow and torchvision have them, and what is none is refused."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from headrace.core import Array, FailedPreconditionError, InvalidArgumentError
from headrace.pipeline import Pipeline, load_pipeline
from headrace.pipeline.images import ImageStep, has_too_many_scans, open_image
from headrace.pipeline.spec import ImageSpec
from tests.unit.pipeline.elements import elements, one_by_one

Write = Callable[..., Path]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def picture(width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(made: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:  # noqa: ANN401  # any setting
    written = io.BytesIO()
    made.save(written, kind, **settings)
    return written.getvalue()


def step(size: tuple[int, int] = (24, 16), **settings: Any) -> ImageStep:  # noqa: ANN401  # any setting
    return open_image(ImageSpec(kind="image", size=size, **settings))


def pixels(made: ImageStep, *raw: bytes) -> Array:
    return made.run({"image": elements(*raw)})["pixels"]


def as_torchvision(found: Image.Image) -> Array:
    """`ToTensor` and `Normalize`, by hand."""
    tensor = np.asarray(found).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    return (tensor - mean) / std


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_each_format_is_read_as_pillow_reads_it(kind: str) -> None:
    raw = encoded(picture(), kind)

    got = pixels(step(datatype="UINT8", layout="nhwc", formats=(kind,)), raw)

    want = Image.open(io.BytesIO(raw)).convert("RGB").resize((16, 24), Image.Resampling.BILINEAR)
    assert got.dtype == np.uint8
    assert np.array_equal(got[0], np.asarray(want))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_values_are_torchvisions_to_the_bit(interpolation: str) -> None:
    raw = encoded(picture(), "JPEG")

    got = pixels(step(interpolation=interpolation, mean=MEAN, std=STD), raw)

    resample = Image.Resampling[interpolation.upper()]
    resized = Image.open(io.BytesIO(raw)).resize((16, 24), resample)
    assert got.dtype == np.float32
    assert np.array_equal(got[0], as_torchvision(resized))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (333, 251), (24, 24), (5, 9)])
def test_crop_is_resize_and_center_crop_of_torchvision(size: tuple[int, int]) -> None:
    raw = encoded(picture(*size))

    got = pixels(step((20, 20), resize="crop", shorter_side=26, datatype="UINT8"), raw)

    width, height = size
    if width <= height:
        width, height = 26, int(26 * height / width)
    else:
        width, height = int(26 * width / height), 26
    resized = Image.open(io.BytesIO(raw)).resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - 20) / 2.0), round((width - 20) / 2.0)
    want = np.asarray(resized)[top : top + 20, left : left + 20].transpose(2, 0, 1)
    assert np.array_equal(got[0], want)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (1, 400), (400, 1), (16, 24)])
def test_crop_without_a_shorter_side_cuts_off_one_direction_only(size: tuple[int, int]) -> None:
    raw = encoded(picture(*size))

    got = pixels(step((24, 16), resize="crop", layout="nhwc", datatype="UINT8"), raw)

    scale = max(16 / size[0], 24 / size[1])
    outer = max(16, int(size[0] * scale + 1e-9)), max(24, int(size[1] * scale + 1e-9))
    assert outer[0] == 16 or outer[1] == 24
    resized = np.asarray(picture(*size).resize(outer, Image.Resampling.BILINEAR))
    top, left = round((outer[1] - 24) / 2), round((outer[0] - 16) / 2)
    assert np.array_equal(got[0], resized[top : top + 24, left : left + 16])


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (1, 400), (400, 1), (8, 8)])
def test_pad_keeps_the_whole_picture_in_the_middle(size: tuple[int, int]) -> None:
    raw = encoded(picture(*size))

    got = pixels(step((24, 16), resize="pad", fill=114, layout="nhwc", datatype="UINT8"), raw)[0]

    scale = min(16 / size[0], 24 / size[1])
    width, height = (max(round(side * scale), 1) for side in size)
    top, left = (24 - height) // 2, (16 - width) // 2
    inner = got[top : top + height, left : left + width].copy()
    want = picture(*size).resize((width, height), Image.Resampling.BILINEAR)
    assert np.array_equal(inner, np.asarray(want))
    got[top : top + height, left : left + width] = 114
    assert (got == 114).all()


def test_channels_and_layout_are_as_the_model_wants_them() -> None:
    raw = encoded(picture(16, 24))
    rgb = np.asarray(picture(16, 24))

    assert np.array_equal(
        pixels(step(datatype="UINT8", color="bgr"), raw)[0], rgb[..., ::-1].transpose(2, 0, 1)
    )
    gray = pixels(step(datatype="UINT8", color="gray", layout="nhwc"), raw)
    assert gray.shape == (1, 24, 16, 1)
    assert np.array_equal(gray[0, ..., 0], np.asarray(picture(16, 24).convert("L")))
    assert step(color="gray").signature.outputs[0].shape == (-1, 1, 24, 16)


def test_values_are_scaled_as_the_spec_says() -> None:
    raw = encoded(picture(16, 24))

    got = pixels(step(scale=1.0, mean=(127.5,), std=(2.0,), layout="nhwc", color="bgr"), raw)

    want = (np.asarray(picture(16, 24))[..., ::-1].astype(np.float32) - np.float32(127.5)) / 2
    assert np.array_equal(got[0], want)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(picture(), exif=exif)

    got = pixels(step((30, 40), datatype="UINT8", layout="nhwc"), raw)[0]
    plain = pixels(step((30, 40), datatype="UINT8", layout="nhwc", orient=False), raw)[0]

    want = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
    assert np.array_equal(got, np.asarray(want.resize((40, 30), Image.Resampling.BILINEAR)))
    assert np.array_equal(plain, np.asarray(picture()))


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_may_be_decoded_smaller_and_look_the_same(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(picture(800, 600), "JPEG", quality=95, exif=exif)
    shrinking = step(
        (64, 64), resize="crop", shorter_side=70, datatype="UINT8", shrink_on_load=True
    )

    assert sorted(shrinking._reader.read(raw, 0).size) == [150, 200]
    exact = pixels(step((64, 64), resize="crop", shorter_side=70, datatype="UINT8"), raw)
    difference = np.abs(pixels(shrinking, raw).astype(int) - exact)
    assert 0 < difference.mean() < 1
    small = encoded(picture(100, 100), "JPEG")
    assert shrinking._reader.read(small, 0).size == (100, 100)
    assert shrinking._reader.read(encoded(picture(800, 600)), 0).size == (800, 600)


def test_exif_data_that_cannot_be_read_is_none() -> None:
    raw = encoded(picture(16, 24), exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\xff\xff")

    assert np.array_equal(
        pixels(step(datatype="UINT8", layout="nhwc"), raw)[0], np.asarray(picture(16, 24))
    )


def _sixteen_bits() -> tuple[bytes, Array]:
    values = np.linspace(0, 65_535, 24 * 16).astype(np.uint16).reshape(24, 16)
    return encoded(Image.fromarray(values)), (values >> 8).astype(np.uint8)


def test_sixteen_bits_keep_their_upper_half() -> None:
    raw, want = _sixteen_bits()

    assert np.array_equal(pixels(step(datatype="UINT8", color="gray"), raw)[0, 0], want)
    assert np.array_equal(pixels(step(datatype="UINT8"), raw)[0, 2], want)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L"])
def test_other_modes_become_what_pillow_makes_of_their_colors(mode: str) -> None:
    made = picture(16, 24).convert(mode)
    if mode in {"RGBA", "LA"}:
        made.putalpha(Image.fromarray(np.arange(24 * 16, dtype=np.uint8).reshape(24, 16)))

    got = pixels(step(datatype="UINT8", layout="nhwc"), encoded(made))[0]

    assert np.array_equal(got, np.asarray(made.convert("RGB")))


def test_transparent_palettes_and_cmyk_lose_what_a_model_has_no_channel_for() -> None:
    palette = picture(16, 24).quantize(8)
    with_alpha = encoded(palette, transparency=bytes([0, 128, 255, 0, 0, 0, 0, 0]))
    cmyk = encoded(picture(16, 24).convert("CMYK"), "JPEG", quality=95)

    got = pixels(step(datatype="UINT8", layout="nhwc"), with_alpha, cmyk)

    assert np.array_equal(got[0], np.asarray(palette.convert("RGB")))
    assert np.array_equal(got[1], np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    first, second = picture(16, 24, seed=1), picture(16, 24, seed=2)
    raw = encoded(first, kind, save_all=True, append_images=[second], lossless=True)

    got = pixels(step(datatype="UINT8", layout="nhwc"), raw)[0]

    alone = encoded(first, kind, lossless=True)
    assert np.array_equal(got, pixels(step(datatype="UINT8", layout="nhwc"), alone)[0])


def test_pictures_answer_together_as_alone() -> None:
    raw = [
        encoded(picture(30 + n, 20 + 3 * n, seed=n), kind)
        for n, kind in enumerate(["PNG", "JPEG", "GIF", "BMP"])
    ]
    made = step(resize="crop", mean=MEAN, std=STD)
    batch = {"image": elements(*raw)}

    assert np.array_equal(made.run(batch)["pixels"], one_by_one(made, batch)["pixels"])
    assert pixels(made).shape == (0, 3, 24, 16)


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says that it has this size, whatever it holds."""

    def chunk(name: bytes, body: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + end

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _webp(width: int, height: int) -> bytes:
    """An extended WebP header of this size, and nothing of the picture."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n"
HOSTILE = [
    (b"", "it is empty"),
    (b"a", "it is not one of JPEG, PNG, WEBP, GIF, BMP"),
    (bytes(1 << 16), "it is not one of"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is not one of"),
    (EPS, "it is not one of"),
    (b"%PDF-1.4\n", "it is not one of"),
    (encoded(picture(), "TIFF"), "it is not one of"),
    (encoded(picture(200, 200), "JPEG")[:2000], "is not a valid image: .*truncated"),
    (encoded(picture(), "JPEG")[:300], "is not a valid image"),
    (encoded(picture(200, 200))[:3000], "is not a valid image"),
    (encoded(picture(), "GIF")[:300], "is not a valid image"),
    (b"\xff\xd8\xff" + bytes(100), "is not a valid image"),
    (_webp(16_384, 16_384), "too many pixels"),
    (_png(10_000, 10_000), "too many pixels"),
    (_png(8_000, 8_000), "too many pixels with 8000 x 8000: at most 50000000"),
    (_png(1 << 30, 1 << 30), "too many pixels"),
    (_png(0, 5), "is not a valid image"),
    (_png(20, 20, zlib.compress(b"\x00" * 50)), "is not a valid image"),
    (_png(20, 20, b"garbage"), "is not a valid image"),
]


@pytest.mark.parametrize(("raw", "said"), HOSTILE)
def test_what_is_no_picture_is_refused_with_its_row(raw: bytes, said: str) -> None:
    good = encoded(picture())

    with pytest.raises(InvalidArgumentError, match=f"^image 1 .*{said}"):
        pixels(step(), good, raw, good)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_damaged_bytes_are_a_picture_or_told_as_none(kind: str) -> None:
    good = bytearray(encoded(picture(), kind))
    rng = np.random.default_rng(11)
    made = step()
    refused = []
    for _ in range(60):
        bad = good.copy()
        for at in rng.integers(0, len(bad), 4):
            bad[at] = rng.integers(0, 256)
        try:
            assert pixels(made, bytes(bad)).shape == (1, 3, 24, 16)
        except InvalidArgumentError as error:
            refused.append(str(error))
    assert refused
    assert [said for said in refused if not said.startswith("image 0 ")] == []


def _with_scans(more: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more."""
    raw = encoded(picture(), "JPEG", progressive=True)
    return raw[:-2] + raw[raw.rindex(b"\xff\xda") : -2] * more + raw[-2:]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_jpeg_that_is_to_be_gone_over_without_end_is_refused(kind: type) -> None:
    assert pixels(step(), _with_scans(80)).shape == (1, 3, 24, 16)

    with pytest.raises(
        InvalidArgumentError, match=r"image 0 is not a valid image: .* more than 100 scans"
    ):
        pixels(step(), kind(_with_scans(100)))


def test_what_only_looks_like_scans_does_not_count() -> None:
    scans = b"\xff\xda" * 500
    behind = encoded(picture(), "JPEG") + scans
    inside = encoded(picture(), "JPEG", comment=scans)
    restarting = encoded(picture(400, 300), "JPEG", restart_marker_blocks=1)

    want = pixels(step(), encoded(picture(), "JPEG"))[0]
    got = pixels(step(), behind, inside, restarting)
    assert np.array_equal(got[0], want)
    assert np.array_equal(got[1], want)
    assert not has_too_many_scans(b"\xff\xd8" + b"\xff" * 1000)


def test_floating_point_pixels_are_refused() -> None:
    raw = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")

    with pytest.raises(
        InvalidArgumentError, match=r"image 0 is not a valid image: .*floating-point"
    ):
        pixels(step(formats=("TIFF",)), raw)


def test_a_warning_of_pillows_counts_as_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 700)
    with pytest.raises(InvalidArgumentError, match="image 0 has too many pixels"):
        pixels(step(), encoded(picture()))


def test_pixels_are_counted_before_a_picture_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(InvalidArgumentError, match="at most 1199"):
        pixels(step(max_pixels=1199), encoded(picture()))


def test_a_line_is_not_blown_up_to_cover_the_size() -> None:
    line = encoded(Image.new("RGB", (1, 4000)))

    with pytest.raises(InvalidArgumentError, match=r"image 0 is so narrow.*64 x 256000.*crop it"):
        pixels(step((64, 64), resize="crop", max_pixels=1_000_000), line)


def test_text_instead_of_bytes_is_told() -> None:
    with pytest.raises(
        InvalidArgumentError, match="image 0 is not a valid image: it has the type str"
    ):
        step().run({"image": np.array(["a"], np.object_)})


def test_an_example_is_a_picture_of_the_first_format() -> None:
    made = step(formats=("JPEG", "PNG"))
    (raw,) = made.example_inputs(rows=1, variable=7)["image"]

    assert raw.startswith(b"\xff\xd8\xff")
    assert pixels(made, raw).shape == (1, 3, 24, 16)


def test_a_pipeline_takes_its_steps_example(write: Write) -> None:
    pipeline: Pipeline = load_pipeline(write("steps: [{kind: image, size: [8, 8]}]"))

    example = pipeline.example_inputs(rows=3)

    assert pipeline.run(example)["pixels"].shape == (3, 3, 8, 8)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(FailedPreconditionError, match=r"'image'.*pip install 'headrace\[image\]'"):
        load_pipeline(write("steps: [{kind: image, size: [8, 8]}]"))


def test_a_format_that_this_pillow_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")
    step(formats=("JPEG",))
    with pytest.raises(FailedPreconditionError, match="lacks support for AVIF"):
        step(formats=("JPEG", "AVIF"))
