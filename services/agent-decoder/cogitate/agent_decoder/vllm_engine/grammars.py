"""Grammars that vLLM follows: to the core they allow everything, and are told nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cogitate.agent_decoder.core.constraint import Constraint
from cogitate.kit.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A grammar, and the matcher of it, of which only the text is known here."""

    constraint: Constraint
    complete: bool = False
    broken: bool = False

    def matcher(self) -> Elsewhere:
        """The same: it has no state."""
        return self

    def allowed(self) -> torch.Tensor | None:
        """Never asked: vLLM draws."""
        return None

    def accept(self, token_id: int) -> None:
        """vLLM allowed it."""


class ElsewhereGrammars:
    """Takes grammars where vLLM can follow them."""

    def __init__(self, *, marks_answers: bool) -> None:
        self._marks_answers = marks_answers

    async def compile(self, tenant: str, constraint: Constraint) -> Elsewhere:
        """Raises InvalidRequest where the answer is only a part of the text."""
        if self._marks_answers:
            raise InvalidRequest(
                "this endpoint follows no grammar: the model thinks before it answers, and vLLM "
                "would have its thoughts follow it; ask an endpoint that has CAPABILITY_CONSTRAINT",
                field=f"sampling_params.{constraint.kind}",
            )
        return Elsewhere(constraint)
