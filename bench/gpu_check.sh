#!/usr/bin/env bash
# Runs `python3 -m bench.gpu_check`, which says what it does, from any folder: bash bench/gpu_check.sh 1 [FOLDER]
called_from=$PWD
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
exec python3 -m bench.gpu_check --relative-to "$called_from" "$@"
