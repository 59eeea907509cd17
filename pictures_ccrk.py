"""Pictures as RGB, from files, bytes, pixels and URLs; damaged and hostile ones are refused with a reason."""

import base64
import binascii
import contextlib
import functools
import http.client
import io
import ipaddress
import math
import os
import re
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Callable
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import ExifTags, Image, features

# Image files that are read: the formats of photographs on the web. Others of Pillow's stay closed: EPS, for one, runs
# Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
# Pixels a side. Less is a placeholder or a tracking pixel.
MIN_SIDE = 8
# Pixels that are decoded. A file of 40 bytes can hold as many, and decoding takes up to 17 bytes for each of them.
# JPEG files may have twice as many, decoded at half their size: 12000 × 9000 is what the cameras of many phones make.
MAX_PIXELS = 54_000_000
# Passes over a progressive JPEG file; encoders make a dozen. One takes 80 bytes, and 0.1 s for all of the pixels.
MAX_SCANS = 100
# Bytes of a file. As many are enough for all pixels, uncompressed.
MAX_BYTES = 1 << 28
# What a picture's URL may take, all redirects together.
URL_SECONDS = 30
URL_REDIRECTS = 5

MISSING = "image file missing"
UNREADABLE = "image file cannot be opened"
NO_IMAGE = "no image"
EMPTY_PATH = "image path is empty"
EMPTY = "image of zero bytes"
NOT_BASE64 = "image is no base64"
NOT_AN_IMAGE = "not an image"
HEIC = "HEIC image, which Pillow does not read; convert it to JPEG, for example with pip install pillow-heif"
JPEG_2000 = "JPEG 2000 image, which is not read here; convert it to JPEG or PNG"
JPEG_XL = "JPEG XL image, which Pillow does not read; convert it to JPEG or PNG"
NO_AVIF = "AVIF image, and Pillow is built without its reader; install Pillow 11.3 or later"
NO_WEBP = "WebP image, and Pillow is built without its reader; install Pillow from PyPI"
DAMAGED = "image truncated or damaged"
BOMB = f"image of more than {MAX_PIXELS:,} pixels, or too large otherwise"
TOO_SMALL = f"image smaller than {MIN_SIDE} pixels"
NOT_A_SOURCE = "neither a path, the bytes of a file, a PIL image, an array nor a tensor"
WRONG_SHAPE = f"pixels not of shape (H, W), (H, W, C) or (C, H, W), C of 1, 3 or 4 and sides of {MIN_SIDE} or more"
WRONG_RANGE = "pixels neither uint8 (0 to 255), uint16 (0 to 65535), floats from 0 to 1 nor bool; convert them"

# How files of these formats begin: one that does and is not understood is damaged, others are no images.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# What Pillow raises on damaged files.
_DECODING_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
# What makes pictures of these EXIF orientations upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class BadImage(ValueError):
    """An image that cannot be used; `reason` is one of this module's constants."""

    def __init__(self, reason: str, where: str):
        super().__init__(f"{reason}: {where}")
        self.reason = reason
        self.where = where

    def __reduce__(self):  # it crosses from workers to the main process
        return BadImage, (self.reason, self.where)


