/*
 * cpu.c - the fast backend for processors: its state, the choice of instruction set, threads.
 *
 * The table starts as the reference one; what is faster here replaces it.
 */
#include "backend/cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- which kernels ---------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* AMX with bf16 is there, and the kernel, which must be asked, lets this process use it. */
static bool may_use_tiles(void)
{
    enum { ASK = 0x1023 /* ARCH_REQ_XCOMP_PERM */, TILE_DATA = 18, BF16 = 1 << 22, TILE = 1 << 24 };
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE) &&
           syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
}
#endif

/* Best first. */
static int usable_kernels(const ic_kernels *out[5])
{
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16") && may_use_tiles())
        out[n++] = &ic_kernels_amx;
    if (avx512 && __builtin_cpu_supports("avx512bf16"))
        out[n++] = &ic_kernels_avx512_bf16;
    if (avx512)
        out[n++] = &ic_kernels_avx512;
    if (avx2) /* every such processor has F16C */
        out[n++] = &ic_kernels_avx2;
#endif
    out[n++] = &ic_kernels_generic;
    return n;
}

/* The best set, or the one named by ICAE_ISA where this processor has it. */
static int choose_kernels(const ic_kernels **out)
{
    const ic_kernels *usable[5];
    const char *wanted = getenv("ICAE_ISA");
    int n = usable_kernels(usable);
    *out = usable[0];
    if (!wanted || !*wanted)
        return 0;
    for (int i = 0; i < n; i++) {
        if (strcmp(usable[i]->isa, wanted) == 0) {
            *out = usable[i];
            return 0;
        }
    }
    return ic_fail(ICAE_EUNSUPPORTED,
                   "ICAE_ISA=%s: this processor or build has no such instruction set (best is %s)",
                   wanted, usable[0]->isa);
}

/* ---- threads ---------------------------------------------------------------------------------- */

/* Whether `cpu` is the first of the hyper-threads that share its core. */
static bool leads_its_core(int cpu)
{
    char path[96];
    int first = cpu;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "r");
    if (!f)
        return true;
    if (fscanf(f, "%d", &first) != 1)
        first = cpu;
    fclose(f);
    return first == cpu;
}

/* Physical cores that this process may use: a second hyper-thread only costs here. */
static int physical_cores(void)
{
    int cores = 0, allowed = 0;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return (int)IC_MAX(1, sysconf(_SC_NPROCESSORS_ONLN));
    for (size_t i = 0; i < CPU_SETSIZE; i++) {
        if (CPU_ISSET(i, &set)) {
            allowed++;
            cores += leads_its_core((int)i);
        }
    }
    return IC_MAX(1, cores ? cores : allowed);
}

/* ---- the backend ------------------------------------------------------------------------------ */

static void cpu_free(ic_backend *be)
{
    ic_cpu *cpu = ic_cpu_of(be);
    ic_matmul_free(cpu->matmul);
    ic_free(cpu->weights);
    ic_free(cpu->rows);
    ic_free(cpu->private);
    ic_free(cpu->shares);
    ic_free(cpu);
    ic_free(be);
}

static int fill_state(ic_cpu *cpu, int threads)
{
    ic_backend_ref_fill(&cpu->ref);
    cpu->threads = IC_MIN(threads > 0 ? threads : physical_cores(), IC_MAX_THREADS);
    int rc = choose_kernels(&cpu->k);
    if (rc == 0)
        rc = ic_matmul_new(&cpu->matmul, cpu->threads, cpu->k);
    if (rc < 0)
        return rc;
    cpu->weights_size = cpu->rows_size = (size_t)4 << 20;
    cpu->weights = ic_alloc(cpu->weights_size, 1);
    cpu->rows = ic_alloc(cpu->rows_size, 1);
    cpu->private_words = IC_MAX(cpu->k->attend_words(IC_ATTENTION_WIDTH),
                                cpu->k->attend_back_words(IC_ATTENTION_WIDTH));
    cpu->private_words = IC_MAX(cpu->private_words, cpu->k->product_words());
    cpu->private = ic_alloc((size_t)cpu->threads * cpu->private_words, sizeof(float));
    cpu->shares = ic_alloc((size_t)cpu->threads, sizeof *cpu->shares);
    return cpu->weights && cpu->rows && cpu->private && cpu->shares ? 0 : ICAE_ENOMEM;
}

int ic_backend_cpu_new(ic_backend **out, int threads)
{
    ic_backend *be = ic_alloc(1, sizeof *be);
    ic_cpu *cpu = ic_alloc(1, sizeof *cpu);
    *out = NULL;
    if (!be || !cpu) {
        ic_free(be);
        ic_free(cpu);
        return ICAE_ENOMEM;
    }
    ic_backend_ref_fill(be);
    be->state = cpu;
    be->free = cpu_free;
    int rc = fill_state(cpu, threads);
    if (rc < 0) {
        cpu_free(be);
        return rc;
    }
    be->name = "cpu";
    be->threads = cpu->threads;
    be->bf16 = cpu->k->bf16_dot;
    snprintf(be->isa, sizeof be->isa, "%s", cpu->k->isa);
    be->linear = ic_cpu_linear;
    be->linear_t = ic_cpu_linear_t;
    be->outer = ic_cpu_outer;
    be->attention = ic_cpu_attention;
    be->attention_back = ic_cpu_attention_back;
    ic_cpu_fill_elementwise(be);
    *out = be;
    return 0;
}
