/*
 * kernels_amx.c - the kernels for x86 with AVX-512, its bf16 dot products and the bf16 tiles of AMX.
 * CMakeLists.txt gives this file its compiler flags.
 */
#if defined(__x86_64__)
#define ISA_LEVEL 4
#define ISA_NAME  "amx"
#define ISA_TABLE ic_kernels_amx
#include "backend/cpu/kernels.inc"
#endif
