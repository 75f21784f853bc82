// What every operation of the device runtime means, checked against arithmetic that does not use it. Compiled
// by nvcc it runs on a GPU, by a C++ compiler in the emulator: the same expectations hold for both halves.
// Prints a line for each check; ends with status 1 if one fails.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "memory.h"

using namespace ck;

namespace {

int failures = 0;

void expect(const char* what, bool holds) {
    std::printf("%s %s\n", holds ? "ok  " : "FAIL", what);
    failures += !holds;
}

template <class T>
bool equal(const std::vector<T>& result, const std::function<T(int)>& expected) {
    for (size_t i = 0; i < result.size(); ++i) {
        if (result[i] != expected(static_cast<int>(i))) {
            std::printf("     at %zu: %g, expected %g\n", i, double(result[i]),
                        double(expected(static_cast<int>(i))));
            return false;
        }
    }
    return true;
}

// ---- where a thread is

CK_KERNEL(96) coordinates(int* out) {
    const Dim3 block = block_index(), grid = grid_size();
    const int linear = (block.z * grid.y + block.y) * grid.x + block.x;
    int* mine = out + 4 * (linear * block_size() + thread_index());
    mine[0] = linear;
    mine[1] = thread_index();
    mine[2] = warp();
    mine[3] = lane();
}

void check_coordinates() {
    const Memory<int> out(std::vector<int>(4 * 96 * 24, -1));
    launch<coordinates>({2, 3, 4}, 96, 0, nullptr, out.data());
    expect("block, thread, warp and lane indices", equal<int>(out.values(), [](int i) {
               const int thread = i / 4 % 96, values[] = {i / 4 / 96, thread, thread / 32, thread % 32};
               return values[i % 4];
           }));
}

// ---- arguments

CK_KERNEL(32) widened(int64_t first, float second, const int64_t third, double* out) {
    if (thread_index() == 0) out[0] = static_cast<double>(first), out[1] = second, out[2] = double(third);
}

void check_arguments() {
    const Memory<double> out(std::vector<double>(3, 0));
    const short third = -3;
    launch<widened>({1}, 32, 0, nullptr, -1, 2, third, out.data());
    expect("arguments become the types of the parameters", equal<double>(out.values(), [](int i) {
               return i == 0 ? -1. : i == 1 ? 2. : -3.;
           }));
}

// ---- warp operations

CK_KERNEL(64) shuffles(int* out) {
    const int value = 100 * warp() + lane();
    int* mine = out + 5 * thread_index();
    mine[0] = shuffle(value, (lane() + 5) % 32);
    mine[1] = shuffle_xor(value, 12);
    mine[2] = shuffle_down(value, 7);
    mine[3] = static_cast<int>(warp_sum(static_cast<float>(value)));
    // Two halves of a warp on their own.
    mine[4] = shuffle_xor(value, 3, lane() < 16 ? 0x0000ffffu : 0xffff0000u);
}

CK_KERNEL(64) votes(int* out) {
    // In warp 0 the condition holds in one lane, in warp 1 in none; then in all lanes and in all but one.
    int* mine = out + 2 * thread_index();
    mine[0] = any_lane(thread_index() == 13);
    mine[1] = any_lane(warp() == 0 || lane() != 31);
}

void check_votes() {
    const Memory<int> out(std::vector<int>(2 * 64, -1));
    launch<votes>({1}, 64, 0, nullptr, out.data());
    expect("any_lane", equal<int>(out.values(), [](int i) { return i % 2 == 1 || i / 2 < 32; }));
}

CK_KERNEL(64) ballots(unsigned* out) {
    unsigned* mine = out + 4 * thread_index();
    mine[0] = lanes_where(thread_index() % 3 == 1 && lane() != 31);
    mine[1] = lanes_where(warp() == 1);
    mine[2] = count_bits(mine[0] << lane());
    mine[3] = lowest_bit(1u << 31 | thread_index() << 1 | (lane() == 31));
}

void check_ballots() {
    const Memory<unsigned> out(std::vector<unsigned>(4 * 64, 77));
    launch<ballots>({1}, 64, 0, nullptr, out.data());
    expect("lanes_where, count_bits, lowest_bit", equal<unsigned>(out.values(), [](int i) {
               const int thread = i / 4, lane = thread % 32, warp = thread / 32;
               unsigned third = 0, kept = 0, lowest = 31;
               for (int other = 0; other < 31; ++other) {
                   if ((32 * warp + other) % 3 != 1) continue;
                   third += 1u << other;
                   kept += other + lane < 32;
               }
               for (int bit = 30; bit >= 0; --bit) {
                   if (bit == 0 ? lane == 31 : thread >> (bit - 1) & 1) lowest = bit;
               }
               return i % 4 == 0 ? third : i % 4 == 1 ? (warp ? ~0u : 0u) : i % 4 == 2 ? kept : lowest;
           }));
}

void check_shuffles() {
    const Memory<int> out(std::vector<int>(5 * 64, -1));
    launch<shuffles>({1}, 64, 0, nullptr, out.data());
    expect("shuffle, shuffle_xor, shuffle_down, warp_sum, half a warp", equal<int>(out.values(), [](int i) {
               const int lane = i / 5 % 32, base = 100 * (i / 5 / 32);
               const int values[] = {base + (lane + 5) % 32, base + (lane ^ 12),
                                     base + (lane + 7 < 32 ? lane + 7 : lane), 32 * base + 31 * 16,
                                     base + (lane ^ 3)};
               return values[i % 5];
           }));
}

// ---- shared memory, barriers, atomics

CK_KERNEL(128) reversal(const float* in, float* out) {
    CK_SHARED(float, fixed, 128);
    CK_DYNAMIC_SHARED(bytes);
    float* dynamic = reinterpret_cast<float*>(bytes);
    fixed[thread_index()] = in[thread_index()];
    sync_threads();
    dynamic[thread_index()] = fixed[127 - thread_index()];
    sync_warp();
    out[thread_index()] = dynamic[thread_index() ^ 1];
}

CK_KERNEL(128) count(int* total, float* sum) {
    atomic_add(total, thread_index());
    atomic_add(sum, 0.5f);
}

void check_shared_memory() {
    std::vector<float> values(128);
    for (int i = 0; i < 128; ++i) values[i] = i * 0.25f;
    const Memory<float> in(values), out(std::vector<float>(128, -1));
    launch<reversal>({1}, 128, 128 * sizeof(float), nullptr, in.data(), out.data());
    expect("fixed and dynamic shared memory, sync_threads, sync_warp",
           equal<float>(out.values(), [](int i) { return (127 - (i ^ 1)) * 0.25f; }));

    const Memory<int> total(std::vector<int>(1, 0));
    const Memory<float> sum(std::vector<float>(1, 0));
    launch<count>({10}, 128, 0, nullptr, total.data(), sum.data());
    expect("atomic_add", total.values()[0] == 10 * 127 * 64 && sum.values()[0] == 640);
}

// ---- wide accesses

template <class T, int N>
CK_KERNEL(32)
wide_copy(const T* in, T* out) {
    store(out + N * thread_index(), load<N>(in + N * thread_index()));
}

template <int Bytes>
CK_KERNEL(32)
asynchronous_copy(const unsigned char* in, unsigned char* out) {
    CK_SHARED(unsigned char, buffer, 3 * 32 * Bytes);
    for (int group = 0; group < 3; ++group) {
        unsigned char* mine = buffer + (group * 32 + thread_index()) * Bytes;
        copy_async<Bytes>(mine, in + (group * 32 + thread_index()) * Bytes, thread_index() % 5 != 0);
        copy_async_commit();
    }
    const auto publish = [&](int group) {
        sync_warp();
        for (int i = 0; i < Bytes; ++i) {
            const int at = group * 32 * Bytes + i * 32 + thread_index();
            out[at] = buffer[at];
        }
    };
    copy_async_wait<2>();
    publish(0);
    copy_async_wait<0>();
    publish(1);
    publish(2);
}

template <int Bytes>
bool asynchronous_copy_holds() {
    std::vector<unsigned char> values(3 * 32 * Bytes);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<unsigned char>(1 + i % 250);
    const Memory<unsigned char> in(values), out(std::vector<unsigned char>(values.size(), 0xee));
    launch<asynchronous_copy<Bytes>>({1}, 32, 0, nullptr, in.data(), out.data());
    return equal<unsigned char>(out.values(), [&](int i) { return i / Bytes % 32 % 5 == 0 ? 0 : values[i]; });
}

void check_wide_accesses() {
    std::vector<float> values(128);
    for (int i = 0; i < 128; ++i) values[i] = i + 0.5f;
    const Memory<float> in(values), out(std::vector<float>(128, -1));
    launch<wide_copy<float, 4>>({1}, 32, 0, nullptr, in.data(), out.data());
    expect("load and store of 16 bytes", equal<float>(out.values(), [&](int i) { return values[i]; }));
    const bool holds =
        asynchronous_copy_holds<4>() && asynchronous_copy_holds<8>() && asynchronous_copy_holds<16>();
    expect("copy_async of 4, 8, 16 bytes, in groups, with zeros where not valid", holds);
}

// ---- matrices

CK_KERNEL(32) read_matrices(uint32_t* out) {
    CK_SHARED(uint16_t, elements, 32 * 8);
    for (int i = thread_index(); i < 32 * 8; i += 32) elements[i] = static_cast<uint16_t>(i);
    sync_warp();
    uint32_t four[4], four_transposed[4], two[2], two_transposed[2];
    load_matrix(four, elements + 8 * lane());
    load_matrix_transposed(four_transposed, elements + 8 * lane());
    load_matrix(two, elements + 8 * (lane() % 16));
    load_matrix_transposed(two_transposed, elements + 8 * (lane() % 16));
    uint32_t* mine = out + 12 * lane();
    for (int i = 0; i < 4; ++i) mine[i] = four[i];
    for (int i = 0; i < 4; ++i) mine[4 + i] = four_transposed[i];
    for (int i = 0; i < 2; ++i) mine[8 + i] = two[i];
    for (int i = 0; i < 2; ++i) mine[10 + i] = two_transposed[i];
}

void check_load_matrix() {
    const Memory<uint32_t> out(std::vector<uint32_t>(12 * 32, 0));
    launch<read_matrices>({1}, 32, 0, nullptr, out.data());
    expect("load_matrix and load_matrix_transposed of two and four", equal<uint32_t>(out.values(), [](int i) {
               const int lane = i / 12, slot = i % 12, part = slot < 8 ? slot : slot - 8;
               const bool transposed = slot < 8 ? slot >= 4 : slot >= 10;
               const int matrix = slot < 8 ? part % 4 : part % 2, major = lane / 4, minor = 2 * (lane % 4);
               const auto element = [&](int row, int column) {
                   return uint32_t(64 * matrix + 8 * row + column);
               };
               return transposed ? element(minor, major) | element(minor + 1, major) << 16
                                 : element(major, minor) | element(major, minor + 1) << 16;
           }));
}

// c += a b with a (16, 16) and b (16, 8) row by row.
template <class T>
CK_KERNEL(32)
product(const T* a, const T* b, float* c) {
    CK_SHARED(T, a_rows, 16 * 24);  // rows of 48 bytes, for ldmatrix multiples of 16
    CK_SHARED(T, b_rows, 16 * 8);
    for (int i = lane(); i < 16 * 16; i += 32) a_rows[i / 16 * 24 + i % 16] = a[i];
    for (int i = lane(); i < 16 * 8; i += 32) b_rows[i] = b[i];
    sync_warp();
    uint32_t left[4], right[2];
    load_matrix(left, a_rows + lane() % 16 * 24 + lane() / 16 * 8);
    load_matrix_transposed(right, b_rows + lane() % 16 * 8);
    float* top = c + lane() / 4 * 8 + 2 * (lane() % 4);
    float* bottom = top + 8 * 8;
    float sums[4] = {top[0], top[1], bottom[0], bottom[1]};
    multiply_add<T>(sums, left, right);
    top[0] = sums[0], top[1] = sums[1], bottom[0] = sums[2], bottom[1] = sums[3];
}

// Small integers: every product and sum is exact, in whatever order.
template <class T>
bool product_holds(std::mt19937& random, T (*narrow)(int)) {
    std::vector<T> a, b;
    std::vector<int> a_values, b_values;
    std::vector<float> c(16 * 8);
    const auto small = [&] { return static_cast<int>(random() % 17) - 8; };
    for (int i = 0; i < 16 * 16; ++i) a_values.push_back(small()), a.push_back(narrow(a_values.back()));
    for (int i = 0; i < 16 * 8; ++i) b_values.push_back(small()), b.push_back(narrow(b_values.back()));
    for (float& value : c) value = static_cast<float>(small());
    const Memory<T> left(a), right(b);
    const Memory<float> out(c);
    launch<product<T>>({1}, 32, 0, nullptr, left.data(), right.data(), out.data());
    return equal<float>(out.values(), [&](int i) {
        int sum = static_cast<int>(c[i]);
        for (int k = 0; k < 16; ++k) sum += a_values[i / 8 * 16 + k] * b_values[k * 8 + i % 8];
        return static_cast<float>(sum);
    });
}

// Integers up to 8 in the bits of each type, without the conversions under test.
BFloat16 bfloat16_of(int value) {
    const float wide = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof(bits));
    return {static_cast<uint16_t>(bits >> 16)};
}
Half half_of(int value) {
    uint16_t bits = value < 0 ? 0x8000 : 0;
    for (int exponent = 3, size = std::abs(value); exponent >= 0 && size; --exponent) {
        if (size >> exponent) {
            bits |= static_cast<uint16_t>((exponent + 15) << 10 | (size << (10 - exponent) & 1023));
            break;
        }
    }
    return {bits};
}

