# SPDX-License-Identifier: MIT
"""Image classification, as `train.py`, `validate.py`, `compare.py` and `affinity.py` need it; one purpose per file.

The command line: options, option_checks (which combinations contradict each other).
Images: sources (folders, tars, digits), subset (a part of them), decoded_cache (small ones stay decoded), data
(transforms, loaders, augmentations).
The run: task (what the engine is given), build (puts a run together), metrics (losses and accuracies).
On disk: saved_network (what a file of weights says of its network), curves (learning curves as a picture).
validation evaluates a checkpoint.
"""
