/* metadata.h - numbers in the metadata strings of adapter and slot files; see metadata.c. */
#ifndef IC_METADATA_H
#define IC_METADATA_H

#include "core/core.h"

/* The largest rate and slots a segment that any file may ask for; k r is bounded besides. */
#define IC_MAX_RATE 65536.0f
#define IC_MAX_K    (1 << 20)

/* False unless all of `text` is one decimal number without sign (u64), or a finite one (float). */
bool ic_metadata_u64(uint64_t *out, const char *text);
bool ic_metadata_float(float *out, const char *text);
bool ic_metadata_bool(bool *out, const char *text); /* "true" or "false" */
bool ic_metadata_sha256(const char *text);          /* 64 digits 0-9a-f */

/* The shortest decimal text that ic_metadata_float reads as v. */
void ic_metadata_print(char out[32], float v);

#endif
