"""Finds the fonts the training cards are printed with; held-out families never appear here."""

from functools import cache
from pathlib import Path

from cogitate.evals.sources import (
    HELD_OUT_FONTS,
    MissingEvalExtra,
    Source,
    package_directory,
    training_scans,
)
from fontTools.ttLib import TTFont

PACKAGES = (
    "font_amatic_sc",
    "font_fredoka_one",
    "font_intuitive",
    "font_lato",
    "font_roboto",
    "font_source_sans_pro",
)
SYSTEM_DIRECTORY = Path("/usr/share/fonts")
# Symbol fonts, fonts of keyboard keys and weights too thin to survive the drawing size.
EXCLUDED = ("symbol", "d050000l", "_k.", "math", "thin", "extralight", "z003", "lastresort")


def _families_held_out() -> tuple[str, ...]:
    return tuple({file.split("-")[0].lower() for _, file in HELD_OUT_FONTS})


def _has_digits(path: Path) -> bool:
    """Tells whether the font maps all ten Latin digits."""
    with TTFont(path, lazy=True) as font:
        return set(range(0x30, 0x3A)) <= set(font.getBestCmap() or ())


def is_usable(path: Path) -> bool:
    """Tells whether a file may be used for training, judged by its name alone."""
    name = path.name.lower()
    return not any(part in name for part in (*EXCLUDED, *_families_held_out()))


@cache
def training_fonts() -> tuple[Path, ...]:
    """Returns every usable font of the listed pip packages and of the system, sorted by name."""
    paths: list[Path] = []
    for package in PACKAGES:
        try:
            paths += (package_directory(package) / "files").glob("*.[to]tf")
        except MissingEvalExtra:
            continue
    paths += SYSTEM_DIRECTORY.rglob("*.[to]tf")
    usable = [path for path in paths if is_usable(path) and _has_digits(path)]
    return tuple(sorted(usable, key=lambda path: (path.name, str(path))))


def training_source() -> Source:
    """Returns the fonts and scans for training pictures."""
    return Source(training_fonts(), training_scans())
