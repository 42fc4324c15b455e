/*
 * kernels_avx2.c - the kernels for x86 with AVX2, FMA and F16C.
 * CMakeLists.txt gives this file its compiler flags.
 */
#if defined(__x86_64__)
#define ISA_LEVEL 1
#define ISA_NAME  "avx2"
#define ISA_TABLE ic_kernels_avx2
#include "backend/cpu/kernels.inc"
#endif
