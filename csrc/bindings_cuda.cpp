// SPDX-License-Identifier: MIT
// Python bindings of the CUDA kernels, for a GPU (_C_cuda) and for this machine's processor
// (_C_cuda_emulator). Every kernel starts on the stream it is given, on that stream's device. The caller has
// checked the arguments.
#include "bindings.h"
#include "common/windows.h"
#include "context_aggregation/cuda/launch.h"
#include "cuda/runtime.h"
#include "deformable_attention/cuda/launch.h"
#include "local_aggregation/cuda/launch.h"

#ifdef CK_EMULATED
#include "cuda_emulator/launch.h"
#define CK_MODULE _C_cuda_emulator
#else
#define CK_MODULE _C_cuda
#endif

namespace py = pybind11;
using namespace ck::bindings;

namespace {

ck::DType element(int code) { return static_cast<ck::DType>(code); }

void local_aggregation_forward(int dtype, int device, Pointer stream, const std::array<int64_t, 4>& sizes,
                               const std::array<int, 2>& kernel, Pointer x, const Strides& x_strides,
                               Pointer weight, Pointer bias, Pointer out, const Strides& out_strides,
                               Pointer sum, Pointer m2, Pointer workspace) {
    const ck::LocalAggregationForward params{local_aggregation_shape(sizes, kernel), image(x, x_strides),
                                             pointer(weight), pointer(bias), image(out, out_strides)};
    const ck::DeviceGuard guard(device);
    ck::cuda::local_aggregation_forward(params, {pointer(sum), pointer(m2)}, pointer(workspace),
                                        element(dtype), pointer(stream));
}

size_t local_aggregation_forward_workspace(int dtype, int device, const std::array<int64_t, 4>& sizes,
                                           const std::array<int, 2>& kernel, bool statistics) {
    const ck::DeviceGuard guard(device);
    return ck::cuda::local_aggregation_forward_workspace(local_aggregation_shape(sizes, kernel),
                                                         element(dtype), statistics);
}

void local_aggregation_backward_weight(int dtype, int device, Pointer stream,
                                       const std::array<int64_t, 4>& sizes, const std::array<int, 2>& kernel,
                                       Pointer grad_out, const Strides& grad_out_strides, Pointer x,
                                       const Strides& x_strides, Pointer grad_weight, Pointer grad_bias,
                                       Pointer workspace) {
    const ck::LocalAggregationBackwardWeight params{local_aggregation_shape(sizes, kernel),
                                                    image(grad_out, grad_out_strides), image(x, x_strides),
                                                    pointer(grad_weight), pointer(grad_bias)};
    const ck::DeviceGuard guard(device);
    ck::cuda::local_aggregation_backward_weight(params, pointer(workspace), element(dtype), pointer(stream));
}

size_t local_aggregation_backward_weight_workspace(int dtype, int device, const std::array<int64_t, 4>& sizes,
                                                   const std::array<int, 2>& kernel) {
    const ck::DeviceGuard guard(device);
    return ck::cuda::local_aggregation_backward_weight_workspace(local_aggregation_shape(sizes, kernel),
                                                                 element(dtype));
}

void context_aggregation_forward(int dtype, int device, Pointer stream, const std::array<int64_t, 4>& sizes,
                                 const std::array<int, 4>& grid, double scale, Pointer q,
                                 const Strides& q_strides, Pointer k, const Strides& k_strides, Pointer v,
                                 const Strides& v_strides, Pointer alpha, Pointer local_weight,
                                 Pointer local_bias, Pointer out, const Strides& out_strides,
                                 Pointer logsumexp) {
    const ck::ContextAggregationForward params{context_aggregation_shape(sizes, grid, scale),
                                               tokens(q, q_strides),
                                               tokens(k, k_strides),
                                               tokens(v, v_strides),
                                               pointer(alpha),
                                               pointer(local_weight),
                                               pointer(local_bias),
                                               /*affinity=*/nullptr,
                                               tokens(out, out_strides),
                                               pointer(logsumexp)};
    const ck::DeviceGuard guard(device);
    ck::cuda::context_aggregation_forward(params, element(dtype), pointer(stream));
}

void context_aggregation_backward(int dtype, int device, Pointer stream, const std::array<int64_t, 4>& sizes,
                                  const std::array<int, 4>& grid, double scale, Pointer grad_out,
                                  const Strides& grad_out_strides, Pointer q, const Strides& q_strides,
                                  Pointer k, const Strides& k_strides, Pointer v, const Strides& v_strides,
                                  Pointer alpha, Pointer local_weight, Pointer logsumexp, Pointer grad_q,
                                  const Strides& grad_q_strides, Pointer grad_k,
                                  const Strides& grad_k_strides, Pointer grad_v,
                                  const Strides& grad_v_strides, Pointer grad_alpha,
                                  Pointer grad_local_weight, Pointer grad_local_bias, Pointer workspace) {
    const ck::ContextAggregationBackward params{context_aggregation_shape(sizes, grid, scale),
                                                tokens(grad_out, grad_out_strides),
                                                tokens(q, q_strides),
                                                tokens(k, k_strides),
                                                tokens(v, v_strides),
                                                pointer(alpha),
                                                pointer(local_weight),
                                                /*affinity=*/nullptr,
                                                pointer(logsumexp),
                                                tokens(grad_q, grad_q_strides),
                                                tokens(grad_k, grad_k_strides),
                                                tokens(grad_v, grad_v_strides),
                                                pointer(grad_alpha)};
    const ck::DeviceGuard guard(device);
    ck::cuda::context_aggregation_backward(params, {pointer(grad_local_weight), pointer(grad_local_bias)},
                                           pointer(workspace), element(dtype), pointer(stream));
}

size_t context_aggregation_backward_workspace(int dtype, int device, const std::array<int64_t, 4>& sizes,
                                              const std::array<int, 4>& grid, bool local_gradient) {
    const ck::DeviceGuard guard(device);
    return ck::cuda::context_aggregation_backward_workspace(context_aggregation_shape(sizes, grid, 1.0),
                                                            element(dtype), local_gradient);
}

size_t context_aggregation_forward_shared_memory(int dtype, const std::array<int64_t, 4>& sizes,
                                                 const std::array<int, 4>& grid) {
    return ck::cuda::context_aggregation_forward_shared_memory(context_aggregation_shape(sizes, grid, 1.0),
                                                               element(dtype));
}

size_t context_aggregation_backward_shared_memory(int dtype, const std::array<int64_t, 4>& sizes,
                                                  const std::array<int, 4>& grid) {
    return ck::cuda::context_aggregation_backward_shared_memory(context_aggregation_shape(sizes, grid, 1.0),
                                                                element(dtype));
}

void deformable_attention_forward(int dtype, int device, Pointer stream, const std::array<int64_t, 6>& sizes,
                                  const std::vector<int>& spatial_shapes, Pointer value,
                                  const Strides& value_strides, Pointer locations, Pointer weights,
                                  Pointer out) {
    const auto maps = levels(spatial_shapes);
    const ck::DeformableAttentionForward params{deformable_attention_shape(sizes, maps),
                                                tokens(value, value_strides), pointer(locations),
                                                pointer(weights), pointer(out)};
    const ck::DeviceGuard guard(device);
    ck::cuda::deformable_attention_forward(params, element(dtype), pointer(stream));
}

void deformable_attention_backward_value(int dtype, int device, Pointer stream,
                                         const std::array<int64_t, 6>& sizes,
                                         const std::vector<int>& spatial_shapes, Pointer grad_out,
                                         Pointer locations, Pointer weights, Pointer grad_value,
                                         Pointer workspace) {
    const auto maps = levels(spatial_shapes);
    const ck::DeformableAttentionBackwardValue params{deformable_attention_shape(sizes, maps),
                                                      pointer(grad_out), pointer(locations), pointer(weights),
                                                      pointer(grad_value)};
    const ck::DeviceGuard guard(device);
    ck::cuda::deformable_attention_backward_value(params, pointer(workspace), element(dtype),
                                                  pointer(stream));
}

size_t deformable_attention_backward_value_workspace(const std::array<int64_t, 6>& sizes,
                                                     const std::vector<int>& spatial_shapes) {
    const auto maps = levels(spatial_shapes);
    return ck::cuda::deformable_attention_backward_value_workspace(deformable_attention_shape(sizes, maps));
}

void deformable_attention_backward_sampling(int dtype, int device, Pointer stream,
                                            const std::array<int64_t, 6>& sizes,
                                            const std::vector<int>& spatial_shapes, Pointer grad_out,
                                            Pointer value, const Strides& value_strides, Pointer locations,
                                            Pointer weights, Pointer grad_locations, Pointer grad_weights) {
    const auto maps = levels(spatial_shapes);
    const ck::DeformableAttentionBackwardSampling params{deformable_attention_shape(sizes, maps),
                                                         pointer(grad_out),
                                                         tokens(value, value_strides),
                                                         pointer(locations),
                                                         pointer(weights),
                                                         pointer(grad_locations),
                                                         pointer(grad_weights)};
    const ck::DeviceGuard guard(device);
    ck::cuda::deformable_attention_backward_sampling(params, element(dtype), pointer(stream));
}

int multiprocessor_count(int device) {
    const ck::DeviceGuard guard(device);
    return ck::multiprocessor_count();
}

int shared_memory_limit(int device) {
    const ck::DeviceGuard guard(device);
    return ck::shared_memory_limit();
}

// None rather than an empty text.
py::object why_not(int device) {
    const std::string reason = ck::why_not(device);
    return reason.empty() ? py::object(py::none()) : py::object(py::str(reason));
}

}  // namespace

