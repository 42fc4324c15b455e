/*
 * product.c - matrix products without oneDNN: where it was not built in or cannot do a shape.
 */
#include "backend/cpu/cpu.h"

void ic_product_own(ic_cpu *cpu, const ic_product *p)
{
    ic_mat a = {(void *)(uintptr_t)p->a, p->in, p->ta ? p->k : p->m, p->ta ? p->m : p->k, p->lda};
    ic_mat b = {(void *)(uintptr_t)p->b, p->in, p->tb ? p->n : p->k, p->tb ? p->k : p->n, p->ldb};
    ic_mat c = {p->c, p->out, p->m, p->n, p->ldc};
    if (p->tb)
        cpu->ref.linear(&cpu->ref, c, a, b, p->bias, p->alpha, p->accumulate);
    else if (!p->ta)
        cpu->ref.linear_t(&cpu->ref, c, a, b, p->alpha, p->accumulate);
    else
        cpu->ref.outer(&cpu->ref, c, a, b, p->alpha);
}
