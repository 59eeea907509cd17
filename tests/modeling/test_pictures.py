"""Pictures in whatever form they are handed to the processor."""

import base64
import io

import numpy as np
import pytest
import torch
from pictures import DAMAGED, encode, photograph
from PIL import Image

from data_scripts import images
from data_scripts.images import BadImage, read_image


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
    reason = "JPEG 2000 image, which is not read here" if file_format == "JPEG2000" else "not an image"
    with pytest.raises(BadImage, match=reason):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=rf"a\.jpg cannot be read as a picture: {reason}"):
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
