"""Pictures of digits, PNG or JPEG files of any size, made into images like MNIST's own.

MNIST's images were made the same way: each digit's box was scaled to 20 x 20 pixels, keeping its
aspect ratio, and its centre of mass was put into the centre of 28 x 28 pixels
(http://yann.lecun.com/exdb/mnist, and LeCun et al., Proc. IEEE 86, 1998, p. 2278).
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from mnist_ray.errors import UserError, reason
from mnist_ray.storage import place

SIDE, BOX = 28, 20
"""Side of an image of MNIST's and of the box that its digit fits into, in pixels."""

LARGEST = 1024
"""Longest side, in pixels, at which a picture is looked at. A larger one is scaled down."""

FORMATS = ("PNG", "JPEG")

CONTRAST = 16
"""Least contrast of ink to its paper, of 255."""
SHADE = 100
"""Most by which a shadow changes the paper, of 255; what differs more is not the paper."""
SPECK = 0.03
"""A piece with a smaller share of the ink than this is dirt."""
THIN = 2.0
"""Width of MNIST's thin strokes, in pixels."""

Array = np.ndarray


class Digit(NamedTuple):
    """An image as the network takes it, uint8 (28, 28), light on dark. `doubt` says why its picture
    may show no digit; it is empty if nothing speaks against one."""

    image: Array
    doubt: str


