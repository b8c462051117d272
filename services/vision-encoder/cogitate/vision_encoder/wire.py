"""Between cogitate.v1 and the domain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import common_pb2
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.vision_encoder.core.digests import check_digest
from cogitate.vision_encoder.core.types import Blob, Box, Embedding, Encoded, Info, View
from google.protobuf.duration_pb2 import Duration


def to_views(views: Sequence[pb.View], *, max_views: int) -> list[View]:
    """Reads views. Raises InvalidRequest if there are none, too many, or one makes no sense."""
    if not 1 <= len(views) <= max_views:
        raise InvalidRequest(f"a request has 1 to {max_views} views", field="views")
    return [
        View(
            check_digest(view.blob_digest, f"views[{index}].blob_digest"),
            to_box(view.box, f"views[{index}].box") if view.HasField("box") else None,
        )
        for index, view in enumerate(views)
    ]


def to_box(box: common_pb2.Box, field: str) -> Box:
    """Reads a box. Raises InvalidRequest if it is empty or outside."""
    try:
        return Box(box.x0_permille, box.y0_permille, box.x1_permille, box.y1_permille)
    except ValueError:
        raise InvalidRequest(
            "a box needs 0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000", field=field
        ) from None


def from_blob(blob: Blob) -> pb.PutBlobResponse:
    """Writes what is known of a blob."""
    return pb.PutBlobResponse(
        digest=blob.digest,
        size_bytes=len(blob.data),
        width_px=blob.width_px,
        height_px=blob.height_px,
        media_type=blob.media_type,
    )


def from_view(view: View) -> pb.View:
    """Writes a view."""
    written = pb.View(blob_digest=view.blob_digest)
    if (box := view.box) is not None:
        written.box.x0_permille, written.box.y0_permille = box.x0, box.y0
        written.box.x1_permille, written.box.y1_permille = box.x1, box.y1
    return written


def from_encoded(encoded: Encoded) -> pb.EncodedView:
    """Writes where a view's embedding is."""
    return pb.EncodedView(
        view=from_view(encoded.view),
        embedding_digest=encoded.digest,
        token_count=encoded.embedding.shape[0],
        cached=encoded.is_cached,
    )


def from_embedding(encoded: Encoded) -> pb.FetchEmbeddingResponse:
    """Writes a view's embedding, float32, little-endian."""
    return pb.FetchEmbeddingResponse(
        view=from_encoded(encoded),
        embedding=common_pb2.Tensor(
            dtype=common_pb2.D_TYPE_FLOAT32,
            shape=encoded.embedding.shape,
            data=encoded.embedding.astype("<f4", copy=False).tobytes(),
        ),
    )


def to_rows(tensor: common_pb2.Tensor) -> Embedding | None:
    """Reads what `from_embedding` writes; None if it is something else."""
    try:
        rows = np.frombuffer(tensor.data, dtype="<f4").reshape(tuple(tensor.shape))
    except ValueError:
        return None
    return rows if tensor.dtype == common_pb2.D_TYPE_FLOAT32 else None


def from_info(info: Info) -> pb.GetEncoderInfoResponse:
    """Writes the encoder's description."""
    return pb.GetEncoderInfoResponse(
        models=info.models,
        execution_providers=info.execution_providers,
        encoded_view_count=info.num_encoded_views,
        cached_view_count=info.num_cached_views,
        cache_bytes=info.cache_bytes,
        blob_bytes=info.blob_bytes,
        fetched_blob_count=info.num_fetched_blobs,
        fetched_embedding_count=info.num_fetched_embeddings,
    )


def duration(seconds: float) -> Duration:
    """Writes a time span."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
