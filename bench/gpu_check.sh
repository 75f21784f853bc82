#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most eight minutes, on a machine with torch >= 2.11, nvcc and an NVIDIA GPU
# of compute capability 8.0 or higher. Nothing is installed; the checkout is left with an extension for this GPU alone.
#
#     bash bench/gpu_check.sh [FOLDER]     logs and tables go to FOLDER, by default build/gpu_check
#
# Builds the extension, runs the tests of the ops on the GPU and the kernels under compute-sanitizer (memcheck and
# racecheck), then measures, what matters most first: the networks, the ops, where a training step spends its time, and
# with what is left the networks against torch.compile. What it found comes last, as one table; what a step measured
# before its time was over is kept. Status 1 when a check failed.
set -uo pipefail
cd "$(dirname "$0")/.."

out=$(mkdir -p "${1:-build/gpu_check}" && cd "${1:-build/gpu_check}" && pwd)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export CONTAINER_KERNELS_REQUIRE_EXT=1 CONTAINER_KERNELS_CUDA_ARCHS=${CONTAINER_KERNELS_CUDA_ARCHS:-native}
# Of all steps together, in seconds.
limit=${GPU_CHECK_SECONDS:-470}
failed=0
summary=()
trap 'jobs -p | xargs --no-run-if-empty kill 2>/dev/null' EXIT

left() { echo $((limit > SECONDS ? limit - SECONDS : 1)); }

note() { # note STEP RESULT
    summary+=("$(printf '%-28s %-70s %4ss' "$1" "$2" "$SECONDS")")
    echo "${summary[-1]}"
}

# The last line of a log, or what a status that is not 0 means.
result() { # result STATUS LOG
    case $1 in
    124 | 137) echo "FAILED: out of time" ;;
    0) tail -n 1 "$2" ;;
    *) echo "FAILED (status $1): $(tail -n 1 "$2")" ;;
    esac
}

finish() { # finish STEP STATUS LOG
    [ "$2" = 0 ] || failed=1
    note "$1" "$(result "$2" "$3")"
}

python3 -c '
import torch

if not torch.cuda.is_available():
    raise SystemExit("gpu_check needs a CUDA device, torch sees none")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
' || exit 1

timeout "$(left)" python3 setup.py --quiet build_ext --inplace >"$out/build.log" 2>&1
status=$?
finish "build" "$status" "$out/build.log"
[ "$status" = 0 ] || {
    tail -n 30 "$out/build.log"
    exit 1
}
python3 -m container_kernels | tee "$out/report.txt"
# Where it is not, the tests would run the kernels on the processor.
python3 -c '
from container_kernels import usable_backends

if usable_backends()["cuda"]:
    raise SystemExit(usable_backends()["cuda"])
' || exit 1

# Checks do not disturb each other, only times: they run side by side.
checks_limit=$(($(left) * 40 / 100))
declare -A tests
run_tests() { # run_tests NAME ARGUMENT...
    OMP_NUM_THREADS=2 timeout "$checks_limit" python3 -m pytest -q -p no:cacheprovider "${@:2}" \
        >"$out/tests-$1.log" 2>&1 &
    tests[$1]=$!
}
# Triton compiles in every test.
workers=()
python3 -c 'import xdist' 2>/dev/null && workers=(-n 4)
run_tests gpu tests/ops tests/device -m gpu
run_tests cuda tests/ops -m "not slow and not gpu" -k cuda "${workers[@]}"
run_tests triton tests/ops -m "not slow and not gpu" -k "triton and (bfloat16 or not float)" "${workers[@]}"

sanitizer=$(command -v compute-sanitizer || true)
[ -n "$sanitizer" ] || sanitizer=$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")/compute-sanitizer
if [ -x "$sanitizer" ]; then
    if python3 - "$out/run_kernels" >"$out/run_kernels.log" 2>&1 <<'PYTHON'; then
import sys
from pathlib import Path

from builder.cuda import build_program

build_program(Path("tests/device/run_kernels.cu"), Path(sys.argv[1]))
PYTHON
        for tool in memcheck racecheck; do
            timeout "$checks_limit" "$sanitizer" --tool "$tool" --error-exitcode 3 "$out/run_kernels" \
                >"$out/$tool.log" 2>&1
            finish "compute-sanitizer $tool" $? "$out/$tool.log"
        done
    else
        finish "compute-sanitizer" 1 "$out/run_kernels.log"
    fi
else
    note "compute-sanitizer" "not on this machine: not run"
fi

for step in gpu cuda triton; do
    wait "${tests[$step]}"
    finish "tests, $step" $? "$out/tests-$step.log"
done

# A step begins nothing after its share of what is left, and has what is left to end what it began. Out of time is no
# failure here: what was measured until then has been written.
measure() { # measure STEP SHARE LOG COMMAND...
    local seconds=$(($(left) * $2 / 100)) status
    timeout "$(left)" python3 "${@:4}" --limit "$seconds" >"$out/$3.log" 2>&1
    status=$?
    case $status in
    124 | 137) note "$1" "out of time; what was measured is kept" ;;
    *) finish "$1" "$status" "$out/$3.log" ;;
    esac
}

measure "times, networks" 35 table-networks bench/table.py --only model --seconds 2 --no-compile --output "$out"
measure "times, ops" 60 table-ops bench/table.py --only mix,mlp,projection,depthwise --seconds 0.4 --no-compile \
    --output "$out"
measure "where a step spends its time" 50 profile bench/step_profile.py --models container_light --time --repeats 5 \
    --label ours --output "$out/profile.json"
# The search among kernels takes a minute and more for a network.
if [ "$(left)" -gt 90 ]; then
    measure "times, torch.compile" 10 table-compiled bench/table.py --only model --seconds 2 --compile \
        --output "$out/compiled"
else
    note "times, torch.compile" "no time left: bench/table.py --only model --compile"
fi

echo
printf '%s\n' "${summary[@]}"
find "$out" -name '*.json' ! -name profile.json -newer "$out/build.log" | sort | while read -r table; do
    echo
    python3 bench/brief.py "$table"
done
exit "$failed"
