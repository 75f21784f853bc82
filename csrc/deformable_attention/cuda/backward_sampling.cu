// SPDX-License-Identifier: MIT
// The gradients of locations and weights: for each point the products of the query's gradient with the four
// pixels around it. Lanes combine the four into the three results before they add them up over the group, in
// a fixed order.
#include "deformable_attention/cuda/query_groups.h"

namespace ck::cuda {
namespace {

// Over `lanes` lanes that lie together, the sum in each of them.
template <int N>
CK_DEVICE void add_up(float (&values)[N], int lanes) {
    CK_NO_UNROLL
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        CK_UNROLL
        for (int i = 0; i < N; ++i) values[i] += shuffle_xor(values[i], distance);
    }
}

template <class T, bool Aligned>
CK_KERNEL(kMaxGroupThreads, (kGroupBlocks<T, Aligned>))
deformable_attention_backward_sampling_kernel(Problem problem, QueryGroups groups, const T* grad_out,
                                              Tokens value, const float* locations, const float* weights,
                                              float* grad_locations, float* grad_weights) {
    Place place(problem, groups);
    // All lanes take part in shuffles; those without a query do what the last one's do, and write nothing.
    const bool exists = place.query < problem.queries;
    if (!exists) place.query = problem.queries - 1;
    const LaneChannels<T, kAccess<T, Aligned>> channels(problem, groups, place);
    const T* const pixels = value.head<const T>(place.image, place.head);
    const int64_t row = place.row(problem), first_point = row * problem.points_of_query();
    float gradient[kLaneChannels];
    channels.read(channels.first_of(grad_out + row * problem.head_dim), true).widen(gradient);
    // A lane keeps the results of every `lanes`-th point, so that they leave side by side.
    float kept_x = 0, kept_y = 0, kept_weight = 0;
    for_each_point(
        problem, pixels, value.token_stride, channels, locations + 2 * first_point, weights + first_point,
        [&](const auto& corners, const Map& map, const Point& point, float weight, int index) {
            float products[4] = {};
            CK_UNROLL
            for (int corner = 0; corner < 4; ++corner) {
                float pixel[kLaneChannels];
                corners.rows[corner].widen(pixel);
                CK_UNROLL
                for (int i = 0; i < kLaneChannels; ++i) products[corner] += gradient[i] * pixel[i];
            }
            const float upper = products[1] - products[0], lower = products[3] - products[2];
            const float left = products[2] - products[0];
            const float at_top = products[0] + point.right * upper;
            const float at_bottom = products[2] + point.right * lower;
            float by[3] = {at_top + point.down * (at_bottom - at_top), upper + point.down * (lower - upper),
                           left + point.right * (lower - upper)};
            add_up(by, groups.lanes);
            const int turn = index & (groups.lanes - 1);
            if (turn == place.index) {
                // Exactly zero outside, whatever the weight is.
                kept_weight = by[0];
                kept_x = point.is_inside() ? by[1] * map.columns * weight : 0;
                kept_y = point.is_inside() ? by[2] * map.rows * weight : 0;
            }
            const bool last = index == problem.points_of_query() - 1;
            if (exists && (last || turn == groups.lanes - 1) && place.index <= turn) {
                const int64_t mine = first_point + index - turn + place.index;
                store(grad_locations + 2 * mine, Vec<float, 2>{kept_x, kept_y});
                grad_weights[mine] = kept_weight;
            }
        });
}

}  // namespace

void deformable_attention_backward_sampling(const DeformableAttentionBackwardSampling& params, DType dtype,
                                            Stream stream) {
    const Problem problem = problem_of(params.shape);
    const QueryGroups groups = choose_groups(problem);
    check_locations(params.locations);
    check_locations(params.grad_locations);
    with_type(dtype, [&]<class T>() {
        const auto start = [&]<bool Aligned>() {
            launch<deformable_attention_backward_sampling_kernel<T, Aligned>>(
                {grid_of(problem, groups)}, groups.threads, 0, stream, problem, groups,
                static_cast<const T*>(params.grad_out), params.value,
                static_cast<const float*>(params.locations), static_cast<const float*>(params.weights),
                static_cast<float*>(params.grad_locations), static_cast<float*>(params.grad_weights));
        };
        const bool aligned = is_aligned<T>(problem, params.value) && is_aligned<T>(problem, params.grad_out);
        aligned ? start.template operator()<true>() : start.template operator()<false>();
    });
}

}  // namespace ck::cuda
