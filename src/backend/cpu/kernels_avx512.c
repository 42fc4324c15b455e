/*
 * kernels_avx512.c - the kernels for x86 with AVX-512 (F, BW, VL, DQ).
 */
#if defined(__x86_64__)
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt,prefer-vector-width=512")
#define ISA_LEVEL 2
#define ISA_NAME  "avx512"
#define ISA_TABLE ic_kernels_avx512
#include "backend/cpu/kernels.inc"
#endif
