"""Builds the native step: ``python -m cogitate.agent_decoder.model.native``."""

import sys

from cogitate.agent_decoder.model.native.library import Unavailable, build

if __name__ == "__main__":
    try:
        sys.stdout.write(f"native step: {build()}\n")
    except Unavailable as error:
        sys.stdout.write(f"native step: {error}; the engine will use torch\n")
