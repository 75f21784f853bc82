# SPDX-License-Identifier: MIT
"""The operations: each folder is one op, its definition first, then what serves it.

Nothing is re-exported here, so that `ops.context_aggregation` stays the folder and never becomes the function.
"""
