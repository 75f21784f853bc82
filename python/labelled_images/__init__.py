# SPDX-License-Identifier: MIT
"""Images in class folders, for the tasks that learn from or are judged by them; one purpose per file.

sources (folders, tars, digits), folder_walk and class_order (how a folder is read and its classes are numbered),
options (where the images are), decoded_cache (small ones stay decoded), evaluation_transform and loader (to batches).
"""
