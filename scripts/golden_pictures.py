"""Small files of every kind and what Pillow sees in them: tests/golden/decoded.

Usage: python scripts/golden_pictures.py        (needs pillow, numpy, opencv and safetensors; made with the versions that it prints)
What is stored is what the reference processors see: upright, as RGB, `ImageOps.exif_transpose(image).convert("RGB")`. Only of
16-bit grey it is the high byte: Pillow's conversion makes white of everything above 255.
"""

import io
import pathlib
import shutil
import struct
import zlib

import cv2
import numpy as np
import PIL
from PIL import Image, ImageOps, features
from safetensors.numpy import save_file

out = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "decoded"
shutil.rmtree(out, ignore_errors=True)
out.mkdir()
random = np.random.default_rng(0)


def scene(width, height):
    """Slopes, a saturated edge that falls on no block's edge, and some noise."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([255 * x / width, 255 * y / height, 255 - 127 * (x / width + y / height)], -1)
    rgb[(x - 0.6 * width) ** 2 + (y - 0.6 * height) ** 2 < (0.3 * height) ** 2] = [230, 20, 40]
    rgb[(x < 0.3 * width) & (y > 0.5 * height)] = [20, 30, 220]
    return np.clip(rgb + random.normal(0, 6, rgb.shape), 0, 255).astype(np.uint8)


def png16(values, colour):
    """A PNG of 16-bit channels; Pillow writes none in colour. `colour`: 2 is RGB, 6 is RGBA."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def coded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sampled(image, name):
    """A JPEG whose colour has less than the full height, or a quarter of the width: Pillow writes none."""
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}")
    pixels = np.array(image)[..., ::-1]
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])
    assert done
    return data.tobytes()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# Sides that no block divides; three rows of blocks also where colour has half the height.
picture = Image.fromarray(scene(37, 45))
small = Image.fromarray(scene(11, 7))
clear = small.copy()
clear.putalpha(Image.fromarray(random.integers(0, 256, (7, 11), dtype=np.uint8)))
palette = small.quantize(13)
deep = random.integers(0, 65536, (7, 11, 4), dtype=np.uint16)
jpeg = {"quality": 85, "optimize": True}
cmyk = coded(picture.convert("CMYK"), "JPEG", **jpeg)
# The last byte of Adobe's segment says whether the inks are coded as they are or as brightness and colour.
transform = cmyk.index(b"Adobe") + 11
files = {
    "444.jpg": coded(picture, "JPEG", subsampling="4:4:4", **jpeg),
    "422.jpg": coded(picture, "JPEG", subsampling="4:2:2", **jpeg),
    "420.jpg": coded(picture, "JPEG", subsampling="4:2:0", **jpeg),
    "420_even.jpg": coded(picture.crop((0, 0, 32, 32)), "JPEG", subsampling="4:2:0", **jpeg),
    "420_restart.jpg": coded(picture, "JPEG", subsampling="4:2:0", restart_marker_blocks=2, quality=85),
    "420_progressive.jpg": coded(picture, "JPEG", subsampling="4:2:0", progressive=True, **jpeg),
    "420_coarse.jpg": coded(picture, "JPEG", subsampling="4:2:0", quality=20, optimize=True),
    "444_progressive.jpg": coded(picture, "JPEG", subsampling="4:4:4", progressive=True, **jpeg),
    "420_tiny.jpg": coded(picture.crop((8, 20, 11, 25)), "JPEG", subsampling="4:2:0", **jpeg),
    "440.jpg": sampled(picture, "440"),
    "411.jpg": sampled(picture, "411"),
    "rgb.jpg": coded(picture, "JPEG", keep_rgb=True, **jpeg),
    "grey.jpg": coded(picture.convert("L"), "JPEG", **jpeg),
    "cmyk.jpg": cmyk,
    "ycck.jpg": cmyk[:transform] + b"\2" + cmyk[transform + 1 :],
    "lossy.webp": coded(picture, "WEBP", quality=75, method=6),
    "lossy_alpha.webp": coded(clear, "WEBP", quality=75, method=6),
    "lossless.webp": coded(picture, "WEBP", lossless=True, method=6),
    "lossless_alpha.webp": coded(clear, "WEBP", lossless=True, exact=True, method=6),
    "rgb.png": coded(small, "PNG", optimize=True),
    "rgba.png": coded(clear, "PNG", optimize=True),
    "grey.png": coded(small.convert("L"), "PNG", optimize=True),
    "grey_alpha.png": coded(clear.convert("LA"), "PNG", optimize=True),
    "one_bit.png": coded(small.convert("1"), "PNG", optimize=True),
    "palette.png": coded(palette, "PNG", transparency=bytes([0, 128] + [255] * 11), optimize=True),
    "grey16.png": coded(Image.fromarray(deep[..., 0]), "PNG", optimize=True),
    "rgb16.png": png16(deep[..., :3], 2),
    "rgba16.png": png16(deep, 6),
}
files |= {f"exif_{n}.jpg": coded(small, "JPEG", subsampling="4:4:4", exif=exif(n), **jpeg) for n in range(1, 9)}
files |= {f"exif_{n}.png": coded(small, "PNG", exif=exif(n)) for n in (5, 8)}
files |= {f"exif_{n}.webp": coded(small, "WEBP", lossless=True, exif=exif(n)) for n in (6, 7)}

seen = {}
for name, data in files.items():
    out.joinpath(name).write_bytes(data)
    image = Image.open(io.BytesIO(data))
    if image.mode == "I;16":
        seen[name] = np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, -1)
    else:
        seen[name] = np.ascontiguousarray(ImageOps.exif_transpose(image).convert("RGB"))
save_file(seen, out / "golden.safetensors")
versions = f"pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}, libwebp {features.version('webp')}"
out.joinpath("README.txt").write_text(
    f"decoded: small files and their pixels, u8 [height, width, 3], by file name. Made by scripts/golden_pictures.py ({versions}).\n"
    "Pixels are Pillow's: ImageOps.exif_transpose(image).convert(\"RGB\"); of grey16.png the high byte.\n"
)
print(versions, len(files), "files,", sum(map(len, files.values())), "bytes")
