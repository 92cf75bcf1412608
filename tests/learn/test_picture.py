"""Pictures of any kind become images like MNIST's, or are refused in a sentence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_ray.errors import UserError
from mnist_ray.learn import picture
from mnist_ray.learn.data import Mnist


@pytest.fixture(scope="module")
def seven(mnist: Mnist) -> np.ndarray:
    """The first test image, a 7, ten times as large, light on dark."""
    return np.kron(mnist.test_images[0], np.ones((10, 10), np.uint8))


def look(image: Image.Image, path: Path, **options: object) -> picture.Digit:
    image.save(path, **options)
    return picture.digit(picture.read(str(path)))


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two images show the same digit."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) > 0.9


def test_an_image_of_mnists_is_left_as_it_is(mnist: Mnist, tmp_path: Path) -> None:
    unlike = doubted = 0
    for image in mnist.test_images[:300]:
        found = look(Image.fromarray(image), tmp_path / "a.png")
        unlike += np.abs(found.image.astype(int) - image).max() > 16
        doubted += bool(found.doubt)
    assert unlike <= 3
    assert doubted <= 2


def turned(image: np.ndarray) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    return exif


def test_every_kind_of_file_shows_the_same_digit(
    seven: np.ndarray, mnist: Mnist, tmp_path: Path
) -> None:
    grey = Image.fromarray(seven)
    dark = Image.fromarray(255 - seven)
    clear = Image.new("LA", grey.size)
    clear.putalpha(grey)  # black on nothing
    white = Image.merge("RGBA", [Image.new("L", grey.size, 255)] * 3 + [grey])
    corners = dark.convert("RGBA")
    corners.paste((0, 0, 0, 0), (0, 0, 20, 20))
    sixteen = Image.fromarray(seven.astype(np.uint16) * 257)
    cmyk = Image.merge("CMYK", [Image.new("L", grey.size)] * 3 + [grey])
    rotated = dark.rotate(90)
    palette = dark.convert("RGB").quantize(8)
    see_through = clear.convert("RGBA").quantize(8)
    kinds: dict[str, tuple[Image.Image, dict]] = {
        "light.png": (grey, {}),
        "dark.png": (dark, {}),
        "black on nothing.png": (clear, {}),
        "white on nothing.png": (white, {}),
        "corners.png": (corners, {}),
        "16 bits.png": (sixteen, {}),
        "bits.png": (dark.convert("1", dither=Image.Dither.NONE), {}),
        "palette.png": (palette, {}),
        "see-through palette.png": (see_through, {}),
        "grey.jpg": (dark, {"quality": 40}),
        "cmyk.jpg": (cmyk, {"quality": 90}),
        "turned.jpg": (rotated, {"exif": turned(seven)}),
        "named.png": (dark, {"format": "JPEG"}),
    }
    for name, (image, options) in kinds.items():
        found = look(image, tmp_path / name, **options)
        assert near(found.image, mnist.test_images[0]), name
        assert not found.doubt, name


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 3), (5000, 2), (28, 28)])
def test_a_blank_picture_of_any_size_is_said_to_be_blank(
    size: tuple[int, int], tmp_path: Path
) -> None:
    for shade in (0, 128, 255):
        found = look(Image.new("L", size, shade), tmp_path / "a.png")
        assert found.doubt == "it is blank"
        assert found.image.shape == (28, 28)
        assert not found.image.any()


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (2, 2), (3, 5), (1, 500), (900, 3)])
def test_any_tiny_or_narrow_picture_makes_an_image(size: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        noise = rng.integers(0, 256, size[::-1], dtype=np.uint8)
        found = look(Image.fromarray(noise), tmp_path / "a.png")
        assert found.image.shape == (28, 28)
        assert found.image.dtype == np.uint8


def test_what_is_no_digit_is_doubted(seven: np.ndarray, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    square = np.zeros((300, 300), np.uint8)
    square[60:240, 60:240] = 255
    dots = np.zeros((300, 300), np.uint8)
    for x in range(50, 300, 100):
        for y in range(50, 300, 100):
            dots[y : y + 30, x : x + 30] = 255
    shapes = {
        "filled": square,
        "pieces": dots,
        "side by side": np.hstack([seven, seven]),
        "blank": rng.normal(128, 10, (300, 300)).clip(0, 255).astype(np.uint8),
    }
    for doubt, shape in shapes.items():
        assert doubt in look(Image.fromarray(shape), tmp_path / "a.png").doubt


def huge_png() -> bytes:
    """A PNG file of a few bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content


def test_bad_files_are_refused_in_a_sentence(seven: np.ndarray, tmp_path: Path) -> None:
    def saved(form: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray(seven).save(file, form)
        return file.getvalue()

    animated = io.BytesIO()
    frames = [Image.fromarray(seven), Image.fromarray(255 - seven)]
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    png, jpeg = saved("PNG"), saved("JPEG")
    bad = {
        "empty.png": (b"", "is neither a PNG nor a JPEG file"),
        "text.png": (b"A seven.\n", "is neither a PNG nor a JPEG file"),
        "animated.png": (animated.getvalue(), "is neither a PNG nor a JPEG file"),
        "a.webp": (saved("WEBP"), "is neither a PNG nor a JPEG file"),
        "a.bmp": (saved("BMP"), "is neither a PNG nor a JPEG file"),
        "short.png": (png[: len(png) // 2], "is damaged"),
        "short.jpg": (jpeg[: len(jpeg) // 2], "is damaged"),
        "flipped.png": (png[:60] + bytes([png[60] ^ 255]) + png[61:], "is damaged"),
        "huge.png": (huge_png(), "has more than 89 million pixels"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    says = {name: text for name, (_, text) in bad.items()}
    says |= {"folder.png": "cannot be read: Is a directory", "none.png": "cannot be read: No such"}
    for name, text in says.items():
        with pytest.raises(UserError, match=f"image .*{name} {text}") as refused:
            picture.read(str(tmp_path / name))
        assert "\n" not in str(refused.value)


def test_a_digit_that_fills_its_picture_is_kept(seven: np.ndarray, mnist: Mnist) -> None:
    rows, columns = np.flatnonzero(seven.any(1)), np.flatnonzero(seven.any(0))
    tight = seven[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    assert near(picture.digit(tight).image, mnist.test_images[0])
    assert near(picture.digit(255 - tight).image, mnist.test_images[0])


@pytest.mark.parametrize("side", [40, 100, 1000])
def test_a_digit_is_found_however_small_it_is_in_its_picture(
    side: int, seven: np.ndarray, mnist: Mnist
) -> None:
    small = Image.fromarray(seven).resize((side, side), Image.Resampling.BOX)
    paper = Image.new("L", (1000, 1000), 255)
    paper.paste(Image.eval(small, lambda value: 255 - value), (0, 0))
    found = picture.digit(np.asarray(paper, np.float32))
    assert near(found.image, mnist.test_images[0])
    assert not found.doubt


def test_the_box_fits_20_pixels_and_the_centre_of_mass_is_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28]
    for _ in range(50):
        high, wide, top, left = rng.integers([20, 20, 5, 5], [200, 200, 90, 90])
        shape = np.zeros((300, 300), np.float32)
        shape[top : top + high, left : left + wide] = 200
        image = picture.digit(shape).image.astype(float)
        extent = max(np.ptp(np.flatnonzero(image.any(axis))) + 1 for axis in (0, 1))
        assert extent == 20
        for at in (y, x):
            assert abs((at * image).sum() / image.sum() - 14) <= 0.51
