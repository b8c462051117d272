"""How fast a step could be: what it must read over the bandwidth, what it must multiply over the
peak of a product. Whichever is more is the floor of a machine that does both at once without loss,
the sum that of one which does them in turn. Both peaks are measured in the run.

Named dimensions: ``N`` agents, ``P`` positions of the prompt, ``G`` new tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.bench.decode.peers import Engine

CACHE_BYTES = 2  # of a number in the KV cache: bfloat16 or float16


@dataclass(frozen=True)
class Size:
    """What of a Llama with tied embeddings is read and multiplied in a step."""

    layer_parameters: int
    head_parameters: int
    cached_numbers: int  # in the KV cache, of one position
    query_width: int  # heads × head size × layers

    @classmethod
    def of(cls, directory: Path) -> Size:
        """Read from the checkpoint's configuration."""
        config = json.loads((directory / "config.json").read_text())
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        query, key = heads * head_dim, kv_heads * head_dim
        attention = hidden * (2 * query + 2 * key)
        mlp = 3 * hidden * config["intermediate_size"]
        return cls(
            layers * (attention + mlp), config["vocab_size"] * hidden, 2 * key * layers,
            query * layers,
        )  # fmt: skip

    def weight_bytes(self, engine: Engine) -> float:
        """Bytes of all matrices as the engine keeps them."""
        layers = self.layer_parameters * engine.weight_bytes
        return layers + self.head_parameters * engine.head_bytes

    def floor_s(
        self, engine: Engine, shape: tuple[int, int, int], tokens: int, peaks: dict[str, float]
    ) -> tuple[float, float]:
        """The least a step may take, half-way through the new tokens, reading and multiplying at
        once and in turn; the prompt read once for all its agents. `shape` is prompt,
        contemplations, agents.
        """
        prompt, contemplations, agents = shape
        rows = contemplations * agents
        own = rows * tokens / 2
        cached = (contemplations * prompt + own) * self.cached_numbers * CACHE_BYTES
        read_s = (self.weight_bytes(engine) + cached) / (peaks["read_gb_s"] * 1e9)
        # A multiplication and an addition for each weight, and for each query and cached number.
        attended = rows * (prompt + tokens / 2) * 2 * self.query_width
        flops = 2 * (rows * (self.layer_parameters + self.head_parameters) + attended)
        peak = max(value for name, value in peaks.items() if name.endswith("gflop_s"))
        multiply_s = flops / (peak * 1e9)
        return max(read_s, multiply_s), read_s + multiply_s
