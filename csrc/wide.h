// MASKPIPE_WIDE before a function: compiled for 256-bit registers too, which the compiler may not assume and with which
// plain loops are a third faster. The processor decides which of the two runs.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define MASKPIPE_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define MASKPIPE_WIDE
#endif
