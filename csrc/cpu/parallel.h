// SPDX-License-Identifier: MIT
// Threads for kernels.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ck::CK_ISA {

// Calls task(index, thread) for index = 0 … count - 1, where thread < threads numbers the worker, for its
// scratch. Which worker gets a task is left to chance: a result may depend on the index only.
template <class Task>
void parallel_for(int threads, int64_t count, const Task& task) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1 && count > 1)
    for (int64_t index = 0; index < count; ++index) task(index, omp_get_thread_num());
#else
    for (int64_t index = 0; index < count; ++index) task(index, 0);
#endif
}

}  // namespace ck::CK_ISA
