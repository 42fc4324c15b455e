/*
 * bench_icae.c - speed and memory of this library on one model folder, one JSON line a task.
 *
 *     bench_icae MODEL TASK [THREADS] [REPEATS]
 *
 *   load      open the model and give the first token of a one-token prompt (page cache warm)
 *   compress  512 tokens to 128 slots (LoRA rank 128 on q and v)
 *   decode    128 greedy tokens behind 128 slots and [AE]
 *   prefill   512 tokens of text into an empty cache
 *
 * share_of_limit: for compress and prefill, the time of the bare oneDNN products of the same sizes over
 * ours; for decode, the time in which a plain loop reads the same weights from where they lie over
 * ours. Both are measured in turn with ours, and the median of the repeats is given.
 */
#include "core/core.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { TEXT = 512, SLOTS = 128, NEW = 128, RANK = 128, MAX_REPEATS = 64 };

#define MUST(call) must((call), #call)

static void must(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "bench_icae: %s: %s\n", what, icae_error_message());
        exit(1);
    }
}

typedef struct bench {
    icae_model *model;
    icae_adapter *adapter;
    icae_session *session;
    int32_t text[TEXT + NEW];
    int repeats, threads;
    double load_seconds, first_seconds;
} bench;

/* ---- a random adapter ------------------------------------------------------------------------- */

static ic_tensor tensor(char *name, int64_t rows, int64_t cols, uint64_t seed, float scale)
{
    uint16_t *v = ic_alloc((size_t)(rows * cols), sizeof *v);
    for (int64_t i = 0; v && i < rows * cols; i++)
        v[i] = ic_f32_to_bf16(scale * (float)(ic_random_unit(seed, 1, (uint64_t)i) - 0.5));
    return (ic_tensor){.name = name,
                       .dtype = IC_BF16,
                       .rank = 2,
                       .dim = {rows, cols, 1, 1},
                       .data = v,
                       .bytes = (size_t)(rows * cols) * 2};
}

static void write_adapter(const icae_model *m, const char *path)
{
    const ic_config *c = &m->config;
    size_t n = 0;
    ic_tensor *t = ic_alloc((size_t)c->layers * 4 + 1, sizeof *t);
    t[n++] = tensor(ic_strdup("memory_token_embed.weight"), SLOTS + 3, c->width, 1, 0.05f);
    for (int l = 0; l < c->layers; l++)
        for (int v = 0; v < 2; v++) {
            const char *target = v ? "v_proj" : "q_proj";
            int64_t rows = (int64_t)(v ? c->kv_heads : c->heads) * c->head_width;
            const char *format =
                "icae.base_model.model.model.layers.%d.self_attn.%s.lora_%c.default.weight";
            t[n++] = tensor(ic_format(format, l, target, 'A'), RANK, c->width, (uint64_t)l, 0.05f);
            t[n++] = tensor(ic_format(format, l, target, 'B'), rows, RANK, (uint64_t)l, 0.05f);
        }
    ic_pair metadata[] = {{"k", "128"}, {"rate", "4"}, {"alpha", "32"}};
    MUST(ic_safetensors_write(path, t, n, metadata, 3));
    for (size_t i = 0; i < n; i++) {
        ic_free((void *)(uintptr_t)t[i].name);
        ic_free((void *)(uintptr_t)t[i].data);
    }
    ic_free(t);
}

/* ---- limits of the machine -------------------------------------------------------------------- */

/* Seconds of one bf16 product [m, k] x [n, k]^T by bare oneDNN; best of some. */
static double product_seconds(int m, int n, int k)
{
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_memory_desc_t md[3];
    dnnl_dims_t dims[3] = {{m, k}, {k, n}, {m, n}};
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[3];
    dnnl_engine_create(&engine, dnnl_cpu, 0);
    dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    dnnl_memory_desc_init_by_tag(&md[0], 2, dims[0], dnnl_bf16, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&md[1], 2, dims[1], dnnl_bf16, dnnl_ba);
    dnnl_memory_desc_init_by_tag(&md[2], 2, dims[2], dnnl_bf16, dnnl_ab);
    dnnl_matmul_desc_init(&desc, &md[0], &md[1], NULL, &md[2]);
    if (dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL) != dnnl_success)
        return 0;
    dnnl_primitive_create(&primitive, pd);
    for (int i = 0; i < 3; i++)
        dnnl_memory_create(&memory[i], &md[i], engine, DNNL_MEMORY_ALLOCATE);
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, memory[0]}, {DNNL_ARG_WEIGHTS, memory[1]}, {DNNL_ARG_DST, memory[2]}};
    double best = 1e9;
    for (int i = 0; i < 4; i++) {
        double start = ic_seconds();
        dnnl_primitive_execute(primitive, stream, 3, args);
        dnnl_stream_wait(stream);
        best = IC_MIN(best, ic_seconds() - start);
    }
    for (int i = 0; i < 3; i++)
        dnnl_memory_destroy(memory[i]);
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(pd);
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
    return best;
}