def read_image(
    source: str | os.PathLike | bytes | io.IOBase | dict | Image.Image | np.ndarray | torch.Tensor,
    target_size: int | None = None,
    where: str | None = None,
) -> Image.Image:
    """A picture as RGB (`to_rgb`), upright as its EXIF orientation says; an animation's first frame.

    Args:
        source: a path, the bytes of a file or an open one, either as `datasets.Image(decode=False)` gives them, a
            decoded picture, or its pixels: (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4 (RGBA). The type says
            what is white: True, 255 in uint8, 65535 in uint16, 1 in floats; other types are refused.
        target_size: side in pixels of the square that the picture will be resized to. A JPEG file is then decoded at
            1/2, 1/4 or 1/8 of its size as long as both sides keep as many pixels.
        where: names the image in errors; the path by default.

    Raises:
        BadImage: for each reason among this module's constants but `NOT_BASE64`.
    """
    if isinstance(source, dict):
        contents = source.get("bytes")
        source = source.get("path") if contents is None else contents
    if where is None:
        is_path = isinstance(source, str | os.PathLike)
        where = os.fsdecode(source) if is_path else type(source).__name__
    if source is None:
        raise BadImage(NO_IMAGE, where)
    contents = None
    try:
        if isinstance(source, np.ndarray | torch.Tensor):
            source = _image_of_pixels(source, where)
        if isinstance(source, Image.Image):
            return _decode(source, where)
        contents = _read_contents(source, where)
        with warnings.catch_warnings():  # Pillow's, at half of its own limit: ours is what counts
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(contents), formats=FORMATS)
        if opened.info.get("progressive") and (scans := contents.count(b"\xff\xda")) > MAX_SCANS:
            raise BadImage(BOMB, f"{where}, {scans} scans")
        with opened:
            return _decode(opened, where, draft_size=target_size or max(opened.size))
    except BadImage:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(BOMB, where) from error
    except Image.UnidentifiedImageError as error:
        raise BadImage(_why_unidentified(contents), where) from error
    except _DECODING_ERRORS as error:
        raise BadImage(DAMAGED, where) from error


def _why_unidentified(contents: bytes) -> str:
    """Why Pillow reads nothing in these bytes: their reader is missing, or they are damaged, or no image."""
    if contents[4:8] == b"ftyp":
        brands = {contents[start : start + 4] for start in (8, *range(16, min(64, contents[3]), 4))}
        if brands & {b"avif", b"avis"}:
            return DAMAGED if features.check("avif") else NO_AVIF
        if brands & _HEIC_BRANDS:
            return HEIC
    if contents.startswith(b"RIFF") and contents[8:12] == b"WEBP" and not features.check("webp"):
        return NO_WEBP
    if contents.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return JPEG_2000
    if contents.startswith((b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")):
        return JPEG_XL
    return DAMAGED if contents.startswith(_MAGIC) else NOT_AN_IMAGE


def _read_contents(source: str | os.PathLike | bytes | io.IOBase, where: str) -> bytes:
    """The bytes of an image file, neither none of them nor more than `MAX_BYTES`."""
    if isinstance(source, bytes | bytearray):
        size, contents = len(source), bytes(source)
    elif not (is_path := isinstance(source, str | os.PathLike)) and not hasattr(source, "read"):
        raise BadImage(NOT_A_SOURCE, where)
    elif is_path and not os.fspath(source):
        raise BadImage(EMPTY_PATH, where)
    else:
        try:
            # A pipe would wait for someone to write to it, and a device never end.
            if is_path and os.path.exists(source) and not os.path.isfile(source):
                raise BadImage(UNREADABLE, where)
            with open(source, "rb") if is_path else contextlib.nullcontext(source) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                contents = file.read() if size <= MAX_BYTES else b""
        except FileNotFoundError as error:
            raise BadImage(MISSING, where) from error
        except (OSError, ValueError) as error:  # ValueError: a null character in the path, or a closed file
            raise BadImage(UNREADABLE, where) from error
    if size > MAX_BYTES:
        raise BadImage(BOMB, where)
    if not contents:
        raise BadImage(EMPTY, where)
    return contents


def _image_of_pixels(pixels: np.ndarray | torch.Tensor, where: str) -> Image.Image:
    if isinstance(pixels, torch.Tensor):  # NumPy has no bfloat16
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy(force=True)
    shape, kind = pixels.shape, f"{pixels.dtype} of shape {pixels.shape}"
    if len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) >= MIN_SIDE:
        pixels = pixels[..., 0] if shape[2] == 1 else pixels
    elif len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) >= MIN_SIDE:
        pixels = pixels[0] if shape[0] == 1 else np.moveaxis(pixels, 0, 2)
    elif len(shape) != 2 or min(shape) < MIN_SIDE:
        raise BadImage(WRONG_SHAPE, f"{where}, {kind}")
    if math.prod(pixels.shape[:2]) > MAX_PIXELS:
        raise BadImage(BOMB, f"{where}, {kind}")
    if pixels.dtype == bool:
        levels = pixels * np.uint8(255)
    elif pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        levels = pixels >> 8 * (pixels.dtype.itemsize - 1)
    elif pixels.dtype.kind == "f":
        lowest, highest = pixels.min(), pixels.max()
        tolerance = 1 / 510  # rounded, it is half a level
        if not (lowest >= -tolerance and highest <= 1 + tolerance):  # nor is NaN
            raise BadImage(WRONG_RANGE, f"{where}, {kind} from {lowest:g} to {highest:g}")
        levels = np.multiply(pixels, 255, dtype=np.float32)
        levels = np.rint(levels, out=levels).clip(0, 255, out=levels)
    else:
        raise BadImage(WRONG_RANGE, f"{where}, {kind}")
    return Image.fromarray(np.ascontiguousarray(levels, dtype=np.uint8))


