#!/usr/bin/env bash
# Writes what each image installs as CycloneDX 1.6, of its lock: every package with version and hashes.
# usage: make sbom (or TOOLS=folder-of-cyclonedx-py deploy/locks/sbom.sh FOLDER)
set -euo pipefail
mkdir -p "$1"
for lock in "$(dirname "$0")"/*.txt; do
  name=$(basename "$lock" .txt)
  # Lines that name one package twice, for two Pythons, are two components; nothing in it depends on when it was made.
  "${TOOLS:?}/cyclonedx-py" requirements --output-reproducible --spec-version 1.6 --output-format JSON --output-file "$1/$name.cdx.json" "$lock"
done
