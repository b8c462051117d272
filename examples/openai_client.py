"""Asks by an unmodified OpenAI client: an answer, a stream, and a stream taken up again.

    pip install openai
    cogitate up --detach
    python examples/openai_client.py            # or with another base URL

The same client asks any server of OpenAI's kind; what only Cogitate has is in `extra_body`.
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

BOARD = Path(__file__).parent / "board.png"
QUESTION = "What is the sum of the red cards?"
DEFAULT_URL = "http://127.0.0.1:7107/v1"


def main(url: str) -> None:
    client = OpenAI(base_url=url, api_key=os.environ.get("COGITATE_API_KEY", "none"))
    image = "data:image/png;base64," + base64.b64encode(BOARD.read_bytes()).decode()

    picture = {"type": "image_url", "image_url": {"url": image}}
    content = [{"type": "text", "text": QUESTION}, picture]
    answer = client.chat.completions.create(
        model="mini",
        messages=[{"role": "user", "content": content}],
        extra_body={"cogitate": {"agents": 8, "quorum": "unbeatable"}},
    )
    own = answer.cogitate
    print(answer.choices[0].message.content)
    print(f"  {own['agreeing_count']} of {own['ballot_count']} ballots; {own['decision']}")
    print(f"  {answer.usage.completion_tokens} tokens of {own['agent_count']} agents")

    picture = {"type": "input_image", "image_url": image}
    asked = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}, picture]}]
    last, response_id = -1, ""
    with client.responses.create(model="mini", input=asked, stream=True, background=True) as stream:
        for event in stream:
            last = event.sequence_number
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.reasoning_summary_text.delta":
                print("… left after the first ballot:", event.delta.strip())
                break
    for event in client.responses.retrieve(response_id, stream=True, starting_after=last):
        if event.type == "response.output_text.delta":
            print("… and back:", event.delta)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL)
