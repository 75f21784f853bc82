# SPDX-License-Identifier: MIT
"""The operations: one folder per op, and dispatch/ and common/, which they share.

Nothing is re-exported here, so that `ops.context_aggregation` stays the folder and never becomes the function.
"""
