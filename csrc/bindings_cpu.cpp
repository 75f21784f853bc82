// SPDX-License-Identifier: MIT
// Python bindings of the CPU kernels: pointers, sizes and strides in, nothing else. The caller has checked
// them.
#include "bindings.h"
#include "context_aggregation/cpu/launch.h"
#include "cpu/isa.h"
#include "deformable_attention/cpu/launch.h"
#include "fused_mlp/cpu/launch.h"
#include "local_aggregation/cpu/launch.h"
#include "projection/cpu/launch.h"

namespace py = pybind11;
using namespace ck::bindings;

namespace {

void context_aggregation_forward(int dtype, const std::array<int64_t, 4>& sizes,
                                 const std::array<int, 4>& grid, double scale, int threads, Pointer q,
                                 const Strides& q_strides, Pointer k, const Strides& k_strides, Pointer v,
                                 const Strides& v_strides, Pointer alpha, Pointer local_weight,
                                 Pointer local_bias, Pointer affinity, Pointer out,
                                 const Strides& out_strides, Pointer logsumexp) {
    const ck::ContextAggregationForward params{context_aggregation_shape(sizes, grid, scale),
                                               tokens(q, q_strides),
                                               tokens(k, k_strides),
                                               tokens(v, v_strides),
                                               pointer(alpha),
                                               pointer(local_weight),
                                               pointer(local_bias),
                                               pointer(affinity),
                                               tokens(out, out_strides),
                                               pointer(logsumexp)};
    ck::context_aggregation_forward(params, static_cast<ck::DType>(dtype), threads);
}

void context_aggregation_backward(int dtype, const std::array<int64_t, 4>& sizes,
                                  const std::array<int, 4>& grid, double scale, int threads, Pointer grad_out,
                                  const Strides& grad_out_strides, Pointer q, const Strides& q_strides,
                                  Pointer k, const Strides& k_strides, Pointer v, const Strides& v_strides,
                                  Pointer alpha, Pointer local_weight, Pointer affinity, Pointer logsumexp,
                                  Pointer grad_q, const Strides& grad_q_strides, Pointer grad_k,
                                  const Strides& grad_k_strides, Pointer grad_v,
                                  const Strides& grad_v_strides, Pointer grad_alpha) {
    const ck::ContextAggregationBackward params{context_aggregation_shape(sizes, grid, scale),
                                                tokens(grad_out, grad_out_strides),
                                                tokens(q, q_strides),
                                                tokens(k, k_strides),
                                                tokens(v, v_strides),
                                                pointer(alpha),
                                                pointer(local_weight),
                                                pointer(affinity),
                                                pointer(logsumexp),
                                                tokens(grad_q, grad_q_strides),
                                                tokens(grad_k, grad_k_strides),
                                                tokens(grad_v, grad_v_strides),
                                                pointer(grad_alpha)};
    ck::context_aggregation_backward(params, static_cast<ck::DType>(dtype), threads);
}

void deformable_attention_forward(int dtype, const std::array<int64_t, 6>& sizes,
                                  const std::vector<int>& level_sizes, int threads, Pointer value,
                                  const Strides& value_strides, Pointer locations, Pointer weights,
                                  Pointer out) {
    const std::vector<ck::Level> of_levels = levels(level_sizes);
    const ck::DeformableAttentionForward params{deformable_attention_shape(sizes, of_levels),
                                                tokens(value, value_strides), pointer(locations),
                                                pointer(weights), pointer(out)};
    ck::deformable_attention_forward(params, static_cast<ck::DType>(dtype), threads);
}

void deformable_attention_backward_value(int dtype, const std::array<int64_t, 6>& sizes,
                                         const std::vector<int>& level_sizes, int threads, Pointer grad_out,
                                         Pointer locations, Pointer weights, Pointer grad_value) {
    const std::vector<ck::Level> of_levels = levels(level_sizes);
    const ck::DeformableAttentionBackwardValue params{deformable_attention_shape(sizes, of_levels),
                                                      pointer(grad_out), pointer(locations), pointer(weights),
                                                      pointer(grad_value)};
    ck::deformable_attention_backward_value(params, static_cast<ck::DType>(dtype), threads);
}

void deformable_attention_backward_sampling(int dtype, const std::array<int64_t, 6>& sizes,
                                            const std::vector<int>& level_sizes, int threads,
                                            Pointer grad_out, Pointer value, const Strides& value_strides,
                                            Pointer locations, Pointer weights, Pointer grad_locations,
                                            Pointer grad_weights) {
    const std::vector<ck::Level> of_levels = levels(level_sizes);
    const ck::DeformableAttentionBackwardSampling params{deformable_attention_shape(sizes, of_levels),
                                                         pointer(grad_out),
                                                         tokens(value, value_strides),
                                                         pointer(locations),
                                                         pointer(weights),
                                                         pointer(grad_locations),
                                                         pointer(grad_weights)};
    ck::deformable_attention_backward_sampling(params, static_cast<ck::DType>(dtype), threads);
}

void local_aggregation_forward(int dtype, const std::array<int64_t, 4>& sizes,
                               const std::array<int, 2>& kernel, int threads, Pointer x,
                               const Strides& x_strides, Pointer weight, Pointer bias, Pointer out,
                               const Strides& out_strides, Pointer channel_sum, Pointer channel_m2) {
    const ck::LocalAggregationForward params{local_aggregation_shape(sizes, kernel), image(x, x_strides),
                                             pointer(weight), pointer(bias), image(out, out_strides)};
    const ck::ChannelStatistics statistics{pointer(channel_sum), pointer(channel_m2)};
    ck::local_aggregation_forward(params, statistics, static_cast<ck::DType>(dtype), threads);
}

void local_aggregation_backward_weight(int dtype, const std::array<int64_t, 4>& sizes,
                                       const std::array<int, 2>& kernel, int threads, Pointer grad_out,
                                       const Strides& grad_out_strides, Pointer x, const Strides& x_strides,
                                       Pointer grad_weight, Pointer grad_bias) {
    const ck::LocalAggregationBackwardWeight params{local_aggregation_shape(sizes, kernel),
                                                    image(grad_out, grad_out_strides), image(x, x_strides),
                                                    pointer(grad_weight), pointer(grad_bias)};
    ck::local_aggregation_backward_weight(params, static_cast<ck::DType>(dtype), threads);
}

void fused_mlp_forward(int dtype, const std::array<int64_t, 2>& tokens, const std::array<int, 3>& widths,
                       int threads, Pointer x, Pointer w1, Pointer b1, Pointer w2, Pointer b2,
                       Pointer sample_scale, bool residual, Pointer out) {
    const ck::FusedMlpForward params{
        fused_mlp_shape(tokens, widths), pointer(x), pointer(w1), pointer(b1), pointer(w2), pointer(b2),
        pointer(sample_scale),           residual,   pointer(out)};
    ck::fused_mlp_forward(params, static_cast<ck::DType>(dtype), threads);
}

void fused_mlp_backward(int dtype, const std::array<int64_t, 2>& tokens, const std::array<int, 3>& widths,
                        int threads, Pointer grad_out, Pointer x, Pointer w1, Pointer b1, Pointer w2,
                        Pointer sample_scale, bool residual, Pointer grad_x, Pointer grad_w1, Pointer grad_b1,
                        Pointer grad_w2, Pointer grad_b2) {
    const ck::FusedMlpBackward params{fused_mlp_shape(tokens, widths),
                                      pointer(grad_out),
                                      pointer(x),
                                      pointer(w1),
                                      pointer(b1),
                                      pointer(w2),
                                      pointer(sample_scale),
                                      residual,
                                      pointer(grad_x),
                                      pointer(grad_w1),
                                      pointer(grad_b1),
                                      pointer(grad_w2),
                                      pointer(grad_b2)};
    ck::fused_mlp_backward(params, static_cast<ck::DType>(dtype), threads);
}

void projection_forward(int dtype, const std::array<int64_t, 2>& tokens, const std::array<int, 2>& widths,
                        int threads, Pointer x, Pointer weight, Pointer bias, Pointer residual,
                        Pointer sample_scale, Pointer out, Pointer channel_sum, Pointer channel_m2) {
    const ck::ProjectionForward params{projection_shape(tokens, widths),
                                       pointer(x),
                                       pointer(weight),
                                       pointer(bias),
                                       pointer(residual),
                                       pointer(sample_scale),
                                       pointer(out),
                                       pointer(channel_sum),
                                       pointer(channel_m2)};
    ck::projection_forward(params, static_cast<ck::DType>(dtype), threads);
}

void projection_backward(int dtype, const std::array<int64_t, 2>& tokens, const std::array<int, 2>& widths,
                         int threads, Pointer grad_out, Pointer x, Pointer weight, Pointer sample_scale,
                         Pointer grad_x, Pointer grad_weight, Pointer grad_bias) {
    const ck::ProjectionBackward params{projection_shape(tokens, widths),
                                        pointer(grad_out),
                                        pointer(x),
                                        pointer(weight),
                                        pointer(sample_scale),
                                        pointer(grad_x),
                                        pointer(grad_weight),
                                        pointer(grad_bias)};
    ck::projection_backward(params, static_cast<ck::DType>(dtype), threads);
}

}  // namespace

