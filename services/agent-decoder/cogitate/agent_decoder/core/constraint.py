"""What a grammar is to the core: an object that says which tokens may come, and is told which came.

The shell makes them (``grammars``); here is only the protocol. A matcher follows what its agent
samples as its answer: all of its text, or, where the model marks answers, what follows the mark.
Before that the turn cannot end. What is injected, and what opened the turn, is not followed.

Invariants (``tests/property/test_constraint.py``):

1. No token is accepted that its grammar does not allow.
2. An agent whose grammar is complete ends; one whose matcher broke ends with ERROR.
3. A resumed or forked agent's matcher stands where its replayed tokens led it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar as the request has it; its size and depth were checked."""

    kind: str  # "json_schema" or "regex"
    text: str


class Matcher(Protocol):
    """Follows one agent. Used by one thread."""

    @property
    def complete(self) -> bool:
        """Whether nothing but an end may follow."""
        ...

    @property
    def broken(self) -> bool:
        """Whether it met a token it does not allow, or a limit of its own. Stays so."""
        ...

    def allowed(self) -> torch.Tensor | None:
        """Which tokens may come now, (V,) bool, at least one; None if it is or becomes broken."""
        ...

    def accept(self, token_id: int) -> None:
        """Takes a token that came; an end token is not one."""
        ...


class Grammar(Protocol):
    """A compiled grammar."""

    def matcher(self) -> Matcher:
        """A matcher at the beginning. Cheap."""
        ...


def restrict(logits: torch.Tensor, allowed: torch.Tensor, banned: Collection[int]) -> None:
    """Writes -inf into one row (V,) where no token may come. The grammar wins over a ban.

    A ban that leaves nothing of the grammar, such as of all ends before ``min_tokens``, is lifted.
    """
    if banned:
        rest = allowed.clone()
        rest[list(banned)] = False
        allowed = rest if bool(rest.any()) else allowed
    logits.masked_fill_(~allowed, -torch.inf)
