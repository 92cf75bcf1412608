"""Pictures such as people take of a digit: made from MNIST's, drawn large on paper of some kind."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray
Scene = Callable[[Array, np.random.Generator], Image.Image]


def stroke(digit: Array, side: int, pen: float = 0.5) -> Array:
    """A digit of MNIST's as a pen's strokes, 0 to 1, float32 (side, side). A thin pen has a `pen`
    above a half, and a thick one below."""
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    soft = np.asarray(large.filter(ImageFilter.GaussianBlur(side / 40)), np.float32) / 255
    return np.clip((soft - pen) * side / 20 + 0.5, 0, 1)


def drawn(
    digit: Array,
    rng: np.random.Generator,
    size: tuple[int, int] = (600, 600),
    side: int = 400,
    at: tuple[int, int] | None = None,
    paper: float = 230,
    ink: float = 40,
    pen: float = 0.5,
    slope: float = 0,
    noise: float = 0,
) -> Array:
    """A digit on paper, float32 (height, width): brightness, which falls by `slope` over it."""
    width, height = size
    left, top = at or ((width - side) // 2, (height - side) // 2)
    covered = np.zeros((height, width), np.float32)
    covered[top : top + side, left : left + side] = stroke(digit, side, pen)
    y, x = np.mgrid[:height, :width]
    light = paper - slope * (x / width + y / height) / 2
    picture = light * (1 - covered) + ink * light / paper * covered
    return np.clip(picture + noise * rng.standard_normal(picture.shape), 0, 255)


def grey(picture: Array) -> Image.Image:
    return Image.fromarray(picture.astype(np.uint8))


def on_grey_paper(digit: Array, rng: np.random.Generator) -> Image.Image:
    return grey(drawn(digit, rng, paper=170, ink=60, noise=8))


def in_a_gradient(digit: Array, rng: np.random.Generator) -> Image.Image:
    return grey(drawn(digit, rng, paper=235, slope=150, noise=6))


def in_a_shadow(digit: Array, rng: np.random.Generator) -> Image.Image:
    picture = drawn(digit, rng, noise=4)
    y, x = np.mgrid[:600, :600]
    picture[x + y / 3 > 420] *= 0.65
    return grey(picture).filter(ImageFilter.GaussianBlur(3))


def on_rotated_paper(digit: Array, rng: np.random.Generator) -> Image.Image:
    """White paper, turned by 8 degrees, on a dark table."""
    paper = grey(drawn(digit, rng, size=(500, 500), side=340, noise=4))
    turned = paper.convert("RGBA").rotate(8, Image.Resampling.BICUBIC, expand=True)
    table = Image.new("RGBA", turned.size, (50, 40, 35, 255))
    table.alpha_composite(turned)
    return table.convert("RGB")


def with_a_thin_pen(digit: Array, rng: np.random.Generator) -> Image.Image:
    return grey(drawn(digit, rng, pen=0.6, noise=3))


def with_a_thick_pen(digit: Array, rng: np.random.Generator) -> Image.Image:
    return grey(drawn(digit, rng, pen=0.25, noise=3))


def in_pencil(digit: Array, rng: np.random.Generator) -> Image.Image:
    return grey(drawn(digit, rng, paper=225, ink=160, pen=0.65, noise=5))


def in_dark_mode(digit: Array, rng: np.random.Generator) -> Image.Image:
    return grey(drawn(digit, rng, size=(300, 500), side=200, paper=18, ink=235))


def small_in_a_large_photo(digit: Array, rng: np.random.Generator) -> Image.Image:
    picture = grey(drawn(digit, rng, (1200, 900), 220, (850, 80), paper=200, slope=60, noise=10))
    return picture.filter(ImageFilter.GaussianBlur(2))


def on_squared_paper(digit: Array, rng: np.random.Generator) -> Image.Image:
    paper = grey(drawn(digit, rng, ink=30, noise=3))
    lines = Image.new("L", paper.size, 255)
    draw = ImageDraw.Draw(lines)
    for at in range(20, 600, 40):
        draw.line((at, 0, at, 600), fill=215, width=2)
        draw.line((0, at, 600, at), fill=215, width=2)
    return grey(np.asarray(paper) * (np.asarray(lines) / 255.0))


SCENES: dict[str, Scene] = {
    "grey paper": on_grey_paper,
    "gradient": in_a_gradient,
    "shadow": in_a_shadow,
    "rotated paper": on_rotated_paper,
    "thin pen": with_a_thin_pen,
    "thick pen": with_a_thick_pen,
    "pencil": in_pencil,
    "dark mode": in_dark_mode,
    "large photo": small_in_a_large_photo,
    "squared paper": on_squared_paper,
}
