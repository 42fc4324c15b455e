/*
 * attention.c - shares attention out to threads.
 *
 * A task is a block of queries of one sequence with one kv head. Every task is computed by one thread
 * from beginning to end, so results do not depend on which thread takes which: they take the next one
 * when they are done, the long ones (late queries) of a sequence first.
 */
#include "backend/cpu/cpu.h"

#include <omp.h>

/* Walks over the tasks in a fixed order. */
typedef struct walk {
    const ic_attention *a;
    int block;              /* queries a task */
    int seq, kv_head, part; /* of the current task */
    int64_t number;
} walk;

static int parts_of(const walk *w)
{
    return (w->a->seqs[w->seq].queries + w->block - 1) / w->block;
}

/* Moves on to task `number`, which is not before the current one. False: there are not so many. */
static bool walk_to(walk *w, int64_t number)
{
    while (w->seq < w->a->count) {
        int64_t left = (int64_t)parts_of(w) - w->part;
        if (number - w->number < left) {
            w->part += (int)(number - w->number);
            w->number = number;
            return true;
        }
        w->number += left;
        w->part = 0;
        if (++w->kv_head == w->a->kv_heads) {
            w->kv_head = 0;
            w->seq++;
        }
    }
    return false;
}

static int64_t work_of(const ic_attention *a)
{
    int64_t pairs = 0;
    for (int i = 0; i < a->count; i++)
        pairs += (int64_t)a->seqs[i].queries * a->seqs[i].keys;
    return pairs * a->heads * a->head_width;
}

void ic_cpu_attention(ic_backend *be, ic_mat o, ic_mat q, const ic_attention *a, float *lse)
{
    ic_cpu *cpu = ic_cpu_of(be);
    int group = a->heads / a->kv_heads;
    if (group > IC_ATTENTION_ROWS || a->head_width > IC_ATTENTION_WIDTH || !ic_is_act(q.dtype)) {
        cpu->ref.attention(be, o, q, a, lse);
        return;
    }
    int threads = ic_cpu_threads(cpu, work_of(a) / IC_ATTENTION_PACE);
    int block = IC_ATTENTION_ROWS / group;
    int64_t ticket = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        walk w = {.a = a, .block = block};
        float *scratch = ic_cpu_private(cpu, omp_get_thread_num());
        for (;;) {
            int64_t mine;
#pragma omp atomic capture
            mine = ticket++;
            if (!walk_to(&w, mine))
                break;
            const ic_attention_seq *s = &a->seqs[w.seq];
            int first = (parts_of(&w) - 1 - w.part) * block;
            cpu->k->attend(&(ic_attention_block){.a = a,
                                                 .s = s,
                                                 .o = o,
                                                 .q = q,
                                                 .lse = lse,
                                                 .kv_head = w.kv_head,
                                                 .group = group,
                                                 .first = first,
                                                 .count = IC_MIN(block, s->queries - first)},
                           scratch);
        }
    }
}

void ic_cpu_attention_back(ic_backend *be, ic_mat dq, ic_mat dout, ic_mat o, ic_mat q,
                           const ic_attention *a, const float *lse)
{
    ic_cpu *cpu = ic_cpu_of(be);
    if (a->head_width > IC_ATTENTION_WIDTH || !ic_is_act(q.dtype) || !ic_is_act(o.dtype) ||
        !ic_is_act(dout.dtype) || !ic_is_act(dq.dtype)) {
        cpu->ref.attention_back(be, dq, dout, o, q, a, lse);
        return;
    }
    int threads = ic_cpu_threads(cpu, work_of(a) / IC_ATTENTION_PACE);
    int64_t tasks = (int64_t)a->count * a->kv_heads;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 1)
    for (int64_t i = 0; i < tasks; i++) {
        float *scratch = ic_cpu_private(cpu, omp_get_thread_num());
        cpu->k->attend_back(&(ic_attention_back_task){.f = {.a = a,
                                                            .s = &a->seqs[i / a->kv_heads],
                                                            .o = o,
                                                            .q = q,
                                                            .kv_head = (int)(i % a->kv_heads),
                                                            .group = a->heads / a->kv_heads},
                                                      .dq = dq,
                                                      .dout = dout,
                                                      .lse = lse},
                            scratch, cpu->private_words);
    }
}
