// SPDX-License-Identifier: MIT
// Forward. Four reads of a pixel's channels for each point, which are everything: at an encoder's 22,223
// queries of 16 points and 8 heads of 32 they are 728 MB in bfloat16, from L1 and L2.
#include "deformable_attention/cuda/query_groups.h"

namespace ck::cuda {
namespace {

template <class T, bool Aligned>
CK_KERNEL(kMaxGroupThreads, (kGroupBlocks<T, Aligned>))
deformable_attention_forward_kernel(Problem problem, QueryGroups groups, Tokens value, const float* locations,
                                    const float* weights, T* out) {
    const Place place(problem, groups);
    if (place.query >= problem.queries) return;
    const LaneChannels<T, kAccess<T, Aligned>> channels(problem, groups, place);
    const T* const pixels = value.head<const T>(place.image, place.head);
    const int64_t row = place.row(problem), first_point = row * problem.points_of_query();
    float sums[kLaneChannels] = {};
    for_each_point(problem, pixels, value.token_stride, channels, locations + 2 * first_point,
                   weights + first_point,
                   [&](const auto& corners, const Map&, const Point& point, float weight, int) {
                       const float upper = weight * (1 - point.down), lower = weight * point.down;
                       const float left = 1 - point.right, right = point.right;
                       const float parts[4] = {upper * left, upper * right, lower * left, lower * right};
                       CK_UNROLL
                       for (int corner = 0; corner < 4; ++corner) {
                           float pixel[kLaneChannels];
                           corners.rows[corner].widen(pixel);
                           CK_UNROLL
                           for (int i = 0; i < kLaneChannels; ++i) sums[i] += parts[corner] * pixel[i];
                       }
                   });
    channels.write(channels.first_of(out + row * problem.head_dim), sums);
}

}  // namespace

void deformable_attention_forward(const DeformableAttentionForward& params, DType dtype, Stream stream) {
    const Problem problem = problem_of(params.shape);
    const QueryGroups groups = choose_groups(problem);
    check_locations(params.locations);
    with_type(dtype, [&]<class T>() {
        const auto start = [&]<bool Aligned>() {
            launch<deformable_attention_forward_kernel<T, Aligned>>(
                {grid_of(problem, groups)}, groups.threads, 0, stream, problem, groups, params.value,
                static_cast<const float*>(params.locations), static_cast<const float*>(params.weights),
                static_cast<T*>(params.out));
        };
        const bool aligned = is_aligned<T>(problem, params.value) && is_aligned<T>(problem, params.out);
        aligned ? start.template operator()<true>() : start.template operator()<false>();
    });
}

}  // namespace ck::cuda
