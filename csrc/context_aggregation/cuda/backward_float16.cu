// SPDX-License-Identifier: MIT
#include "context_aggregation/cuda/backward_kernel.h"

namespace ck::cuda {

void backward_float16(const BackwardArguments& arguments, Stream stream) {
    launch_backward<Half>(arguments, stream);
}

}  // namespace ck::cuda
