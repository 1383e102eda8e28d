"""From the bytes of a picture's file to the pixels that a network takes. The bytes are not trusted."""

import contextlib
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

UInt8s = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # decoded by Pillow itself: no other program is started


class BrokenPicture(Exception):
    """A picture that will not become a cover: the rule of `covers.PICTURE_RULES` it breaks, and what was found."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(f"{rule}: {found}")
        self.rule, self.found = rule, found


def decode_picture(content: bytes, *, height: int, width: int, max_pixels: int) -> UInt8s:
    """Decode a picture, upright, and cut its centre to a size.

    The shorter side is fitted and the longer one cropped; transparency becomes white; of an animation
    the first frame counts.

    Args:
        content: the file.
        height, width: of what comes out, pixels.
        max_pixels: of the picture as its header states them; a larger one is not decoded.

    Returns:
        [height, width, 3] uint8, red, green, blue.

    Raises:
        BrokenPicture: it is no picture, not whole or too large.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise BrokenPicture("picture_pixels", f"{picture.width} x {picture.height} pixels")
            picture.draft("RGB", (2 * width, 2 * height))  # a JPEG is decoded no larger than it will be needed
            upright: Image.Image = picture
            with contextlib.suppress(Exception):  # damaged EXIF data is no fault of the picture
                upright = ImageOps.exif_transpose(picture)
            return np.asarray(_fitted(upright, size=(width, height)))
    except UnidentifiedImageError:
        raise BrokenPicture("picture_format", f"{len(content):,} bytes that begin with {content[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenPicture("picture_pixels", str(error)) from None
    except (BrokenPicture, MemoryError):
        raise
    except Exception as error:  # the decoders' exceptions have no common base
        raise BrokenPicture("picture_whole", f"{type(error).__name__}: {error}") from None


def _fitted(picture: Image.Image, *, size: tuple[int, int]) -> Image.Image:
    """The centre of a picture at a size, in RGB."""
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 8
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    is_opaque = not picture.has_transparency_data
    fitted = ImageOps.fit(picture.convert("RGB" if is_opaque else "RGBA"), size, method=Image.Resampling.BICUBIC)
    if is_opaque:
        return fitted
    white = Image.new("RGBA", size, "white")
    white.alpha_composite(fitted)
    return white.convert("RGB")
