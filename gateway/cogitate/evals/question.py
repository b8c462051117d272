"""One question of a set, whatever the set is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """One question; `check` decides whether an answer sentence is right.

    `id` is unique in its set. `images` are files that are read when the question is asked.
    """

    id: str
    dataset: str
    text: str
    image_png: bytes | None
    truth: str
    check: Callable[[str], bool]
    images: tuple[Path, ...] = ()
    system: str = ""
    equivalence: str = ""
    regex: str = ""

    def pictures(self) -> Iterator[bytes]:
        """Yields the images' files. Raises OSError for one that is not there any more."""
        if self.image_png is not None:
            yield self.image_png
        for path in self.images:
            yield path.read_bytes()

    @cached_property
    def digest(self) -> str:
        """Names what is asked and what counts as right, pictures included: 16 hex digits."""
        said = [self.text, self.truth, self.system, self.equivalence, self.regex]
        said += [hashlib.sha256(picture).hexdigest() for picture in self.pictures()]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
