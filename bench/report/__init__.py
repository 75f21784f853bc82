# SPDX-License-Identifier: MIT
"""Results of the table: files with their conditions, one line per problem, predictions."""
