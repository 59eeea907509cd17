"""Every kind of image file becomes RGB or is refused for the right reason; counting, and training, go on."""

import base64
import io
import os
import struct
import subprocess
import sys
import urllib.parse
import warnings
import zlib

import numpy as np
import PIL.AvifImagePlugin
import PIL.WebPImagePlugin
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    BMP,
    DAMAGED,
    GIF,
    JPEG,
    PNG,
    PPM,
    PROGRESSIVE,
    TIFF,
    WEBP,
    encode,
    photograph,
    png_bomb,
    png_header,
)
from PIL import Image

import pictures_ccrk
from data_scripts import images
from data_scripts.images import BadImage, decode_base64, read_image
from data_scripts.problems import Problems


@pytest.mark.parametrize("target_size", [None, 4])
def test_a_folder_of_damaged_images_is_counted_by_reason(tmp_path, target_size):
    """32 kinds as files called .jpg, and those that no contents can show: 4 more."""
    problems = Problems("folder", max_bad_fraction=1.0)
    expected = {}
    for number, (contents, reason) in enumerate(DAMAGED.values()):
        (tmp_path / f"{number}.jpg").write_bytes(contents)
        expected[f"{number}.jpg"] = reason
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    expected |= {"folder.jpg": images.UNREADABLE, "loop.jpg": images.UNREADABLE}
    expected |= {"nowhere.jpg": images.MISSING, "nowhere/a.jpg": images.MISSING}
    assert len(expected) >= 25
    found = {}
    for name in expected:
        with pytest.raises(BadImage) as caught:
            read_image(tmp_path / name, target_size)
        assert name in str(caught.value)
        found[name] = caught.value.reason
        problems.rows += 1
        problems.add_image(caught.value, name)
    assert found == expected
    assert problems.absences == {images.MISSING: 2}
    assert problems.counts.total() == len(expected) - 2
    assert f"{len(expected)} rows" in problems.table()


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    source=st.sampled_from([JPEG, PROGRESSIVE, PNG, WEBP, GIF, TIFF, BMP, PPM]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.sampled_from("scit")), max_size=8),
    target_size=st.sampled_from([None, 8]),
)
def test_whatever_the_bytes_a_picture_or_a_reason(source, edits, target_size):
    contents = bytearray(source)
    for place, value, kind in edits:
        position = min(int(place**3 * len(contents)), len(contents) - 1)  # headers are near the beginning
        if kind == "t" and value < 40:
            del contents[max(1, position) :]
        elif kind == "i":
            contents.insert(position, value)
        elif kind == "c" and len(contents) > 1:
            del contents[position]
        else:
            contents[position] = value
    try:
        picture = read_image(bytes(contents), target_size)
    except BadImage as error:
        reasons = {images.NOT_AN_IMAGE, images.DAMAGED, images.BOMB, images.TOO_SMALL, pictures_ccrk.JPEG_XL}
        assert error.reason in reasons  # two changed bytes make a JPEG XL of any file
    else:
        assert picture.mode == "RGB" and min(picture.size) >= 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_random_bytes_are_an_image(contents):
    with pytest.raises(BadImage):
        read_image(contents)


