/* adapter.h - shared by adapter.c (files, settings) and adapter_tensors.c (matrices). */
#ifndef IC_ADAPTER_H
#define IC_ADAPTER_H

#include "core/core.h"

/* What the tensors of a file tell besides their values. */
typedef struct ic_adapter_found {
    bool peft;        /* LoRA names as PEFT saves them, without ".default" */
    bool checkpoint2; /* names that only a v2 training checkpoint has */
} ic_adapter_found;

/* Finds memory embeddings and LoRA matrices among the tensors of a file, checks every shape against
 * the base, and fills k, rank, targets, memory, lora and tensors. Everything else is passed over.
 */
int ic_adapter_bind(icae_adapter *a, ic_adapter_found *found, const ic_tensor *tensors,
                    size_t count);

/* SHA-256 over names, shapes, values (of large adapters: samples) and what decides their meaning;
 * the same however the values are stored and whatever order of rows the base needs. */
int ic_adapter_identify(icae_adapter *a);

/* Row i, as published, of a tensor. */
const void *ic_adapter_row(const ic_adapter_tensor *t, int i);

/* Memory that the adapter owns; NULL without. */
void *ic_adapter_own(icae_adapter *a, size_t count, size_t size);

#endif
