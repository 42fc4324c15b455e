/*
 * session.c - a model and an adapter at work: backends, scratch memory, the type of arithmetic.
 *
 * Everything that computes goes through ic_session_run, which first lets the same code run on the
 * counting backend to learn how much memory it takes, so that nothing runs out halfway.
 */
#include "core/core.h"

#include <string.h>

int icae_session_new(icae_session **out, const icae_model *model, const icae_adapter *adapter,
                     const icae_session_options *options)
{
    int rc = ICAE_OK;
    static const icae_session_options defaults;
    const icae_session_options *o = options ? options : &defaults;
    if (!model)
        return ic_fail(ICAE_EINVAL, "a session needs a model");
    if (adapter && adapter->model != model)
        return ic_fail(ICAE_EMISMATCH, "the adapter %s was opened for another model",
                       adapter->path);
    if (adapter && adapter->both)
        return ic_fail(
            ICAE_EMISMATCH,
            "adapter %.300s has changed its base too (lora = both): merge the two first, "
            "tools/merge_adapter.py does it",
            adapter->path);
    icae_session *s = ic_alloc(1, sizeof *s);
    if (!s)
        return ICAE_ENOMEM;
    s->model = model;
    s->adapter = adapter;
    s->memory = o->memory;
    s->progress = o->progress;
    s->user = o->user;
    IC_TRY(ic_backend_cpu_new(&s->be, o->threads));
    IC_TRY(ic_backend_counting_new(&s->counting));
    bool plain = model->weight_dtype == IC_F32;
    s->act = model->compute == ICAE_COMPUTE_BF16                            ? IC_BF16
             : model->compute == ICAE_COMPUTE_AUTO && s->be->bf16 && !plain ? IC_BF16
                                                                            : IC_F32;
    *out = s;
    return ICAE_OK;
done:
    icae_session_free(s);
    return rc;
}

void icae_session_free(icae_session *s)
{
    if (!s)
        return;
    ic_arena_free(&s->arena);
    ic_backend_free(s->be);
    ic_backend_free(s->counting);
    ic_free(s);
}

/* Scratch memory, and what a tape keeps beside it. */
static size_t measure(const icae_session *s, ic_body_fn body, void *argument, size_t *kept)
{
    ic_arena scratch = {0}, keep = {0};
    ic_arena_measure(&scratch);
    ic_arena_measure(&keep);
    ic_run r = {.be = s->counting, .arena = &scratch, .keep = &keep, .act = s->act};
    body(&r, argument);
    *kept = (keep.peak + 63) & ~(size_t)63;
    return scratch.peak;
}

size_t ic_session_measure(icae_session *s, ic_body_fn body, void *argument)
{
    size_t kept, scratch = measure(s, body, argument, &kept);
    return scratch + kept;
}

int ic_session_run(icae_session *s, ic_body_fn body, void *argument)
{
    size_t kept, scratch = measure(s, body, argument, &kept), bytes = scratch + kept;
    if (s->memory && bytes > s->memory)
        return ic_fail(ICAE_ENOMEM, "this needs %zu MB of scratch memory, the limit is %zu MB",
                       (bytes >> 20) + 1, (size_t)(s->memory >> 20));
    int rc = ic_arena_reserve(&s->arena, bytes);
    if (rc < 0)
        return rc;
    ic_arena keep = {.base = s->arena.base, .size = kept};
    ic_arena arena = {.base = s->arena.base + kept, .size = scratch};
    ic_run r = {.be = s->be, .arena = &arena, .keep = &keep, .act = s->act};
    body(&r, argument);
    return ICAE_OK;
}
