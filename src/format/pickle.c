/*
 * pickle.c - Python's pickle, protocol 2, as far as torch.save needs it for tensors in containers.
 *
 * A pickle is a program for a small stack machine that in Python may call anything. Here it calls
 * nothing: the few classes and functions that tensors need are known by name and only describe
 * data; every other name and every other opcode is refused. Work and memory are bounded by the size
 * of the pickle: an opcode makes at most one value, and shared values are pointers.
 */
#include "format/pt.h"

#include <inttypes.h>
#include <string.h>

#define MAX_SIZE   ((size_t)64 << 20)
#define CHUNK_SIZE ((size_t)64 << 10)

enum {
    CALL_ORDERED_DICT,
    CALL_REBUILD_TENSOR,
    CALL_REBUILD_PARAMETER,
    CALL_STORAGE /* and a dtype: not to be called, but named in storages */
};

static const struct known {
    const char *module, *name;
    int call;
    ic_dtype dtype;
} known[] = {
    {"collections", "OrderedDict", CALL_ORDERED_DICT, IC_DTYPES},
    {"torch._utils", "_rebuild_tensor_v2", CALL_REBUILD_TENSOR, IC_DTYPES},
    {"torch._utils", "_rebuild_parameter", CALL_REBUILD_PARAMETER, IC_DTYPES},
    {"torch", "FloatStorage", CALL_STORAGE, IC_F32},
    {"torch", "HalfStorage", CALL_STORAGE, IC_F16},
    {"torch", "BFloat16Storage", CALL_STORAGE, IC_BF16},
    {"torch", "DoubleStorage", CALL_STORAGE, IC_F64},
    {"torch", "LongStorage", CALL_STORAGE, IC_I64},
    {"torch", "IntStorage", CALL_STORAGE, IC_I32},
    {"torch", "CharStorage", CALL_STORAGE, IC_I8},
    {"torch", "ByteStorage", CALL_STORAGE, IC_U8},
    {"torch", "BoolStorage", CALL_STORAGE, IC_U8},
};

/* ---- memory: chunks that are freed together -------------------------------------------------- */

typedef struct chunk {
    struct chunk *next;
    size_t used;
    char data[];
} chunk;

static void *pool_take(chunk **pool, size_t size)
{
    size = (size + 15) & ~(size_t)15;
    if (!*pool || CHUNK_SIZE - (*pool)->used < size) {
        chunk *c = ic_alloc(1, sizeof *c + CHUNK_SIZE);
        if (!c)
            return NULL;
        c->next = *pool;
        *pool = c;
    }
    void *memory = (*pool)->data + (*pool)->used;
    (*pool)->used += size;
    return memory;
}

/* ---- the machine ----------------------------------------------------------------------------- */

typedef struct pointers {
    ic_pickle_value **at;
    size_t count, capacity;
} pointers;

typedef struct machine {
    const unsigned char *start, *p, *end;
    const char *path;
    chunk *pool;
    pointers stack, memo;
    size_t *marks; /* heights of the stack */
    size_t mark_count, mark_capacity;
    bool stopped;
} machine;

static int damaged(const machine *m, const char *what)
{
    return ic_fail(ICAE_EFORMAT, "%.300s: damaged pickle at byte %zu: %s", m->path,
                   (size_t)(m->p - m->start), what);
}

static int append(pointers *list, ic_pickle_value *v)
{
    if (list->count == list->capacity) {
        size_t capacity = IC_MAX(list->capacity * 2, (size_t)64);
        ic_pickle_value **at = ic_resize(list->at, capacity, sizeof *at);
        if (!at)
            return ICAE_ENOMEM;
        list->at = at;
        list->capacity = capacity;
    }
    list->at[list->count++] = v;
    return ICAE_OK;
}

static int push(machine *m, ic_pickle_value value)
{
    ic_pickle_value *v = pool_take(&m->pool, sizeof *v);
    if (!v)
        return ICAE_ENOMEM;
    *v = value;
    return append(&m->stack, v);
}

/* Functions with the arguments (machine, int) are opcodes, see `opcodes`. */
static int push_empty(machine *m, int kind)
{
    return push(m, (ic_pickle_value){.kind = (ic_pickle_kind)kind});
}

static int push_int(machine *m, ic_pickle_kind kind, int64_t value)
{
    return push(m, (ic_pickle_value){.kind = kind, .integer = value});
}

