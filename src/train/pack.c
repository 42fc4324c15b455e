/*
 * pack.c - a step's samples in micro-batches: without padding, within a budget of tokens, dealt to the
 * processes so that all have about the same to do.
 *
 * Micro-batches do not depend on the number of processes unless there are too few of them.
 */
#include "train/run.h"

static int cut(ic_micro *out, const ic_item *items, int count, int64_t budget)
{
    int n = 0;
    for (int i = 0; i < count; i++) {
        if (n && out[n - 1].cost + items[i].cost <= budget) {
            out[n - 1].count++;
            out[n - 1].cost += items[i].cost;
        } else {
            out[n++] = (ic_micro){.first = i, .count = 1, .cost = items[i].cost};
        }
    }
    return n;
}

/* Each, the largest first, to the process that has least. */
static void deal(ic_micro *micro, int n, int ranks)
{
    for (int i = 0; i < n; i++)
        micro[i].rank = -1;
    for (int dealt = 0; dealt < n; dealt++) {
        int next = -1, least = 0;
        int64_t least_cost = INT64_MAX;
        for (int i = 0; i < n; i++)
            if (micro[i].rank < 0 && (next < 0 || micro[i].cost > micro[next].cost))
                next = i;
        for (int r = 0; r < ranks; r++) {
            int64_t cost = 0;
            for (int i = 0; i < n; i++)
                cost += micro[i].rank == r ? micro[i].cost : 0;
            if (cost < least_cost) {
                least_cost = cost;
                least = r;
            }
        }
        micro[next].rank = least;
    }
}

int ic_pack(ic_micro *out, const ic_item *items, int count, int64_t budget, int ranks)
{
    int64_t total = 0;
    for (int i = 0; i < count; i++)
        total += items[i].cost;
    int n = cut(out, items, count, budget);
    for (int64_t share = total / ranks; n < IC_MIN(ranks, count) && share > 0;
         share = share * 3 / 4)
        n = cut(out, items, count, IC_MIN(share, budget));
    if (ranks > 1)
        deal(out, n, ranks);
    return n;
}
