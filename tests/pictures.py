"""Image files made byte by byte, where no library writes what is asked for: PNG, TIFF and colour profiles."""

import struct
import zlib

import numpy as np

_TYPES = {"H": 3, "I": 4, "h": 8, "i": 9, "f": 11}


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows [H, W] of `bits` bits a value, the first in the highest bits, each row padded to whole bytes."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((values[..., None] >> places & 1).reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def png(values: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """`values` [H, W] or [H, W, C]; `chunks` go before the pixels."""
    height, width = values.shape[:2]
    rows = packed(values.reshape(height, -1), bits)
    stride = len(rows) // height
    body = b"".join(b"\0" + rows[row * stride :][:stride] for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    all_chunks = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in all_chunks
    )


def tiff(
    values: np.ndarray, order: str = "<", *, bits: int = 0, photometric: int = 1, form: int = 1, zipped=False, **tags
) -> bytes:
    """`values` [H, W] or [H, W, C]; `form` is 1, 2, 3: unsigned, signed, floats; more tags as `t281=("H", 4095)`."""
    height, width, channels = (*values.shape, 1)[:3]
    data = packed(values, bits) if bits else values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if zipped else data
    bits = bits or values.dtype.itemsize * 8
    entries = {256: ("I", width), 257: ("I", height), 259: ("H", 8 if zipped else 1), 262: ("H", photometric)}
    entries |= {258: ("H", *[bits] * channels), 339: ("H", *[form] * channels), 277: ("H", channels)}
    entries |= {273: ("I", 8), 278: ("I", height), 279: ("I", len(data))}
    entries |= {int(name[1:]): held for name, held in tags.items()}
    start = 8 + len(data)
    pool, table = b"", b""
    for number, (kind, *held) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(held)}{kind}", *held).ljust(4, b"\0")
        if len(content) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(pool)
            pool, content = pool + content, struct.pack(f"{order}I", place)
        table += struct.pack(f"{order}HHI", number, _TYPES[kind], len(held)) + content
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + data + struct.pack(f"{order}H", len(entries)) + table + bytes(4) + pool


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def _profile(space: bytes, kind: bytes, between: bytes, tags: dict[bytes, bytes]) -> bytes:
    place, table, pool = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", place + len(pool), len(content))
        pool += content.ljust(-(-len(content) // 4) * 4, b"\0")
    size = struct.pack(">I", place + len(pool))
    header = size + bytes(4) + b"\x02\x40\0\0" + kind + space + between + bytes(12) + b"acsp" + bytes(28)
    return (header + _fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + table + pool


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _xyz(*numbers: float) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*numbers)


def rgb_profile(primaries: np.ndarray, gamma: float) -> bytes:
    """Of a display with these primaries, rows of XYZ relative to D50, and this gamma."""
    tags = {b"wtpt": _xyz(0.9642, 1, 0.8249)}
    for name, primary in zip("rgb", primaries, strict=True):
        tags |= {f"{name}XYZ".encode(): _xyz(*primary), f"{name}TRC".encode(): _curve(gamma)}
    return _profile(b"RGB ", b"mntr", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": _xyz(0.9642, 1, 0.8249), b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """In which black ink takes away from L* what there is of it, and the other inks do nothing."""
    identity = bytes(range(256))
    corners = [bytes([0 if corner & 1 else 255, 128, 128]) for corner in range(16)]  # K is the last, so changes fastest
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += identity * 4 + b"".join(corners) + identity * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": _xyz(0.9642, 1, 0.8249), b"A2B0": table})
