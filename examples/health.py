"""Reads a lab report: each value is compared with reference ranges that you provide.

cogitate up --detach
python examples/health.py examples/lab.png examples/ranges.csv

This shows how a picture, a table and a calculator work together. It is not medical advice: the
embedded model is small and may misread, and what a value means is for people who know the patient.
"""

import sys
from pathlib import Path

from cogitate.client import Answer, Client, CogitateError, LookupTable

HERE = Path(__file__).parent
PLACES = {"low": "below", "normal": "within", "high": "above"}


def main(report: str, table: str) -> int:
    ranges = LookupTable.from_csv(table)
    found: dict[str, list[str]] = {place: [] for place in PLACES}
    with Client() as client:
        for test, low, high in ranges.rows:
            question = f"Is {spoken(test)} within its reference range?"
            try:
                answer = client.ask(question, images=[report], tables=[ranges])
            except CogitateError as error:
                print(f"no answer: {error} ({error.reason})", file=sys.stderr)
                return 1
            place = answer.answer.rstrip(".").rpartition(" ")[2]
            if place in PLACES and was_seen(answer, test):
                found[place].append(test)
                print(f"{test:14} {low:>6} to {high:<6} {answer.answer}")
    print()
    for place, word in PLACES.items():
        if found[place]:
            print(f"{', '.join(found[place])}: {word} the range.")
    print("This is not medical advice. Ask your doctor what these values mean for you.")
    return 0


def was_seen(answer: Answer, test: str) -> bool:
    """Whether an agent read the test's name off the report: what is not there has no value."""
    return any(sight.note.startswith(test) for sight in answer.certificate.sights)


def spoken(test: str) -> str:
    """Sodium in a sentence is sodium, TSH stays TSH."""
    return test if any(letter.isupper() for letter in test[1:]) else test.lower()


if __name__ == "__main__":
    given = sys.argv[1:] or [str(HERE / "lab.png"), str(HERE / "ranges.csv")]
    sys.exit(main(*given))
