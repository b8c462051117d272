"""Starts the router: `python -m cogitate.router --listen 127.0.0.1:7102`."""

from __future__ import annotations

import sys

from cogitate.kit import lifecycle
from cogitate.router.config import RouterConfig
from cogitate.router.server import build

if __name__ == "__main__":
    sys.exit(lifecycle.main("router", RouterConfig, build))
