# SPDX-License-Identifier: MIT
"""Object detection and instance segmentation; one purpose per file.

Data: annotations (one image's objects, what every source gives), scenes (handwritten digits scattered over canvases:
the data without --data-path), sources (which layout a path has), coco, voc (the formats), segmentation (masks), files
(folders and tars), problems (mistakes in annotations).
Batches: transforms (sizes, flips, crops), data (datasets, groups of wide and high images, loaders).
Detectors: the folder `detectors`, behind torchvision's interface.
The command line: options, option_checks, recipes (values by name for what is not given).
The run: task (what the engine is given), build (puts a run together), evaluate (COCO's numbers over all ranks), metrics
(what they are), draw and pictures (detections to look at), curves, checkpoint and validation (`--eval`).
"""
