"""Writes the contract's descriptors to standard output, for Envoy to read JSON by.

`python deploy/envoy/descriptors.py > cogitate.pb`, with the package cogitate installed. Details of
errors are among them: Envoy tells only those that it knows.
"""

from __future__ import annotations

import sys

from cogitate.v1 import contemplation_service_pb2, gateway_service_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2


def descriptors() -> FileDescriptorSet:
    """The files of both public services, each behind those it imports."""
    found: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name not in found:
            for needed in file.dependencies:
                add(needed)
            found[file.name] = file

    for module in (contemplation_service_pb2, gateway_service_pb2, error_details_pb2):
        add(module.DESCRIPTOR)
    made = FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(made.file.add())
    return made


if __name__ == "__main__":
    sys.stdout.buffer.write(descriptors().SerializeToString())