/* All products that rows through the stack need; in the last layer `tail` rows go past k and v. */
static double stack_seconds(const ic_config *c, int rows, int tail, bool lora)
{
    int q = c->heads * c->head_width, kv = c->kv_heads * c->head_width, d = c->width,
        f = c->ffn_width;
    double inner = 0, last = 0;
    for (int pass = 0; pass < 2; pass++) {
        int m = pass ? tail : rows;
        double t = 2 * product_seconds(rows, kv, d) + product_seconds(m, q, d) +
                   product_seconds(m, d, q) + 2 * product_seconds(m, f, d) +
                   product_seconds(m, d, f);
        if (lora)
            t += product_seconds(m, RANK, d) + product_seconds(m, q, RANK) +
                 product_seconds(rows, RANK, d) + product_seconds(rows, kv, RANK);
        *(pass ? &last : &inner) = t;
    }
    return inner * (c->layers - 1) + last;
}

typedef uint64_t wide __attribute__((vector_size(64), aligned(1)));

__attribute__((target_clones("avx512f", "avx2", "default"))) static uint64_t
read_part(const char *data, size_t bytes)
{
    wide a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 4 * sizeof a <= bytes; i += 4 * sizeof a) {
        const wide *w = (const void *)(data + i);
        a += w[0];
        b += w[1];
        c += w[2];
        d += w[3];
    }
    return a[0] + b[0] + c[0] + d[0];
}

/* The thread's share of a matrix. */
static uint64_t read_share(ic_mat m, int thread, int threads)
{
    size_t bytes = (size_t)m.rows * ic_row_bytes(m.dtype, m.stride);
    size_t part = bytes / (size_t)threads / 64 * 64;
    return read_part((const char *)m.data + part * (size_t)thread, part);
}

/* Seconds in which a plain loop reads the weights of `tokens` tokens, as they lie and in their order,
 * every thread its share, without waiting for each other. */
static double read_seconds(const icae_model *m, int tokens, int threads)
{
    uint64_t total = 0;
    double start = ic_seconds();
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static, 1)
    for (int i = 0; i < threads; i++) {
        for (int token = 0; token < tokens; token++) {
            for (int l = 0; l < m->config.layers; l++)
                for (int t = 0; t < IC_TARGETS; t++)
                    total += read_share(m->layer[l].linear[t].w, i, threads);
            total += read_share(m->head, i, threads);
        }
    }
    double seconds = ic_seconds() - start;
    return total ? seconds : 0;
}

/* ---- tasks ------------------------------------------------------------------------------------ */

static double once_compress(bench *b)
{
    float *values;
    uint64_t count;
    double start = ic_seconds();
    MUST(ic_encode(&values, &count, b->session, b->text, TEXT, 4));
    double t = ic_seconds() - start;
    ic_free(values);
    return t;
}

/* Either reads TEXT tokens, or decodes NEW tokens behind slots and [AE]; seconds. */
static double once_decode(bench *b, bool slots)
{
    ic_prompt p;
    ic_kv *kv;
    icae_slots *s = NULL;
    int32_t ae = IC_AE;
    float *logits = ic_alloc((size_t)b->model->config.vocabulary, sizeof *logits);
    MUST(ic_kv_new(&kv, &b->model->config, b->session->act, TEXT + NEW + 1));
    ic_prompt_begin(&p, b->session);
    if (slots) {
        MUST(icae_slots_open(&s, "bench.icae"));
        MUST(ic_prompt_slots(&p, s, 0, s->segments, NULL));
        MUST(ic_prompt_ids(&p, &ae, 1));
    } else {
        MUST(ic_prompt_ids(&p, b->text, TEXT));
    }
    double start = ic_seconds();
    MUST(ic_prompt_read(b->session, &p, 0, p.rows, kv, NULL, 0, NULL, logits));
    double middle = ic_seconds();
    for (int i = 0; i < NEW && slots; i++) {
        int32_t id = ic_sample(logits, b->model->config.vocabulary, &(icae_sampling){0}, 0, NULL);
        MUST(ic_prompt_ids(&p, &id, 1));
        MUST(ic_prompt_read(b->session, &p, p.rows - 1, 1, kv, NULL, 0, NULL, logits));
    }
    double end = ic_seconds();
    ic_prompt_free(&p);
    ic_kv_free(kv);
    icae_slots_free(s);
    ic_free(logits);
    return slots ? end - middle : middle - start;
}

