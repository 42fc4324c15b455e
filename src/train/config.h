/* config.h - the table of keys that a training run's configuration is made of; see config_keys.c. */
#ifndef IC_TRAIN_CONFIG_H
#define IC_TRAIN_CONFIG_H

#include "train/run.h"

typedef enum {
    IC_KEY_TEXT,
    IC_KEY_CHOICE,
    IC_KEY_BOOL,
    IC_KEY_INT,
    IC_KEY_REAL,
    IC_KEY_SIZE,
    IC_KEY_LIST,
    IC_KEY_REALS
} ic_key_type;

extern const char *const ic_key_types[]; /* "text", … */

enum {
    IC_KEY_DECIDES = 1,
    IC_KEY_COMMAND = 2
}; /* changes what is computed; belongs to one call only */

typedef struct ic_key {
    const char *name;
    ic_key_type type;
    size_t at;                       /* in ic_settings */
    const char *fallback, *finetune; /* finetune NULL: the same */
    double low, high;
    const char *choices; /* "a|b" */
    int flags;
    const char *help;
} ic_key;

#define IC_KEY_AT(member) offsetof(ic_settings, member)

extern const ic_key ic_keys[];
extern const size_t ic_key_count;

/* What a preset sets; finetune NULL: the same. */
typedef struct ic_preset {
    const char *preset, *key, *value, *finetune;
} ic_preset;

extern const ic_preset ic_presets[];
extern const size_t ic_preset_count;

static inline void *ic_key_at(const icae_train_config *c, const ic_key *k)
{
    return (char *)(uintptr_t)&c->s + k->at;
}

const ic_key *ic_key_find(const char *name); /* dashes count as underscores; NULL: none */

#endif
