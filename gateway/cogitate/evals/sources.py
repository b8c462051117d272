"""What the digits on a card are drawn with: font files and handwritten scans, split for evaluation.

Held-out fonts and scans are never shown to the model in training; training code excludes exactly
`HELD_OUT_FONTS` and the scans of `held_out_scans`.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

HELD_OUT_FONTS = (
    ("font_caladea", "Caladea-Regular.ttf"),
    ("font_caladea", "Caladea-Bold.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Regular.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Semibold.ttf"),
    ("font_hanken_grotesk", "HankenGrotesk-Regular.otf"),
    ("font_hanken_grotesk", "HankenGrotesk-SemiBold.otf"),
    ("font_manrope", "Manrope-Regular.ttf"),
    ("font_manrope", "Manrope-Bold.ttf"),
    ("font_fjallaone", "FjallaOne-Regular.ttf"),
)
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 0


class MissingEvalExtra(ImportError):
    """Raised when a package of the `eval` extra is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"{package} is missing: pip install 'cogitate[eval]'")


@dataclass(frozen=True)
class Scans:
    """Handwritten digits: `images` (N, 8, 8) uint8 with ink 255, `labels` (N,) int 0..9."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """The fonts and scans one set of cards is drawn with."""

    fonts: tuple[Path, ...]
    scans: Scans


def package_directory(module: str) -> Path:
    """Returns the folder of an installed package without importing it; raises MissingEvalExtra."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingEvalExtra(module.replace("_", "-"))
    return Path(spec.origin).parent


@cache
def _scans() -> Scans:
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingEvalExtra("scikit-learn") from error
    digits = load_digits()
    images = np.asarray(digits.images / 16 * 255, dtype=np.uint8)
    return Scans(images, np.asarray(digits.target, dtype=np.int64))


def _scan_part(held_out: bool) -> Scans:
    scans = _scans()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(scans.labels))
    count = round(HELD_OUT_SHARE * len(order))
    chosen = order[:count] if held_out else order[count:]
    return Scans(scans.images[chosen], scans.labels[chosen])


def held_out_scans() -> Scans:
    """Returns the fixed fifth of scikit-learn's digits that is kept for evaluation."""
    return _scan_part(held_out=True)


def training_scans() -> Scans:
    """Returns the other four fifths."""
    return _scan_part(held_out=False)


def held_out_source() -> Source:
    """Returns the source every evaluation picture is drawn with; raises MissingEvalExtra."""
    fonts = tuple(package_directory(module) / "files" / file for module, file in HELD_OUT_FONTS)
    return Source(fonts, held_out_scans())