PYBIND11_MODULE(CK_MODULE, module) {
    module.attr("cuda_version") = ck::cuda_version();
    module.attr("square_windows") = py::cast(ck::kSquareWindows);
    module.attr("deformable_attention_max_levels") = ck::cuda::kMaxLevels;
    module.attr("deformable_attention_max_head_dim") = ck::cuda::kMaxHeadDim;
    module.def("why_not", &why_not, py::arg("device"), "Why the kernels cannot run on this device, or None.");
    module.def("multiprocessor_count", &multiprocessor_count, py::arg("device"));
    module.def("shared_memory_limit", &shared_memory_limit, py::arg("device"),
               "The most bytes of shared memory that a block can have.");
#ifdef CK_EMULATED
    module.def("set_thread_order", &ck::emulator::set_thread_order, py::arg("name"),
               "The order in which a block's threads take turns: ascending or descending.");
#endif

    const auto without_gil = py::call_guard<py::gil_scoped_release>();
    module.def("local_aggregation_forward", &local_aggregation_forward, without_gil);
    module.def("local_aggregation_forward_workspace", &local_aggregation_forward_workspace);
    module.def("local_aggregation_backward_weight", &local_aggregation_backward_weight, without_gil);
    module.def("local_aggregation_backward_weight_workspace", &local_aggregation_backward_weight_workspace);
    module.def("context_aggregation_forward", &context_aggregation_forward, without_gil);
    module.def("context_aggregation_forward_shared_memory", &context_aggregation_forward_shared_memory);
    module.def("context_aggregation_backward", &context_aggregation_backward, without_gil);
    module.def("context_aggregation_backward_workspace", &context_aggregation_backward_workspace);
    module.def("context_aggregation_backward_shared_memory", &context_aggregation_backward_shared_memory);
    module.def("deformable_attention_forward", &deformable_attention_forward, without_gil);
    module.def("deformable_attention_backward_value", &deformable_attention_backward_value, without_gil);
    module.def("deformable_attention_backward_value_workspace",
               &deformable_attention_backward_value_workspace);
    module.def("deformable_attention_backward_sampling", &deformable_attention_backward_sampling,
               without_gil);
}
