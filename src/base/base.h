/*
 * base.h - what every other folder stands on: errors, memory, buffers, files, JSON, random numbers.
 *
 * Knows nothing of models or formats. Includes only icae.h and the C library; each third-party
 * library it uses (cJSON, OpenSSL, zstd, zlib) is included by one .c file here.
 */
#ifndef IC_BASE_H
#define IC_BASE_H

#include "icae.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IC_PRINTF(a, b) __attribute__((format(printf, a, b)))
#define IC_MIN(a, b)    ((a) < (b) ? (a) : (b))
#define IC_MAX(a, b)    ((a) > (b) ? (a) : (b))
#define IC_COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- errors (error.c) ------------------------------------------------------------------------ */

/* ic_fail(code, format, ...) sets this thread's message and returns `code`. Called where the fact
 * is known: the message names file, tensor, line, value and what was expected. Text from files is
 * made printable. A macro, so that the compiler sees which code is returned. */
#define ic_fail(code, ...) (ic_set_message(__VA_ARGS__), ic_code(code))
void ic_set_message(const char *format, ...) IC_PRINTF(1, 2);
static inline int ic_code(int code)
{
    return code;
}

/* Needs `int rc` and a label `done` in the function. */
#define IC_TRY(call)           \
    do {                       \
        if ((rc = (call)) < 0) \
            goto done;         \
    } while (0)

/* ---- memory (memory.c) ----------------------------------------------------------------------- */

/* All memory of the library comes from here. Alignment 64. Return NULL with the error message set;
 * the caller returns ICAE_ENOMEM. ic_alloc zeroes. count * size is checked for overflow. */
void *ic_alloc(size_t count, size_t size);
void *ic_resize(void *memory, size_t count,
                size_t size); /* new bytes undefined; NULL keeps the old */
void ic_free(void *memory);
char *ic_strdup(const char *s);
char *ic_strndup(const char *s, size_t n);
char *ic_format(const char *format, ...) IC_PRINTF(1, 2); /* NULL without memory */

/* Tests only: after `n` more successful allocations every one fails; negative: never. Returns the
 * number of live allocations (to see leaks). */
long ic_memory_fail_after(long n);
long ic_memory_live(void);
/* For memory that others take and we answer for: counts one allocation in (false: it must fail), or
 * out. */
bool ic_memory_count_in(void);
void ic_memory_count_out(void);
/* Asks for huge pages behind a large mapping (of a file: for what is not in memory yet). A wish: without
 * it only slower. */
void ic_memory_huge(void *mapping, size_t size);

/* A stack of scratch memory: reserved once, taken piece by piece, released by mark. An arena that
 * was not reserved *measures*: it hands out addresses that must not be touched and records the
 * peak, so the same code first tells how much it needs. Taking from a reserved arena cannot fail.
 */
typedef struct ic_arena {
    char *base;
    size_t size, used, peak;
    bool measuring;
} ic_arena;

void ic_arena_measure(ic_arena *a);              /* forget everything, start measuring */
int ic_arena_reserve(ic_arena *a, size_t bytes); /* keeps memory that is large enough */
void *ic_arena_take(ic_arena *a, size_t bytes);  /* aligned to 64, not zeroed */
static inline size_t ic_arena_mark(const ic_arena *a)
{
    return a->used;
}
static inline void ic_arena_release(ic_arena *a, size_t mark)
{
    a->used = mark;
}
void ic_arena_free(ic_arena *a);

/* ---- growing byte buffer (buffer.c) ---------------------------------------------------------- */

typedef struct ic_buffer {
    char *data; /* always followed by a 0 byte once something was added; NULL before */
    size_t size, capacity;
    size_t limit; /* 0: none; growing beyond it is ICAE_ELIMIT */
} ic_buffer;

int ic_buffer_add(ic_buffer *b, const void *data, size_t size);
int ic_buffer_addf(ic_buffer *b, const char *format, ...) IC_PRINTF(2, 3);
int ic_buffer_grow(ic_buffer *b, size_t extra); /* room for `extra` more bytes behind size */
void ic_buffer_free(ic_buffer *b);

/* ---- files (file.c) -------------------------------------------------------------------------- */

typedef struct ic_map {
    const unsigned char *data;
    size_t size;
    bool mapped; /* mmapped (regular file) or read into memory (pipe, stdin) */
} ic_map;

/* The whole file, read-only; "-" is standard input. An empty file gives size 0. Refuses folders. */
int ic_map_open(ic_map *out, const char *path);
void ic_map_close(ic_map *map);
bool ic_path_exists(const char *path);
bool ic_path_is_folder(const char *path);
char *ic_path_join(const char *folder, const char *name); /* caller's; NULL without memory */

