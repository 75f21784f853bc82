# SPDX-License-Identifier: MIT
"""timm's networks by name, ours among them, as several tasks build them; one purpose per file.

build (a network, and what it expects of an image), option_checks (names and arguments), saved_network (the network of a
file of weights) and its options.
"""
