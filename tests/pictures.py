"""Encoded pictures, whole and damaged."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from data_scripts import images


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
