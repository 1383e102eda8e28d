"""Pictures of every kind become the pixels a person sees; what is no picture is named as what it is."""

import numpy as np
import pytest
from picture_world import bomb, noise, picture_bytes
from PIL import Image

from storyrec.features.pictures import BrokenPicture, decode_picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


def decode(content: bytes, *, size: tuple[int, int] = (32, 32), max_pixels: int = 10_000_000) -> np.ndarray:
    pixels = decode_picture(content, height=size[0], width=size[1], max_pixels=max_pixels)
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    return pixels.astype(int)


def halves(left: tuple[int, ...], right: tuple[int, ...]) -> Image.Image:
    picture = Image.new("RGB", (64, 64), left)
    picture.paste(right, (32, 0, 64, 64))
    return picture


def test_a_picture_of_the_right_size_is_taken_as_it_is() -> None:
    picture = noise(1)
    for kind, options in (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        assert (decode(picture_bytes(picture, kind, **options)) == np.asarray(picture)).all()


def test_a_jpeg_is_near_its_picture() -> None:
    pixels = decode(picture_bytes(halves(RED, BLUE), "JPEG", quality=95))
    assert np.abs(pixels[:, 2:14] - RED).max() < 12
    assert np.abs(pixels[:, 18:30] - BLUE).max() < 12


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    smooth = noise(2, side=6).resize((1600, 1600), Image.Resampling.BICUBIC)
    by_png, by_jpeg = decode(picture_bytes(smooth)), decode(picture_bytes(smooth, "JPEG", quality=95))
    assert np.abs(by_png - by_jpeg).mean() < 2


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (40, 40), 77), (77, 77, 77)),
        (Image.new("1", (40, 40), 1), (255, 255, 255)),
        (Image.fromarray(np.full((40, 40), 77 * 256 + 5, np.uint16)), (77, 77, 77)),
        (Image.new("RGBA", (40, 40), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (40, 40), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("LA", (40, 40), (0, 51)), (204, 204, 204)),
        (Image.new("RGB", (40, 40), BLUE).quantize(4), BLUE),
    ],
    ids=["grey", "bits", "16 bits", "transparent", "translucent", "grey with alpha", "palette"],
)
def test_other_kinds_of_pixels(picture: Image.Image, expected: tuple[int, ...]) -> None:
    assert np.abs(decode(picture_bytes(picture)) - expected).max() <= 1


def test_a_palette_with_a_transparent_colour_is_white_there() -> None:
    picture = halves(RED, BLUE).quantize(2)
    content = picture_bytes(picture, transparency=picture.getpixel((0, 0)))
    pixels = decode(content, size=(64, 64))
    assert (pixels[:, :31] == 255).all()
    assert (pixels[:, 33:] == BLUE).all()


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    cyan = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    assert np.abs(decode(picture_bytes(cyan, "JPEG", quality=95)) - (0, 255, 255)).max() < 6


def test_exif_turns_a_picture_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left is up
    for kind in ("JPEG", "PNG"):
        pixels = decode(picture_bytes(halves(RED, BLUE), kind, exif=exif))
        assert np.abs(pixels[2:14] - RED).max() < 12
        assert np.abs(pixels[18:30] - BLUE).max() < 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_no_fault_of_the_picture() -> None:
    content = picture_bytes(noise(3), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode(content).std() > 10


def test_the_centre_of_a_wide_picture_counts() -> None:
    picture = Image.new("RGB", (96, 32), RED)
    picture.paste(BLUE, (32, 0, 64, 32))
    assert (decode(picture_bytes(picture)) == BLUE).all()
    assert (decode(picture_bytes(picture.rotate(90, expand=True))) == BLUE).all()
    assert (decode(picture_bytes(picture), size=(16, 48))[:, :15] == RED).all()


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (BLUE, RED)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        content = picture_bytes(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode(content) == BLUE).all()


JPEG = picture_bytes(noise(4, side=64), "JPEG")
PNG = picture_bytes(noise(4, side=64))


@pytest.mark.parametrize(
    ("content", "rule", "found"),
    [
        (b"", "picture_format", "0 bytes"),
        (b"hello, I am a text", "picture_format", "18 bytes that begin with b'hello, I'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "picture_format", "%!PS"),
        (JPEG[: len(JPEG) // 2], "picture_whole", "truncated"),
        (PNG[: len(PNG) // 2], "picture_whole", "truncated"),
        (bomb(60_000, 60_000), "picture_pixels", "3600000000 pixels"),
        (bomb(10_000, 10_000), "picture_pixels", "10"),
        (bomb(4_000, 2_501), "picture_pixels", "4000 x 2501 pixels"),
    ],
    ids=["empty", "text", "postscript", "cut jpeg", "cut png", "bomb", "small bomb", "one row too many"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_whole_picture_is_named(content: bytes, rule: str, found: str) -> None:
    with pytest.raises(BrokenPicture) as caught:
        decode(content)
    assert caught.value.rule == rule
    assert found in caught.value.found


def test_the_largest_allowed_picture_is_decoded() -> None:
    assert decode(picture_bytes(noise(5, side=100)), max_pixels=10_000).std() > 1
    with pytest.raises(BrokenPicture, match="100 x 100 pixels"):
        decode(picture_bytes(noise(5, side=100)), max_pixels=9_999)
