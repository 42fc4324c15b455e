/*
 * kernels_generic.c - the kernels for any processor the compiler knows.
 */

#define ISA_LEVEL 0
#define ISA_NAME  "generic"
#define ISA_TABLE ic_kernels_generic
#include "backend/cpu/kernels.inc"
