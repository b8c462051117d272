#!/usr/bin/env bash
# Resolves the requirements of each image anew: every package, its version, the hashes of its files on PyPI.
# usage: make locks (or UV=uv deploy/locks/lock.sh [uv's flags, such as --upgrade]). Without --upgrade versions stay where they may.
set -euo pipefail
cd "$(dirname "$0")"
uv=${UV:-uv}
torch=torch==2.13.0

resolve() { # output, extras, more flags
  local out=$1 extras=() name
  for name in $2; do extras+=(--extra "$name"); done
  shift 2
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links --constraint <(echo "$torch") "${extras[@]}" "$@" ../../pyproject.toml -o "$out" >/dev/null
}

resolve gateway.txt gateway "$@"
resolve aggregator.txt "aggregator nats" "$@"
resolve router.txt router "$@"
resolve vision-encoder.txt vision "$@"
resolve tool-executor.txt mcp "$@"
resolve agent-decoder-cuda.txt "adapter nvml" "$@"
# Without torch, whose CPU wheel is on an index of its own and has other hashes there, and without what it needs for CUDA.
without=()
for name in $(grep -oE '^(torch|triton|cuda|nvidia)[a-z0-9-]*' agent-decoder-cuda.txt | grep -v '^nvidia-ml-py$'); do
  without+=(--no-emit-package "$name")
done
cp agent-decoder-cuda.txt agent-decoder.txt
resolve agent-decoder.txt "adapter nvml" "${without[@]}" "$@"
# What builds our own wheel.
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  <(echo "hatchling>=1.26") -o build.txt >/dev/null
