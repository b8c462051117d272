"""A vision-encoder that stores blobs and encodes nothing."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
from cogitate.kit.errors import InvalidRequest, NotFound
from cogitate.v1 import vision_encoder_service_pb2 as pb2
from cogitate.v1 import vision_encoder_service_pb2_grpc as pb2_grpc

NAME = "cogitate.v1.VisionEncoderService"
PNG = b"\x89PNG\r\n\x1a\n"


def png(width_px: int, height_px: int, filler: bytes = b"") -> bytes:
    """Returns bytes that the fake takes for a PNG of that size."""
    return PNG + struct.pack(">I4sII", 13, b"IHDR", width_px, height_px) + filler


class FakeVision(pb2_grpc.VisionEncoderServiceServicer):
    """Knows blobs by digest; `puts` counts the uploads it took, `crops` the boxes asked for."""

    names = (NAME,)

    def __init__(self, server: Any = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.puts = 0
        self.aborts: list[grpc.StatusCode] = []  # how the next uploads end, as gRPC ends them
        self.boxes: list[tuple[int, int, int, int]] = []
        self.bare = 0  # how often a file's picture alone was asked for
        if server is not None:
            pb2_grpc.add_VisionEncoderServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Does nothing."""

    async def drain(self, grace_s: float) -> None:
        """Does nothing."""

    async def stop(self) -> None:
        """Does nothing."""

    async def PutBlob(
        self, request_iterator: AsyncIterator[pb2.PutBlobRequest], context: Any
    ) -> pb2.PutBlobResponse:
        data = b""
        if self.aborts:
            await context.abort(self.aborts.pop(0), "")
        async for part in request_iterator:
            if part.expected_digest in self.blobs:
                data = self.blobs[part.expected_digest]
                break
            data += part.chunk
        if not data.startswith(PNG):
            raise InvalidRequest("the image is not a PNG, JPEG, WebP or GIF", reason="BAD_IMAGE")
        self.puts += 1
        width_px, height_px = struct.unpack(">II", data[16:24])
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return pb2.PutBlobResponse(
            digest=digest,
            size_bytes=len(data),
            width_px=width_px,
            height_px=height_px,
            media_type="image/png",
        )

    async def GetBlob(
        self, request: pb2.GetBlobRequest, context: Any
    ) -> AsyncIterator[pb2.GetBlobResponse]:
        if request.digest not in self.blobs:
            raise NotFound("there is no such blob")
        box = request.box
        if request.HasField("box"):
            self.boxes.append((box.x0_permille, box.y0_permille, box.x1_permille, box.y1_permille))
        self.bare += request.without_metadata
        data = self.blobs[request.digest]
        for start in range(0, len(data), 1000):
            yield pb2.GetBlobResponse(
                chunk=data[start : start + 1000], media_type="" if start else "image/png"
            )
