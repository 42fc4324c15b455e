/* fidelity.h - shared by compress.c and fidelity.c; see fidelity.c. */
#ifndef IC_FIDELITY_H
#define IC_FIDELITY_H

#include "core/core.h"

/* Adds `count` more scored tokens to f. */
void ic_fidelity_add(icae_fidelity *f, const ic_score *scores, const int32_t *ids, uint64_t count);
/* Logits by which the target leads the second best; negative: it is behind the best. */
float ic_score_lead(const ic_score *s, int32_t target);
/* Whether greedy decoding gets the target wrong, or nearly so. */
bool ic_score_doubtful(const ic_score *s, int32_t target);
/* Fills the fidelity fields and the doubtful tokens of slots. */
int ic_slots_set_fidelity(icae_slots *slots, const ic_score *scores, const int32_t *ids);

#endif