static int push_mark(machine *m, int unused)
{
    (void)unused;
    if (m->mark_count == m->mark_capacity) {
        size_t capacity = IC_MAX(m->mark_capacity * 2, (size_t)16);
        size_t *marks = ic_resize(m->marks, capacity, sizeof *marks);
        if (!marks)
            return ICAE_ENOMEM;
        m->marks = marks;
        m->mark_capacity = capacity;
    }
    m->marks[m->mark_count++] = m->stack.count;
    return ICAE_OK;
}

/* Height of the stack below which an opcode may not reach: values under a mark wait for it. */
static size_t floor_of(const machine *m)
{
    return m->mark_count > 0 ? m->marks[m->mark_count - 1] : 0;
}

static int need(const machine *m, size_t values)
{
    if (m->stack.count - floor_of(m) < values)
        return damaged(m, "an operation lacks its operands");
    return ICAE_OK;
}

static ic_pickle_value *pop(machine *m)
{
    return m->stack.at[--m->stack.count];
}

/* *first: position on the stack of what stands above the last mark, which is removed. */
static int pop_mark(machine *m, size_t *first)
{
    if (m->mark_count == 0)
        return damaged(m, "an operation lacks its mark");
    *first = m->marks[--m->mark_count];
    return ICAE_OK;
}

static int take(machine *m, const unsigned char **bytes, size_t size)
{
    if ((size_t)(m->end - m->p) < size)
        return damaged(m, "truncated");
    *bytes = m->p;
    m->p += size;
    return ICAE_OK;
}

/* A number of `size` bytes, little endian. */
static int take_number(machine *m, uint64_t *out, size_t size)
{
    const unsigned char *bytes;
    int rc = take(m, &bytes, size);
    if (rc < 0)
        return rc;
    *out = 0;
    for (size_t i = size; i-- > 0;)
        *out = *out << 8 | bytes[i];
    return ICAE_OK;
}

/* ---- containers ------------------------------------------------------------------------------ */

static int add_item(machine *m, ic_pickle_value *to, const ic_pickle_value *key,
                    const ic_pickle_value *value)
{
    ic_pickle_item *item = pool_take(&m->pool, sizeof *item);
    if (!item)
        return ICAE_ENOMEM;
    *item = (ic_pickle_item){.key = key, .value = value};
    if (to->items.last)
        to->items.last->next = item;
    else
        to->items.first = item;
    to->items.last = item;
    to->items.count++;
    return ICAE_OK;
}

/* A tuple of everything from stack position `first` on. */
static int make_tuple(machine *m, size_t first)
{
    ic_pickle_value *tuple = pool_take(&m->pool, sizeof *tuple);
    if (!tuple)
        return ICAE_ENOMEM;
    tuple->kind = IC_PICKLE_TUPLE;
    for (size_t i = first; i < m->stack.count; i++) {
        int rc = add_item(m, tuple, NULL, m->stack.at[i]);
        if (rc < 0)
            return rc;
    }
    m->stack.count = first;
    return append(&m->stack, tuple);
}

/* `values`: 0 for everything above the mark; so too for lists and dicts. */
static int from_top(machine *m, size_t *first, int values)
{
    if (values == 0)
        return pop_mark(m, first);
    int rc = need(m, (size_t)values);
    if (rc == ICAE_OK)
        *first = m->stack.count - (size_t)values;
    return rc;
}

static int push_tuple(machine *m, int values)
{
    size_t first;
    int rc = from_top(m, &first, values);
    return rc < 0 ? rc : make_tuple(m, first);
}

/* Puts what stands from `first` on into the list or dict below it. */
static int fill(machine *m, size_t first, ic_pickle_kind kind)
{
    if (first < floor_of(m) + 1 || m->stack.at[first - 1]->kind != kind)
        return damaged(m, kind == IC_PICKLE_LIST ? "no list to append to" : "no dict to fill");
    ic_pickle_value *to = m->stack.at[first - 1];
    size_t step = kind == IC_PICKLE_LIST ? 1 : 2;
    if ((m->stack.count - first) % step != 0)
        return damaged(m, "a dict's key without value");
    for (size_t i = first; i < m->stack.count; i += step) {
        const ic_pickle_value *key = step == 2 ? m->stack.at[i] : NULL;
        int rc = add_item(m, to, key, m->stack.at[i + step - 1]);
        if (rc < 0)
            return rc;
    }
    m->stack.count = first;
    return ICAE_OK;
}

static int fill_list(machine *m, int values)
{
    size_t first;
    int rc = from_top(m, &first, values);
    return rc < 0 ? rc : fill(m, first, IC_PICKLE_LIST);
}

