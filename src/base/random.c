/*
 * random.c - counter-based random numbers: Philox 4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw,
 * "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
 *
 * No state: a draw is a function of (seed, stream, index), so that resumed and parallel runs see
 * the same numbers.
 */
#include "base/base.h"

#include <math.h>

void ic_random_block(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t x0 = (uint32_t)index, x1 = (uint32_t)(index >> 32);
    uint32_t x2 = (uint32_t)stream, x3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * x0, b = (uint64_t)0xcd9e8d57u * x2;
        x0 = (uint32_t)(b >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)b;
        x2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)a;
        k0 += 0x9e3779b9u; /* golden ratio */
        k1 += 0xbb67ae85u; /* sqrt(3) - 1 */
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

static double unit(uint32_t high, uint32_t low)
{
    return (double)((uint64_t)(high >> 5) << 26 | low >> 6) * 0x1p-53;
}

double ic_random_unit(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t r[4];
    ic_random_block(r, seed, stream, index);
    return unit(r[0], r[1]);
}

double ic_random_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    /* Box-Muller; 1 - u lies in (0, 1], so the logarithm is finite. */
    uint32_t r[4];
    ic_random_block(r, seed, stream, index);
    double radius = sqrt(-2.0 * log(1.0 - unit(r[0], r[1])));
    return radius * cos(6.283185307179586 * unit(r[2], r[3]));
}
