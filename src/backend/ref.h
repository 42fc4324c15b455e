/*
 * ref.h - what the files of the reference backend share.
 */
#ifndef IC_REF_H
#define IC_REF_H

#include "backend/backend.h"

void ic_ref_attention(ic_backend *be, ic_mat o, ic_mat q, const ic_attention *a, float *lse);
void ic_ref_attention_back(ic_backend *be, ic_mat dq, ic_mat dout, ic_mat o, ic_mat q,
                           const ic_attention *a, const float *lse);

#endif
