/*
 * format.h - how numbers are stored: data types, quantised blocks, and the three containers.
 *
 * Containers are read through memory maps and checked completely when opened: afterwards every
 * tensor's data lies inside the file. Knows nothing of models. Includes base.h only.
 */
#ifndef IC_FORMAT_H
#define IC_FORMAT_H

#include "base/base.h"

/* ---- data types (dtype.c) -------------------------------------------------------------------- */

typedef enum ic_dtype {
    IC_F32,
    IC_F16,
    IC_BF16,
    IC_I8,
    IC_U8,
    IC_I32,
    IC_I64,
    IC_F64,
    /* blocks along a row, as GGUF lays them out */
    IC_Q8_0, /* 32 values: f16 scale, 32 int8 */
    IC_Q4_0, /* 32 values: f16 scale, 16 bytes of nibbles */
    IC_Q4_K, /* 256 values in 144 bytes */
    IC_Q5_K, /* 256 values in 176 bytes */
    IC_Q6_K, /* 256 values in 210 bytes */
    IC_DTYPES
} ic_dtype;

typedef struct ic_dtype_info {
    const char *name; /* "F32", … as safetensors and GGUF spell them */
    int block;        /* values a block; 1 for plain types */
    int bytes;        /* bytes a block */
    bool quantised;
} ic_dtype_info;

extern const ic_dtype_info ic_dtypes[IC_DTYPES];

/* Bytes of a row of n values; n must be a multiple of the block. */
static inline size_t ic_row_bytes(ic_dtype t, size_t n)
{
    return n / (size_t)ic_dtypes[t].block * (size_t)ic_dtypes[t].bytes;
}