static int fill_dict(machine *m, int values)
{
    size_t first;
    int rc = from_top(m, &first, values);
    return rc < 0 ? rc : fill(m, first, IC_PICKLE_DICT);
}

/* ---- calls ----------------------------------------------------------------------------------- */

static int take_line(machine *m, ic_pickle_text *out)
{
    const unsigned char *end = memchr(m->p, '\n', (size_t)(m->end - m->p));
    if (!end)
        return damaged(m, "truncated");
    *out = (ic_pickle_text){(const char *)m->p, (size_t)(end - m->p)};
    m->p = end + 1;
    return ICAE_OK;
}

static bool text_is(ic_pickle_text t, const char *s)
{
    return t.size == strlen(s) && memcmp(t.data, s, t.size) == 0;
}

static int clipped(ic_pickle_text t)
{
    return (int)IC_MIN(t.size, (size_t)100);
}

static int push_global(machine *m, int unused)
{
    (void)unused;
    ic_pickle_text module, name;
    int rc = ICAE_OK;
    IC_TRY(take_line(m, &module));
    IC_TRY(take_line(m, &name));
    for (size_t i = 0; i < IC_COUNT(known); i++)
        if (text_is(module, known[i].module) && text_is(name, known[i].name))
            return push_int(m, IC_PICKLE_CALLABLE, (int64_t)i);
    return ic_fail(
        ICAE_EUNSUPPORTED,
        "%.300s: the file names '%.*s.%.*s'; only tensors in dicts, lists and tuples are "
        "read, and nothing else is ever called",
        m->path, clipped(module), module.data, clipped(name), name.data);
done:
    return rc;
}

/* The first `wanted` items of a tuple, as an array. */
static int arguments(const machine *m, const ic_pickle_value **out, size_t wanted,
                     const ic_pickle_value *tuple, const char *what)
{
    if (tuple->kind != IC_PICKLE_TUPLE || tuple->items.count < wanted)
        return damaged(m, what);
    const ic_pickle_item *item = tuple->items.first;
    for (size_t i = 0; i < wanted; i++, item = item->next)
        out[i] = item->value;
    return ICAE_OK;
}

/* The class of a storage, its key, device and size: a persistent id. */
static int push_storage(machine *m, int unused)
{
    (void)unused;
    const ic_pickle_value *a[5];
    int rc = ICAE_OK;
    IC_TRY(need(m, 1));
    IC_TRY(arguments(m, a, 5, pop(m), "a storage that is not described by five values"));
    if (a[0]->kind != IC_PICKLE_STRING || !text_is(a[0]->text, "storage") ||
        a[1]->kind != IC_PICKLE_CALLABLE || known[a[1]->integer].call != CALL_STORAGE ||
        a[2]->kind != IC_PICKLE_STRING || a[4]->kind != IC_PICKLE_INT || a[4]->integer < 0)
        return damaged(m, "a storage is not described by class, key, device and size");
    ic_pickle_storage storage = {known[a[1]->integer].dtype, a[2]->text, a[4]->integer};
    return push(m, (ic_pickle_value){.kind = IC_PICKLE_STORAGE, .storage = storage});
done:
    return rc;
}

static int take_dimensions(const machine *m, int64_t out[4], const ic_pickle_value *tuple)
{
    if (tuple->kind != IC_PICKLE_TUPLE)
        return damaged(m, "a tensor's shape is no tuple");
    if (tuple->items.count > 4)
        return ic_fail(ICAE_EUNSUPPORTED, "%.300s: a tensor has %zu dimensions, at most 4 are read",
                       m->path, tuple->items.count);
    for (int i = 0; i < 4; i++)
        out[i] = 1;
    const ic_pickle_item *item = tuple->items.first;
    for (; item; item = item->next, out++) {
        if (item->value->kind != IC_PICKLE_INT || item->value->integer < 0)
            return damaged(m, "a tensor's shape is not made of whole numbers");
        *out = item->value->integer;
    }
    return ICAE_OK;
}

