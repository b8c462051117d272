"""Which cosine tells answers of one meaning from others, with an embedding model at hand.

`python -m tests.bench.embedding_pairs DIRECTORY` takes 24 pairs written for it, half of them the
same in other words and half of them different in little, and says for some cosines how many of
each would count as the same.
"""

from __future__ import annotations

from cogitate.aggregator.embedding_model import EmbeddingModel

from tests.bench import report

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


def main() -> None:
    """Prints a line a cosine, writes."""
    parser = report.parser(__doc__)
    parser.add_argument("directory", type=report.resolved, help="model.onnx and tokenizer.json")
    args = parser.parse_args()
    model = EmbeddingModel(args.directory, 256)
    pairs = [
        {"same": is_same, "one": one, "other": other, "cosine": round(cosine(model, one, other), 4)}
        for is_same, group in ((True, SAME), (False, DIFFERENT))
        for one, other in group
    ]

    def counted(least: float, *, same: bool) -> int:
        return sum(pair["cosine"] >= least for pair in pairs if pair["same"] == same)

    report.console().print(
        report.table(
            "Pairs that would count as the same",
            ("cosine", f"of {len(SAME)} that are", f"of {len(DIFFERENT)} that are not"),
            ((c, counted(c, same=True), counted(c, same=False)) for c in COSINES),
        )
    )
    report.write(args, pairs=pairs)


def cosine(model: EmbeddingModel, one: str, other: str) -> float:
    """Of two texts."""
    return sum(a * b for a, b in zip(model.embed(one), model.embed(other), strict=True))


if __name__ == "__main__":
    main()
