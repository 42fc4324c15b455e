/*
 * bench_train.c - speed and memory of a training step on one model folder, one JSON line.
 *
 *     bench_train MODEL [one|batch|mixed] [THREADS] [REPEATS] [RECOMPUTE]
 *
 * A step: autoencoding of one text of 512 tokens, of four of them, or of sixteen texts of 16 to 256
 * tokens, packed up to 1,024 tokens at a time; a slot for four tokens, LoRA of rank 128 on q and v,
 * dropout 0.05, then AdamW. share_of_limit: the products that the step cannot do without, at the rate of
 * one large product, over the time of the step.
 */
#include "train/train.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { TEXT = 512, SLOTS = 128, RANK = 128, REPEATS = 5, MOST = 100, TEXTS = 16, PACK = 1024 };

typedef struct task {
    const char *name;
    int texts, tokens[TEXTS];
} task;

static const task tasks[] = {
    {"one", 1, {TEXT}},
    {"batch", 4, {TEXT, TEXT, TEXT, TEXT}},
    {"mixed", 16, {256, 16, 240, 32, 224, 48, 208, 64, 192, 80, 176, 96, 160, 112, 144, 128}}};

#define MUST(call) must((call), #call)

static void must(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "bench_train: %s: %s\n", what, icae_error_message());
        exit(1);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- what must be computed -------------------------------------------------------------------- */

/* Multiply-adds of a layer's frozen matrices a row: keys and values; all others. */
static void layer_products(const ic_config *c, double *kv, double *others)
{
    double d = c->width, q = (double)c->heads * c->head_width,
           k = (double)c->kv_heads * c->head_width;
    *kv = 2 * d * k;
    *others = 2 * d * q + 3 * d * c->ffn_width;
}

/* Of one pass through the layers, forward and backward; the last layer is cut to `tail` rows. Causal
 * attention: a product each for scores and values forward, five backward. */
static double stack_products(const ic_config *c, double rows, double tail)
{
    double kv, others, q = (double)c->heads * c->head_width, pairs = rows * (rows + 1) / 2;
    double last = tail * rows - tail * (tail - 1) / 2;
    layer_products(c, &kv, &others);
    return 2 * (c->layers * rows * kv + ((c->layers - 1) * rows + tail) * others) +
           7 * q * ((c->layers - 1) * pairs + last);
}

/* LoRA: forward, and both gradients backward. */
static double lora_products(const ic_config *c, double rows, double tail)
{
    double d = c->width, q = (double)c->heads * c->head_width,
           k = (double)c->kv_heads * c->head_width;
    return 3 * RANK * (((c->layers - 1) * rows + tail) * (d + q) + c->layers * rows * (d + k));
}

static double text_products(const ic_config *c, int tokens)
{
    double slots = tokens / 4, encoder = tokens + slots, decoder = slots + 1 + tokens,
           targets = tokens + 1;
    return stack_products(c, encoder, slots) + lora_products(c, encoder, slots) +
           stack_products(c, decoder, targets) + 2 * targets * c->width * c->vocabulary;
}

/* Multiply-adds a second of the best of some large products. */
static double peak_rate(icae_session *s)
{
    enum { ROWS = 640, MOST_WIDE = 2048 };
    static const int widths[] = {768, 1536, MOST_WIDE};
    double best = 0;
    size_t size = (size_t)MOST_WIDE * MOST_WIDE;
    float *x = ic_alloc(size, sizeof *x), *w = ic_alloc(size, sizeof *w),
          *y = ic_alloc(size, sizeof *y);
    if (!x || !w || !y)
        exit(1);
    for (int i = 0; i < 30; i++) {
        int n = widths[i % 3];
        double start = ic_seconds();
        s->be->linear(s->be, ic_mat_of(y, s->act, ROWS, n), ic_mat_of(x, s->act, ROWS, n),
                      ic_mat_of(w, s->act, n, n), NULL, 1, false);
        best = IC_MAX(best, (double)ROWS * n * n / (ic_seconds() - start));
    }
    ic_free(x);
    ic_free(w);
    ic_free(y);
    return best;
}

/* ---- the step --------------------------------------------------------------------------------- */

static int32_t random_id(const ic_config *c, int i)
{
    return (int32_t)(3 + ic_random_unit(1, IC_STREAM_DATA, (uint64_t)i) * (c->vocabulary - 3));
}

