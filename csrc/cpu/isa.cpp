// SPDX-License-Identifier: MIT
#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

namespace ck {

void refuse_isa() { throw std::logic_error("isa: the level in use was not built"); }

namespace {

#if defined(CK_HAVE_V3) || defined(CK_HAVE_V4)
// Asked feature by feature: the names of the levels are known to gcc from 12 and clang from 17 on alone.
bool has_v3() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("movbe");
}
#endif

bool supports(Isa level) {
    switch (level) {
#ifdef CK_HAVE_V4
        case Isa::v4:
            return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
#endif
#ifdef CK_HAVE_V3
        case Isa::v3:
            return has_v3();
#endif
        case Isa::baseline:
            return true;
        default:  // a level that was not built
            return false;
    }
}

const char* name_of(Isa level) {
    switch (level) {
        case Isa::v4:
            return "v4";
        case Isa::v3:
            return "v3";
        case Isa::baseline:
            return "baseline";
    }
    refuse_isa();
}

Isa highest() {
    if (supports(Isa::v4)) return Isa::v4;
    return supports(Isa::v3) ? Isa::v3 : Isa::baseline;
}

std::atomic<Isa>& chosen() {
    static std::atomic<Isa> level{highest()};
    return level;
}

}  // namespace

Isa active_isa() { return chosen().load(std::memory_order_relaxed); }

std::string isa_name() { return name_of(active_isa()); }

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (Isa level : {Isa::baseline, Isa::v3, Isa::v4}) {
        if (supports(level)) names.emplace_back(name_of(level));
    }
    return names;
}

void set_isa(const std::string& name) {
    std::string known;
    for (Isa level : {Isa::baseline, Isa::v3, Isa::v4}) {
        if (!supports(level)) continue;
        if (name == name_of(level)) return chosen().store(level, std::memory_order_relaxed);
        known += known.empty() ? name_of(level) : std::string(", ") + name_of(level);
    }
    throw std::invalid_argument("isa: expected one of " + known + ", got " + name);
}

}  // namespace ck
