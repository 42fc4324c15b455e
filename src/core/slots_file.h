/* slots_file.h - slot files from memory, and their checksum; see slots_file.c. */
#ifndef IC_SLOTS_FILE_H
#define IC_SLOTS_FILE_H

#include "core/core.h"

/* Reads a slot file from a map, which it takes over, also when it fails; `path` is for messages. */
int ic_slots_read(icae_slots **out, ic_map *map, const char *path);

/* SHA-256 over metadata (all but `checksum`) and tensors, as docs/formats.md defines it. */
int ic_slots_checksum(char hex[65], const ic_tensor *tensors, size_t tensor_count,
                      const ic_pair *metadata, size_t metadata_count);

#endif
