/*
 * product.c - matrix products without oneDNN: where it was not built in or refuses a shape.
 *
 * Blocks of the result are shared out to threads; each is computed whole by one.
 */
#include "backend/cpu/cpu.h"

#include <omp.h>

void ic_product_own(ic_cpu *cpu, const ic_product *p)
{
    int down = (p->m + IC_PRODUCT_ROWS - 1) / IC_PRODUCT_ROWS;
    int64_t blocks = (int64_t)((p->n + IC_PRODUCT_COLS - 1) / IC_PRODUCT_COLS) * down;
    int threads = ic_cpu_threads(cpu, (int64_t)p->m * p->n * p->k / IC_PRODUCT_PACE);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < blocks; i++)
        cpu->k->product(p, (int)(i % down) * IC_PRODUCT_ROWS, (int)(i / down) * IC_PRODUCT_COLS,
                        ic_cpu_private(cpu, omp_get_thread_num()));
}
