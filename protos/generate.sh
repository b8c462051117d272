#!/usr/bin/env bash
# Generates protos/gen from protos/cogitate with a pinned old generator, so that protobuf 6 and 7 both load it.
# usage: protos/generate.sh [output folder]   (default: protos/gen)
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-gen}
venv=${CODEGEN_VENV:-../.cache/codegen}
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q grpcio-tools==1.72.1 mypy-protobuf==3.6.0
fi
mkdir -p "$out"
PATH="$(cd "$venv/bin" && pwd):$PATH" "$venv/bin/python" -m grpc_tools.protoc -I . \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  cogitate/v1/*.proto
