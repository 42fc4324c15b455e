/*
 * generate.c - the decoder writes: from one prompt to a reply, as an engine of a single sequence.
 *
 * What the prompt means is read.c's business, how tokens come about engine.c's.
 */
#include "core/engine.h"

int ic_generate(icae_session *s, ic_prompt *p, int first, ic_kv **kv, ic_generation *g)
{
    int rc = ICAE_OK;
    ic_engine *e = NULL;
    ic_job job = {.prompt = p, .first = first, .kv = kv, .generation = g};
    IC_TRY(ic_engine_new(&e, s, &(ic_engine_options){.sequences = 1}));
    ic_engine_add(e, &job);
    IC_TRY(ic_engine_drain(e));
    rc = job.rc;
done:
    ic_engine_free(e);
    return rc;
}