void check_products() {
    std::mt19937 random(1);
    expect("multiply_add of bfloat16", product_holds<BFloat16>(random, bfloat16_of));
    expect("multiply_add of float16", product_holds<Half>(random, half_of));
}

// ---- numbers

template <class T>
CK_KERNEL(32)
narrow(const float* in, uint16_t* single, uint32_t* pairs, int count) {
    for (int i = thread_index(); i < count; i += 32) {
        single[i] = from_float<T>(in[i]).bits;
        pairs[i] = pack<T>(in[i], in[count - 1 - i]);
    }
}
template <class T>
CK_KERNEL(32)
widen(float* single, float* second) {
    for (uint32_t i = thread_index(); i < 65536; i += 32) {
        single[i] = to_float(T{static_cast<uint16_t>(i)});
        const Float2 both = unpack<T>((65535 - i) | i << 16);
        second[i] = both.y;
        if (both.x == both.x && both.x != to_float(T{static_cast<uint16_t>(65535 - i)})) second[i] = -12345;
    }
}

// The value of 16 bits: sign, exponent of `exponent_bits`, mantissa.
double value_of(uint16_t bits, int exponent_bits) {
    const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1),
              mantissa = bits & ((1 << mantissa_bits) - 1);
    double size = std::ldexp(mantissa + (exponent ? 1 << mantissa_bits : 0),
                             (exponent ? exponent : 1) - bias - mantissa_bits);
    if (exponent == (1 << exponent_bits) - 1) size = mantissa ? NAN : INFINITY;
    return bits & 0x8000 ? -size : size;
}

