"""One question of a set, whatever the set is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cogitate.evals.items import Table


@dataclass(frozen=True)
class Question:
    """One question; `check` decides whether an answer sentence is right.

    `id` is unique in its set. `images` are files that are read when the question is asked.
    `earlier` are the turns before it, each a question and its answer; `tables` are for `lookup`.
    """

    id: str
    dataset: str
    text: str
    image_png: bytes | None
    truth: str
    check: Callable[[str], bool]
    images: tuple[Path, ...] = ()
    more_png: tuple[bytes, ...] = ()
    system: str = ""
    equivalence: str = ""
    regex: str = ""
    earlier: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()

    def pictures(self) -> Iterator[bytes]:
        """Yields the images' files. Raises OSError for one that is not there any more."""
        if self.image_png is not None:
            yield self.image_png
        yield from self.more_png
        for path in self.images:
            yield path.read_bytes()

    @cached_property
    def digest(self) -> str:
        """Names what is asked and what counts as right, pictures included: 16 hex digits."""
        said = [self.text, self.truth, self.system, self.equivalence, self.regex]
        if self.earlier or self.tables:  # others keep the digests they had
            said.append(repr((self.earlier, self.tables)))
        said += [hashlib.sha256(picture).hexdigest() for picture in self.pictures()]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