def read(name: str) -> Array:
    """Return the picture in a PNG or JPEG file, by its path or URI, as float32 (h, w): brightness,
    0 to 255, at most 1,024 pixels a side. Raises UserError if it cannot be read."""
    file = place("image", name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"image {name} cannot be read: {reason(error)}.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            picture.draft("RGB", (LARGEST, LARGEST))  # a large JPEG is decoded at half its size
            return _brightness(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise UserError(f"image {name} is neither a PNG nor a JPEG file.") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(
            f"image {name} has more than {most} million pixels; scale it down."
        ) from None
    except Exception:  # damaged bytes raise many kinds
        raise UserError(f"image {name} is damaged: it cannot be decoded.") from None


def _brightness(picture: Image.Image) -> Array:
    """Return the brightness of a picture, float32 (h, w), with its transparent parts filled."""
    picture.load()
    if picture.mode.startswith("I"):  # 16 bits; Pillow would cut off what is above 255
        return np.asarray(_reduced(Image.fromarray(np.asarray(picture, np.float32) / 257)))
    if not picture.has_transparency_data:
        return np.asarray(_reduced(picture.convert("RGB").convert("L")), np.float32)
    picture = _reduced(picture.convert("RGBA"))
    opaque = np.asarray(picture.getchannel("A"), np.float32) / 255
    grey = np.asarray(picture.convert("RGB").convert("L"), np.float32)
    visible = grey[opaque > 0.5]
    if visible.size > opaque.size / 2 and visible.var() > 100:
        fill = float(np.median(visible))  # a picture with see-through corners
    else:
        # The ink is drawn on nothing, in black or in white.
        fill = 255.0 if np.average(grey, weights=opaque + 1e-6) < 128 else 0.0
    return np.asarray(opaque * grey + (1 - opaque) * fill, np.float32)


def _reduced(picture: Image.Image) -> Image.Image:
    """Return the picture with at most LARGEST pixels a side."""
    ratio = LARGEST / max(picture.size)
    if ratio >= 1:
        return picture
    width, height = (max(1, round(ratio * side)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def digit(grey: Array) -> Digit:
    """Return the digit in a picture, dark on light or light on dark, given as brightness, 0 to 255,
    (h, w)."""
    ink = _ink(grey)
    if ink is None:
        return Digit(np.zeros((SIDE, SIDE), np.uint8), "it is blank")
    image = _centred(_scaled(_thick_enough(_cropped(ink))))
    return Digit(np.rint(255 * image).astype(np.uint8), _doubt(image))


def _ink(grey: Array) -> Array | None:
    """Return how much ink is in each pixel, 0 to 1, or None if there is none anywhere."""
    above = grey - _paper(grey)
    noise = 1.4826 * float(np.median(np.abs(above - np.median(above))))
    # Ink is darker or lighter than the paper: whichever stands out more.
    dark, light = (_strokes(np.clip(sign * above, 0, None), noise) for sign in (-1, 1))
    contrast, ink = max(dark, light, key=lambda found: found[0])
    return ink if contrast else None


def _paper(grey: Array) -> Array:
    """Return the brightness of the paper at each pixel: the median of a window as large as the
    picture, which follows shadows but not strokes. It is computed at a small size."""
    height, width = grey.shape
    ratio = min(1, 48 / max(grey.shape))
    size = max(1, round(ratio * width)), max(1, round(ratio * height))
    small = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))
    paper = ndimage.median_filter(small, max(small.shape), mode="nearest")
    middle = np.median(small)
    paper = np.where(np.abs(paper - middle) > SHADE, middle, paper)
    return np.asarray(Image.fromarray(paper).resize((width, height), Image.Resampling.BILINEAR))


def _strokes(above: Array, noise: float) -> tuple[float, Array]:
    """Return the strongest contrast in `above`, the contrast to the paper from 0 up, and the ink as
    a share of it: the strokes with their soft edges. The contrast is 0 if there is no ink."""
    above = above.copy()
    for _ in range(3):  # what stands at the corners may hide fainter things there
        full = float(np.quantile(above, 1 - min(0.001, 50 / above.size)))
        if full < max(CONTRAST, 5 * noise):
            return 0.0, above
        parts, count = ndimage.label(above >= full / 2, np.ones((3, 3)))
        mass = ndimage.sum_labels(above, parts, range(1, count + 1))
        corners = np.unique(parts[[0, 0, -1, -1], [0, -1, 0, -1]])
        beside = np.isin(range(1, count + 1), corners)
        # What fills a corner is the table beside the paper, if anything else is there.
        if not beside.any() or mass[~beside].sum() < SPECK / 10 * mass.sum():
            break
        above[_near(np.isin(parts, corners[corners > 0]), 3)] = 0
    kept = np.isin(parts, 1 + np.flatnonzero(mass >= SPECK * mass.max()))
    rows, columns = (np.flatnonzero(kept.any(axis)) for axis in (1, 0))
    box = max(np.ptp(rows), np.ptp(columns)) + 1
    near = _near(kept, max(3, box / 6))
    elsewhere = above[~near]
    dirt = float(np.quantile(elsewhere, 0.99)) if elsewhere.size else 0.0
    # A small digit's edge is mostly soft, as MNIST's are; a large one's is ringing and blur.
    floor = max(min(dirt, full / 2), full * min(box / BOX / 64, 0.25))
    soft, _ = ndimage.label(above > floor, np.ones((3, 3)))
    strokes = near & np.isin(soft, np.unique(soft[kept]))
    return full, np.where(strokes, np.minimum(above / full, 1), 0)


def _near(mask: Array, distance: float) -> Array:
    """Return whether each pixel is at most `distance` pixels from one of `mask`."""
    return np.asarray(ndimage.distance_transform_edt(~mask) <= distance)


def _cropped(ink: Array) -> Array:
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thick_enough(ink: Array) -> Array:
    """Return the ink, with its strokes thickened if they would be thinner than MNIST's thin strokes
    once the ink is scaled to MNIST's size."""
    wide = np.pad(ink, 1) >= 0.5
    outline = wide & ~ndimage.binary_erosion(wide, np.ones((3, 3)))
    width = 2 * wide.sum() / max(outline.sum(), 1)
    missing = THIN * max(ink.shape) / BOX - width
    if missing < 1:
        return ink
    ink = np.pad(ink, int(np.ceil(missing / 2)))
    distance = ndimage.distance_transform_edt(ink < 0.5)
    return np.asarray(np.maximum(ink, np.clip(missing / 2 + 0.5 - distance, 0, 1)))


def _scaled(ink: Array) -> Array:
    """Return the ink scaled to a longest side of BOX pixels."""
    height, width = ink.shape
    ratio = BOX / max(ink.shape)
    size = max(1, round(ratio * width)), max(1, round(ratio * height))
    if size == (width, height):
        return ink
    picture = Image.fromarray(ink.astype(np.float32))
    scaled = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return np.asarray(np.clip(scaled, 0, 1))


def _centred(ink: Array) -> Array:
    """Return the ink within SIDE x SIDE pixels, its centre of mass in their centre."""
    image = np.zeros((SIDE, SIDE), np.float32)
    corner = []
    for side, centre in zip(ink.shape, ndimage.center_of_mass(ink), strict=True):
        corner.append(min(max(round(SIDE / 2 - centre), 0), SIDE - side))
    image[corner[0] : corner[0] + ink.shape[0], corner[1] : corner[1] + ink.shape[1]] = ink
    return image


def _doubt(image: Array) -> str:
    """Return why an image, 0 to 1, may show no digit; empty if nothing speaks against one. Of
    MNIST's own images, fewer than one in 500 are doubted."""
    if image.mean() > 0.35:  # the fullest of MNIST's has 0.344
        return "it is filled"
    parts, count = ndimage.label(image >= 0.25, np.ones((3, 3)))
    total = image.sum()
    pieces = ndimage.sum_labels(image, parts, range(1, count + 1)) > 0.02 * total
    if pieces.sum() > 3:
        return f"it is in {pieces.sum()} pieces"
    gaps = np.flatnonzero(image.max(axis=0) < 0.25)
    left = np.cumsum(image.sum(axis=0))[gaps] / total
    if np.any((left > 0.1) & (left < 0.9)):
        return "there are several things side by side"
    return ""