/* A file that appears under its name only when it is complete: written beside it as a temporary
 * file, fsynced, renamed. Without commit, ic_file_abandon removes it. A path that exists and is not
 * a regular file (a pipe, /dev/stdout) is written directly; "-" is standard output. */
typedef struct ic_file {
    int fd;
    char *path, *temporary; /* temporary NULL: written directly */
    bool failed;
} ic_file;

int ic_file_create(ic_file *out, const char *path);
int ic_file_write(ic_file *f, const void *data, size_t size);
int ic_file_commit(ic_file *f);
void ic_file_abandon(ic_file *f); /* after commit: nothing; safe on a zeroed struct */

/* Decompresses .gz and .zst by content into *out (limit: bytes at most); others are copied. */
int ic_decompress(ic_buffer *out, const void *data, size_t size, const char *name);

/* Reads a file of any size piece by piece, .gz and .zst decompressed by content (reader.c). */
typedef struct ic_reader ic_reader;
int ic_reader_open(ic_reader **out, const char *path);
/* Fills up to `size` bytes; *got 0: the end. What is damaged or cut short is ICAE_EFORMAT. */
int ic_reader_read(ic_reader *r, void *data, size_t size, size_t *got);
void ic_reader_close(ic_reader *r);

/* ---- SHA-256 (hash.c) ------------------------------------------------------------------------ */

typedef struct ic_hash ic_hash;
int ic_hash_new(ic_hash **out);
void ic_hash_add(ic_hash *h, const void *data, size_t size);
void ic_hash_finish(ic_hash *h, char hex[65]); /* frees h; hex may be NULL to discard */
int ic_hash_of(char hex[65], const void *data, size_t size);

/* ---- JSON (json.c) --------------------------------------------------------------------------- */

/* A borrowed view of a parsed document. Depth is limited to 200, sizes by the input; duplicates:
 * the first counts. Strings may hold any UTF-8 but no 0 byte. */
typedef struct ic_json ic_json; /* one node */

int ic_json_parse(ic_json **root, const char *text, size_t size, const char *name);
void ic_json_free(ic_json *root);
const ic_json *ic_json_get(const ic_json *object, const char *key); /* NULL: absent or no object */
const ic_json *ic_json_first(const ic_json *node); /* children of array or object */
const ic_json *ic_json_next(const ic_json *child);
const char *ic_json_key(const ic_json *child); /* of an object's member */
size_t ic_json_count(const ic_json *node);
bool ic_json_is_null(const ic_json *node); /* absent or null */
bool ic_json_is_object(const ic_json *node);
bool ic_json_is_array(const ic_json *node);
bool ic_json_is_number(const ic_json *node);
bool ic_json_is_bool(const ic_json *node);
const char *ic_json_string(const ic_json *node); /* NULL unless a string */
double ic_json_number(const ic_json *node, double otherwise);
bool ic_json_bool(const ic_json *node, bool otherwise);

/* Writing: appends a quoted and escaped string; invalid UTF-8 becomes U+FFFD. */
int ic_json_quote(ic_buffer *b, const char *s, size_t size);

/* ---- random numbers (random.c) --------------------------------------------------------------- */

/* Counter based (Philox 4x32-10): the same (seed, stream, index) gives the same draw everywhere. */
enum ic_stream {
    IC_STREAM_SAMPLE,
    IC_STREAM_DROPOUT,
    IC_STREAM_INIT,
    IC_STREAM_DATA,
    IC_STREAM_MIX
};
void ic_random_block(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index);
double ic_random_unit(uint64_t seed, uint64_t stream, uint64_t index);   /* [0, 1), 53 bits */
double ic_random_normal(uint64_t seed, uint64_t stream, uint64_t index); /* N(0, 1) */

/* ---- UTF-8 (utf8.c) -------------------------------------------------------------------------- */

/* Decodes one character at s[0..n); *code is the code point. Returns its bytes (1 to 4), or minus
 * the length (1 to 3) of the maximal ill-formed part, as Unicode's replacement practice counts it.
 */
int ic_utf8_decode(uint32_t *code, const char *s, size_t n);
int ic_utf8_encode(char out[4], uint32_t code);
/* Length of the longest prefix of s that ends on a whole character (broken sequences count as whole
 * once they cannot become valid). */
size_t ic_utf8_whole(const char *s, size_t n);

double ic_seconds(void); /* monotonic clock */

#endif
