#!/usr/bin/env bash
# The door to bench/gpu_check.py, which says what it does: bash bench/gpu_check.sh 1 [FOLDER]
exec python3 "$(dirname "${BASH_SOURCE[0]}")/gpu_check.py" "$@"