static int rebuild_tensor(machine *m, const ic_pickle_value *tuple)
{
    const ic_pickle_value *a[4];
    ic_pickle_value v = {.kind = IC_PICKLE_TENSOR};
    ic_pickle_tensor *t = &v.tensor;
    int rc = ICAE_OK;
    IC_TRY(arguments(m, a, 4, tuple, "a tensor without storage, offset, shape and strides"));
    if (a[0]->kind != IC_PICKLE_STORAGE || a[1]->kind != IC_PICKLE_INT || a[1]->integer < 0)
        return damaged(m, "a tensor without storage and offset");
    t->storage = &a[0]->storage;
    t->offset = a[1]->integer;
    IC_TRY(take_dimensions(m, t->dim, a[2]));
    IC_TRY(take_dimensions(m, t->stride, a[3]));
    if (a[2]->items.count != a[3]->items.count)
        return damaged(m, "a tensor with more dimensions than strides, or fewer");
    t->rank = (int)a[2]->items.count;
    return push(m, v);
done:
    return rc;
}

static int reduce(machine *m, int unused)
{
    (void)unused;
    int rc = need(m, 2);
    if (rc < 0)
        return rc;
    ic_pickle_value *tuple = pop(m), *callable = pop(m);
    const ic_pickle_value *parameter;
    if (callable->kind != IC_PICKLE_CALLABLE)
        return damaged(m, "a call of something that is no function");
    switch (known[callable->integer].call) {
    case CALL_ORDERED_DICT:
        if (tuple->kind != IC_PICKLE_TUPLE || tuple->items.count > 0)
            return damaged(m, "an OrderedDict made of something");
        return push_empty(m, IC_PICKLE_DICT);
    case CALL_REBUILD_TENSOR:
        return rebuild_tensor(m, tuple);
    case CALL_REBUILD_PARAMETER:
        rc = arguments(m, &parameter, 1, tuple, "a parameter without tensor");
        if (rc == ICAE_OK && parameter->kind != IC_PICKLE_TENSOR)
            rc = damaged(m, "a parameter that is no tensor");
        return rc < 0 ? rc : push(m, *parameter);
    default:
        return damaged(m, "a storage class is called");
    }
}

/* Attributes of an OrderedDict (state dicts have `_metadata`) say nothing about tensors. */
static int build(machine *m, int unused)
{
    (void)unused;
    int rc = need(m, 2);
    if (rc < 0)
        return rc;
    (void)pop(m);
    if (m->stack.at[m->stack.count - 1]->kind != IC_PICKLE_DICT)
        return ic_fail(ICAE_EUNSUPPORTED, "%.300s: an object with attributes that is no dict",
                       m->path);
    return ICAE_OK;
}

/* ---- opcodes --------------------------------------------------------------------------------- */

static int put(machine *m, int bytes)
{
    uint64_t i;
    int rc = ICAE_OK;
    IC_TRY(take_number(m, &i, (size_t)bytes));
    IC_TRY(need(m, 1));
    ic_pickle_value *top = m->stack.at[m->stack.count - 1];
    if (i > m->memo.count) /* picklers number in order; a gap would be memory for nothing */
        return damaged(m, "a memo number out of order");
    if (i == m->memo.count)
        return append(&m->memo, top);
    m->memo.at[i] = top;
done:
    return rc;
}

static int get(machine *m, int bytes)
{
    uint64_t i;
    int rc = take_number(m, &i, (size_t)bytes);
    if (rc < 0)
        return rc;
    return i < m->memo.count ? append(&m->stack, m->memo.at[i])
                             : damaged(m, "a memo number that was not given");
}

static int push_bool(machine *m, int value)
{
    return push_int(m, IC_PICKLE_BOOL, value);
}

static int push_unsigned(machine *m, int bytes)
{
    uint64_t v;
    int rc = take_number(m, &v, (size_t)bytes);
    return rc < 0 ? rc : push_int(m, IC_PICKLE_INT, (int64_t)v);
}

static int push_signed(machine *m, int bytes)
{
    uint64_t v;
    int rc = take_number(m, &v, (size_t)bytes);
    if (rc < 0)
        return rc;
    if (bytes > 0 && bytes < 8 && v >> (8 * bytes - 1))
        v |= ~(uint64_t)0 << 8 * bytes;
    return push_int(m, IC_PICKLE_INT, (int64_t)v);
}

/* A length byte, then a signed number. */
static int push_long(machine *m, int unused)
{
    (void)unused;
    uint64_t bytes;
    int rc = take_number(m, &bytes, 1);
    if (rc < 0)
        return rc;
    if (bytes > 8)
        return ic_fail(ICAE_EUNSUPPORTED, "%.300s: an integer of %" PRIu64 " bytes", m->path,
                       bytes);
    return push_signed(m, (int)bytes);
}

