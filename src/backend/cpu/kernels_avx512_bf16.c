/*
 * kernels_avx512_bf16.c - the kernels for x86 with AVX-512 and its bf16 dot products.
 * CMakeLists.txt gives this file its compiler flags.
 */
#if defined(__x86_64__)
#define ISA_LEVEL 3
#define ISA_NAME  "avx512-bf16"
#define ISA_TABLE ic_kernels_avx512_bf16
#include "backend/cpu/kernels.inc"
#endif
