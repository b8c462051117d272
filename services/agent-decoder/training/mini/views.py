"""The two looks the model takes at a picture: the whole of it, and a crop of a box.

The runtime does exactly the same: convert to RGB, cut the box out if there is one, resize to
64 x 64 with PIL's BILINEAR filter, which averages when it reduces.
"""

import numpy as np
from cogitate.evals.boards import Box
from cogitate.evals.render import Pixels
from PIL import Image

VIEW_PX = 64
FILTER = Image.Resampling.BILINEAR
MEAN, STD = 0.5, 0.25


def whole_view(image: Image.Image) -> Pixels:
    """Returns the whole picture as (64, 64, 3)."""
    return np.asarray(image.convert("RGB").resize((VIEW_PX, VIEW_PX), FILTER), np.uint8)


def crop_view(image: Image.Image, box: Box) -> Pixels:
    """Returns the box, given in percent of width and height, as (64, 64, 3)."""
    x0, y0, x1, y1 = box
    width, height = image.size
    left, top = round(width * x0 / 100), round(height * y0 / 100)
    right, bottom = round(width * x1 / 100), round(height * y1 / 100)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    crop = image.convert("RGB").crop((left, top, right, bottom))
    return np.asarray(crop.resize((VIEW_PX, VIEW_PX), FILTER), np.uint8)
