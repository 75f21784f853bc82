# SPDX-License-Identifier: MIT
"""Everything that only a GPU can tell, as steps of two stages: `bash bench/gpu_check.sh`."""