static void make_slots(bench *b)
{
    float *values;
    uint64_t count;
    icae_slots *s;
    MUST(ic_encode(&values, &count, b->session, b->text, TEXT, 4));
    MUST(ic_slots_new(&s, b->model->config.width, count, 1, IC_BF16));
    ic_slots_put(s, 0, values, count);
    s->segment[0] = (ic_segment){.tokens = TEXT, .slots = (uint32_t)count};
    s->tokens = TEXT;
    s->text_size = TEXT;
    s->span = TEXT;
    s->rate = 4;
    memset(s->text_sha256, '0', 64);
    memcpy(s->base, b->model->identity, 65);
    memcpy(s->adapter, b->adapter->identity, 65);
    MUST(icae_slots_save(s, "bench.icae"));
    icae_slots_free(s);
    ic_free(values);
}

static int by_value(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

/* The limit is measured after every repeat, since the machine's speed drifts; its memory does not
 * count. */
static void report(bench *b, const char *task, int tokens, double (*once)(bench *),
                   double (*limit)(const bench *))
{
    double t[MAX_REPEATS], share[MAX_REPEATS] = {0};
    struct rusage u;
    once(b);
    getrusage(RUSAGE_SELF, &u);
    for (int i = 0; i < b->repeats; i++) {
        t[i] = once(b);
        if (limit)
            share[i] = limit(b) / t[i];
    }
    double middle = median(t, b->repeats);
    printf("{\"task\": \"%s\", \"tokens_per_second\": %.2f, \"best_tokens_per_second\": %.2f, "
           "\"share_of_limit\": %.3f, \"peak_rss_mb\": %ld, \"load_seconds\": %.3f, "
           "\"first_token_seconds\": %.3f, \"isa\": \"%s\", \"threads\": %d}\n",
           task, tokens / middle, tokens / t[0], median(share, b->repeats), u.ru_maxrss >> 10,
           b->load_seconds, b->first_seconds, b->session->be->isa, b->threads);
}

static double once_restore(bench *b)
{
    return once_decode(b, true);
}
static double once_prefill(bench *b)
{
    return once_decode(b, false);
}
static double compress_limit(const bench *b)
{
    return stack_seconds(&b->model->config, TEXT + SLOTS, SLOTS, true);
}

static double prefill_limit(const bench *b)
{
    return stack_seconds(&b->model->config, TEXT, 1, false);
}

static double decode_limit(const bench *b)
{
    return read_seconds(b->model, NEW / 8, b->threads) * 8;
}

static double once_nothing(bench *b)
{
    return b->first_seconds;
}

static void first_token(bench *b)
{
    ic_prompt p;
    float *logits = ic_alloc((size_t)b->model->config.vocabulary, sizeof *logits);
    ic_prompt_begin(&p, b->session);
    MUST(ic_prompt_ids(&p, b->text, 1));
    MUST(ic_prompt_read(b->session, &p, 0, 1, NULL, NULL, 0, NULL, logits));
    ic_prompt_free(&p);
    ic_free(logits);
}

int main(int argc, char **argv)
{
    static const char *const tasks[] = {"load", "compress", "decode", "prefill"};
    bool known = false;
    for (size_t i = 0; argc > 2 && i < IC_COUNT(tasks); i++)
        known |= !strcmp(argv[2], tasks[i]);
    if (!known) {
        fputs("usage: bench_icae MODEL load|compress|decode|prefill [THREADS] [REPEATS]\n", stderr);
        return 2;
    }
    const char *task = argv[2];
    bench b = {.threads = argc > 3 ? atoi(argv[3]) : 2, .repeats = argc > 4 ? atoi(argv[4]) : 5};
    b.repeats = IC_MAX(1, IC_MIN(b.repeats, MAX_REPEATS));
    char folder[] = "/tmp/bench-icae-XXXXXX";
    if (!mkdtemp(folder) || chdir(folder))
        return 1;
    double start = ic_seconds();
    MUST(icae_model_open(&b.model, argv[1], NULL));
    b.load_seconds = ic_seconds() - start;
    write_adapter(b.model, "icae.safetensors");
    MUST(icae_adapter_open(&b.adapter, "icae.safetensors", b.model, NULL));
    double again = ic_seconds();
    MUST(icae_session_new(&b.session, b.model, b.adapter,
                          &(icae_session_options){.threads = b.threads}));
    for (int i = 0; i < TEXT + NEW; i++)
        b.text[i] =
            3 + (int32_t)(ic_random_unit(1, 0, (uint64_t)i) * (b.model->config.vocabulary - 3));
    if (!strcmp(task, "load")) {
        first_token(&b);
        b.first_seconds = b.load_seconds + ic_seconds() - again;
        report(&b, task, 1, once_nothing, NULL);
    } else if (!strcmp(task, "compress")) {
        report(&b, task, TEXT, once_compress, compress_limit);
    } else if (!strcmp(task, "prefill")) {
        report(&b, task, TEXT, once_prefill, prefill_limit);
    } else {
        make_slots(&b);
        report(&b, task, NEW, once_restore, decode_limit);
    }
    icae_session_free(b.session);
    icae_adapter_free(b.adapter);
    icae_model_free(b.model);
    unlink("icae.safetensors");
    unlink("bench.icae");
    return rmdir(folder);
}
