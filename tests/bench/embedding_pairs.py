"""Which cosine tells answers of one meaning from others, with an embedding model at hand.

`python -m tests.bench.embedding_pairs DIRECTORY` takes 24 pairs written for it, half of them the
same in other words and half of them different in little, and says for some cosines how many of
each would count as the same; and how long a text takes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cogitate.aggregator.embedding_model import EmbeddingModel

SAME = (
    ("The capital of France is Paris.", "Paris is France's capital city."),
    (
        "It rains because warm air rises and cools, so its water condenses.",
        "Rain forms when moist air cools as it rises and the vapour condenses.",
    ),
    ("Because it was cold.", "Due to the low temperature."),
    ("The boy kicked the ball.", "The ball was kicked by the boy."),
    (
        "Photosynthesis turns light into chemical energy.",
        "Plants convert sunlight to chemical energy by photosynthesis.",
    ),
    (
        "Use a hash map to find the pair in linear time.",
        "A dictionary lets you find the two numbers in O(n).",
    ),
    ("No, the claim is false.", "The statement is not true."),
    ("a dog", "a puppy"),
    ("big", "large"),
    ("The meeting is on Monday.", "They meet on Monday."),
    ("Shakespeare wrote Hamlet.", "Hamlet was written by William Shakespeare."),
    ("Paris", "The answer is Paris."),
)
DIFFERENT = (
    ("The capital of France is Paris.", "The capital of France is Lyon."),
    ("It is red.", "It is blue."),
    ("Yes, it is safe.", "No, it is not safe."),
    ("The answer is 12.", "The answer is 13."),
    ("The boy kicked the ball.", "The ball hit the boy."),
    ("The meeting is on Monday.", "The meeting is on Tuesday."),
    ("Shakespeare wrote Hamlet.", "Marlowe wrote Hamlet."),
    (
        "Photosynthesis turns light into chemical energy.",
        "Respiration turns sugar into chemical energy.",
    ),
    ("Use a hash map to find the pair in linear time.", "Sort the list and use two pointers."),
    ("Paris", "London"),
    ("a dog", "a cat"),
    ("The meeting starts at 3 pm.", "The meeting starts at 5 pm."),
)
COSINES = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
WORDS = (10, 50, 200)


def main() -> None:
    """Prints one line a cosine and one a length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    model = EmbeddingModel(parser.parse_args().directory, 256)

    def cosines(pairs: tuple[tuple[str, str], ...]) -> list[float]:
        vectors = [(model.embed(one), model.embed(other)) for one, other in pairs]
        return [sum(a * b for a, b in zip(*pair, strict=True)) for pair in vectors]

    same, different = cosines(SAME), cosines(DIFFERENT)
    for least in COSINES:
        found = sum(cosine >= least for cosine in same)
        wrong = sum(cosine >= least for cosine in different)
        print(
            f"{least:4}: {found} of {len(same)} that mean the same count as the same, and "
            f"{wrong} of {len(different)} that do not"
        )
    for number in WORDS:
        times = []
        for _ in range(11):
            began = time.perf_counter()
            model.embed("word " * number)
            times.append(time.perf_counter() - began)
        print(f"{number} words: {sorted(times)[5] * 1000:.1f} ms")


if __name__ == "__main__":
    main()
