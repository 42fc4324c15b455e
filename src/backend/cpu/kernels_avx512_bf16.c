/*
 * kernels_avx512_bf16.c - the kernels for x86 with AVX-512 and its bf16 dot products.
 */
#if defined(__x86_64__)
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,popcnt,prefer-vector-width=512")
#define ISA_LEVEL 3
#define ISA_NAME  "avx512-bf16"
#define ISA_TABLE ic_kernels_avx512_bf16
#include "backend/cpu/kernels.inc"
#endif