static inline float ic_bf16_to_f32(uint16_t v)
{
    union {
        uint32_t u;
        float f;
    } x = {(uint32_t)v << 16};
    return x.f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t ic_f32_to_bf16(float v)
{
    union {
        float f;
        uint32_t u;
    } x = {v};
    if ((x.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((x.u >> 16) | 0x40);
    return (uint16_t)((x.u + 0x7fffu + ((x.u >> 16) & 1)) >> 16);
}

float ic_f16_to_f32(uint16_t v);
uint16_t ic_f32_to_f16(float v);

/* Plain C, the oracle for fast versions: n values of any float or quantised type to f32. `src` need
 * not be aligned. Exactly llama.cpp's dequantisation in f32. */
void ic_to_f32(float *dst, const void *src, ic_dtype t, size_t n);
/* f32 to F32, F16 or BF16. */
void ic_from_f32(void *dst, const float *src, ic_dtype t, size_t n);

/* ---- tensors in a file (index.c) ------------------------------------------------------------- */

typedef struct ic_tensor {
    const char *name;
    ic_dtype dtype;
    int rank;         /* 0 to 4 */
    int64_t dim[4];   /* outermost first; unused ones 1 */
    const void *data; /* inside the map; may be unaligned */
    size_t bytes;
} ic_tensor;

/* Tensors by name. Sorted, not hashed: names are chosen by whoever made the file, and sorting has
 * no bad case. */
typedef struct ic_index {
    const ic_tensor **sorted;
    size_t count;
} ic_index;

/* Fails with ICAE_EFORMAT, naming `path`, if two tensors have one name. The tensors stay where they
 * are as long as the index. */
int ic_index_build(ic_index *out, const ic_tensor *tensors, size_t count, const char *path);
const ic_tensor *ic_index_find(const ic_index *index, const char *name);
void ic_index_free(ic_index *index);

/* t->bytes from t->dtype, rank and dim: checks dimensions, overflow and whole blocks. */
int ic_tensor_measure(ic_tensor *t, const char *path);
/* That no two tensors share bytes. `dense`: nor leave any of the `size` bytes at `start` unused. */
int ic_tensors_disjoint(const ic_tensor *tensors, size_t count, const void *start, size_t size,
                        bool dense, const char *path);

/* ---- safetensors (safetensors.c) ------------------------------------------------------------- */

typedef struct ic_pair {
    const char *key, *value;
} ic_pair;

typedef struct ic_safetensors {
    ic_map map;
    const char *path;
    ic_tensor *tensors;
    size_t count;
    ic_pair *metadata;
    size_t metadata_count;
    void *owned; /* strings */
} ic_safetensors;

/* Refuses: truncated or overlong header, offsets that overlap, leave holes, overflow or pass the
 * end, sizes that do not match shape and dtype, duplicate names, unknown dtypes in use. */
int ic_safetensors_open(ic_safetensors *out, const char *path);
/* The same of a map that is already there, which it takes over, also when it fails; `path` is for
 * messages. So have the other two formats. */
int ic_safetensors_read(ic_safetensors *out, ic_map *map, const char *path);
void ic_safetensors_close(ic_safetensors *st);
const ic_tensor *ic_safetensors_find(const ic_safetensors *st, const char *name); /* NULL: none */
const char *ic_safetensors_metadata(const ic_safetensors *st, const char *key);   /* NULL: none */

/* Writes a file atomically, tensors in the order given (data 64-byte aligned by header padding). */
int ic_safetensors_write(const char *path, const ic_tensor *tensors, size_t count,
                         const ic_pair *metadata, size_t metadata_count);
/* The same bytes in an empty buffer; `name` is for messages. */
int ic_safetensors_build(ic_buffer *out, const char *name, const ic_tensor *tensors, size_t count,
                         const ic_pair *metadata, size_t metadata_count);

/* ---- GGUF (gguf.c) --------------------------------------------------------------------------- */

typedef struct ic_gguf_value {
    const char *key;
    uint32_t type;             /* GGUF value type 0..12 */
    uint32_t array_type;       /* element type if type is 9 (array) */
    uint64_t count;            /* of elements; 1 for scalars */
    const unsigned char *data; /* scalars: little endian value; strings: u64 length + bytes */
} ic_gguf_value;

typedef struct ic_gguf {
    ic_map map;
    const char *path;
    ic_gguf_value *values;
    size_t value_count;
    ic_tensor *tensors; /* dim reversed into outermost first: a matrix is [out, in] */
    size_t count;
    void *owned;
} ic_gguf;

/* GGUF versions 2 and 3. Tensor types in use outside ic_dtype are ICAE_EUNSUPPORTED, by name. */
int ic_gguf_open(ic_gguf *out, const char *path);
int ic_gguf_read(ic_gguf *out, ic_map *map, const char *path);
void ic_gguf_close(ic_gguf *g);
const ic_tensor *ic_gguf_find(const ic_gguf *g, const char *name);
const ic_gguf_value *ic_gguf_get(const ic_gguf *g, const char *key); /* NULL: none */
/* Scalars of any integer, float or bool type; `otherwise` if absent. */
double ic_gguf_number(const ic_gguf *g, const char *key, double otherwise);
/* String values: *size bytes, not terminated; NULL if absent or of another type. */
const char *ic_gguf_string(const ic_gguf *g, const char *key, size_t *size);
/* Walks an array of strings: *cursor starts at value->data; returns the string, sets *size. */
const char *ic_gguf_next_string(const ic_gguf_value *array, const unsigned char **cursor,
                                size_t *size);
/* Element i of an array of numbers or bools. */
double ic_gguf_element(const ic_gguf_value *array, uint64_t i);

/* ---- PyTorch .pt (pt.c) ---------------------------------------------------------------------- */

/* A zip (stored entries only) with a pickle of tensors in dicts, lists and tuples. Every opcode or
 * class beyond what torch.save writes for those is refused by name. Nested keys are joined by '.'.
 */
typedef struct ic_pt {
    ic_map map;
    const char *path;
    ic_tensor *tensors; /* contiguous tensors only */
    size_t count;
    void *owned;
} ic_pt;

int ic_pt_open(ic_pt *out, const char *path);
int ic_pt_read(ic_pt *out, ic_map *map, const char *path);
void ic_pt_close(ic_pt *pt);

#endif
