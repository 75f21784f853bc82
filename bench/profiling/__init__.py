# SPDX-License-Identifier: MIT
"""Where a step spends its bytes, kernels and time: counted on a simulated GPU, timed on the machine at hand."""
