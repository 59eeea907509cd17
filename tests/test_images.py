"""Every kind of image file becomes RGB or is refused for the right reason; counting, and training, go on."""

import base64
import contextlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import unicodedata
import urllib.parse
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import processing_ccrk
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.collator import CCRKCollator
from ccrk.training.trainer import CCRKTrainer
from data_scripts import images
from data_scripts.images import BadImage, ImageFolder, decode_base64, find_file, picture_name, read_image, with_folder
from data_scripts.problems import Problems


def photograph(size=(64, 48)) -> Image.Image:
    """Red left of the middle, blue right of it, darker towards the bottom."""
    width, height = size
    shade = np.linspace(255, 100, height)[:, None].astype(np.uint8)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = shade
    pixels[:, width // 2 :, 2] = shade
    return Image.fromarray(pixels)


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour_type: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file with that size and these bytes of pixels, as many as there are."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in every
    )


def png_header(width: int, height: int) -> bytes:
    """A PNG file that promises a size and holds a few pixels."""
    return png(width, height, 8, 2, bytes(64))


def png_bomb(side: int) -> bytes:
    """Some kB that hold side² pixels of one bit, half transparent."""
    return png(side, side, 1, 0, bytes(side * (1 + -(-side // 8))), (b"tRNS", b"\0\0"))


JPEG, PNG, WEBP, GIF = (encode(photograph(), file_format) for file_format in ("JPEG", "PNG", "WEBP", "GIF"))
PROGRESSIVE = encode(photograph(), "JPEG", progressive=True)
TIFF, BMP, PPM = (encode(photograph(), file_format) for file_format in ("TIFF", "BMP", "PPM"))

# Kind of damage → (the file's contents, the reason it is refused for).
DAMAGED = {
    "no bytes": (b"", images.EMPTY),
    "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", images.NOT_AN_IMAGE),
    "JSON": (b'{"error": "rate limited"}', images.NOT_AN_IMAGE),
    "text": (b"photograph no longer available", images.NOT_AN_IMAGE),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', images.NOT_AN_IMAGE),
    "PDF": (b"%PDF-1.4\n1 0 obj\n", images.NOT_AN_IMAGE),
    "zip": (b"PK\x03\x04" + b"\0" * 60, images.NOT_AN_IMAGE),
    "one byte": (b"\xff", images.NOT_AN_IMAGE),
    "zeros": (bytes(4096), images.NOT_AN_IMAGE),
    "base64 of a JPEG": (b"/9j/4AAQSkZJRgABAQAAAQABAAD", images.NOT_AN_IMAGE),
    "EPS, which would run Ghostscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n",
        images.NOT_AN_IMAGE,
    ),
    "JPEG, first half": (JPEG[: len(JPEG) // 2], images.DAMAGED),
    "JPEG, a third of a large one": (encode(photograph((800, 600)), "JPEG")[:4000], images.DAMAGED),
    "JPEG, header alone": (JPEG[:20], images.DAMAGED),
    "JPEG, magic alone": (JPEG[:4], images.DAMAGED),
    "JPEG, first zeroed": (JPEG[:4] + bytes(len(JPEG) - 4), images.DAMAGED),
    "progressive JPEG, first half": (PROGRESSIVE[: len(PROGRESSIVE) // 2], images.DAMAGED),
    "PNG, first half": (PNG[: len(PNG) // 2], images.DAMAGED),
    "PNG, magic alone": (PNG[:8], images.DAMAGED),
    "PNG, wrong checksum": (PNG[:29] + b"\0\0\0\0" + PNG[33:], images.DAMAGED),
    "PNG, too few pixels": (png_header(640, 480), images.DAMAGED),
    "WebP, first half": (WEBP[: len(WEBP) // 2], images.DAMAGED),
    "WebP, header alone": (WEBP[:16], images.DAMAGED),
    "GIF, first half": (GIF[: len(GIF) // 2], images.DAMAGED),
    "GIF, header alone": (GIF[:8], images.DAMAGED),
    "TIFF, first half": (TIFF[: len(TIFF) // 2], images.DAMAGED),
    "BMP, first half": (BMP[: len(BMP) // 2], images.DAMAGED),
    "PPM, first half": (PPM[: len(PPM) // 2], images.DAMAGED),
    "bomb, PNG of 10 gigapixels": (png_header(100_000, 100_000), images.BOMB),
    "bomb, PPM of 4 gigapixels": (b"P6 65000 65000 255\n" + bytes(100), images.BOMB),
    "tracking pixel": (encode(Image.new("RGB", (1, 1)), "GIF"), images.TOO_SMALL),
    "a line": (encode(Image.new("RGB", (300, 2)), "PNG"), images.TOO_SMALL),
}


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
        assert error.reason in {images.NOT_AN_IMAGE, images.DAMAGED, images.BOMB, images.TOO_SMALL}
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
        (encode(photograph().convert("YCbCr"), "TIFF"), 4),
        (encode(photograph(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]), 12),
        (encode(photograph(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (64, 48))]), 0),
        (encode(photograph(), "PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))]), 0),
        (encode(photograph(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]), 12),
    ],
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


def embed(model, processor, source) -> torch.Tensor:
    with torch.no_grad():
        return model(**processor(images=source)).image_embeds


PIXELS = np.asarray(photograph((40, 30)))
DEEP = PIXELS.astype(np.uint16) * 257
SCALED = (PIXELS / 255).astype(np.float32)
TENSOR = torch.from_numpy(SCALED).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("source", "tolerance"),
    [
        (PIXELS, 0),
        (PIXELS[:, ::-1][:, ::-1], 0),
        (PIXELS.transpose(2, 0, 1), 0),
        (torch.from_numpy(PIXELS.copy()), 0),
        (torch.from_numpy(PIXELS.copy()).permute(2, 0, 1), 0),
        (DEEP, 0),
        (DEEP.astype(">u2"), 0),
        (PIXELS.astype(np.uint16) << 8, 0),
        (torch.from_numpy(DEEP), 0),
        (SCALED, 0),
        (SCALED.astype(np.float64).transpose(2, 0, 1), 0),
        (SCALED.astype(np.float16), 0),
        (SCALED * 1.0005 - 0.0002, 0),
        (TENSOR, 0),
        (TENSOR.half(), 0),
        (TENSOR.bfloat16(), 1),
        (TENSOR.clone().requires_grad_(), 0),
        (np.dstack([PIXELS, np.full((30, 40), 255, np.uint8)]), 0),
        (np.dstack([SCALED, np.ones((30, 40), np.float32)]), 0),
        (encode(Image.fromarray(PIXELS), "PNG"), 0),
        (bytearray(encode(Image.fromarray(PIXELS), "PNG")), 0),
        (io.BytesIO(encode(Image.fromarray(PIXELS), "PNG")), 0),
        ({"bytes": encode(Image.fromarray(PIXELS), "PNG"), "path": "elsewhere.png"}, 0),
        ("data:image/png;base64," + base64.b64encode(encode(Image.fromarray(PIXELS), "PNG")).decode(), 0),
    ],
    ids=lambda value: f"{value.dtype}{tuple(value.shape)}" if hasattr(value, "dtype") else type(value).__name__,
)
def test_one_picture_in_any_form(tiny_model, processor, source, tolerance):
    """0.97 and -0.95 were the cosines of floats and uint16 to the picture of the same pixels."""
    picture = Image.fromarray(PIXELS)
    if not isinstance(source, str):
        assert np.abs(np.asarray(read_image(source), int) - PIXELS).max() <= tolerance
    found, expected = (processor(images=image)["pixel_values"] for image in (source, picture))
    assert (found - expected).abs().max() <= tolerance / 255 / 0.26
    model = tiny_model.ccrk.eval()
    assert (embed(model, processor, source) * embed(model, processor, picture)).sum() > 0.9999


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 1), (1, 16, 24)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "bool"])
def test_grey_pixels(kind, shape):
    white = {"uint8": 255, "uint16": 65535, "float32": 1.0, "bool": True}[kind]
    pixels = np.zeros((16, 24), kind)
    pixels[:, 12:] = white
    picture = read_image(pixels.reshape(shape))
    assert picture.size == (24, 16)
    assert picture.getpixel((2, 3)) == (0, 0, 0) and picture.getpixel((20, 3)) == (255, 255, 255)


def test_transparent_pixels_are_white():
    pixels = np.zeros((16, 16, 4), np.float32)
    pixels[:, :8, 3] = 1
    for array in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        picture = read_image(array)
        assert picture.getpixel((2, 8)) == (0, 0, 0) and picture.getpixel((12, 8)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (PIXELS.astype(np.float32), images.WRONG_RANGE),
        (SCALED * 2 - 1, images.WRONG_RANGE),
        (np.where(SCALED > 0.5, np.nan, SCALED), images.WRONG_RANGE),
        (SCALED + np.where(SCALED > 0.5, np.inf, 0), images.WRONG_RANGE),
        (TENSOR.sub(0.5).div(0.2), images.WRONG_RANGE),
        (PIXELS.astype(np.int64), images.WRONG_RANGE),
        (PIXELS.astype(np.int8), images.WRONG_RANGE),
        (torch.from_numpy(PIXELS.astype(np.int32)), images.WRONG_RANGE),
        (PIXELS.astype(np.uint32), images.WRONG_RANGE),
        (PIXELS.astype(np.complex64), images.WRONG_RANGE),
        (PIXELS.astype(object), images.WRONG_RANGE),
        (PIXELS[:, :, :2], images.WRONG_SHAPE),
        (np.zeros((3, 100, 3), np.uint8), images.WRONG_SHAPE),
        (np.zeros((100, 3, 100), np.uint8), images.WRONG_SHAPE),
        (np.zeros((4, 4, 3), np.uint8), images.WRONG_SHAPE),
        (np.zeros((5, 16, 16), np.uint8), images.WRONG_SHAPE),
        (np.zeros((0, 16), np.float32), images.WRONG_SHAPE),
        (np.zeros(16, np.uint8), images.WRONG_SHAPE),
        (np.array(["a.jpg"]), images.WRONG_SHAPE),
        (torch.zeros(2, 2, 3, 16, 16), images.WRONG_SHAPE),
    ],
)
def test_pixels_of_no_clear_meaning_are_refused(processor, pixels, reason):
    with pytest.raises(BadImage) as caught:
        read_image(pixels)
    assert caught.value.reason == reason
    with pytest.raises(ValueError, match=r"images\[1\] cannot be read as a picture: pixels n") as raised:
        processor(images=[PIXELS, pixels])
    assert "\n" not in str(raised.value) and str(tuple(pixels.shape)) in str(raised.value)


@pytest.mark.parametrize("batch", [np.stack([PIXELS, 255 - PIXELS]), torch.stack([TENSOR, 1 - TENSOR])])
def test_a_batch_of_pixels_is_a_list_of_pictures(processor, batch):
    expected = processor(images=[Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)])["pixel_values"]
    for images_ in (batch, list(batch), [batch[:1], batch[1:]], (batch,)):
        assert torch.equal(processor(images=images_)["pixel_values"], expected)
    with pytest.raises(ValueError, match="the list of images is empty"):
        processor(images=batch[:0])


def test_the_column_of_a_data_set_is_a_list_of_pictures(processor, shapes):
    column = shapes.select(range(3))["image"]
    assert not isinstance(column, list)
    assert torch.equal(processor(images=column)["pixel_values"], processor(images=list(column))["pixel_values"])


def test_pixels_that_are_to_stay_unscaled_are_refused(processor):
    """For other processors the option says that floats are scaled already; pictures would come out 255 times so."""
    for options in ({"do_rescale": False}, {"images_kwargs": {"do_rescale": False}}):
        with pytest.raises(ValueError, match="leave do_rescale out"):
            processor(images=TENSOR, **options)
    raw = processor(images=TENSOR, do_rescale=False, do_normalize=False)["pixel_values"]
    assert torch.equal(
        raw, processor(images=Image.fromarray(PIXELS), do_rescale=False, do_normalize=False).pixel_values
    )


@pytest.mark.parametrize("file_format", ["EPS", "ICO", "PCX", "TGA", "PDF", "SGI", "JPEG2000", "DDS"])
def test_the_processor_opens_the_formats_of_training_alone(processor, tmp_path, file_format):
    Image.fromarray(PIXELS).resize((32, 32)).save(tmp_path / "a.jpg", file_format)
    with pytest.raises(BadImage, match="not an image"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read as a picture: not an image"):
        processor(images=tmp_path / "a.jpg")


@pytest.mark.parametrize("contents", DAMAGED.values(), ids=DAMAGED)
def test_the_processor_refuses_what_training_refuses(processor, contents):
    with pytest.raises(ValueError) as raised:
        processor(images=contents[0])
    assert str(raised.value).startswith(f"images[0] cannot be read as a picture: {contents[1]}")


@pytest.mark.parametrize("source", [None, 5, 5.0, {}, {"bytes": None, "path": None}, object(), [[[]]], "", "a\0.jpg"])
def test_what_is_no_picture_at_all(processor, source):
    with pytest.raises(BadImage):
        read_image(source)
    with pytest.raises(ValueError) as raised:
        processor(images=[source])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_opened_photograph_is_turned_as_its_file_is(processor, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = encode(photograph(), "PNG", exif=exif)
    opened = Image.open(io.BytesIO(contents))
    picture = read_image(contents)
    assert picture.size == ((64, 48) if orientation == 3 else (48, 64))
    for source in (opened, picture, read_image(picture), picture.resize(picture.size)):
        assert read_image(source).tobytes() == picture.tobytes()
    assert opened.size == (64, 48), "it is not ours to turn"


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
    monkeypatch.setattr(processing_ccrk, "MAX_PIXELS", 64 * 48 - 1)
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
from processing_ccrk import BOMB, BadImage, read_image
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bombs_take_bounded_memory(tmp_path):
    """The larger file took 2.7 GB."""
    for side in (7300, 13000):
        (tmp_path / f"{side}.png").write_bytes(png_bomb(side))
    assert (tmp_path / "13000.png").stat().st_size < 50_000
    paths = [str(tmp_path / "7300.png"), str(tmp_path / "13000.png")]
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, *paths], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.splitlines() == ["(7300, 7300)", "True", "True", "(64, 64)"], done.stderr


def test_a_picture_that_memory_does_not_suffice_for_is_counted(processor, rows, monkeypatch):
    def to_rgb(image):
        if image.format == "WEBP":
            raise MemoryError
        return image.convert("RGB")

    monkeypatch.setattr(processing_ccrk, "to_rgb", to_rgb)
    problems = CCRKCollator(processor, ["en"])(rows)["problems"]
    assert problems.counts[images.BOMB] == 1


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers as slowly, as long or as roundabout as the path says."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        kind, _, rest = self.path.removeprefix("/").partition("/")
        with contextlib.suppress(OSError):
            getattr(self, kind)(urllib.parse.unquote(rest))

    def start(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def picture(self, rest):
        self.start()
        self.wfile.write(PNG)

    def redirect(self, rest):
        self.start(302, Location=rest or "/redirect/")

    def slow_body(self, rest):
        self.start()
        self.drip()

    def slow_headers(self, rest):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.drip()

    def drip(self):
        for _ in range(200):
            self.wfile.write(b"a")
            time.sleep(0.05)

    def endless(self, rest):
        self.start()
        while True:
            self.wfile.write(bytes(1 << 16))


@pytest.fixture
def server(monkeypatch):
    """127.0.0.1 is as good as public in these tests; 127.0.0.2 is not."""
    public = processing_ccrk.is_public
    monkeypatch.setattr(processing_ccrk, "is_public", lambda address: address == "127.0.0.1" or public(address))
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{listener.server_port}"
    listener.shutdown()
    listener.server_close()


def test_a_picture_behind_redirects(processor, server):
    expected = processor(images=photograph())["pixel_values"]
    for url in ("picture", "redirect//picture", f"redirect/http://{server}/redirect//picture/ä b?c=%20d&e"):
        assert torch.equal(processor(images=f"HTTP://{server}/{url}")["pixel_values"], expected)


@pytest.mark.parametrize("kind", ["slow_body", "slow_headers"])
def test_a_url_may_take_so_long_in_all(processor, server, monkeypatch, kind):
    monkeypatch.setattr(processing_ccrk, "URL_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"/{kind} cannot be read as a picture: it did not arrive within 0\.5 seconds"
    ):
        processor(images=f"http://{server}/{kind}")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://{}/endless", "it has more than 1,000,000 bytes"),
        ("http://{}/redirect/", "more than 5 redirects"),
        ("http://{}/redirect/file%3A%2F%2F%2Fetc%2Fpasswd", "no http or https URL"),
        ("http://{}/redirect/http%3A%2F%2F127.0.0.2%2Fa.jpg", "on a private network"),
        ("http://{}/nothing", "Remote end closed connection|Connection reset"),
        ("http://user:secret@127.0.0.2:80/a.jpg", "on a private network"),
        ("http://2130706434/a.jpg", "on a private network"),
        ("http://[::ffff:127.0.0.2]/a.jpg", "on a private network"),
        ("http://[::1]/a.jpg", "on a private network"),
        ("https://127.0.0.2/a.jpg", "on a private network"),
        ("http:///a.jpg", "no http or https URL"),
        ("http://[/a.jpg", "Invalid IPv6 URL"),
        ("http://{}:x/a.jpg", "Port could not be cast"),
    ],
)
def test_a_url_leads_where_anybody_may_go(processor, server, monkeypatch, url, reason):
    monkeypatch.setattr(processing_ccrk, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=rf"^http.* cannot be read as a picture: .*({reason})") as raised:
        processor(images=[url.format(server)])
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::5db8:d70e", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.1.2.3", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::a01:203", False),
    ],
)
def test_public_addresses(address, public):
    assert processing_ccrk.is_public(address) == public


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "x/../../a.jpg",
        "/etc/passwd",
        r"..\a.jpg",
        r"C:\a.jpg",
        "C:a.jpg",
        r"\\server\a.jpg",
        "",
        ".",
        "a\0.jpg",
    ],
)
def test_names_that_leave_the_folder(tmp_path, name):
    for find in (picture_name, ImageFolder(tmp_path).find):
        with pytest.raises(BadImage) as caught:
            find(name)
        assert caught.value.reason == images.OUTSIDE


@pytest.mark.parametrize("name", ["a/b.jpg", "./a/b.jpg", "a//b.jpg", "a/./b.jpg", r"a\b.jpg", r".\a\b.jpg"])
def test_one_name_for_each_way_to_write_it(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").write_bytes(JPEG)
    assert picture_name(name) == "a/b.jpg"
    assert ImageFolder(tmp_path).find(name) == (str(tmp_path / "a" / "b.jpg"), "a/b.jpg", "")


def test_what_distinguishes_names():
    names = ["1.jpg", "1.png", "1.JPG", "VG_100K/1.jpg", "VG_100K_2/1.jpg", "1.jpg "]
    assert len({picture_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_accents_apart_from_their_letters(tmp_path, on_disk, written):
    path = tmp_path / unicodedata.normalize(on_disk, "été.jpg")
    path.write_bytes(JPEG)
    found = ImageFolder(tmp_path).find(unicodedata.normalize(written, "été.jpg"))
    assert Path(found.path).samefile(path) and found.name == unicodedata.normalize("NFC", "été.jpg")


def test_accents_in_both_ways(tmp_path):
    """A folder from one system in a file tree of another; and letters that NFC makes others of."""
    for name in (f"{unicodedata.normalize('NFC', 'é')}/{unicodedata.normalize('NFD', 'é')}.jpg", "\uf900.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(JPEG)
        assert ImageFolder(tmp_path).find(name).path == str(path)


def test_links_are_the_owners_choice(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    (elsewhere / "a.jpg").write_bytes(JPEG)
    (folder / "farm.jpg").symlink_to(elsewhere / "a.jpg")
    (folder / "val2014").symlink_to(elsewhere)
    (tmp_path / "alias").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(tmp_path / "unplugged" / "a.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    for name in ("farm.jpg", "val2014/a.jpg"):
        assert ImageFolder(tmp_path / "alias").find(name) == (str(tmp_path / "alias" / name), name, "")
    for name, reason in (("gone.jpg", images.MISSING), ("loop.jpg", images.UNREADABLE)):
        with pytest.raises(BadImage) as caught:
            ImageFolder(folder).find(name)
        assert caught.value.reason == reason


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "device.jpg"):
        with pytest.raises(BadImage) as caught:
            find_file(tmp_path, name)
        assert caught.value.reason == images.NOT_A_FILE
        with pytest.raises(BadImage, match="cannot be opened"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a/" * 200_000 + "b.jpg", "a/" * 65 + "b.jpg", "a" * 300 + ".jpg", "a" * 5_000])
def test_names_too_long_for_a_file(tmp_path, name):
    started = time.perf_counter()
    with pytest.raises(BadImage) as caught:
        ImageFolder(tmp_path).find(name)
    assert caught.value.reason in (images.TOO_LONG, images.UNREADABLE)
    assert time.perf_counter() - started < 1


def test_locate_drops_the_folders_that_it_is_in(tmp_path):
    path = tmp_path / "coco" / "val2014" / "a.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(JPEG)
    for folder, name in ((".", "coco/val2014/a.jpg"), ("coco", "val2014/a.jpg"), ("coco/val2014", "a.jpg")):
        assert ImageFolder(tmp_path / folder).find("coco/val2014/a.jpg") == (str(path), name, "")
    with pytest.raises(BadImage) as caught:
        ImageFolder(tmp_path).find("coco/val2014/b.jpg")
    assert caught.value.reason == images.MISSING


def test_what_is_left_out_at_a_guess(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    folder = ImageFolder(tmp_path, ["coco/val2014"])
    guesses = {
        name: folder.find(name).guess for name in ("coco/val2014/a.jpg", "val2014/a.jpg", "x/a.jpg", "x/y/a.jpg")
    }
    assert list(guesses.values()) == ["", "", "x", "x/y"]


def test_the_folder_of_a_name():
    names = ["a.jpg", "./a.jpg", "val2014/a.jpg", "coco//val2014/a.jpg", r"val2014\a.jpg"]
    assert {with_folder("coco/val2014", name) for name in names} == {"coco/val2014/a.jpg"}
    assert with_folder("coco/val2014", "b/a.jpg") == "coco/val2014/b/a.jpg"
    assert with_folder("coco/val2014", "../a.jpg") == "../a.jpg", "and is refused where it is looked for"


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(BadImage(images.DAMAGED, "a.jpg")))
    assert (error.reason, error.where, str(error)) == (images.DAMAGED, "a.jpg", f"{images.DAMAGED}: a.jpg")


def test_problems_stop_only_after_enough_rows(caplog):
    problems = Problems("stream")
    for row in range(50):
        problems.rows += 1
        problems.bad("broken", f"a.data line {row + 1}")  # all of them so far, and still too early to say
    with pytest.raises(ValueError, match=r"51 bad among 51 rows, more than max_bad_fraction 0\.05; (?s:.*)51  broken"):
        problems.rows += 1
        problems.bad("broken", "a.data line 51")
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["stream: broken: a.data line 1"]


def test_problems_of_a_pass_and_absent_ones():
    problems = Problems("pass", max_bad_fraction=0.1, rows=10)
    for _ in range(9):
        problems.absent("missing", "a")
    problems.bad("broken", "b")
    problems.check()  # one in ten, and what is absent does not count
    problems.bad("broken", "c")
    with pytest.raises(ValueError, match="2 bad among 10 rows"):
        problems.check()


def test_problems_of_workers_add_up():
    parts = [Problems("part", quiet=True, rows=500) for _ in range(2)]
    parts[0].bad("broken", "a line 1")
    parts[1].bad("broken", "b line 7")
    parts[1].absent("missing", "c")
    total = Problems("all")
    for part in parts:
        total.update(pickle.loads(pickle.dumps(part)))
    assert total.table() == (
        "all: 1,000 rows, of which\n          2  broken, first: a line 1\n          1  missing, first: c"
    )
    many = Problems("many", max_bad_fraction=1.0, rows=100)
    many.counts["broken"] = 100
    many.first["broken"] = "d"
    with pytest.raises(ValueError, match="102 bad among 1,100 rows"):
        total.update(many)


@pytest.fixture
def rows(tmp_path):
    """Eight rows as `datasets.Image(decode=False)` gives them: three cannot be read."""
    contents = [JPEG, b"", PNG, JPEG[:300], WEBP, None, PNG, JPEG]
    rows = []
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.jpg"
        if content is not None:
            path.write_bytes(content)
        image = {"bytes": None, "path": str(path)}
        rows.append({"image": image, "image_id": str(number), "captions": {"en": [f"caption {number}"]}})
    return rows


def test_a_batch_goes_on_without_its_bad_images(processor, rows):
    batch = CCRKCollator(processor, ["en"])(rows)
    assert batch["pixel_values"].shape == (8, 3, 64, 64)
    assert batch["input_ids"].shape[:2] == (8, 1)
    problems = batch["problems"]
    assert problems.counts == {images.EMPTY: 1, images.DAMAGED: 1} and problems.absences == {images.MISSING: 1}
    # Five rows fill eight places; who takes another's place keeps its own captions and id.
    for place, other in ((5, 0), (6, 1), (7, 2)):
        assert batch["image_ids"][place] == batch["image_ids"][other]
        assert torch.equal(batch["pixel_values"][place], batch["pixel_values"][other])
        assert torch.equal(batch["input_ids"][place], batch["input_ids"][other])
    assert batch["image_ids"].unique().numel() == 5
    assert "problems" not in CCRKCollator(processor, ["en"])([rows[0], rows[2]])


@pytest.mark.parametrize(("augmentation", "size"), [(None, (96, 64)), (lambda picture: picture, (192, 128))])
def test_pictures_to_crop_from_keep_pixels_to_spare(processor, tmp_path, monkeypatch, augmentation, size):
    (tmp_path / "large.jpg").write_bytes(encode(Image.new("RGB", (384, 256)), "JPEG"))
    row = {"image": {"bytes": None, "path": str(tmp_path / "large.jpg")}, "image_id": "1", "captions": {"en": ["a"]}}
    sizes = []
    call = type(processor).__call__
    monkeypatch.setattr(
        type(processor),
        "__call__",
        lambda self, images, **options: sizes.extend(i.size for i in images) or call(self, images=images, **options),
    )
    CCRKCollator(processor, ["en"], augmentation=augmentation)([row])
    assert sizes == [size], "for an input of 64 pixels"


def test_a_batch_without_any_image_stops(processor, rows):
    with pytest.raises(ValueError, match=r"no image of a batch of 2 can be read(?s:.*)image of zero bytes"):
        CCRKCollator(processor, ["en"])([rows[1], rows[3]])


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_and_reports(tiny_model, processor, rows, tmp_path, workers):
    arguments = CCRKTrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        max_steps=4,
        logging_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_num_workers=workers,
    )
    collator = CCRKCollator(processor, ["en"])
    trainer = CCRKTrainer(
        model=tiny_model, args=arguments, data_collator=collator, train_dataset=rows, processing_class=processor
    )
    trainer.train()
    assert trainer.problems.rows == 16
    assert trainer.problems.counts == {images.EMPTY: 2, images.DAMAGED: 2}
    assert trainer.problems.absences == {images.MISSING: 2}
    assert [log["bad_images"] for log in trainer.state.log_history if "bad_images" in log] == [3, 6]
    assert all(np.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
