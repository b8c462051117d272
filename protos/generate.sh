#!/usr/bin/env bash
# Generates protos/gen from protos/cogitate with a pinned old generator, so that protobuf 6 and 7 both load it.
# The type stubs come from a newer plugin that needs protobuf 7, hence an environment of its own.
# usage: protos/generate.sh [output folder]   (default: protos/gen)
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-gen}
cache=${CODEGEN_CACHE:-../.cache/codegen}
install() { # environment, package
  [ -e "$cache/$1/.done" ] && return
  python3 -m venv "$cache/$1" && "$cache/$1/bin/pip" install -q "$2" && touch "$cache/$1/.done"
}
install protoc grpcio-tools==1.72.1
install stubs mypy-protobuf==5.1.0
mkdir -p "$out"
PATH="$(cd "$cache/stubs/bin" && pwd):$PATH" "$cache/protoc/bin/python" -m grpc_tools.protoc -I . \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  cogitate/v1/*.proto cogitate/peers/*.proto
