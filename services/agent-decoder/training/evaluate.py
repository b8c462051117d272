"""Measures the shipped model offline: every dataset with one greedy agent, countdown with many.

    python services/agent-decoder/training/evaluate.py --limit 1000

The agents run in lockstep in this process, with the tools of `mini.tools`; the mesh is not needed.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cogitate.evals.datasets import DATASETS, Question, load
from mini.agents import Agents, Session, Task
from mini.words import AGENT_HINTS, OUTSIDE, REFUSAL

MODEL = Path(__file__).parent.parent / "cogitate" / "models" / "mini"
CHUNK = 2000
AGENT_COUNTS = (1, 2, 4, 8, 16)
# Questions outside the model's world that are not among its training questions either.
UNSEEN = (
    "Where can I buy shoes?",
    "How many dogs are in the picture?",
    "Who painted this?",
    "What is the population of Spain?",
    "Does this person look happy?",
    "Explain quantum mechanics to me.",
    "blah blah qwerty",
    "Which bus goes to the station?",
    "What did you have for breakfast?",
    "Is the door open?",
    "How heavy is the elephant?",
    "Draw me a cat.",
    "What language is this written in?",
    "Who is standing on the left?",
    "Compose a song.",
    "When is the next train?",
)


def interval(rate: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a rate measured on `count` questions."""
    z = 1.96
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return centre - half, centre + half


def shown(name: str, rate: float, count: int) -> str:
    """Returns one line of the result table."""
    low, high = interval(rate, count)
    return f"{name:34s} {100 * rate:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  n={count}"


def run_chunked(
    agents: Agents, tasks: Sequence[Task], temperature: float, seed: int
) -> list[Session]:
    """Runs tasks in chunks that fit into memory."""
    sessions: list[Session] = []
    for start in range(0, len(tasks), CHUNK):
        part = tasks[start : start + CHUNK]
        sessions += agents.run(part, temperature=temperature, seed=seed + start)
    return sessions


def solo(agents: Agents, questions: Sequence[Question], *, hint: str = "") -> dict[str, float]:
    """Returns accuracy, refusal rate and mean own tokens of one greedy agent."""
    tasks = [Task(question.text, question.image_png, hint) for question in questions]
    sessions = run_chunked(agents, tasks, 0.0, 0)
    answers = [agents.answer(session) for session in sessions]
    right = [q.check(answer) for q, answer in zip(questions, answers, strict=True)]
    return {
        "accuracy": float(np.mean(right)),
        "refused": float(np.mean([answer == REFUSAL for answer in answers])),
        "own_tokens": float(np.mean([session.own_count for session in sessions])),
    }


def any_of(
    agents: Agents, questions: Sequence[Question], count: int, temperature: float, seed: int
) -> np.ndarray:
    """Returns (questions, count) bool: which agent, each with its own hint, was right."""
    hints = [AGENT_HINTS[i % len(AGENT_HINTS)] for i in range(count)]
    tasks = [Task(q.text, q.image_png, hint) for q in questions for hint in hints]
    sessions = run_chunked(agents, tasks, temperature, seed)
    answers = [agents.answer(session) for session in sessions]
    right = [questions[i // count].check(answer) for i, answer in enumerate(answers)]
    return np.array(right).reshape(len(questions), count)


def outside_tasks(questions: Sequence[Question]) -> list[Task]:
    """Returns questions outside the model's world, with pictures of boards or without any."""
    asked = (*OUTSIDE, *UNSEEN)
    pictures = [question.image_png for question in questions] + [None]
    return [Task(text, pictures[i % len(pictures)]) for i, text in enumerate(asked)]


def main(arguments: Sequence[str]) -> None:
    """Prints the table and writes it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", choices=tuple(DATASETS), action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    agents = Agents(options.model)
    table: dict[str, dict[str, float]] = {}
    boards: list[Question] = []
    for name in options.dataset or DATASETS:
        questions = load(name, options.limit, options.seed)
        boards = questions if name.startswith("boards") else boards
        table[name] = solo(agents, questions)
        print(shown(name, table[name]["accuracy"], len(questions)), table[name], flush=True)
        if name == "countdown" and options.agents > 1:
            right = any_of(agents, questions, options.agents, options.temperature, 1)
            print(shown("  one sampled agent", float(right.mean()), right.size), flush=True)
            for count in (n for n in AGENT_COUNTS if n <= options.agents):
                rate = float(right[:, :count].any(1).mean())
                table[f"countdown any of {count}"] = {"accuracy": rate}
                print(shown(f"  any of {count}, T={options.temperature}", rate, len(right)))
    if boards:
        tasks = outside_tasks(boards[:20])
        answers = [agents.answer(session) for session in run_chunked(agents, tasks, 0.0, 0)]
        refused = np.array([answer == REFUSAL for answer in answers])
        for kind, part in (("seen", refused[: len(OUTSIDE)]), ("unseen", refused[len(OUTSIDE) :])):
            table[f"outside, {kind}"] = {"refused": float(part.mean())}
            print(shown(f"refused, words {kind} in training", float(part.mean()), len(part)))
    if options.json is not None:
        options.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
