"""Asks eight agents about a picture and prints the answer with its reasons.

cogitate up --detach
python examples/ask.py examples/board.png "What is the sum of the red cards?"
"""

import sys
from pathlib import Path

from cogitate.client import Client, CogitateError

HERE = Path(__file__).parent


def main(image: str, question: str) -> int:
    with Client() as client:
        try:
            answer = client.ask(question, images=[image], agents=8, deadline_s=60)
        except CogitateError as error:
            print(f"no answer: {error} ({error.reason})", file=sys.stderr)
            return 1
    print(answer.answer)
    print(f"  because: {answer.certificate.decision}")
    for ballot in answer.ballots:
        print(f"  agent {ballot.agent_id}: {ballot.answer or 'abstains'}")
    for agent in answer.certificate.killed_agents:
        print(f"  agent {agent.agent_id}: stopped, {agent.reason.lower()}")
    ledger = answer.certificate.ledger
    print(
        f"  {ledger.generated_tokens} tokens in {answer.duration_s:.2f} s, ${ledger.cost_usd:.6f}"
    )
    return 0


if __name__ == "__main__":
    given = sys.argv[1:] or [str(HERE / "board.png"), "What is the sum of the red cards?"]
    sys.exit(main(*given))
