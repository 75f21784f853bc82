// SPDX-License-Identifier: MIT
#include "deformable_attention/cpu/launch.h"

namespace ck {

void deformable_attention_forward(const DeformableAttentionForward& params, DType dtype, int threads) {
    CK_DISPATCH_ISA(deformable_attention_forward, params, dtype, threads)
}
void deformable_attention_backward_value(const DeformableAttentionBackwardValue& params, DType dtype,
                                         int threads) {
    CK_DISPATCH_ISA(deformable_attention_backward_value, params, dtype, threads)
}
void deformable_attention_backward_sampling(const DeformableAttentionBackwardSampling& params, DType dtype,
                                            int threads) {
    CK_DISPATCH_ISA(deformable_attention_backward_sampling, params, dtype, threads)
}

}  // namespace ck
