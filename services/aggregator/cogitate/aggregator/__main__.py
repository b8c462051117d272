"""Runs the aggregator: ``python -m cogitate.aggregator --help``."""

import sys

from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.server import build
from cogitate.kit import lifecycle

if __name__ == "__main__":
    sys.exit(lifecycle.main("aggregator", AggregatorConfig, build))
