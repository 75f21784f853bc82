# SPDX-License-Identifier: MIT
"""Which backend serves a call, and how operators are registered."""