def _decode(image: Image.Image, where: str, draft_size: int | None = None) -> Image.Image:
    """See `read_image`. With `draft_size`, both sides keep so many pixels, and the image itself may shrink so far."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise BadImage(TOO_SMALL, where)
    # Whatever the scale it is decoded at: what passes one check must pass them all.
    if width * height > MAX_PIXELS * (2 if image.format in ("JPEG", "MPO") else 1):
        raise BadImage(BOMB, f"{where}, {width} × {height} pixels")
    if draft_size is not None:
        if width * height > MAX_PIXELS:
            draft_size = min(draft_size, min(width, height) // 2)
        image.draft(None, (draft_size, draft_size))
    image.load()
    orientation = None
    with contextlib.suppress(*_DECODING_ERRORS):  # of the camera's notes alone: the picture is then taken as it lies
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    picture = to_rgb(image)
    if orientation in _TURNS:
        picture = picture.transpose(_TURNS[orientation])
        picture.info = {}  # it is upright now, whoever reads it again
    return picture


def to_rgb(image: Image.Image) -> Image.Image:
    """
    A picture of any mode as RGB.

    Transparent parts become white, where the published code's `convert("RGB")` shows the colour stored below them,
    mostly black. 16-bit values keep their eight high bits.
    """
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255
        is_16_bit = image.mode.startswith("I;16")
        image = image.convert("I") if is_16_bit else image
        highest = image.getextrema()[1]
        scale = 1 / 256 if is_16_bit or highest > 255 else 255 if image.mode == "F" and highest <= 1 else 1
        transparent = image.info.get("transparency")  # the value of its transparent pixels
        image = _by_strips(image, "L", lambda strip: _scaled(strip, scale, transparent))
    if image.has_transparency_data:
        return _by_strips(image, "RGB", _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(strip: Image.Image, scale: float, transparent: int | None) -> Image.Image:
    values = np.asarray(strip, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("not all of its pixels are numbers")
    levels = (values * scale).clip(0, 255).astype(np.uint8)
    if transparent is not None:
        levels[values == transparent] = 255
    return Image.fromarray(levels)


def _on_white(strip: Image.Image) -> Image.Image:
    transparent = strip.info.get("transparency")
    if (
        isinstance(transparent, tuple) and max(transparent) > 255
    ):  # of 16 bits; Pillow keeps the pixels' eight high ones
        strip.info["transparency"] = tuple(value >> 8 for value in transparent)
    strip = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB")


def _by_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` applied to some rows of a picture at a time: what it needs on the way would be gigabytes for all."""
    result = Image.new(mode, image.size)
    rows = max(1, (1 << 20) // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(convert(strip), (0, top))
    return result


def decode_base64(text: str | bytes, where: str) -> bytes:
    """The bytes of a file that is stored as base64.

    Of either alphabet, in one line or many, padded or not, alone or as a `data:` URI.

    Raises:
        BadImage: it is no base64.
    """
    try:
        encoded = (text.encode("ascii") if isinstance(text, str) else text).lstrip()
        if encoded[:5].lower() == b"data:":
            kind, comma, encoded = encoded.partition(b",")
            if not comma or not kind.lower().rstrip().endswith(b";base64"):
                raise BadImage(NOT_BASE64, where)
            encoded = unquote_to_bytes(encoded)
        encoded = encoded.translate(_STANDARD_ALPHABET, b" \t\r\n\f\v").rstrip(b"=")
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise BadImage(NOT_BASE64, where) from error


def open_image(image, number: int) -> Image.Image:
    """`read_image`, of URLs too. Raises ValueError in one line."""
    text = os.fsdecode(image) if isinstance(image, str | os.PathLike) else ""
    # Without the credentials of a URL.
    where = re.sub(r"(?<=://)[^/?#]*@", "", text[:200]) if text else f"images[{number}]"
    try:
        if re.match("https?://", text, re.IGNORECASE):
            image = _fetch(text)
        elif text[:5].lower() == "data:":
            image = decode_base64(text, where)
        return read_image(image, where=where)
    except BadImage as error:
        reason = f"{error.reason}{error.where.removeprefix(where)}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
    raise ValueError(f"{where if where.isprintable() else repr(where)} cannot be read as a picture: {reason}")


def _fetch(url: str) -> bytes:
    """
    The contents of a URL: within `URL_SECONDS` in all, of `MAX_BYTES`, after `URL_REDIRECTS`, from public addresses.

    A server that takes URLs from strangers must not open for them what it alone can reach. So connections are made to
    the very addresses that were checked, and to no proxy, which would look up the name by itself.

    Raises:
        OSError, ValueError, http.client.HTTPException: says why there are none.
    """
    deadline = time.monotonic() + URL_SECONDS
    try:
        for _ in range(URL_REDIRECTS + 1):
            with contextlib.closing(_connect(url, deadline)) as connection:
                # Each read may take as long as a socket's timeout, and their number is the server's to choose.
                watch = threading.Timer(deadline - time.monotonic(), _hang_up, [connection.sock])
                watch.daemon = True
                watch.start()
                try:
                    contents, location = _get(connection, url)
                finally:
                    watch.cancel()
            if contents is not None:
                break
            url = urljoin(url, location)
        else:
            raise OSError(f"more than {URL_REDIRECTS} redirects")
    except (OSError, ValueError, http.client.HTTPException):
        if time.monotonic() < deadline:
            raise
    if time.monotonic() >= deadline:  # an answer of unknown length may have been cut off unseen
        raise TimeoutError(f"it did not arrive within {URL_SECONDS} seconds")
    return contents


def _connect(url: str, deadline: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it leads to what is no http or https URL")
    is_secure = parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(entry[4][0] for entry in found))
    if not all(map(is_public, addresses)):
        raise OSError("it is on a private network; download it and give the file")
    for number, address in enumerate(addresses):
        patience = max(0.01, (deadline - time.monotonic()) / (len(addresses) - number))
        try:
            connected = socket.create_connection((address, port), timeout=patience)
            break
        except OSError:
            if address == addresses[-1]:
                raise
    connected.settimeout(max(0.01, deadline - time.monotonic()))
    if is_secure:
        connection = http.client.HTTPSConnection(parts.hostname, port)
        connected = _tls().wrap_socket(connected, server_hostname=parts.hostname, do_handshake_on_connect=False)
    else:
        connection = http.client.HTTPConnection(parts.hostname, port)
    connection.sock = connected
    return connection


def _hang_up(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side did
        connected.shutdown(socket.SHUT_RDWR)


def _get(connection: http.client.HTTPConnection, url: str) -> tuple[bytes | None, str | None]:
    """The contents of a URL, or where it redirects to."""
    if isinstance(connection.sock, ssl.SSLSocket):
        connection.sock.do_handshake()
    parts = urlsplit(url)
    path = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe="%/?:@!$&'()*+,;=~")
    connection.request("GET", path, headers={"User-Agent": "ccrk", "Accept": "image/*"})
    answer = connection.getresponse()
    if answer.status in (301, 302, 303, 307, 308):
        return None, answer.headers["Location"] or ""
    if answer.status != 200:
        raise OSError(f"the server answers {answer.status} {answer.reason}")
    contents = bytearray()
    while block := answer.read(1 << 16):
        contents += block
        if len(contents) > MAX_BYTES:
            raise OSError(f"it has more than {MAX_BYTES:,} bytes")
    return bytes(contents), None


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def is_public(address: str) -> bool:
    """Whether an IP address is anybody's to reach: neither this machine's nor of a network behind it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:  # some of these stand for a version 4 address
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or inner or ip
    return ip.is_global and not ip.is_multicast


__all__ = ["BadImage", "decode_base64", "open_image", "read_image"]
