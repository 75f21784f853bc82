// Kernels with one mistake each, of the classes that kernels of this package could have, next to their
// correct form:
//     planted_bugs NAME FORM ORDER      FORM: right or wrong; ORDER: ascending or descending
// prints "right" or "wrong" by the result, and what the runtime reports goes to stderr, with status 1. Only
// for the emulator.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "memory.h"

using namespace ck;

namespace {

constexpr int kThreads = 64;

// `Right` leaves the mistake out. Every kernel writes out[i] = in[kThreads − 1 − i], or i where it has no use
// for `in`.

template <bool Right>
CK_KERNEL(kThreads)
missing_barrier(const float* in, float* out) {
    CK_SHARED(float, row, kThreads);
    row[thread_index()] = in[thread_index()];
    if (Right) sync_threads();
    out[thread_index()] = row[kThreads - 1 - thread_index()];
}

// The second write to `row` must not overtake the reads of the first: no NaN shows it, but ThreadSanitizer
// does.
template <bool Right>
CK_KERNEL(kThreads)
missing_barrier_before_reuse(const float* in, float* out) {
    CK_SHARED(float, row, kThreads);
    row[thread_index()] = in[thread_index()];
    sync_threads();
    const float other = row[kThreads - 1 - thread_index()];
    if (Right) sync_threads();
    row[thread_index()] = other;
    sync_threads();
    out[thread_index()] = row[thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
missing_warp_barrier(const float* in, float* out) {
    CK_SHARED(float, row, kThreads);
    row[thread_index()] = in[kThreads - 1 - thread_index()];
    if (Right) sync_warp();
    out[thread_index() ^ 1] = row[thread_index() ^ 1];
}

template <bool Right>
CK_KERNEL(kThreads)
missing_wait(const float* in, float* out) {
    CK_SHARED(float, row, kThreads);
    copy_async<4>(row + thread_index(), in + kThreads - 1 - thread_index());
    copy_async_commit();
    if (Right) copy_async_wait<0>();
    const float mine = row[thread_index()];
    copy_async_wait<0>();
    out[thread_index()] = mine;
}

// Waits for all groups but one, and uses that one.
template <bool Right>
CK_KERNEL(kThreads)
wait_for_too_few(const float* in, float* out) {
    CK_SHARED(float, row, 2 * kThreads);
    for (int group = 0; group < 2; ++group) {
        copy_async<4>(row + group * kThreads + thread_index(), in + kThreads - 1 - thread_index());
        copy_async_commit();
    }
    copy_async_wait<Right ? 0 : 1>();
    const float mine = row[kThreads + thread_index()];
    copy_async_wait<0>();
    out[thread_index()] = mine;
}

template <bool Right>
CK_KERNEL(kThreads)
never_waited(const float* in, float* out) {
    CK_SHARED(float, row, kThreads);
    copy_async<4>(row + thread_index(), in);
    copy_async_commit();
    if (Right) copy_async_wait<0>();
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

// A thread waits for its own copies alone; those of others need a barrier as well.
template <bool Right>
CK_KERNEL(kThreads)
wait_without_barrier(const float* in, float* out) {
    CK_SHARED(float, row, kThreads);
    copy_async<4>(row + thread_index(), in + thread_index());
    copy_async_commit();
    copy_async_wait<0>();
    if (Right) sync_threads();
    out[thread_index()] = row[kThreads - 1 - thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
unwritten_shared_memory(const float* in, float* out) {
    CK_DYNAMIC_SHARED(bytes);
    float* row = reinterpret_cast<float*>(bytes);
    if (Right || thread_index() != 7) row[thread_index()] = 0;
    out[thread_index()] = in[kThreads - 1 - thread_index()] + row[thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
wrong_shuffle_mask(const float* in, float* out) {
    const float mine = in[kThreads - 1 - thread_index()];
    out[thread_index()] = shuffle(mine, lane(), Right ? kFullWarp : 0x7fffffffu);
}

template <bool Right>
CK_KERNEL(kThreads)
shuffle_from_outside_mask(const float* in, float* out) {
    const unsigned mask = lane() < 16 ? 0x0000ffffu : 0xffff0000u;
    const float mine = in[kThreads - 1 - thread_index()];
    out[thread_index()] = shuffle(mine, Right ? lane() : lane() ^ 16, mask);
}

template <bool Right>
CK_KERNEL(kThreads)
warp_operation_in_a_branch(const float* in, float* out) {
    float mine = in[kThreads - 1 - thread_index()];
    if (Right || lane() < 20) mine = shuffle(mine, lane());
    out[thread_index()] = mine;
}

// Lanes that have nothing to do any more must still vote.
template <bool Right>
CK_KERNEL(kThreads)
ballot_without_a_lane(const float* in, float* out) {
    if (!Right && thread_index() == kThreads - 1) return;
    const unsigned lanes = lanes_where(lane() < 5);
    out[thread_index()] = in[kThreads - 1 - thread_index()] + static_cast<float>(count_bits(lanes) - 5);
}

template <bool Right>
CK_KERNEL(kThreads)
lowest_bit_of_none(const float* in, float* out) {
    const unsigned lanes = lanes_where(Right || lane() == 40);
    out[thread_index()] = in[kThreads - 1 - thread_index()] + static_cast<float>(lowest_bit(lanes));
}

template <bool Right>
CK_KERNEL(kThreads)
different_warp_operations(const float* in, float* out) {
    float mine = in[kThreads - 1 - thread_index()];
    if (Right || lane() < 20) {
        mine = shuffle(mine, lane());
    } else {
        mine = shuffle(mine, lane());
    }
    out[thread_index()] = mine;
}

template <bool Right>
CK_KERNEL(kThreads)
barrier_in_a_branch(const float* in, float* out) {
    if (Right || thread_index() < 40) sync_threads();
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
two_barriers_for_one(const float* in, float* out) {
    if (Right || thread_index() < 32) {
        sync_threads();
    } else {
        sync_threads();
    }
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
misaligned_vector(const float* in, float* out) {
    if (thread_index() < 15) load<4>(in + 4 * thread_index() + (Right ? 0 : 1));
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
misaligned_copy(const float* in, float* out) {
    CK_SHARED(float, row, 4 * kThreads + 4);
    copy_async<16>(row + 4 * thread_index() + (Right ? 0 : 2), in);
    copy_async_commit();
    copy_async_wait<0>();
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
misaligned_copy_of_nothing(const float* in, float* out) {
    CK_SHARED(float, row, 4 * kThreads);
    copy_async<16>(row + 4 * thread_index(), in + (Right ? 0 : 2), false);
    copy_async_commit();
    copy_async_wait<0>();
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
matrix_outside_shared_memory(const float* in, float* out) {
    CK_SHARED(uint16_t, rows, 32 * 8);
    for (int i = thread_index(); i < 32 * 8; i += kThreads) rows[i] = 0;
    sync_threads();
    uint32_t fragment[4];
    load_matrix(fragment, rows + 8 * (lane() + (Right ? 0 : 1)));
    out[thread_index()] = in[kThreads - 1 - thread_index()] + static_cast<float>(fragment[0]);
}

// For AddressSanitizer: `in` and `out` have kThreads elements.
template <bool Right>
CK_KERNEL(kThreads)
lost_bounds_check_of_a_load(const float* in, float* out) {
    const int from = kThreads - thread_index() - (Right ? 1 : 0);
    out[thread_index()] = in[kThreads - 1 - thread_index()] + 0 * in[from];
}

template <bool Right>
CK_KERNEL(kThreads)
lost_bounds_check_of_a_store(const float* in, float* out) {
    out[thread_index()] = in[kThreads - 1 - thread_index()];
    if (!Right) out[thread_index() + 1] = in[kThreads - 1 - thread_index()];
    sync_threads();
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
lost_bounds_check_of_a_copy(const float* in, float* out) {
    CK_SHARED(float, row, 4 * kThreads);
    const int from = 4 * (thread_index() % 32);
    copy_async<16>(row + 4 * thread_index(), in + from, !Right || from + 4 <= kThreads);
    copy_async_commit();
    copy_async_wait<0>();
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

template <bool Right>
CK_KERNEL(kThreads)
shared_memory_overrun(const float* in, float* out) {
    CK_DYNAMIC_SHARED(bytes);
    float* row = reinterpret_cast<float*>(bytes);
    row[thread_index() + (Right ? 0 : 1)] = 0;
    out[thread_index()] = in[kThreads - 1 - thread_index()];
}

// For ThreadSanitizer: two blocks write the same sum.
template <bool Right>
CK_KERNEL(kThreads)
sum_of_two_blocks(const float* in, float* out) {
    CK_SHARED(float, scratch, 1);
    if (thread_index() == 0) scratch[0] = 0;
    float* const sum = out + kThreads;
    if (Right) {
        atomic_add(sum, 1.f);
    } else {
        *sum += 1.f;
    }
    if (block_index().x == 0) out[thread_index()] = in[kThreads - 1 - thread_index()];
}

using Kernel = void (*)(const float*, float*);

template <Kernel RightForm, Kernel WrongForm>
void run(bool right, const float* in, float* out, unsigned blocks) {
    const size_t shared_bytes = kThreads * sizeof(float);
    if (right) {
        launch<RightForm>({blocks}, kThreads, shared_bytes, nullptr, in, out);
    } else {
        launch<WrongForm>({blocks}, kThreads, shared_bytes, nullptr, in, out);
    }
}

#define BUG(name) {#name, &run<name<true>, name<false>>}

const std::map<std::string, void (*)(bool, const float*, float*, unsigned)> kBugs = {
    BUG(missing_barrier),
    BUG(missing_barrier_before_reuse),
    BUG(missing_warp_barrier),
    BUG(missing_wait),
    BUG(wait_for_too_few),
    BUG(never_waited),
    BUG(wait_without_barrier),
    BUG(unwritten_shared_memory),
    BUG(wrong_shuffle_mask),
    BUG(shuffle_from_outside_mask),
    BUG(warp_operation_in_a_branch),
    BUG(ballot_without_a_lane),
    BUG(lowest_bit_of_none),
    BUG(different_warp_operations),
    BUG(barrier_in_a_branch),
    BUG(two_barriers_for_one),
    BUG(misaligned_vector),
    BUG(misaligned_copy),
    BUG(misaligned_copy_of_nothing),
    BUG(matrix_outside_shared_memory),
    BUG(lost_bounds_check_of_a_load),
    BUG(lost_bounds_check_of_a_store),
    BUG(lost_bounds_check_of_a_copy),
    BUG(shared_memory_overrun),
    BUG(sum_of_two_blocks),
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4 || !kBugs.count(argv[1])) {
        for (const auto& bug : kBugs) std::puts(bug.first.c_str());
        return 2;
    }
    const std::string name = argv[1];
    const bool two_blocks = name == "sum_of_two_blocks";
    emulator::set_thread_order(argv[3]);
    std::vector<float> values(kThreads);
    for (int i = 0; i < kThreads; ++i) values[i] = 1 + i;
    const Memory<float> in(values), out(std::vector<float>(kThreads + two_blocks, 0));
    try {
        kBugs.at(name)(std::strcmp(argv[2], "right") == 0, in.data(), out.data(), two_blocks ? 200 : 1);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    const std::vector<float> results = out.values();
    bool right = true;
    for (int i = 0; i < kThreads; ++i) right = right && results[i] == values[kThreads - 1 - i];
    std::puts(right ? "right" : "wrong");
}
