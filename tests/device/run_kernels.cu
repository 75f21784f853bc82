// Every kernel of the package once, on a few shapes with ragged edges, in memory of exactly the size it may
// touch: what AddressSanitizer, ThreadSanitizer (emulated) and compute-sanitizer (on a GPU) look at.
// Whether the numbers are right is for the tests of the ops; here only NaN, as from memory that was read and
// not written, is looked for.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "context_aggregation/cuda/launch.h"
#include "deformable_attention/cuda/launch.h"
#include "local_aggregation/cuda/launch.h"
#include "memory.h"

using namespace ck;

namespace {

int failures = 0;
std::mt19937 generator(0);

template <class T>
constexpr DType kCode = sizeof(T) == 4   ? DType::float32
                        : kIsBFloat16<T> ? DType::bfloat16
                                         : DType::float16;

// The bits of a number between −2 and 2 that every type can hold.
template <class T>
T small_number() {
    const float value = static_cast<float>(static_cast<int>(generator() % 17) - 8) / 4;
    if constexpr (sizeof(T) == 4) {
        return value;
    } else if constexpr (kIsBFloat16<T>) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        return {static_cast<uint16_t>(bits >> 16)};
    } else {
        if (value == 0) return {0};
        int exponent;
        const float fraction = std::frexp(std::fabs(value), &exponent);
        const int mantissa = static_cast<int>(std::ldexp(fraction, 11)) & 1023;
        return {static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | mantissa)};
    }
}

template <class T>
bool is_nan(T value) {
    if constexpr (sizeof(T) == 4) {
        return value != value;
    } else {
        const int exponent = kIsBFloat16<T> ? 0x7f80 : 0x7c00;
        return (value.bits & 0x7fff) > exponent;
    }
}

template <class T>
std::vector<T> random_numbers(int64_t count) {
    std::vector<T> values(count);
    for (T& value : values) value = small_number<T>();
    return values;
}

template <class T>
std::vector<T> nan(int64_t count) {
    std::vector<T> values(count);
    std::memset(static_cast<void*>(values.data()), 0xff, count * sizeof(T));
    return values;
}

template <class T>
void expect_numbers(const std::string& what, const Memory<T>& memory) {
    for (const T& value : memory.values()) {
        if (!is_nan(value)) continue;
        std::printf("%s: NaN\n", what.c_str());
        ++failures;
        return;
    }
}

template <class T>
void run_local_aggregation(int64_t batch, int height, int width, int channels, int window) {
    const LocalAggregationShape shape{batch, height, width, channels, window, window};
    const int64_t elements = batch * height * width * channels, taps = window * window;
    const Memory<T> x(random_numbers<T>(elements)), grad_out(random_numbers<T>(elements)),
        out(nan<T>(elements));
    const Memory<float> weight(random_numbers<float>(channels * taps)), bias(random_numbers<float>(channels)),
        sum(nan<float>(channels)), m2(nan<float>(channels)), grad_weight(nan<float>(channels * taps)),
        grad_bias(nan<float>(channels));
    const auto image = [&](const Memory<T>& memory) {
        return Image{memory.data(), int64_t{height} * width * channels, int64_t{width} * channels, channels};
    };
    const Memory<char> forward_workspace(
        nan<char>(cuda::local_aggregation_forward_workspace(shape, kCode<T>, true)));
    const Memory<char> weight_workspace(
        nan<char>(cuda::local_aggregation_backward_weight_workspace(shape, kCode<T>)));
    const LocalAggregationForward forward{shape, image(x), weight.data(), bias.data(), image(out)};
    cuda::local_aggregation_forward(forward, {}, nullptr, kCode<T>, nullptr);
    expect_numbers("depthwise forward", out);
    cuda::local_aggregation_forward(forward, {sum.data(), m2.data()}, forward_workspace.data(), kCode<T>,
                                    nullptr);
    cuda::local_aggregation_backward_weight(
        {shape, image(grad_out), image(x), grad_weight.data(), grad_bias.data()}, weight_workspace.data(),
        kCode<T>, nullptr);
    for (const auto* memory : {&sum, &m2, &grad_weight, &grad_bias}) {
        expect_numbers("depthwise statistics and gradients", *memory);
    }
}