static int push_float(machine *m, int unused)
{
    (void)unused;
    const unsigned char *bytes;
    int rc = take(m, &bytes, 8);
    if (rc < 0)
        return rc;
    uint64_t v = 0;
    for (int i = 0; i < 8; i++) /* the one big-endian number */
        v = v << 8 | bytes[i];
    ic_pickle_value value = {.kind = IC_PICKLE_FLOAT};
    memcpy(&value.real, &v, 8);
    return push(m, value);
}

static int push_string(machine *m, int unused)
{
    (void)unused;
    uint64_t size;
    const unsigned char *bytes;
    int rc = ICAE_OK;
    IC_TRY(take_number(m, &size, 4));
    IC_TRY(take(m, &bytes, (size_t)size));
    ic_pickle_text text = {(const char *)bytes, (size_t)size};
    return push(m, (ic_pickle_value){.kind = IC_PICKLE_STRING, .text = text});
done:
    return rc;
}

static int protocol(machine *m, int unused)
{
    (void)unused;
    uint64_t version;
    int rc = take_number(m, &version, 1);
    if (rc == ICAE_OK && version != 2)
        rc = ic_fail(ICAE_EUNSUPPORTED, "%.300s: pickle protocol %" PRIu64 ", expected 2", m->path,
                     version);
    return rc;
}

static int stop(machine *m, int unused)
{
    (void)unused;
    if (m->stack.count != 1 || m->mark_count != 0)
        return damaged(m, "it does not end with one value");
    m->stopped = true;
    return ICAE_OK;
}

static const struct {
    int (*run)(machine *, int);
    int argument;
} opcodes[256] = {
    [0x80] = {protocol, 0},
    ['.'] = {stop, 0},
    ['('] = {push_mark, 0},
    /* leaves */
    ['N'] = {push_empty, IC_PICKLE_NONE},
    [0x88] = {push_bool, 1},
    [0x89] = {push_bool, 0},
    ['J'] = {push_signed, 4},
    ['K'] = {push_unsigned, 1},
    ['M'] = {push_unsigned, 2},
    [0x8a] = {push_long, 0},
    ['G'] = {push_float, 0},
    ['X'] = {push_string, 0},
    /* containers */
    [')'] = {push_empty, IC_PICKLE_TUPLE},
    [']'] = {push_empty, IC_PICKLE_LIST},
    ['}'] = {push_empty, IC_PICKLE_DICT},
    ['t'] = {push_tuple, 0},
    [0x85] = {push_tuple, 1},
    [0x86] = {push_tuple, 2},
    [0x87] = {push_tuple, 3},
    ['a'] = {fill_list, 1},
    ['e'] = {fill_list, 0},
    ['s'] = {fill_dict, 2},
    ['u'] = {fill_dict, 0},
    /* values seen before */
    ['q'] = {put, 1},
    ['r'] = {put, 4},
    ['h'] = {get, 1},
    ['j'] = {get, 4},
    /* what Python would call */
    ['c'] = {push_global, 0},
    ['Q'] = {push_storage, 0},
    ['R'] = {reduce, 0},
    ['b'] = {build, 0},
};

static int step(machine *m)
{
    const unsigned char *opcode;
    int rc = take(m, &opcode, 1);
    if (rc < 0)
        return rc;
    if (opcodes[*opcode].run)
        return opcodes[*opcode].run(m, opcodes[*opcode].argument);
    return ic_fail(ICAE_EUNSUPPORTED,
                   "%.300s: pickle opcode 0x%02x at byte %zu, which torch.save does not write for "
                   "tensors",
                   m->path, *opcode, (size_t)(opcode - m->start));
}

int ic_pickle_read(ic_pickle *out, const unsigned char *data, size_t size, const char *path)
{
    *out = (ic_pickle){0};
    if (size > MAX_SIZE)
        return ic_fail(ICAE_ELIMIT, "%.300s: a pickle of %zu bytes, at most %zu are read", path,
                       size, MAX_SIZE);
    machine m = {.start = data, .p = data, .end = data + size, .path = path};
    int rc = ICAE_OK;
    while (!m.stopped)
        IC_TRY(step(&m));
    *out = (ic_pickle){m.stack.at[0], m.pool};
    m.pool = NULL;
done:
    ic_pickle_free(&(ic_pickle){.pool = m.pool});
    ic_free(m.stack.at);
    ic_free(m.memo.at);
    ic_free(m.marks);
    return rc;
}

void ic_pickle_free(ic_pickle *pickle)
{
    chunk *next;
    for (chunk *c = pickle->pool; c; c = next) {
        next = c->next;
        ic_free(c);
    }
    *pickle = (ic_pickle){0};
}