/* Seconds of a step in the middle of `repeats`, after one to warm up; the loss of the last. */
static double step_seconds(icae_session *s, ic_params *p, const task *t, int recompute, int repeats,
                           double *loss)
{
    static int32_t text[TEXTS][TEXT], after[TEXTS][TEXT + 2];
    ic_example e[TEXTS];
    double seconds[MOST + 1], nll[TEXTS] = {0}, norm;
    for (int i = 0; i < t->texts; i++) {
        int n = t->tokens[i];
        for (int j = 0; j < n; j++)
            text[i][j] = random_id(&s->model->config, i * TEXT + j);
        after[i][0] = IC_AE;
        memcpy(after[i] + 1, text[i], (size_t)n * sizeof **text);
        after[i][n + 1] = 2;
        e[i] = (ic_example){.context = text[i],
                            .tokens = (size_t)n,
                            .after = after[i],
                            .after_count = (size_t)n + 2,
                            .unscored = 1,
                            .weight = 1.0f / (float)((n + 1) * t->texts)};
    }
    ic_adamw adamw = {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .clip = 1};
    for (int i = 0; i <= repeats; i++) {
        double start = ic_seconds();
        for (int first = 0, end; first < t->texts; first = end) {
            ic_gradient_options o = {.recompute = recompute,
                                     .dropout = 0.05f,
                                     .seed = 1,
                                     .step = (uint64_t)(i * TEXTS + first)};
            int pack = t->tokens[end = first];
            while (++end < t->texts && pack + t->tokens[end] <= PACK)
                pack += t->tokens[end];
            MUST(ic_gradients(s, p, e + first, end - first, &o, nll + first, NULL, NULL));
        }
        MUST(ic_params_update(s, p, &adamw, (uint64_t)i + 1, &norm));
        seconds[i] = ic_seconds() - start;
    }
    *loss = 0;
    for (int i = 0; i < t->texts; i++)
        *loss += nll[i];
    qsort(seconds + 1, (size_t)repeats, sizeof *seconds, ascending);
    return seconds[1 + repeats / 2];
}

int main(int argc, char **argv)
{
    const task *t = NULL;
    for (size_t i = 0; i < IC_COUNT(tasks); i++)
        if (argc > 1 && !strcmp(argc > 2 ? argv[2] : "one", tasks[i].name))
            t = &tasks[i];
    if (!t) {
        fputs("usage: bench_train MODEL [one|batch|mixed] [THREADS] [REPEATS] [RECOMPUTE]\n",
              stderr);
        return 2;
    }
    int threads = argc > 3 ? atoi(argv[3]) : 0, recompute = argc > 5 ? atoi(argv[5]) : 0;
    int repeats = argc > 4 ? IC_MAX(1, IC_MIN(atoi(argv[4]), MOST)) : REPEATS;
    icae_model *model;
    icae_session *session;
    ic_params *params;
    MUST(icae_model_open(&model, argv[1], NULL));
    MUST(icae_session_new(&session, model, NULL, &(icae_session_options){.threads = threads}));
    ic_adapter_shape shape = {
        .k = SLOTS, .rank = RANK, .rate = (float)TEXT / SLOTS, .alpha = 32, .proportional = true};
    shape.target[IC_Q] = shape.target[IC_V] = true;
    MUST(ic_params_new(&params, model, &shape, IC_INIT_NORMAL, 1, session->act == IC_BF16));

    double loss, seconds = step_seconds(session, params, t, recompute, repeats, &loss);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double products = 0, peak = peak_rate(session);
    int tokens = 0;
    for (int i = 0; i < t->texts; i++) {
        products += text_products(&model->config, t->tokens[i]);
        tokens += t->tokens[i];
    }
    printf("{\"task\": \"train %s\", \"model\": \"%s\", \"compute\": \"%s\", \"isa\": \"%s\", "
           "\"threads\": %d, \"recompute\": %d, \"seconds\": %.4f, \"tokens_per_second\": %.2f, "
           "\"peak_rss_mb\": %ld, \"scratch_mb\": %zu, \"gflop_a_step\": %.1f, \"gflops\": %.1f, "
           "\"peak_gflops\": %.1f, \"share_of_limit\": %.3f, \"loss\": %.4f}\n",
           t->name, argv[1], session->act == IC_BF16 ? "bf16" : "f32", session->be->isa,
           session->be->threads, recompute, seconds, tokens / seconds, usage.ru_maxrss >> 10,
           session->arena.size >> 20, 2e-9 * products, 2e-9 * products / seconds, 2e-9 * peak,
           products / peak / seconds, loss / (tokens + t->texts));
    ic_params_free(params);
    icae_session_free(session);
    icae_model_free(model);
    return 0;
}
