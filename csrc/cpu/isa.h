// SPDX-License-Identifier: MIT
// Which instruction set the kernels run with. Kernel sources are compiled once per level, into the namespaces
// ck::baseline, ck::v3 (AVX2, FMA, F16C) and ck::v4 (AVX-512); the compiler may lack the higher ones.
#pragma once

#include <string>
#include <vector>

namespace ck {

enum class Isa { baseline, v3, v4 };

// The level in use: the highest one that build and processor share, unless set_isa chose another.
Isa active_isa();

// From the lowest to the highest level that can run here.
std::vector<std::string> supported_isas();
std::string isa_name();
// Choose a level by name, for tests and debugging; std::invalid_argument when it cannot run here.
void set_isa(const std::string& name);
// Throws: the level in use was not built.
[[noreturn]] void refuse_isa();

}  // namespace ck

// Calls `function` of the active level.
#if defined(CK_HAVE_V4)
#define CK_CASE_V4(function, ...) \
    case ck::Isa::v4:             \
        return ck::v4::function(__VA_ARGS__);
#define CK_DECLARE_V4(declaration) \
    namespace v4 {                 \
    declaration;                   \
    }
#else
#define CK_CASE_V4(function, ...)
#define CK_DECLARE_V4(declaration)
#endif
#if defined(CK_HAVE_V3)
#define CK_CASE_V3(function, ...) \
    case ck::Isa::v3:             \
        return ck::v3::function(__VA_ARGS__);
#define CK_DECLARE_V3(declaration) \
    namespace v3 {                 \
    declaration;                   \
    }
#else
#define CK_CASE_V3(function, ...)
#define CK_DECLARE_V3(declaration)
#endif

#define CK_DISPATCH_ISA(function, ...)                  \
    switch (ck::active_isa()) {                         \
        CK_CASE_V4(function, __VA_ARGS__)               \
        CK_CASE_V3(function, __VA_ARGS__)               \
        case ck::Isa::baseline:                         \
            return ck::baseline::function(__VA_ARGS__); \
        default:                                        \
            ck::refuse_isa();                           \
    }

// Declares a kernel in the namespace of every level that was built.
#define CK_DECLARE_FOR_EACH_ISA(declaration) \
    namespace baseline {                     \
    declaration;                             \
    }                                        \
    CK_DECLARE_V3(declaration)               \
    CK_DECLARE_V4(declaration)
