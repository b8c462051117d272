"""`python -m cogitate.vision_encoder`: runs the vision-encoder until it is told to stop."""

from __future__ import annotations

import sys

from cogitate.kit.lifecycle import main
from cogitate.vision_encoder.config import VisionEncoderConfig
from cogitate.vision_encoder.server import build

if __name__ == "__main__":
    sys.exit(main("vision-encoder", VisionEncoderConfig, build))
