"""Embeds answers on a thread of its own, one after the other, within limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cogitate.aggregator.config import AggregatorConfig
from cogitate.kit.config import ConfigError
from cogitate.kit.errors import CogitateError, DeadlineExceeded, EngineFailure, NoEndpoint, Rejected

Vector = tuple[float, ...]


class Embedder:
    """One for each aggregator; ``model`` blocks, and is None where none is configured."""

    def __init__(
        self,
        model: Callable[[str], Vector] | None,
        *,
        timeout_s: float,
        max_waiting: int,
        max_characters: int,
    ) -> None:
        self._model, self._timeout_s = model, timeout_s
        self._max_waiting, self._max_characters = max_waiting, max_characters
        self._num_waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    @classmethod
    def of(cls, config: AggregatorConfig) -> Embedder:
        """Loads the model that is configured, if one is. Raises ConfigError."""
        return cls(
            _load(config) if config.embedding_model else None,
            timeout_s=config.embedding_timeout_s,
            max_waiting=config.embedding_max_waiting_count,
            max_characters=config.embedding_max_character_count,
        )

    async def embed(self, text: str) -> Vector:
        """The vector of a text, of length 1. Cancelled, it leaves the thread to what it began.

        Raises NoEndpoint without a model, Rejected if too many wait, DeadlineExceeded if it takes
        too long, EngineFailure if the model fails.
        """
        if self._model is None:
            raise NoEndpoint("this aggregator has no embedding_model")
        if self._num_waiting >= self._max_waiting:
            raise Rejected(f"{self._max_waiting} answers wait for their embedding already")
        work = self._thread.submit(self._model, text[: self._max_characters])
        self._num_waiting += 1
        # Whoever asked may have left: a place is free when the thread has done with it.
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda done: self._done(loop, done))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the embedding took longer than {self._timeout_s:g} s"
            ) from None
        except CogitateError:
            raise
        except Exception:
            # Without the cause: its text may hold what was embedded.
            raise EngineFailure("the embedding model failed") from None

    def _done(self, loop: asyncio.AbstractEventLoop, _: Future[Vector]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._num_waiting -= 1

    def close(self) -> None:
        """Lets the thread end after what it has begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _load(config: AggregatorConfig) -> Callable[[str], Vector]:
    try:
        from cogitate.aggregator.embedding_model import EmbeddingModel
    except ModuleNotFoundError:
        raise ConfigError(
            "embedding_model needs more: pip install 'cogitate[aggregator,embedding]'"
        ) from None
    model = EmbeddingModel(Path(config.embedding_model), config.embedding_max_token_count)
    return model.embed
