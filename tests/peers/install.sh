#!/usr/bin/env bash
# Installs clients of other kinds into .cache/peers, each as its users have it, for the tests that run them:
# the TypeScript example with its generated client, npm's openai, Connect for browsers, and LiteLLM.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
python=${PYTHON:-python3}

node=.cache/peers/node
mkdir -p "$node"
cp examples/typescript/{package.json,tsconfig.json,buf.gen.yaml,ask.ts} tests/peers/{openai_client.mjs,connect_web.ts} "$node"
(
  cd "$node"
  npm install --no-audit --no-fund --ignore-scripts --no-package-lock
  # Beside the example's own, and not among what it needs.
  npm install --no-audit --no-fund --ignore-scripts --no-package-lock --no-save \
    openai@7.59.0 @connectrpc/connect-web@2.3.0 esbuild@0.28.2
  PATH="$PWD/node_modules/.bin:$PATH" "$root/.venv/bin/buf" generate "$root/protos" --path "$root/protos/cogitate/v1"
  node_modules/.bin/esbuild connect_web.ts --bundle --format=iife --outfile=connect_web.js --log-level=warning
  touch .installed
)

litellm=.cache/peers/litellm-client
"$python" -m venv "$litellm"
"$litellm/bin/pip" install --disable-pip-version-check --no-compile -q litellm==1.106.2
touch "$litellm/.installed"
