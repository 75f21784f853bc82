"""Every file that Pillow decodes becomes 8-bit RGB as a viewer would show it, or an error with its name."""

import io
import warnings

import numpy
import pytest
from PIL import Image

from training.errors import DataError
from training.image_decoding import decode_image, is_image_name

GRAY = numpy.linspace(2000, 65000, 12 * 10, dtype=numpy.uint16).reshape(12, 10)
NOISE = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=numpy.uint8))


def encode(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_sixteen_bits_become_eight_by_their_range(kind):
    image = decode_image(encode(Image.fromarray(GRAY), kind), "gray")
    assert image.mode == "RGB"
    assert numpy.array_equal(image, numpy.repeat((GRAY >> 8).astype(numpy.uint8)[..., None], 3, 2))


def test_sixteen_bits_of_big_endian_files():
    file = encode(Image.fromarray(GRAY.astype(">u2")), "TIFF")
    assert numpy.array_equal(numpy.asarray(decode_image(file, "gray"))[..., 0], GRAY >> 8)


def test_twelve_bits_have_a_range_of_their_own():
    values = numpy.arange(0, 4096, 32, dtype=numpy.uint16)
    packed = bytearray()
    for first, second in values.reshape(-1, 2).tolist():
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    entries = {256: 128, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 8 * 12 + 4, 278: 1, 279: len(packed)}
    header = b"II*\0\x08\0\0\0" + len(entries).to_bytes(2, "little")
    for tag, value in entries.items():
        header += tag.to_bytes(2, "little") + b"\x04\0\x01\0\0\0" + value.to_bytes(4, "little")
    image = decode_image(io.BytesIO(header + bytes(4) + packed), "gray")
    assert numpy.array_equal(numpy.asarray(image)[0, :, 0], values >> 4)


@pytest.mark.parametrize("dtype", [numpy.int32, numpy.float32])
def test_values_of_unknown_range_are_refused_by_mode(dtype):
    mode = "F" if dtype == numpy.float32 else "I"
    with pytest.raises(DataError, match=rf"cannot read the image map.tif: the range .* mode {mode} in TIFF"):
        decode_image(encode(Image.fromarray(GRAY.astype(dtype)), "TIFF"), "map.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_are_taken_as_pillow_takes_them(mode):
    image = NOISE.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    decoded = decode_image(encode(image, kind), "noise")
    assert numpy.array_equal(decoded, image.convert("RGB"))


@pytest.mark.parametrize("transparency", [bytes([0, 128]), 1])
def test_transparency_is_dropped_without_a_warning(transparency):
    image = NOISE.convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_image(encode(image, "PNG", transparency=transparency), "palette")
    assert numpy.array_equal(decoded, image.convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photos_are_turned_where_that_is_asked_for(kind):
    exif = Image.Exif()
    exif[274] = 6  # Orientation: a quarter turn clockwise
    wide = NOISE.resize((24, 16))
    stored = decode_image(encode(wide, kind, exif=exif), "photo")
    upright = decode_image(encode(wide, kind, exif=exif), "photo", upright=True)
    assert (stored.size, upright.size) == ((24, 16), (16, 24))
    assert numpy.array_equal(upright, numpy.rot90(stored, -1))


def test_turning_keeps_the_range_of_sixteen_bits():
    exif = Image.Exif()
    exif[274] = 3
    file = encode(Image.fromarray(GRAY), "PNG", exif=exif)
    assert numpy.array_equal(numpy.asarray(decode_image(file, "gray", upright=True))[..., 0], (GRAY >> 8)[::-1, ::-1])


@pytest.mark.parametrize("error", [RuntimeError("x"), IndexError("x"), NotImplementedError("x"), MemoryError()])
def test_whatever_a_decoder_raises_names_the_file(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(DataError, match=f"cannot read the image noise.png: {type(error).__name__}: {error}"):
        decode_image(encode(NOISE, "PNG"), "noise.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "DDS"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_are_data_errors(monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # damaged sizes need no memory here
    whole = bytearray(encode(NOISE, kind).getvalue())
    rng = numpy.random.default_rng(0)
    for _ in range(60):
        damaged = whole[: rng.integers(1, len(whole) + 1)]
        for place in rng.integers(0, min(200, len(damaged)), 3):
            damaged[place] = rng.integers(256)
        try:
            image = decode_image(io.BytesIO(damaged), f"damaged.{kind}")
        except DataError as error:
            assert f"cannot read the image damaged.{kind}: " in str(error)
        else:
            assert image.mode == "RGB" and min(image.size) > 0


def test_postscript_is_no_image_under_any_name():
    with pytest.raises(DataError, match=r"cannot read the image photo.jpg: cannot identify"):
        decode_image(encode(NOISE, "EPS"), "photo.jpg")  # Pillow would start Ghostscript


def test_what_pillow_decodes_counts_as_an_image():
    for suffix in ("jpg", "JPEG", "png", "webp", "bmp", "tif", "TIFF", "gif", "ppm", "jp2", "avif"):
        assert is_image_name(f"a.{suffix}"), suffix
    for name in ("a.txt", "a.h5", "a.mpg", "a.eps", "a.pdf", "a", "jpg", "a.jpg.part"):
        assert not is_image_name(name), name