PYBIND11_MODULE(_C_cpu, module) {
    module.def("isa", &ck::isa_name, "The instruction set level that the kernels run with.");
    module.def("supported_isas", &ck::supported_isas,
               "The levels that can run here, from the lowest to the highest.");
    module.def("set_isa", &ck::set_isa, py::arg("name"), "Choose the level, for tests and debugging.");

    const auto without_gil = py::call_guard<py::gil_scoped_release>();
    module.def("context_aggregation_forward", &context_aggregation_forward, without_gil);
    module.def("context_aggregation_backward", &context_aggregation_backward, without_gil);
    module.def("deformable_attention_forward", &deformable_attention_forward, without_gil);
    module.def("deformable_attention_backward_value", &deformable_attention_backward_value, without_gil);
    module.def("deformable_attention_backward_sampling", &deformable_attention_backward_sampling,
               without_gil);
    module.def("local_aggregation_forward", &local_aggregation_forward, without_gil);
    module.def("local_aggregation_backward_weight", &local_aggregation_backward_weight, without_gil);
    module.def("fused_mlp_forward", &fused_mlp_forward, without_gil);
    module.def("fused_mlp_backward", &fused_mlp_backward, without_gil);
    module.def("projection_forward", &projection_forward, without_gil);
    module.def("projection_backward", &projection_backward, without_gil);
}
