"""Runs the agent-decoder: ``python -m cogitate.agent_decoder --help``."""

import sys

from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.server import build
from cogitate.kit import lifecycle

if __name__ == "__main__":
    sys.exit(lifecycle.main("agent-decoder", AgentDecoderConfig, build))
