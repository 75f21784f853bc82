# SPDX-License-Identifier: MIT
"""Choice of the backend that serves a call, and registration of operators."""
