# SPDX-License-Identifier: MIT
"""Image classification, as `train.py`, `validate.py`, `compare.py` and `affinity.py` need it; one purpose per file.

The command line: options, option_checks (which combinations contradict each other).
Images, which `labelled_images` reads: subset (a part of them), data (transforms and augmentations of training).
The run: task (what the engine is given), build (puts a run together; `networks` has the network), metrics (losses and
accuracies), curves (learning curves as a picture).
validation evaluates a checkpoint.
"""
