# SPDX-License-Identifier: MIT
"""Image classification, as `train.py`, `validate.py`, `compare.py` and `affinity.py` need it; one purpose per file.

Images: sources (folders, tars, digits), subset (a part of them), decoded_cache (small ones stay decoded), data (their
order, transforms and batches).
The run: option_checks (which combinations of options contradict each other), build (puts a run together), metrics
(every validation image once).
On disk: saved_network (what a file of weights says of its network), curves (learning curves as a picture).
validation evaluates a checkpoint.
"""
