// Memory that a kernel can use: the device's in a build by nvcc, else the heap, of exactly the size asked
// for, so that AddressSanitizer knows where it ends.
#pragma once

#include <vector>

#include "cuda/device.h"

template <class T>
class Memory {
  public:
    explicit Memory(const std::vector<T>& values) : size_(values.size()) {
#if defined(__CUDACC__)
        ck::check_cuda(cudaMalloc(&data_, size_ * sizeof(T)), "cudaMalloc");
        ck::check_cuda(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyDefault), "cudaMemcpy");
#else
        data_ = static_cast<T*>(std::malloc(size_ * sizeof(T)));
        for (size_t i = 0; i < size_; ++i) data_[i] = values[i];
#endif
    }
    ~Memory() {
#if defined(__CUDACC__)
        cudaFree(data_);
#else
        std::free(data_);
#endif
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    T* data() const { return data_; }

    // What is in it, once everything that was launched has finished.
    std::vector<T> values() const {
        std::vector<T> result(size_);
#if defined(__CUDACC__)
        ck::check_cuda(cudaMemcpy(result.data(), data_, size_ * sizeof(T), cudaMemcpyDefault),
                       "a kernel before");
#else
        for (size_t i = 0; i < size_; ++i) result[i] = data_[i];
#endif
        return result;
    }

  private:
    T* data_ = nullptr;
    size_t size_;
};
