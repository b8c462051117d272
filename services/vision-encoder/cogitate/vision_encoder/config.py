"""The knobs of the vision-encoder: COGITATE_VISION_ENCODER_<FIELD>, or --<field>."""

from __future__ import annotations

from dataclasses import dataclass

from cogitate.kit.config import MIB, ServiceConfig, knob
from cogitate.vision_encoder.core.types import ImageLimits


@dataclass(frozen=True)
class VisionEncoderConfig(ServiceConfig):
    """Stores images by content and encodes views of them, each once."""

    models: tuple[str, ...] = knob(("mini",), "models whose vision towers are loaded")
    model_paths: tuple[str, ...] = knob((), "folders models are looked for in, before the built-in")
    execution_providers: tuple[str, ...] = knob(
        (), "cuda, cpu: what to encode on, in order; empty takes what is there"
    )
    intra_op_threads_count: int = knob(1, "threads of one encode", minimum=1, maximum=256)
    decode_threads_count: int = knob(2, "threads that decode and cut images", minimum=1, maximum=64)
    max_batch_count: int = knob(16, "views encoded in one run", minimum=1, maximum=1024)
    batch_wait_s: float = knob(
        0.0, "how long a batch waits for company; 0 takes what is there", minimum=0, maximum=0.1
    )
    exact_batches: bool = knob(
        True, "encode views one by one where a batch would change their bits, checked at start"
    )
    max_waiting_views_count: int = knob(
        1024, "views in work at once; one more is refused", minimum=1, maximum=1_000_000
    )
    max_uploads_count: int = knob(
        32, "blobs being received at once; one more is refused", minimum=1, maximum=10_000
    )
    max_views_count: int = knob(64, "views in one request", minimum=1, maximum=1024)
    min_crop_px: int = knob(
        2, "least width and height of a region, in pixels of the image", minimum=1, maximum=4096
    )
    max_blob_bytes: int = knob(20 * MIB, "largest image file", minimum=1, maximum=256 * MIB)
    # Pillow's own limit, 89 million, is never reached.
    max_image_pixels_count: int = knob(
        25_000_000, "most pixels of an image", minimum=1, maximum=80_000_000
    )
    max_image_side_px: int = knob(
        16_384, "most width and most height of an image", minimum=1, maximum=65_535
    )
    max_image_frames_count: int = knob(
        256, "most frames of an animation, of which the first is used", minimum=1, maximum=100_000
    )
    max_jpeg_scans_count: int = knob(
        64, "most scans of a progressive JPEG", minimum=1, maximum=10_000
    )
    blob_budget_bytes: int = knob(
        512 * MIB, "blobs held, least recently used go first", minimum=1, maximum=1024 * 1024 * MIB
    )
    picture_budget_bytes: int = knob(
        128 * MIB, "decoded images held for further crops", minimum=0, maximum=1024 * 1024 * MIB
    )
    embedding_budget_bytes: int = knob(
        256 * MIB, "embeddings held", minimum=0, maximum=1024 * 1024 * MIB
    )
    blob_directory: str = knob("", "folder that keeps blobs over a restart; empty keeps none")
    upstream_address: str = knob(
        "", "vision-encoder that is asked for what is not here, host:port; empty asks nobody"
    )
    upstream_timeout_s: float = knob(
        4.0, "how long it may take to answer", minimum=0.1, maximum=600
    )
    upstream_embedding_max_bytes: int = knob(
        65_536,
        "embeddings up to this size are fetched from it; of larger ones the image is, once, and "
        "encoded here",
        minimum=0,
        maximum=1024 * MIB,
    )

    @property
    def image_limits(self) -> ImageLimits:
        """The limits of an image, as the core takes them."""
        return ImageLimits(
            max_bytes=self.max_blob_bytes,
            max_pixels=self.max_image_pixels_count,
            max_side_px=self.max_image_side_px,
            max_frames=self.max_image_frames_count,
            max_scans=self.max_jpeg_scans_count,
        )
