# SPDX-License-Identifier: MIT
"""Bytes, kernels and time of a step: counted on a simulated GPU, timed on the machine at hand."""
