"""Watches a contemplation event by event and stops watching at the first ballot.

    cogitate up --detach
    python examples/async_stream.py

Leaving the block ends the call, by `break` too. Here the contemplation runs on
(`on_disconnect="continue"`), so it can be attached to again: exactly the rest of it comes.
"""

import asyncio
from pathlib import Path

from cogitate.client import AsyncClient

HERE = Path(__file__).parent


async def main() -> None:
    async with AsyncClient() as client:
        question = "What is the sum of the red cards?"
        async with client.contemplate(
            question,
            images=[HERE / "board.png"],
            agents=4,
            seed=7,
            on_disconnect="continue",
        ) as stream:
            async for event in stream:
                print(event.event_number, event.WhichOneof("event"))
                if event.HasField("ballot_cast"):
                    break

        print("… left, and back again")
        async with client.attach(stream.contemplation_id, stream.last_event_number) as rest:
            async for event in rest:
                print(event.event_number, event.WhichOneof("event"))
            answer = await rest.answer()
        print(answer.answer)


if __name__ == "__main__":
    asyncio.run(main())
