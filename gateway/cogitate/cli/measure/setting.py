"""How questions are asked: one setting, and the grid of all that are to be compared. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final

from cogitate.client import AskOptions, LookupTable
from cogitate.evals.question import Question

GANG: Final = "gang"
JUDGE: Final = "judge"
RETRY: Final = "retry"
BASELINES: Final = (JUDGE, RETRY)
# What many agents of `mini` sample with; a greedy agent would say the same in every call.
SAMPLING_TEMPERATURE: Final = 0.8
_SEED_STEP: Final = 7919
_REPEAT_STEP: Final = 1_000_003


@dataclass(frozen=True)
class Setting:
    """How questions are asked; empty and None mean the mesh's own default.

    A gang is one contemplation of `agents`. The judge is a baseline of `agents` single calls and
    one more that is shown their answers; retry is one agent that tries again and again, with the
    tokens that the gang of the same setting spent.
    """

    agents: int
    kind: str = GANG
    strategy: str = ""
    quorum: str = ""
    initial_agents: int = 0
    effort: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    model: str = ""
    regex: str = ""
    deadline_s: float = 60.0

    @property
    def name(self) -> str:
        """What people read: "8 × vote · unbeatable"."""
        if self.kind == JUDGE:
            return " · ".join([f"judge of {self.agents}", *self._told()])
        if self.kind == RETRY:
            return " · ".join([f"retry, tokens of {self.agents}", *self._told()])
        return f"{self.agents} × {self.series}"

    @property
    def series(self) -> str:
        """What a curve over the number of agents is called."""
        if self.kind != GANG:
            named = {JUDGE: "single calls and a judge", RETRY: "one agent, retrying"}[self.kind]
            return " · ".join([named, *self._told()])
        parts = [self.strategy or "default strategy"]
        parts += [self.quorum or "default quorum"] if self.agents > 1 else []
        parts += [f"from {self.initial_agents}"] if self.initial_agents else []
        return " · ".join([*parts, *self._told()])

    def _told(self) -> list[str]:
        """What of the rest was told: grids that differ in it may share a folder."""
        parts = [self.effort] if self.effort else []
        parts += [f"T {self.temperature:g}"] if self.temperature is not None else []
        return parts + ([f"at most {self.max_tokens}"] if self.max_tokens is not None else [])

    def gang(self) -> Setting:
        """Returns the gang whose tokens a retry may spend."""
        return replace(self, kind=GANG)

    def options(self, question: Question, seed: int) -> AskOptions:
        """Returns the client's options for a gang; one agent alone is greedy and `thinking`."""
        single = self.agents == 1
        temperature = self.temperature
        if temperature is None and single:
            temperature = 0.0
        effort = self.effort or ("thinking" if single else "contemplating")
        asked = self._options(question, seed, self.agents, effort, temperature)
        asked["strategy"], asked["quorum"] = self.strategy, self.quorum
        asked["initial_agents"] = self.initial_agents
        return asked

    def call(self, question: Question, seed: int, number: int, effort: str) -> AskOptions:
        """Returns the options of one of several calls of a baseline, from 0: seeds differ."""
        temperature = SAMPLING_TEMPERATURE if self.temperature is None else self.temperature
        return self._options(question, seed + _SEED_STEP * (number + 1), 1, effort, temperature)

    def verdict(self, question: Question, seed: int) -> AskOptions:
        """Returns the options of the judge, who is greedy."""
        return self._options(question, seed, 1, "thinking", 0.0)

    def _options(
        self, question: Question, seed: int, agents: int, effort: str, temperature: float | None
    ) -> AskOptions:
        return AskOptions(
            images=list(question.pictures()),
            agents=agents,
            effort=effort,  # type: ignore[typeddict-item]  # checked by the parser
            seed=seed,
            deadline_s=self.deadline_s,
            temperature=temperature,
            max_tokens=self.max_tokens,
            model=self.model,
            system=question.system,
            earlier=question.earlier,
            tables=[LookupTable(one.name, one.columns, one.rows) for one in question.tables],
            equivalence=question.equivalence,
            regex=self.regex or question.regex,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what differs from the defaults, and the number of agents and the kind."""
        told = asdict(self)
        empty = asdict(Setting(agents=self.agents))
        return {k: v for k, v in told.items() if k in ("agents", "kind") or v != empty[k]}


def grid(
    base: Setting,
    agents: Sequence[int],
    strategies: Sequence[str],
    quorums: Sequence[str],
    baselines: Sequence[str] = (),
) -> list[Setting]:
    """Returns every combination, gangs first; each once, and everything else as in `base`.

    With one agent there is no quorum to choose, so it is measured once a strategy. Baselines are
    measured once for every number of agents above 1.
    """

    def one(count: int, kind: str, strategy: str, quorum: str) -> Setting:
        wide = kind != JUDGE and base.initial_agents < count
        initial = base.initial_agents if wide else 0
        return replace(
            base,
            agents=count,
            kind=kind,
            strategy=strategy,
            quorum=quorum,
            initial_agents=initial,
        )

    def made() -> Iterator[Setting]:
        for count, strategy, quorum in product(agents, strategies, quorums):
            yield one(count, GANG, strategy, "" if count == 1 else quorum)
        for kind, count in product(baselines, agents):
            if count > 1 and kind == JUDGE:
                yield one(count, kind, "", "")
            elif count > 1:
                yield one(count, kind, strategies[0], quorums[0])

    return list(dict.fromkeys(made()))


def seed_of(seed: int, index: int, repeat: int) -> int:
    """Returns the seed of one question's asking; all settings ask it with the same one."""
    return seed + index + _REPEAT_STEP * repeat
