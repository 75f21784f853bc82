// SPDX-License-Identifier: MIT
// The CPU kernels, on at most `threads` threads; the result does not depend on their number.
//
// In the order in which a call meets them:
// clang-format off
//   packed_value.h                      value by heads, in the accumulation type
//   corners.h                           from locations to pixels and their coefficients
//   forward_kernel.cpp                  a task: some queries of one head
//   backward_sampling_kernel.cpp        the same, for the gradients of locations and weights
//   backward_value_kernel.cpp           a task: the pixels of a band of one level and head
// clang-format on
#pragma once

#include "cpu/isa.h"
#include "deformable_attention/params.h"

namespace ck {

void deformable_attention_forward(const DeformableAttentionForward& params, DType dtype, int threads);
void deformable_attention_backward_value(const DeformableAttentionBackwardValue& params, DType dtype,
                                         int threads);
void deformable_attention_backward_sampling(const DeformableAttentionBackwardSampling& params, DType dtype,
                                            int threads);

CK_DECLARE_FOR_EACH_ISA(void deformable_attention_forward(const DeformableAttentionForward& params,
                                                          DType dtype, int threads))
CK_DECLARE_FOR_EACH_ISA(void deformable_attention_backward_value(
    const DeformableAttentionBackwardValue& params, DType dtype, int threads))
CK_DECLARE_FOR_EACH_ISA(void deformable_attention_backward_sampling(
    const DeformableAttentionBackwardSampling& params, DType dtype, int threads))

}  // namespace ck