bool same_number(double a, double b) { return a == b || (a != a && b != b); }

template <class T>
void check_numbers(const char* name, int exponent_bits) {
    const Memory<float> single(std::vector<float>(65536)), second(std::vector<float>(65536));
    launch<widen<T>>({1}, 32, 0, nullptr, single.data(), second.data());
    const std::vector<float> wide = single.values(), wide_second = second.values();
    bool holds = true;
    for (int i = 0; i < 65536; ++i) {
        const double value = value_of(static_cast<uint16_t>(i), exponent_bits);
        holds = holds && same_number(wide[i], value) && same_number(wide_second[i], value);
    }
    expect((std::string("to_float, unpack of every ") + name).c_str(), holds);

    // Every boundary between two neighbours, and what lies next to it on both sides; and what has no
    // neighbours.
    std::vector<float> inputs = {NAN,    INFINITY, -INFINITY, 0.f,    -0.f, 3e38f,
                                 -3e38f, 65519.f,  65520.f,   1e-40f, 1e-8f};
    for (int i = 0; i < 32767; i += exponent_bits == 5 ? 1 : 3) {
        const double low = value_of(static_cast<uint16_t>(i), exponent_bits),
                     high = value_of(static_cast<uint16_t>(i + 1), exponent_bits);
        const float middle = static_cast<float>((low + high) / 2);
        if (!std::isfinite(middle)) break;
        for (float value : {middle, std::nextafter(middle, 0.f), std::nextafter(middle, INFINITY)}) {
            inputs.push_back(i % 2 ? -value : value);
        }
    }
    const int count = static_cast<int>(inputs.size());
    const Memory<float> in(inputs);
    const Memory<uint16_t> narrowed(std::vector<uint16_t>(count, 0));
    const Memory<uint32_t> pairs(std::vector<uint32_t>(count, 0));
    launch<narrow<T>>({1}, 32, 0, nullptr, in.data(), narrowed.data(), pairs.data(), count);
    const std::vector<uint16_t> bits = narrowed.values();
    const std::vector<uint32_t> both = pairs.values();
    holds = true;
    for (int i = 0; i < count; ++i) {
        const double input = inputs[i], result = value_of(bits[i], exponent_bits);
        if (input != input) {
            holds = holds && result != result;
            continue;
        }
        // No number of the type is nearer, and of two as near it is the even one. Beyond the largest comes
        // infinity, as if it were the next number.
        const uint16_t size = bits[i] & 0x7fff;
        const auto distance = [&](int other) {
            double value = value_of(static_cast<uint16_t>(other), exponent_bits);
            if (std::isinf(value))
                value = 2 * value_of(static_cast<uint16_t>(other - 1), exponent_bits) -
                        value_of(static_cast<uint16_t>(other - 2), exponent_bits);
            return std::fabs(std::fabs(input) - value);
        };
        const int infinity = ((1 << exponent_bits) - 1) << (15 - exponent_bits);
        bool nearest = std::signbit(input) == std::signbit(result);
        if (!std::isinf(input)) {
            const bool even = size % 2 == 0;
            if (size > 0)
                nearest = nearest &&
                          (even ? distance(size) <= distance(size - 1) : distance(size) < distance(size - 1));
            if (size < infinity)
                nearest = nearest &&
                          (even ? distance(size) <= distance(size + 1) : distance(size) < distance(size + 1));
            if (size == infinity && std::fabs(input) > 3e38) nearest = true;
        } else {
            nearest = nearest && size == infinity;
        }
        if (!nearest) std::printf("     %.9g became %.9g\n", input, result);
        holds = holds && nearest && both[i] == (bits[i] | static_cast<uint32_t>(bits[count - 1 - i]) << 16);
    }
    expect((std::string("from_float, pack to ") + name + ": nearest, ties to even").c_str(), holds);
}

