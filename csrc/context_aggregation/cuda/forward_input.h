// SPDX-License-Identifier: MIT
// How the forward's blocks get their head into shared memory.
#pragma once

#include "context_aggregation/cuda/forward.h"

namespace ck::cuda {

// Starts to copy all keys, values and local weights of a head.
template <class T, int D>
CK_DEVICE void load_head(const ForwardArguments& arguments, int64_t batch, int64_t head, T* keys, T* values,
                         float* weight) {
    const MixForward& mix = arguments.mix;
    const MixShape& shape = mix.shape;
    const ForwardPlan& plan = arguments.plan;
    const int tokens = static_cast<int>(shape.tokens);
    load_rows<T, D>(keys, plan.key_rows, mix.k.head<T>(batch, head), mix.k.token_stride, tokens,
                    shape.head_dim, plan.access, thread_index(), block_size());
    load_rows<T, D>(values, plan.key_rows, mix.v.head<T>(batch, head), mix.v.token_stride, tokens,
                    shape.head_dim, plan.access, thread_index(), block_size());
    const int count = shape.head_dim * shape.kernel_height * shape.kernel_width;
    const float* const source = static_cast<const float*>(mix.local_weight) + head * count;
    for (int i = thread_index(); i < count; i += block_size()) copy_async<4>(weight + i, source + i);
}

// Copies the queries of a chunk, in rows Pitch elements apart, and waits for these and all earlier copies.
template <class T, int D, int Pitch>
CK_DEVICE void load_queries(const ForwardArguments& arguments, int64_t batch, int64_t head, int begin,
                            T* chunk) {
    const MixForward& mix = arguments.mix;
    const ForwardPlan& plan = arguments.plan;
    if (begin > 0) sync_threads();  // the previous chunk has been written
    load_rows<T, D, Pitch>(chunk, plan.chunk_rows, mix.q.head<T>(batch, head) + begin * mix.q.token_stride,
                           mix.q.token_stride, static_cast<int>(mix.shape.tokens) - begin, mix.shape.head_dim,
                           plan.access, thread_index(), block_size());
    copy_async_commit();
    copy_async_wait<0>();
    sync_threads();
}

// Whether the condition holds in any lane of the warp.
CK_DEVICE bool any_lane(bool condition) { return warp_sum(condition ? 1.f : 0.f) != 0; }

}  // namespace ck::cuda