LEFT, RIGHT = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("contents", "tolerance"),
    [
        (JPEG, 12),
        (PROGRESSIVE, 12),
        (PNG, 0),
        (encode(photograph(), "WEBP", lossless=True), 0),
        (WEBP, 25),
        (encode(photograph(), "AVIF", quality=95), 25),
        (BMP, 0),
        (TIFF, 0),
        (PPM, 0),
        (encode(photograph().convert("RGBA"), "PNG"), 0),
        (encode(photograph().quantize(256), "PNG"), 12),
        (encode(photograph().quantize(256), "GIF"), 12),
        (encode(photograph().convert("CMYK"), "JPEG", quality=95), 12),
        (encode(photograph().convert("CMYK"), "TIFF"), 0),
        pytest.param(
            encode(photograph().convert("YCbCr"), "TIFF"),
            4,
            marks=pytest.mark.skipif(
                int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 cannot read what it wrote"
            ),
        ),
        (encode(photograph(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]), 12),
        (encode(photograph(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (64, 48))]), 0),
        (encode(photograph(), "PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))]), 0),
        (encode(photograph(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]), 12),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_formats_and_modes_become_the_same_rgb(contents, tolerance):
    picture = read_image(contents)
    assert picture.mode == "RGB" and picture.size == (64, 48)
    difference = np.abs(np.asarray(picture, int) - np.asarray(photograph(), int))
    difference[:, 30:34] = 0  # the edge, where chroma is subsampled
    assert difference.max() <= tolerance


@pytest.mark.parametrize(
    ("picture", "file_format"),
    [("L", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("F", "TIFF")],
)
def test_grey_and_deep_pictures_keep_their_brightness(picture, file_format):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    if picture == "I;16":
        source = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif picture == "F":
        source = Image.fromarray(ramp.astype(np.float32) / 255)
    elif picture == "1":
        ramp = np.where(ramp > 127, 255, 0).astype(np.uint8)
        source = Image.fromarray(ramp).convert("1")
    else:
        source = Image.fromarray(ramp).convert(picture)
    result = np.asarray(read_image(encode(source, file_format)), int)
    assert (result == result[..., :1]).all()
    assert np.abs(result[..., 0] - ramp).max() <= (2 if file_format == "JPEG" else 1)


def test_a_dark_16_bit_picture_stays_dark():
    source = Image.fromarray(np.full((16, 16), 200, np.uint16))
    assert read_image(encode(source, "PNG")).getpixel((3, 3)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode):
    source = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    source.paste((0, 0, 0, 255), (0, 0, 8, 16))
    options = {}
    if mode == "P":
        source, options = Image.new("P", (16, 16), 1), {"transparency": 1}
        source.putpalette([0, 0, 0, 0, 0, 0])
        source.paste(0, (0, 0, 8, 16))
    else:
        source = source.convert(mode)
    picture = read_image(encode(source, "PNG", **options))
    assert picture.getpixel((2, 8)) == (0, 0, 0) and picture.getpixel((12, 8)) == (255, 255, 255)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_value_is_white_at_any_depth(channels, depth):
    """A PNG's tRNS chunk, which Pillow writes for 8 bits only."""
    low, high = (0x1200, 0x5634) if depth == 16 else (0x12, 0x56)
    pixels = np.full((16, 16, channels), low, f">u{depth // 8}")
    pixels[:, 8:] = high
    header = struct.pack(">IIBBBBB", 16, 16, depth, 0 if channels == 1 else 2, 0, 0, 0)
    contents = b"".join(b"\0" + line.tobytes() for line in pixels)
    chunks = {
        b"IHDR": header,
        b"tRNS": struct.pack(">H", high) * channels,
        b"IDAT": zlib.compress(contents),
        b"IEND": b"",
    }
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in chunks.items()
    )
    picture = read_image(png)
    assert picture.getpixel((2, 8)) == (0x12,) * 3 and picture.getpixel((12, 8)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["transparent", "16 bits", "broken EXIF"])
def test_the_processor_sees_a_file_as_training_does(kind, processor, tmp_path):
    if kind == "transparent":
        contents = encode(Image.new("RGBA", (16, 16), (200, 0, 0, 60)), "PNG")
    elif kind == "16 bits":
        contents = encode(Image.fromarray(np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)), "PNG")
    else:
        contents = encode(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    (tmp_path / "a").write_bytes(contents)
    trained_on = processor(images=read_image(contents))["pixel_values"]
    for source in (tmp_path / "a", str(tmp_path / "a"), Image.open(tmp_path / "a")):
        assert torch.equal(processor(images=source)["pixel_values"], trained_on)


@pytest.mark.parametrize("target_size", [None, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, target_size):
    upright = photograph((256, 128))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    picture = read_image(encode(stored, "JPEG", exif=exif, quality=95), target_size)
    assert picture.width == 2 * picture.height
    width, height = picture.size
    assert np.abs(np.subtract(picture.getpixel((width // 4, 1)), LEFT)).max() < 20
    assert np.abs(np.subtract(picture.getpixel((3 * width // 4, 1)), RIGHT)).max() < 20
    assert picture.getpixel((2, height - 2))[0] < 130, "the dark side is at the bottom"


def test_a_broken_exif_block_costs_the_orientation_and_not_the_picture():
    contents = encode(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_image(contents).size == (64, 48)


@pytest.mark.parametrize(
    ("size", "target_size", "expected"),
    [
        ((1500, 1000), 224, (375, 250)),
        ((1500, 1000), 251, (750, 500)),
        ((1500, 1000), 501, (1500, 1000)),
        ((4000, 3000), 64, (500, 375)),
        ((500, 375), 224, (500, 375)),
        ((1500, 1000), None, (1500, 1000)),
        ((4000, 440), 224, (4000, 440)),  # its short side needs all of its pixels
    ],
)
def test_jpeg_is_decoded_at_the_least_scale_that_has_the_pixels(size, target_size, expected):
    assert read_image(encode(Image.new("RGB", size), "JPEG"), target_size).size == expected


def test_reduced_scale_shows_the_same_picture():
    """Within 2 of 255 levels on average, after both are resized: less than JPEG itself changes."""
    noise = Image.effect_noise((100, 66), 80).convert("RGB").resize((1500, 1000), Image.Resampling.BICUBIC)
    contents = encode(Image.blend(noise, photograph((1500, 1000)), 0.5), "JPEG", quality=90)
    full, reduced = (
        np.asarray(read_image(contents, size).resize((224, 224), Image.Resampling.BICUBIC), int)
        for size in (None, 224)
    )
    assert read_image(contents, 224).size == (375, 250)
    assert np.abs(full - reduced).mean() < 2


def test_sources(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    expected = photograph().tobytes()
    for source in (
        PNG,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        {"bytes": PNG, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        photograph().convert("RGBA"),
    ):
        assert read_image(source).tobytes() == expected


# All of the alphabet, and a length that is no multiple of three.
ENCODED = base64.b64encode(bytes(range(256))).decode()


@pytest.mark.parametrize(
    "text",
    [
        ENCODED,
        ENCODED.rstrip("="),
        base64.urlsafe_b64encode(bytes(range(256))).decode(),
        base64.urlsafe_b64encode(bytes(range(256))).decode().rstrip("="),
        base64.encodebytes(bytes(range(256))).decode(),
        f"\r\n  {ENCODED[:99]}\r\n\t{ENCODED[99:]} ",
        f"data:image/jpeg;base64,{ENCODED}",
        f" DATA:image/png;name=a.png;Base64, {ENCODED}\n",
        f"data:;base64,{urllib.parse.quote(ENCODED, safe='')}",
    ],
)
def test_base64_as_people_write_it(text):
    assert decode_base64(text, "row 1") == decode_base64(text.encode(), "row 1") == bytes(range(256))


@pytest.mark.parametrize(
    "text",
    [
        *("<html>", "ä", "/9j/\n*", "/9j/A", "/9=j", "/9j/=AAA", "http://a/b.jpg", "\ud800", "b'/9j/'"),
        *("data:image/svg+xml,<svg/>", "data:image/jpeg;base64", "data:,/9j/", "data:image/jpeg;base64,<html>"),
    ],
)
def test_no_base64(text):
    with pytest.raises(BadImage, match="image is no base64: row 1"):
        decode_base64(text, "row 1")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "endless.jpg"):
        with pytest.raises(BadImage, match="cannot be opened"):
            read_image(tmp_path / name)
    (tmp_path / "holes.jpg").touch()
    os.truncate(tmp_path / "holes.jpg", 1 << 40)
    with pytest.raises(BadImage) as caught:
        read_image(tmp_path / "holes.jpg")
    assert caught.value.reason == images.BOMB


def test_the_pixel_limit_is_the_same_at_every_scale(monkeypatch):
    monkeypatch.setattr(pictures_ccrk, "MAX_PIXELS", 64 * 48 - 1)
    for target_size in (None, 1, 8):
        for file_format in ("PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"):
            with pytest.raises(BadImage) as caught:
                read_image(encode(photograph(), file_format), target_size)
            assert caught.value.reason == images.BOMB
        # Photographs of twice as many pixels are decoded at half their size.
        assert max(read_image(JPEG, target_size).size) <= 32
        with pytest.raises(BadImage, match="96 × 72 pixels"):
            read_image(encode(photograph((96, 72)), "JPEG"), target_size)
    for decoded in (photograph(), np.asarray(photograph()), Image.open(io.BytesIO(PNG))):
        with pytest.raises(BadImage) as caught:
            read_image(decoded)
        assert caught.value.reason == images.BOMB


def test_the_limit_of_pillow_is_no_matter_of_ours(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # above, it warns; above twice as many, it raises
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(PNG).size == (64, 48)
        with pytest.raises(BadImage) as caught:
            read_image(encode(photograph((96, 72)), "JPEG"))
    assert caught.value.reason == images.BOMB
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage) as caught:
        read_image(png_header(8000, 8000))
    assert caught.value.reason == images.BOMB


def test_a_progressive_file_of_endless_scans():
    first = PROGRESSIVE.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match=r"10\d\d scans"):
        read_image(PROGRESSIVE[:-2] + PROGRESSIVE[first:-2] * 1000 + PROGRESSIVE[-2:])


BOMBS = """
import resource, sys
from pictures_ccrk import BOMB, BadImage, read_image
from PIL import Image

def address_space(spare):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))

read_image(Image.new("LA", (64, 64)))
address_space(1 << 30)
print(read_image(sys.argv[1]).size)
address_space(1 << 27)  # not enough for the pixels that are allowed
for path in sys.argv[1:]:
    try:
        read_image(path)
    except BadImage as error:
        print(error.reason == BOMB)
print(read_image(Image.new("LA", (64, 64))).size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bombs_take_bounded_memory(tmp_path):
    """The larger file took 2.7 GB."""
    for side in (7300, 13000):
        (tmp_path / f"{side}.png").write_bytes(png_bomb(side))
    assert (tmp_path / "13000.png").stat().st_size < 50_000
    paths = [str(tmp_path / "7300.png"), str(tmp_path / "13000.png")]
    done = subprocess.run([sys.executable, "-c", BOMBS, *paths], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["(7300, 7300)", "True", "True", "(64, 64)"], done.stderr


@pytest.mark.parametrize(
    ("beginning", "reason", "without"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", pictures_ccrk.HEIC, None),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix", pictures_ccrk.HEIC, None),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", pictures_ccrk.JPEG_2000, None),
        (b"\xff\x4f\xff\x51\0\x2f", pictures_ccrk.JPEG_2000, None),
        (b"\0\0\0\x0cJXL \r\n\x87\n", pictures_ccrk.JPEG_XL, None),
        (b"\xff\x0a\xfa\x7f", pictures_ccrk.JPEG_XL, None),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", images.DAMAGED, None),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", pictures_ccrk.NO_AVIF, "avif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", pictures_ccrk.NO_AVIF, "avif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", pictures_ccrk.NO_WEBP, "webp"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", images.NOT_AN_IMAGE, None),
    ],
)
def test_a_missing_reader_is_named(beginning, reason, without, monkeypatch):
    check = pictures_ccrk.features.check
    monkeypatch.setattr(pictures_ccrk.features, "check", lambda name: name != without and check(name))
    if without is not None:
        plugin = {"avif": PIL.AvifImagePlugin, "webp": PIL.WebPImagePlugin}[without]
        monkeypatch.setattr(plugin, "SUPPORTED", False)
    with pytest.raises(BadImage) as caught:
        read_image(beginning + bytes(200))
    assert caught.value.reason == reason