CK_KERNEL(32) functions(const float* in, float* out, int count) {
    for (int i = thread_index(); i < count; i += 32) {
        out[2 * i] = exp2_approx(in[i]);
        out[2 * i + 1] = log2_approx(exp2_approx(in[i]));
    }
}

void check_functions() {
    std::vector<float> inputs;
    for (float value = -100.3f; value < 100; value += 0.37f) inputs.push_back(value);
    inputs.push_back(-INFINITY);
    const int count = static_cast<int>(inputs.size());
    const Memory<float> in(inputs), out(std::vector<float>(2 * count, -1));
    launch<functions>({1}, 32, 0, nullptr, in.data(), out.data(), count);
    const std::vector<float> results = out.values();
    bool holds = results[2 * (count - 1)] == 0;
    for (int i = 0; i < count - 1; ++i) {
        const double x = inputs[i];
        holds = holds && std::fabs(results[2 * i] / std::exp2(x) - 1) < 1e-6 &&
                std::fabs(results[2 * i + 1] - x) < 1e-5 * std::max(1., std::fabs(x));
    }
    expect("exp2_approx, log2_approx", holds);
}

CK_KERNEL(32) minima(const float* in, float* out, int count) {
    for (int i = thread_index(); i < count * count; i += 32) out[i] = minimum(in[i / count], in[i % count]);
}

void check_minima() {
    const std::vector<float> inputs{-INFINITY, -1.5f, 0, 2, INFINITY, NAN};
    const int count = static_cast<int>(inputs.size());
    const Memory<float> in(inputs), out(std::vector<float>(count * count, -2));
    launch<minima>({1}, 32, 0, nullptr, in.data(), out.data(), count);
    const std::vector<float> results = out.values();
    bool holds = true;
    for (int i = 0; i < count * count; ++i) {
        const int a = i / count, b = i % count;  // in ascending order, NaN last
        const bool is_nan = a == count - 1 || b == count - 1;
        holds = holds && (is_nan ? std::isnan(results[i]) : results[i] == inputs[std::min(a, b)]);
    }
    expect("minimum", holds);
}

}  // namespace

int main() {
    check_coordinates();
    check_arguments();
    check_shuffles();
    check_votes();
    check_ballots();
    check_shared_memory();
    check_wide_accesses();
    check_load_matrix();
    check_products();
    check_numbers<BFloat16>("bfloat16", 8);
    check_numbers<Half>("float16", 5);
    check_functions();
    check_minima();
    return failures != 0;
}
