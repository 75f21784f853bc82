# SPDX-License-Identifier: MIT
"""Self-supervised training by DINO (Caron et al., ICCV 2021), and what judges its features; one purpose per file.

The method: head, branches (student, teacher and centre), loss, schedules (functions of the step), views (what an image
becomes).
The run: options, option_checks, task (what the engine is given), build (puts a run together), data (images in views).
Judging: features (of all images, over ranks), neighbours (the kNN protocol), controls (what a network has to beat),
diagnosis (whether the targets collapsed), linear_probe, curves; judgement (all of it on a file of weights: knn.py).
"""
