# SPDX-License-Identifier: MIT
"""The operations inside of other people's networks; imported by name, since each module is about another library.

container_kernels.integrations.transformers     use_deformable_attention(model), register_backbones()
container_kernels.integrations.ms_deform_attn   what Deformable DETR's extension and its functions are called as
"""
