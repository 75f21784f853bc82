// SPDX-License-Identifier: MIT
#include "context_aggregation/cuda/backward_kernel.h"

namespace ck::cuda {

void backward_float32(const BackwardArguments& arguments, Stream stream) {
    launch_backward<float>(arguments, stream);
}

}  // namespace ck::cuda
