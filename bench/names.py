# SPDX-License-Identifier: MIT
"""Names of contenders, as they stand in tables. Free of torch, so that results can be read without it."""

OURS, EAGER, COMPILED = "ours", "eager", "torch.compile"
# A network of ours in evaluation as it is trained, before `fuse()`.
NOT_FUSED = "ours, not fused"
# Ours on a backend that is asked for: what the automatic choice of a GPU's ops is judged by.
BACKENDS = {"ours on cuda": "cuda", "ours on triton": "triton"}
# Deformable attention as its authors compute it.
ORIGINAL = "the original algorithm in Triton"
