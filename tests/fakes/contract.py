"""Every method of the contract, from its descriptors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

GEN = Path(__file__).parents[2] / "protos" / "gen" / "cogitate"


def methods() -> dict[str, MethodDescriptor]:
    """By full name, `package.Service/Method`."""
    found: dict[str, MethodDescriptor] = {}
    for file in sorted(GEN.glob("*/*_pb2.py")):
        module: Any = import_module(f"cogitate.{file.parent.name}.{file.stem}")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found[f"{service.full_name}/{method.name}"] = method
    return found


def kind(method: MethodDescriptor) -> str:
    """As gRPC names it: unary_stream and so on."""
    sides = (method.client_streaming, method.server_streaming)
    return "_".join("stream" if streams else "unary" for streams in sides)
