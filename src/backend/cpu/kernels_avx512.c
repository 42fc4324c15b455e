/*
 * kernels_avx512.c - the kernels for x86 with AVX-512 (F, BW, VL, DQ).
 * CMakeLists.txt gives this file its compiler flags.
 */
#if defined(__x86_64__)
#define ISA_LEVEL 2
#define ISA_NAME  "avx512"
#define ISA_TABLE ic_kernels_avx512
#include "backend/cpu/kernels.inc"
#endif
