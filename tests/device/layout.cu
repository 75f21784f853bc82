// Where the mix's forward reads, from its own classes: the banks of shared memory that a warp's loads meet,
// and the widest access to global memory. Prints a line for each case; what is expected is in test_layout.py.
#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "context_aggregation/cuda/forward_output.h"
#include "memory.h"

using namespace ck;
using namespace ck::cuda;

namespace {

constexpr int kNowhere = -1, kMaxRounds = 64;

// The first word that every thread reads in every round of the window: all further ones of a round are the
// same distance behind it in all threads. `words` is (rounds, threads).
template <class T, int D>
CK_KERNEL(256)
forward_words(ContextAggregationShape shape, Chunk chunk, int* words) {
    const output::ChunkRows rows(chunk, shape);
    const output::RowSlice<T, D> slice(rows, shape.head_dim);
    if (slice.group >= slice.groups) return;
    const int pair = thread_index() % slice.lanes;
    for (int slot = slice.group; slot < rows.count; slot += slice.groups) {
        const int token = (rows.first + slice.row(slot)) * shape.width;
        words[thread_index()] = (token * kPitch<T, D> + 2 * pair) * static_cast<int>(sizeof(T)) / 4;
        words += block_size();
    }
}

// Loads of a warp, and the cycles that shared memory needs for them: different words of a bank are one after
// the other.
struct Wavefronts {
    int loads = 0, cycles = 0;
    std::set<int> tokens;  // that somebody reads first

    void add(const std::vector<int>& words, int threads, int words_per_token) {
        for (size_t first = 0; first < words.size(); first += kWarpSize) {
            std::map<int, std::set<int>> banks;
            for (size_t i = first; i < first + kWarpSize; ++i) {
                if (words[i] == kNowhere) continue;
                banks[words[i] % 32].insert(words[i]);
                tokens.insert(words[i] / words_per_token);
            }
            if (banks.empty()) continue;
            ++loads;
            size_t most = 0;
            for (const auto& bank : banks) most = std::max(most, bank.second.size());
            cycles += static_cast<int>(most);
        }
    }
    void print(const ContextAggregationShape& shape) const {
        std::printf("forward %dx%dx%d: %d loads, %d cycles, %zu starts\n", shape.height, shape.width,
                    shape.head_dim, loads, cycles, tokens.size());
    }
};

template <class T, int D>
void show_banks(int height, int width) {
    const ContextAggregationShape shape{1, height * width, 1, D, height, width, 5, 5, 1.0};
    constexpr int kWords = kPitch<T, D> * static_cast<int>(sizeof(T)) / 4;
    const ForwardLayout layout = forward_layout(shape, sizeof(T) == 4 ? DType::float32 : DType::bfloat16);
    const int threads = layout.warps * kWarpSize, tokens = height * width;
    Wavefronts all;
    for (int begin = 0; begin < tokens; begin += layout.chunk_tokens) {
        const Chunk chunk{begin, std::min(begin + layout.chunk_tokens, tokens)};
        const Memory<int> words(std::vector<int>(kMaxRounds * threads, kNowhere));
        launch<forward_words<T, D>>({1}, threads, 0, nullptr, shape, chunk, words.data());
        all.add(words.values(), threads, kWords);
    }
    all.print(shape);
}

// Packed q, k, v of which each dimension can have one element, whose stride is then odd.
void show_access(int head_dim, int64_t batch, int64_t heads) {
    alignas(16) static char memory[16];
    const int64_t odd = 3, channels = heads * head_dim;
    const ContextAggregationShape shape{batch, 7, heads, head_dim, 0, 0, 0, 0, 1.0};
    const Tokens tokens{memory, batch == 1 ? odd : 21 * channels, 3 * channels, heads == 1 ? odd : head_dim};
    std::printf("access of head_dim %d, %d images, %d heads: %d\n", head_dim, static_cast<int>(batch),
                static_cast<int>(heads), row_access(tokens, shape, 2));
}

}  // namespace

int main() {
    for (const auto& [height, width] :
         {std::pair{7, 7}, {14, 14}, {28, 28}, {10, 14}, {6, 42}, {4, 56}, {3, 84}, {8, 8}, {9, 12}}) {
        show_banks<BFloat16, 32>(height, width);
    }
    show_banks<BFloat16, 64>(7, 7);
    for (const int head_dim : {8, 24, 40, 20, 33}) {
        for (const int64_t batch : {1, 2}) {
            for (const int64_t heads : {1, 2}) show_access(head_dim, batch, heads);
        }
    }
}
