"""The pixels of an image file are those that a viewer shows; its proportions are kept when it is resized."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from minivit.data.images import decode
from minivit.errors import UserError

RED = (255, 0, 0)


def random_image(mode: str = "RGB", width: int = 7, height: int = 5) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels_of(path: Path, **options: Any) -> NDArray[np.uint8]:
    return decode(path, **options)[0]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, colour_type: int, rows: bytes, *chunks: bytes, bits: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P with an index", "P with a table", "RGB with a colour"])
def test_transparent_pixels_are_white_whatever_colour_they_hide(tmp_path: Path, mode: str) -> None:
    shown: list[NDArray[np.uint8]] = []
    for hidden in (10, 200):
        image = Image.new("RGBA", (4, 4), (hidden, hidden, hidden, 0))
        image.paste((60, 60, 60, 255), (0, 0, 2, 4))
        options: dict[str, Any] = {}
        if mode == "LA":
            image = image.convert("LA")
        if mode.startswith("P "):
            palette = Image.new("P", (4, 4), 1)
            palette.putpalette([60, 60, 60, hidden, hidden, hidden])
            palette.paste(0, (0, 0, 2, 4))
            image, options = palette, {"transparency": 1 if "index" in mode else b"\xff\x00"}
        if mode == "RGB with a colour":
            image = Image.new("RGB", (4, 4), (hidden, 0, 0))
            image.paste((60, 60, 60), (0, 0, 2, 4))
            options = {"transparency": (hidden, 0, 0)}
        shown.append(pixels_of(saved(tmp_path / "x.png", image, **options), channels=3))
    np.testing.assert_array_equal(shown[0], shown[1])
    assert (shown[0][:, :2] == 60).all()
    assert (shown[0][:, 2:] == 255).all()


def test_a_half_transparent_pixel_is_half_white(tmp_path: Path) -> None:
    pixels = pixels_of(saved(tmp_path / "x.png", Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert pixels.tolist() == [[[127, 127, 127]]]


def test_sixteen_bits_keep_their_upper_eight_in_grey_as_in_colour(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 30_000, 65_535]], np.uint16)
    upper = (values >> 8)[..., None]
    png_file = saved(tmp_path / "grey.png", Image.fromarray(values))
    tif_file = saved(tmp_path / "grey.tif", Image.fromarray(values))
    pgm_file = tmp_path / "grey.pgm"
    pgm_file.write_bytes(b"P5 5 1 65535\n" + values.astype(">u2").tobytes())
    for file in (png_file, tif_file, pgm_file):
        np.testing.assert_array_equal(pixels_of(file), upper)
    colour_file = tmp_path / "colour.png"
    rows = b"\0" + np.repeat(values[..., None], 3, axis=2).astype(">u2").tobytes()
    colour_file.write_bytes(png(5, 1, 2, rows, bits=16))
    np.testing.assert_array_equal(pixels_of(colour_file), np.repeat(upper, 3, axis=2))


def test_twelve_bits_and_an_inverted_scale_of_tiff_are_scaled(tmp_path: Path) -> None:
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00])  # 0, 4095, 2048, 0 in 12 bits each
    file = tmp_path / "x.tif"
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    file.write_bytes(b"II*\0" + struct.pack("<I", 14) + packed + directory)
    assert pixels_of(file)[0, :3, 0].tolist() == [0, 255, 128]
    inverted = Image.fromarray(np.array([[0, 65_535]], np.uint16))
    assert pixels_of(saved(tmp_path / "y.tif", inverted, tiffinfo={262: 0}))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, dtype: type) -> None:
    file = saved(tmp_path / "x.tif", Image.fromarray(np.ones((2, 2), dtype)))
    with pytest.raises(UserError, match=r"x\.tif .*its pixels are (floats|32-bit integers); save it with 8 or 16"):
        decode(file)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_upright_and_so_is_its_size(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # bright at the upper left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    file = saved(tmp_path / f"x.{ending}", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    pixels, size = decode(file)
    assert size == (16, 32)
    assert np.abs(pixels.astype(int) - upright)[2:6, 2:14].max() < 30
    assert np.abs(pixels.astype(int) - upright)[10:].max() < 30
    assert decode(file, (8, 8))[1] == (16, 32)


def test_a_photo_with_a_second_picture_is_read_as_the_first_at_a_reduced_size(tmp_path: Path) -> None:
    first, second = Image.new("L", (8000, 6000), 200), Image.new("L", (80, 60))
    file = saved(tmp_path / "x.jpg", first, format="MPO", save_all=True, append_images=[second])
    pixels, size = decode(file, (16, 16))
    assert size == (6000, 8000)  # more pixels than are decoded at full size
    assert np.abs(pixels.astype(int) - 200).max() < 5


def test_broken_metadata_do_not_hide_the_image(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jpg", random_image(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode(file)[1] == (5, 7)


def test_cmyk_black_is_black(tmp_path: Path) -> None:
    black = saved(tmp_path / "x.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 255)), quality=95)
    assert pixels_of(black).max() < 10
    assert pixels_of(black).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA"])
def test_an_image_is_grey_if_its_colours_are(tmp_path: Path, mode: str) -> None:
    image = random_image("L").convert(mode)
    assert pixels_of(saved(tmp_path / "x.png", image)).shape == (5, 7, 1)
    coloured = Image.new("P", (2, 2), 0)
    coloured.putpalette([255, 0, 0])
    assert pixels_of(saved(tmp_path / "y.png", coloured)).tolist() == [[list(RED)] * 2] * 2


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_the_first_frame_or_page_is_read(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    file = saved(tmp_path / f"x.{ending}", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert (pixels_of(file) == RED).all()


def test_proportions_are_kept_and_the_middle_is_cropped(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 20), (0, 0, 255))
    image.paste(RED, (20, 0, 40, 20))
    file = saved(tmp_path / "x.png", image)
    assert (pixels_of(file, size=(10, 10))[:, 1:-1] == RED).all()
    assert (pixels_of(file, size=(10, 10), fit="squash")[:, 0] == [0, 0, 255]).all()


@pytest.mark.parametrize("size", [(50, 40), (41, 90), (33, 33)])
@pytest.mark.parametrize(("target", "crop_fraction"), [(16, 1.0), (16, 0.875), (15, 0.9), (60, 0.95)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_shorter_side_is_resized_and_the_rest_is_cropped_as_in_torchvision(
    tmp_path: Path, size: tuple[int, int], target: int, crop_fraction: float, interpolation: str
) -> None:
    image = random_image("RGB", *size)
    options = {"crop_fraction": crop_fraction, "interpolation": interpolation}
    pixels = pixels_of(saved(tmp_path / "x.png", image), size=(target, target), **options)
    shorter = int(target / crop_fraction)
    width, height = (int(shorter * side / min(size)) for side in size)
    whole = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = round((width - target) / 2), round((height - target) / 2)
    np.testing.assert_array_equal(pixels, np.asarray(whole.crop((left, top, left + target, top + target))))


def test_a_panorama_is_resized_in_little_memory(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.png", Image.new("L", (60_000, 2), 7))
    assert (pixels_of(file, size=(224, 224)) == 7).all()


def test_a_photo_looks_the_same_as_a_jpeg(tmp_path: Path) -> None:
    smooth = random_image("RGB", 8, 6).resize((800, 600), Image.Resampling.BICUBIC)
    as_jpeg, as_png = saved(tmp_path / "x.jpg", smooth, quality=100), saved(tmp_path / "x.png", smooth)
    small, size = decode(as_jpeg, (24, 24))
    assert size == (600, 800)
    assert np.abs(small.astype(int) - decode(as_png, (24, 24))[0]).max() <= 4


def folder_of_that_name(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def content(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def an_image_in(format_name: str) -> Callable[[Path], None]:
    return lambda path: random_image().save(path, format=format_name)


def test_an_avif_that_is_called_a_heif_first_is_an_avif(tmp_path: Path) -> None:
    """Its first brand is the general one, mif1, and avif is among those after it, as some encoders write."""
    path = saved(tmp_path / "x.avif", random_image())
    expected, data = pixels_of(path), path.read_bytes()
    assert data[8:12] == b"avif" == data[16:20]
    path.write_bytes(data[:8] + b"mif1" + data[12:])
    np.testing.assert_array_equal(pixels_of(path), expected)


def too_many_scans(path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(file, "JPEG", progressive=True, quality=1)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:-2] + data[last:-2] * 2000 + data[-2:])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (folder_of_that_name, "it is a folder"),
        (a_pipe, "it is not a regular file"),
        (content(b""), "its content is none of JPEG, PNG"),
        (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "its content is none of JPEG, PNG"),
        (content(b"\0\0\0\x18ftypheic\0\0\0\0"), r"HEIC image; install its decoder \(.*pillow-heif.*\)"),
        (content(b"\0\0\0\x14ftypmif1\0\0\0\0heicavif"), "it is a HEIC image"),
        (content(b"\0\0\0\x18ftypavif\0\0\0\0"), "none of JPEG|AVIF"),
        (an_image_in("EPS"), "its content is none of JPEG, PNG"),
        (an_image_in("ICO"), "its content is none of JPEG, PNG"),
        (content(png(13_370, 13_370, 2, b"")), "13,370 x 13,370 pixels; make it smaller"),
        (content(png(8, 8, 2, b"\0")), "truncated|broken"),
        (content(png(1, 1, 2, b"\0abc", chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**27))))), "too large"),
        (content(png(1, 1, 2, b"\0abc", chunk(b"tEXt", b"k\0") * 50_000)), "PNG of more than 50,000 chunks"),
        (content(b"P3 600 600 255\n" + b"1 " * 500_000), "its pixels are a text of more than 1,000,000 bytes"),
        (content(b"P6 " + b"#\n" * 10_000 + b"1 1 255\nabc"), "very long comments"),
        (too_many_scans, r"JPEG of [\d,]+ scans"),
    ],
)
def test_what_is_not_an_image_is_refused_in_words(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    make(tmp_path / "x.jpg")
    with pytest.raises(UserError, match=rf"x\.jpg cannot be read as an image: .*{reason}"):
        decode(tmp_path / "x.jpg")


def test_the_decoder_of_tiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "x.tif", random_image(), compression="tiff_adobe_deflate")
    data = bytearray(file.read_bytes())
    data[8:40] = bytes(32)
    file.write_bytes(data)
    for _ in range(2):
        with pytest.raises(UserError, match=r"x\.tif cannot be read as an image"):
            decode(file)
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, "image size is 0 x 4"),
        ({"channels": 4}, "1 or 3 channels, not 4"),
        ({"crop_fraction": 0.0}, "crop fraction is 0.0"),
        ({"interpolation": "cubic"}, "no interpolation 'cubic'; expected one of nearest"),
        ({"fit": "pad"}, "fit is 'pad'"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode(saved(tmp_path / "x.png", random_image()), **options)
