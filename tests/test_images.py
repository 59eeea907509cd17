"""Every kind of image file becomes RGB or is refused for the right reason; counting, and training, go on."""

import io
import os
import pickle
import struct
import time
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_scripts import images
from data_scripts.images import BadImage, ImageFolder, decode_base64, find_file, picture_name, read_image, with_folder
from data_scripts.problems import Problems
from trainer_ccrk import CCRKCollator, CCRKTrainer, CCRKTrainingArguments


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


def png_header(width: int, height: int) -> bytes:
    """A PNG file that promises a size and holds a few pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


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


def test_base64():
    assert decode_base64("/9j/", "row 1") == b"\xff\xd8\xff"
    for text in ("", "/9j/"):
        decode_base64(text, "row 1")
    for text in ("/9j", "<html>", "ä", "/9j/\n*"):
        with pytest.raises(BadImage, match="image is no base64: row 1"):
            decode_base64(text, "row 1")


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
