"""Draws a verdict and its certificate."""

from __future__ import annotations

import math

from cogitate.cli.view.lines import ids
from cogitate.client import Answer, Certificate, KilledAgent
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


def render(answer: Answer) -> RenderableType:
    """Draws the answer, and below it everything it rests on."""
    return Group(_answer(answer), _ballots(answer.certificate), _facts(answer))


def _answer(answer: Answer) -> Panel:
    colour = "yellow" if answer.abstained or answer.degraded else "green"
    badges = [
        word
        for word, said in (
            ("proved by a tool", answer.proved),
            ("no agent could answer", answer.abstained),
            ("degraded: " + ", ".join(answer.degraded_reasons).lower(), answer.degraded),
        )
        if said
    ]
    decision = answer.certificate.decision
    body = Text(answer.answer, "bold") if answer.answer else Text("no answer", "italic")
    if decision:
        body.append(f"\n{decision}", "dim")
    return Panel(
        body,
        title=Text(" · ".join(["verdict", *badges]), colour),
        title_align="left",
        border_style=colour,
        box=box.HEAVY,
        padding=(0, 2),
    )


def _ballots(certificate: Certificate) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("agent", justify="right", style="bold")
    table.add_column("answer", overflow="fold")
    table.add_column("")
    table.add_column("tokens", justify="right")
    table.add_column("sure", justify="right")
    table.add_column("where", style="dim")
    where = {
        agent_id: f"{place.endpoint_id} {place.region}"
        for place in certificate.placements
        for agent_id in place.agent_ids
    }
    for ballot in certificate.ballots:
        mark = Text("proved", "green") if ballot.proved else Text("")
        if ballot.abstained:
            mark = Text("abstains", "yellow")
        sure = f"{math.exp(ballot.mean_logprob):.0%}" if ballot.mean_logprob else ""
        table.add_row(
            str(ballot.agent_id),
            ballot.answer,
            mark,
            str(ballot.sampled_tokens),
            sure,
            where.get(ballot.agent_id, ""),
        )
    voted = {ballot.agent_id for ballot in certificate.ballots}
    killed: dict[str, list[KilledAgent]] = {}
    for agent in certificate.killed_agents:
        if agent.agent_id not in voted:
            killed.setdefault(agent.reason, []).append(agent)
    for reason, agents in killed.items():
        table.add_row(
            ids(agent.agent_id for agent in agents),
            "",
            f"killed: {reason.lower()}",
            str(sum(agent.sampled_tokens for agent in agents)),
            style="dim",
        )
    return table


def _facts(answer: Answer) -> Table:
    certificate, ledger = answer.certificate, answer.certificate.ledger
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("rule", f"{certificate.strategy}, quorum {certificate.quorum}")
    for place in certificate.placements:
        table.add_row(
            "placed",
            f"{ids(place.agent_ids)} on {place.endpoint_id} "
            f"({place.provider}, {place.region}): {place.reason}",
        )
    spent = f"{ledger.generated_tokens} = {ledger.used_tokens} used"
    spent += f" + {ledger.killed_tokens} killed + {ledger.lost_tokens} lost"
    table.add_row("tokens", spent)
    usage = answer.usage
    table.add_row(
        "prompt",
        f"{usage.prompt_tokens} positions, {usage.cached_tokens} cached; "
        f"{usage.injected_tokens} injected",
    )
    table.add_row("tools", f"{ledger.tool_calls} calls, {ledger.tool_executions} executions")
    if regions := _regions(certificate):
        table.add_row("looked at", regions)
    if proofs := sorted({one.proof for one in certificate.evidence if one.proof}):
        table.add_row("proof", "; ".join(proofs))
    table.add_row("cost", f"${ledger.cost_usd:.6f} in {answer.duration_s:.2f} s")
    table.add_row("again", f"--model {certificate.model} --seed {certificate.seed}")
    return table


def _regions(certificate: Certificate) -> str:
    boxes = sorted({one.box for one in certificate.sights if one.box is not None})
    shown = [f"{b.x0 / 10:.0f},{b.y0 / 10:.0f}–{b.x1 / 10:.0f},{b.y1 / 10:.0f} %" for b in boxes]
    more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
    return "  ".join(shown[:6]) + more
