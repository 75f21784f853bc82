// SPDX-License-Identifier: MIT
#include "context_aggregation/cuda/backward_kernel.h"

namespace ck::cuda {

void backward_bfloat16(const BackwardArguments& arguments, Stream stream) {
    launch_backward<BFloat16>(arguments, stream);
}

}  // namespace ck::cuda