// q, k, v as slices of one packed projection. No window when it is 0.
template <class T>
void run_context_aggregation(int64_t batch, int height, int width, int64_t heads, int head_dim, int window) {
    const int64_t tokens = height * width, channels = heads * head_dim, elements = batch * tokens * channels;
    const int64_t taps = window * window;
    const ContextAggregationShape shape{
        batch, tokens, heads, head_dim, window ? height : 0, window ? width : 0, window, window, 0.25};
    const Memory<T> packed(random_numbers<T>(3 * elements)), grad_out(random_numbers<T>(elements)),
        out(nan<T>(elements)), grad_q(nan<T>(elements)), grad_k(nan<T>(elements)), grad_v(nan<T>(elements));
    const Memory<float> alpha(random_numbers<float>(heads)), weight(random_numbers<float>(channels * taps)),
        bias(random_numbers<float>(channels)), logsumexp(nan<float>(batch * heads * tokens)),
        grad_alpha(nan<float>(heads)), grad_weight(nan<float>(channels * taps)),
        grad_bias(nan<float>(channels));
    const auto slice = [&](int which) {
        return Tokens{packed.data() + which * channels, 3 * tokens * channels, 3 * channels, head_dim};
    };
    const auto whole = [&](const Memory<T>& memory) {
        return Tokens{memory.data(), tokens * channels, channels, head_dim};
    };
    const float* const given_weight = window ? weight.data() : nullptr;
    const float* const given_bias = window ? bias.data() : nullptr;
    cuda::context_aggregation_forward({shape, slice(0), slice(1), slice(2), alpha.data(), given_weight,
                                       given_bias, nullptr, whole(out), logsumexp.data()},
                                      kCode<T>, nullptr);
    expect_numbers("mix forward", out);
    expect_numbers("mix logsumexp", logsumexp);
    const bool local = window > 0;
    const Memory<char> workspace(
        nan<char>(cuda::context_aggregation_backward_workspace(shape, kCode<T>, local)));
    const LocalGradient local_gradient =
        local ? LocalGradient{grad_weight.data(), grad_bias.data()} : LocalGradient{};
    cuda::context_aggregation_backward(
        {shape, whole(grad_out), slice(0), slice(1), slice(2), alpha.data(), given_weight, nullptr,
         logsumexp.data(), whole(grad_q), whole(grad_k), whole(grad_v), grad_alpha.data()},
        local_gradient, workspace.data(), kCode<T>, nullptr);
    for (const auto* memory : {&grad_q, &grad_k, &grad_v}) expect_numbers("mix backward", *memory);
    expect_numbers("mix gradient of alpha", grad_alpha);
    if (local) {
        expect_numbers("mix gradient of the local weight", grad_weight);
        expect_numbers("mix gradient of the local bias", grad_bias);
    }
}

// Heads lie `padding` channels apart, which decides how many bytes move at once.
template <class T>
void run_deformable_attention(int64_t batch, int64_t queries, int heads, int head_dim, int points,
                              std::vector<Level> levels, int padding = 0) {
    int pixels = 0;
    for (Level& level : levels) {
        level.start = pixels;
        pixels += level.pixels();
    }
    const DeformableAttentionShape shape{
        batch, queries, pixels, heads, head_dim, points, static_cast<int>(levels.size()), levels.data()};
    const int64_t rows = batch * queries * heads, samples = rows * points * levels.size();
    const int64_t head_stride = head_dim + padding, token_stride = heads * head_stride;
    const Memory<T> value(random_numbers<T>(batch * pixels * token_stride - padding)),
        grad_out(random_numbers<T>(rows * head_dim)), out(nan<T>(rows * head_dim)),
        grad_value(nan<T>(batch * pixels * heads * head_dim));
    // At edges, on pixels and beyond: quarters between −2 and 2, and one far away.
    std::vector<float> places = random_numbers<float>(2 * samples);
    places[0] = 1e30f;
    const Memory<float> locations(places), weights(random_numbers<float>(samples)),
        grad_locations(nan<float>(2 * samples)), grad_weights(nan<float>(samples));
    const Tokens tokens{value.data(), pixels * token_stride, token_stride, head_stride};
    cuda::deformable_attention_forward({shape, tokens, locations.data(), weights.data(), out.data()},
                                       kCode<T>, nullptr);
    expect_numbers("deformable forward", out);
    const Memory<char> workspace(nan<char>(cuda::deformable_attention_backward_value_workspace(shape)));
    cuda::deformable_attention_backward_value(
        {shape, grad_out.data(), locations.data(), weights.data(), grad_value.data()}, workspace.data(),
        kCode<T>, nullptr);
    expect_numbers("deformable gradient of value", grad_value);
    cuda::deformable_attention_backward_sampling({shape, grad_out.data(), tokens, locations.data(),
                                                  weights.data(), grad_locations.data(), grad_weights.data()},
                                                 kCode<T>, nullptr);
    for (const auto* memory : {&grad_locations, &grad_weights}) {
        expect_numbers("deformable gradients of locations and weights", *memory);
    }
}

template <class T>
void run_all() {
    run_local_aggregation<T>(1, 1, 1, 1, 3);
    run_local_aggregation<T>(3, 7, 7, 72, 5);
    run_local_aggregation<T>(1, 9, 11, 35, 7);
    run_local_aggregation<T>(2, 5, 17, 64, 3);
    run_local_aggregation<T>(1, 6, 9, 70, 11);
    run_context_aggregation<T>(1, 1, 1, 1, 8, 3);
    run_context_aggregation<T>(2, 7, 7, 3, 32, 5);
    run_context_aggregation<T>(1, 9, 9, 1, 20, 7);
    run_context_aggregation<T>(1, 6, 5, 2, 32, 11);
    run_context_aggregation<T>(1, 3, 6, 2, 64, 0);
    run_deformable_attention<T>(1, 1, 1, 1, 1, {{0, 1, 1}});
    run_deformable_attention<T>(2, 37, 3, 32, 4, {{0, 9, 17}, {0, 3, 2}});
    run_deformable_attention<T>(1, 400, 1, 8, 3, {{0, 2, 2}});  // several warps for a tile
    run_deformable_attention<T>(1, 5, 2, 36, 2, {{0, 8, 8}}, 3);
    run_deformable_attention<T>(1, 3, 1, 250, 1, {{0, 1, 9}, {0, 4, 1}, {0, 1, 1}});
}

}  // namespace

// Emulated: run_kernels ORDER, ascending or descending.
int main([[maybe_unused]] int argc, [[maybe_unused]] char** argv) {
    try {
#if !defined(__CUDACC__)
        emulator::set_thread_order(argc > 1 ? argv[1] : "");
#endif
        run_all<float>();
        run_all<BFloat16>();
        run_all<Half>();
    } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
        return 1;
    }
    std::puts(failures ? "failed" : "all kernels ran");
    return failures != 0;
}
