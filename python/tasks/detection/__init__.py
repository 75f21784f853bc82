# SPDX-License-Identifier: MIT
"""Object detection and instance segmentation; one purpose per file.

Data: annotations (one image's objects, what every source gives), scenes (handwritten digits scattered over canvases:
the data without --data-path), sources (which layout a path has), coco, voc (the formats), segmentation (masks), files
(folders and tars), problems (mistakes in annotations).

Detectors: `detectors`, a folder.
"""
