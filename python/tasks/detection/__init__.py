# SPDX-License-Identifier: MIT
"""Object detection and instance segmentation.

annotations             one image's objects; what every source gives
scenes                  handwritten digits scattered over canvases: the data without --data-path
"""
