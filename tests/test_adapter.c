/*
 * test_adapter.c - adapter files: the golden ones on their bases, published v1 and PEFT layouts,
 * settings, saving, and files that are wrong.
 */
#include "golden.h"

#include <unistd.h>

static char folder[64];

static void assert_message(const char *part)
{
    if (!strstr(icae_error_message(), part))
        fail_msg("message '%s' does not say '%s'", icae_error_message(), part);
}

static const char *file(const char *name)
{
    static char path[2][256];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

/* ---- golden adapters --------------------------------------------------------------------------
 */

/* A model of which there is only what adapters look at. */
static icae_model model_of(const char *path)
{
    icae_model m = {.path = (char *)path};
    ic_json *json = golden_json(path, "config.json");
    MUST(ic_config_from_json(&m.config, json, path));
    ic_json_free(json);
    memset(m.identity, '5', 64);
    return m;
}

/* The published row i of a matrix is row i of the file. */
static void assert_rows(const ic_adapter_tensor *t, const ic_safetensors *st)
{
    const ic_tensor *published = ic_safetensors_find(st, t->name);
    assert_non_null(published);
    assert_int_equal(published->dtype, t->m.dtype);
    assert_int_equal(published->dim[0], t->m.rows);
    assert_int_equal(published->dim[1], t->m.cols);
    size_t row = ic_row_bytes(t->m.dtype, (size_t)t->m.cols);
    for (int i = 0; i < t->m.rows; i++)
        assert_memory_equal(ic_mat_row(t->m, (size_t)(t->row_of ? t->row_of[i] : i)),
                            (const char *)published->data + (size_t)i * row, row);
}

static void check_case(const char *path)
{
    icae_model m = model_of(path);
    icae_adapter *a, *b;
    ic_safetensors st;
    ic_json *golden = golden_json(path, "golden.json");
    const ic_json *g = ic_json_get(golden, "icae");
    int k = (int)ic_json_number(ic_json_get(g, "mem_size"), 0);
    float rate = (float)ic_json_number(ic_json_get(g, "rate"), 0);
    char *name = golden_path(path, "icae.safetensors");
    MUST(icae_adapter_open(&a, NULL, &m, &(icae_adapter_options){.k = k, .rate = rate}));
    MUST(ic_safetensors_open(&st, name));
    icae_adapter_info info = icae_adapter_describe(a);
    assert_string_equal(info.path, name);
    assert_int_equal(info.k, k);
    assert_int_equal(info.rank, (int)ic_json_number(ic_json_get(g, "lora_rank"), 0));
    assert_true(info.rate == rate && info.alpha == 32 && a->set.scale == 32.0f / (float)info.rank);
    assert_string_equal(info.layout, "v2");
    assert_true(a->bos && a->set.lora == a->lora);
    const ic_json *targets = ic_json_get(g, "lora_targets");
    for (const ic_json *t = ic_json_first(targets); t; t = ic_json_next(t))
        assert_non_null(strstr(info.targets, ic_json_string(t)));
    assert_int_equal(a->tensor_count, st.count);
    uint64_t parameters = 0;
    for (size_t i = 0; i < st.count; i++) {
        assert_rows(&a->tensors[i], &st);
        parameters += (uint64_t)(st.tensors[i].dim[0] * st.tensors[i].dim[1]);
    }
    assert_int_equal(info.parameters, parameters);
    assert_int_equal(a->memory.rows, k + 3);

    MUST(icae_adapter_save(a, file("saved.safetensors")));
    MUST(icae_adapter_open(&b, file("saved.safetensors"), &m, NULL));
    assert_string_equal(a->identity, b->identity);
    assert_string_equal(b->base_identity, m.identity);
    assert_int_equal(a->tensor_count, b->tensor_count);
    assert_true(b->rate == rate && b->alpha == 32 && b->bos);
    for (size_t i = 0; i < b->tensor_count; i++)
        assert_rows(&b->tensors[i], &st);
    icae_adapter_free(b);
    m.identity[3] = '6';
    assert_int_equal(icae_adapter_open(&b, file("saved.safetensors"), &m, NULL), ICAE_EMISMATCH);
    assert_message("base 555555555555, this is base 555655555555");
    icae_adapter_free(a);
    ic_safetensors_close(&st);
    ic_json_free(golden);
    ic_free(name);
}

/* golden/gguf has no config.json. */
static bool has_config(const char *path)
{
    char *config = golden_path(path, "config.json");
    bool is = ic_path_exists(config);
    ic_free(config);
    return is;
}

static void check_if_folder(const char *path)
{
    if (has_config(path))
        check_case(path);
}

static void test_golden(void **state)
{
    (void)state;
    assert_true(golden_each(golden_folder(), "icae.safetensors", check_if_folder) > 0);
}

/* A llama in GGUF's order of rows, beside the same in the published order. */
static void test_gguf_rows(void **state)
{
    (void)state;
    char *gguf = golden_path(golden_folder(), "gguf/model-F32.gguf");
    char *path = golden_path(golden_folder(), "gguf/icae.safetensors");
    ic_gguf g;
    ic_safetensors st;
    icae_model m = {.path = gguf}, plain;
    icae_adapter *a, *b, *c;
    MUST(ic_gguf_open(&g, gguf));
    MUST(ic_config_from_gguf(&m.config, &g));
    assert_true(m.config.rope_interleaved);
    plain = m;
    plain.config.rope_interleaved = false;
    MUST(icae_adapter_open(&a, path, &m, NULL));
    MUST(icae_adapter_open(&b, path, &plain, NULL));
    MUST(ic_safetensors_open(&st, path));
    assert_string_equal(a->identity, b->identity);
    int width = m.config.head_width, half = width / 2;
    for (int t = 0; t < IC_TARGETS; t++) {
        ic_mat x = a->lora[t].b, y = b->lora[t].b;
        for (int i = 0; x.data && i < x.rows; i++) {
            int h = i / width, j = i % width;
            int to = t == IC_Q || t == IC_K ? h * width + 2 * (j % half) + j / half : i;
            assert_memory_equal(ic_mat_row(x, (size_t)to), ic_mat_row(y, (size_t)i),
                                (size_t)x.cols * sizeof(float));
        }
    }
    for (size_t i = 0; i < a->tensor_count; i++)
        assert_rows(&a->tensors[i], &st);
    MUST(icae_adapter_save(a, file("gguf.safetensors"))); /* in the published order again */
    MUST(icae_adapter_open(&c, file("gguf.safetensors"), &plain, NULL));
    for (size_t i = 0; i < c->tensor_count; i++)
        assert_rows(&c->tensors[i], &st);
    assert_int_equal(icae_adapter_open(&b, NULL, &m, NULL), ICAE_ENOTFOUND);
    assert_message("give an adapter");
    icae_adapter_free(a);
    icae_adapter_free(b);
    icae_adapter_free(c);
    ic_safetensors_close(&st);
    ic_gguf_close(&g);
    ic_free(gguf);
    ic_free(path);
}

/* ---- made-up adapters -------------------------------------------------------------------------
 */

enum { D = 8, F = 12, K = 4, MAX = 32 };

static icae_model tiny(const char *architecture)
{
    icae_model m = {.path = folder,
                    .config = {.width = D,
                               .layers = 2,
                               .heads = 2,
                               .kv_heads = 1,
                               .head_width = 4,
                               .ffn_width = F,
                               .vocabulary = 16,
                               .rope_width = 4}};
    snprintf(m.config.architecture, sizeof m.config.architecture, "%s", architecture);
    memset(m.identity, 'a', 64);
    return m;
}

/* A file in the making. */
typedef struct made {
    ic_tensor t[MAX];
    char *name[MAX];
    float *data[MAX];
    size_t count, made; /* to be written, and to be freed */
    ic_pair pair[MAX];
    size_t pairs;
} made;

static ic_tensor *add(made *f, const char *name, int rows, int cols)
{
    f->made++;
    size_t i = f->count++, n = (size_t)rows * (size_t)cols;
    assert_true(i < MAX);
    f->name[i] = ic_strdup(name);
    f->data[i] = ic_alloc(n, sizeof(float));
    for (size_t j = 0; j < n; j++)
        f->data[i][j] = (float)(i + 1) + (float)j / 256;
    f->t[i] = (ic_tensor){.name = f->name[i],
                          .dtype = IC_F32,
                          .rank = 2,
                          .dim = {rows, cols, 1, 1},
                          .data = f->data[i],
                          .bytes = n * sizeof(float)};
    return &f->t[i];
}

static void add_pair(made *f, const char *prefix, int layer, const char *part, const char *end,
                     int in, int out)
{
    char name[120];
    snprintf(name, sizeof name, "%slayers.%d.%s.lora_A%s", prefix, layer, part, end);
    add(f, name, 2, in);
    snprintf(name, sizeof name, "%slayers.%d.%s.lora_B%s", prefix, layer, part, end);
    add(f, name, out, 2);
}

#define V2   "icae.base_model.model.model."
#define PEFT "base_model.model.model."

/* q and v of both layers, memory embeddings. */
static made good_file(void)
{
    made f = {0};
    add(&f, "memory_token_embed.weight", K + 3, D);
    for (int l = 0; l < 2; l++) {
        add_pair(&f, V2, l, "self_attn.q_proj", ".default.weight", D, 8);
        add_pair(&f, V2, l, "self_attn.v_proj", ".default.weight", D, 4);
    }
    return f;
}

static void set(made *f, const char *key, const char *value)
{
    f->pair[f->pairs++] = (ic_pair){key, value};
}

/* Writes the file under `name` and opens it. */
static int open_as(icae_adapter **a, made *f, const char *name, const icae_model *m,
                   const icae_adapter_options *o)
{
    MUST(ic_safetensors_write(file(name), f->t, f->count, f->pair, f->pairs));
    for (size_t i = 0; i < f->made; i++) {
        ic_free(f->data[i]);
        ic_free(f->name[i]);
    }
    return icae_adapter_open(a, file(name), m, o);
}

static void assert_refused(made *f, const icae_model *m, const icae_adapter_options *o, int code,
                           const char *message)
{
    icae_adapter *a;
    int rc = open_as(&a, f, "bad.safetensors", m, o);
    if (rc != code)
        fail_msg("'%s': code %d (%s), expected %d", message, rc, icae_error_message(), code);
    assert_message(message);
    assert_message("bad.safetensors");
}

static void test_metadata(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    icae_adapter *a, *b;
    made f = good_file();
    MUST(open_as(&a, &f, "plain.safetensors", &m, NULL)); /* published: nothing is said */
    assert_true(a->k == K && a->rate == 4 && a->alpha == 32 && a->rank == 2 && a->set.scale == 16);
    assert_true(a->bos && !a->lm_token && !a->spread && !a->proportional && a->span == 0);
    assert_true(a->refine == 0 && a->expand == 0);
    icae_adapter_free(a);

    f = good_file();
    const char *const pairs[][2] = {{"k", "4"},
                                    {"rate", "2.5"},
                                    {"rank", "2"},
                                    {"alpha", "7.5"},
                                    {"targets", "v_proj,q_proj"},
                                    {"positions", "spread"},
                                    {"slots", "proportional"},
                                    {"lm_token", "true"},
                                    {"rates", "2,2.5,8"},
                                    {"span", "512"},
                                    {"refine", "10"},
                                    {"expand", "4"},
                                    {"base", m.identity}};
    for (size_t i = 0; i < IC_COUNT(pairs); i++)
        set(&f, pairs[i][0], pairs[i][1]);
    MUST(open_as(&a, &f, "ours.safetensors", &m, NULL));
    for (int i = 0; i < 2; i++) { /* as read, and as saved and read */
        assert_true(a->rate == 2.5f && a->alpha == 7.5f && a->set.scale == 3.75f);
        assert_true(a->spread && a->proportional && a->lm_token && !a->bos && a->span == 512);
        assert_true(a->rates_count == 3 && a->rates[0] == 2 && a->rates[1] == 2.5f &&
                    a->rates[2] == 8);
        assert_string_equal(a->targets, "q_proj,v_proj");
        assert_string_equal(icae_adapter_describe(a).positions, "spread");
        assert_string_equal(icae_adapter_describe(a).slots, "proportional");
        assert_int_equal(icae_adapter_describe(a).refine, 10);
        assert_int_equal(icae_adapter_describe(a).expand, 4);
        MUST(icae_adapter_save(a, file("again.safetensors")));
        MUST(icae_adapter_open(&b, file("again.safetensors"), &m, NULL));
        assert_string_equal(a->identity, b->identity);
        icae_adapter_free(a);
        a = b;
    }
    icae_adapter_free(a);
    MUST(icae_adapter_open(&a, file("again.safetensors"), &m, &(icae_adapter_options){.rate = 8}));
    assert_true(a->rate == 8);
    icae_adapter_free(a);
    assert_int_equal(
        icae_adapter_open(&a, file("again.safetensors"), &m, &(icae_adapter_options){.rate = 3}),
        ICAE_EINVAL);
    assert_message("rate 3 was asked for");
    assert_message("has 2.5");
    assert_int_equal(
        icae_adapter_open(&a, file("again.safetensors"), &m, &(icae_adapter_options){.alpha = 3}),
        ICAE_EINVAL);
    assert_int_equal(
        icae_adapter_open(&a, file("again.safetensors"), &m, &(icae_adapter_options){.k = 3}),
        ICAE_EINVAL);
    MUST(icae_adapter_open(&a, file("plain.safetensors"), &m,
                           &(icae_adapter_options){.k = 4, .rate = 3, .alpha = 64}));
    assert_true(a->rate == 3 && a->set.scale == 32);
    icae_adapter_free(a);
    assert_int_equal(icae_adapter_open(&a, file("plain.safetensors"), NULL, NULL), ICAE_EINVAL);
}

static void test_bad_metadata(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    static const struct {
        const char *key, *value;
        int code;
    } cases[] = {
        {"k", "5", ICAE_EFORMAT},
        {"k", "x", ICAE_EFORMAT},
        {"rank", "3", ICAE_EFORMAT},
        {"rate", "0", ICAE_EFORMAT},
        {"rate", "nan", ICAE_EFORMAT},
        {"rate", "4x", ICAE_EFORMAT},
        {"rate", "1e9", ICAE_EFORMAT},
        {"alpha", "0", ICAE_EFORMAT},
        {"alpha", "-1", ICAE_EFORMAT},
        {"alpha", "inf", ICAE_EFORMAT},
        {"targets", "q_proj", ICAE_EFORMAT},
        {"positions", "Spread", ICAE_EFORMAT},
        {"slots", "some", ICAE_EFORMAT},
        {"lm_token", "1", ICAE_EFORMAT},
        {"bos", "", ICAE_EFORMAT},
        {"span", "-1", ICAE_EFORMAT},
        {"refine", "10001", ICAE_EFORMAT},
        {"expand", "some", ICAE_EFORMAT},
        {"rates", "2,,8", ICAE_EFORMAT},
        {"rates", "1,2,3,4,5,6,7,8,9", ICAE_EFORMAT},
        {"rates", "0.1", ICAE_EFORMAT},
        {"layout", "v3", ICAE_EFORMAT},
        {"base", "beef", ICAE_EFORMAT},
        {"format", "icae-adapter-2", ICAE_EUNSUPPORTED},
        {"format", "icae-slots-1", ICAE_EFORMAT},
        {"targets", "q_proj,v_proj,v_proj", ICAE_EFORMAT},
        {"targets", "q_proj,k_proj", ICAE_EFORMAT},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        made f = good_file();
        set(&f, cases[i].key, cases[i].value);
        assert_refused(&f, &m, NULL, cases[i].code, cases[i].value);
    }
}

static void test_bad_tensors(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    made f = good_file();
    f.t[0].name = "other.weight";
    assert_refused(&f, &m, NULL, ICAE_ENOTFOUND, "'memory_token_embed.weight' is missing");
    f = good_file();
    f.t[0].dim[0] = D;
    f.t[0].dim[1] = K + 3;
    assert_refused(&f, &m, NULL, ICAE_EMISMATCH, "made for a base of width 7, this one has 8");
    f = good_file();
    f.t[0].dim[0] = 3;
    f.t[0].bytes = 3 * D * 4;
    assert_refused(&f, &m, NULL, ICAE_EFORMAT, "3 rows");
    f = good_file();
    f.t[0].dtype = IC_I32;
    assert_refused(&f, &m, NULL, ICAE_EUNSUPPORTED, "is I32");
    f = good_file();
    f.data[0][9] = NAN;
    assert_refused(&f, &m, NULL, ICAE_EFORMAT, "row 1, column 1 is not finite");
    f = good_file();
    f.count = 1;
    assert_refused(&f, &m, NULL, ICAE_ENOTFOUND, "no LoRA matrices");
    f = good_file();
    f.t[2].name = "nothing";
    assert_refused(&f, &m, NULL, ICAE_ENOTFOUND, "no partner lora_B");
    f = good_file();
    f.t[1].name = "nothing";
    assert_refused(&f, &m, NULL, ICAE_ENOTFOUND, "no partner lora_A");
    f = good_file();
    f.t[1].dim[0] = 4;
    f.t[1].dim[1] = 4;
    assert_refused(&f, &m, NULL, ICAE_EMISMATCH, "4 inputs of self_attn.q_proj, this one has 8");
    f = good_file();
    f.t[2].dim[0] = 4;
    f.t[2].dim[1] = 4;
    assert_refused(&f, &m, NULL, ICAE_EMISMATCH, "4 outputs of self_attn.q_proj, this one has 8");
    f = good_file();
    f.t[2].dim[1] = 1;
    f.t[2].bytes /= 2;
    assert_refused(&f, &m, NULL, ICAE_EFORMAT, "rank 1");
    f = good_file();
    f.t[3].dim[0] = f.t[4].dim[1] = 1;
    f.t[3].bytes /= 2;
    f.t[4].bytes /= 2;
    assert_refused(&f, &m, NULL, ICAE_EUNSUPPORTED, "one rank for all");
    f = good_file();
    f.t[1].rank = 1;
    f.t[1].dim[0] = 16;
    f.t[1].dim[1] = 1;
    assert_refused(&f, &m, NULL, ICAE_EFORMAT, "no matrix");
    static const char *const names[][2] = {
        {V2 "layers.2.self_attn.q_proj.lora_A.default.weight", "more than 2 layers"},
        {V2 "layers.99999999999.self_attn.q_proj.lora_A.default.weight", "no lora_A or lora_B"},
        {V2 "layers.-1.self_attn.q_proj.lora_A.default.weight", "no lora_A or lora_B"},
        {V2 "layers.0.self_attn.x_proj.lora_A.default.weight", "no lora_A or lora_B"},
        {V2 "layers.0.self_attn.q_proj.lora_C.default.weight", "no lora_A or lora_B"},
        {V2 "layers.0.self_attn.q_proj.lora_A.other.weight", "no lora_A or lora_B"},
        {V2 "layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight",
         "no lora_A or lora_B"},
        {V2 "embed_tokens.lora_embedding_A.default", "no lora_A or lora_B"},
        {PEFT "layers.0.self_attn.q_proj.lora_A.weight", "for the same matrix"},
        {"module.memory_token_embed.weight", "for the same matrix"},
        {V2 "layers.0.self_attn.qkv_proj.lora_A.default.weight", "fused layers"},
        {"memory_head.dense_in.weight", "memory head"},
    };
    for (size_t i = 0; i < IC_COUNT(names); i++) {
        f = good_file();
        add(&f, names[i][0], 2, D);
        icae_adapter *a;
        int rc = open_as(&a, &f, "bad.safetensors", &m, NULL);
        assert_true(rc == ICAE_EMISMATCH || rc == ICAE_EUNSUPPORTED || rc == ICAE_EFORMAT);
        assert_message(names[i][1]);
    }
    /* An adapter of a smaller number of layers, and one that says that it means it. */
    m.config.layers = 3;
    f = good_file();
    assert_refused(&f, &m, NULL, ICAE_EMISMATCH, "no LoRA for self_attn.q_proj of layer 2");
    icae_adapter *a;
    f = good_file();
    set(&f, "base", m.identity);
    MUST(open_as(&a, &f, "some.safetensors", &m, NULL));
    assert_null(a->lora[2 * IC_TARGETS + IC_Q].a.data);
    icae_adapter_free(a);
    f = good_file();
    m.config.layers = 2;
    assert_int_equal(open_as(&a, &f, "some.safetensors", &m, &(icae_adapter_options){.rate = 0.5f}),
                     ICAE_EINVAL);
    assert_message("rate 0.5");
}

/* The rest of a training checkpoint is passed over. */
static void test_checkpoint(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    icae_adapter *a;
    made f = good_file();
    add(&f, V2 "layers.0.self_attn.q_proj.base_layer.weight", D, D);
    add(&f, "decoder.model.layers.7.self_attn.q_proj.weight", D, D);
    add(&f, V2 "embed_tokens.weight", 20, D);
    MUST(open_as(&a, &f, "checkpoint.safetensors", &m, NULL));
    assert_int_equal(a->tensor_count, 9);
    icae_adapter_free(a);
}

/* Phi-3: A shared, B cut by rows. */
static void test_fused(void **state)
{
    (void)state;
    icae_model m = tiny("phi3");
    icae_adapter *a;
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        made f = {0};
        add(&f, "memory_token_embed.weight", K + 3, D);
        for (int l = 0; l < 2; l++) {
            add_pair(&f, V2, l, "self_attn.qkv_proj", ".default.weight", D, 8 + 4 + 4);
            add_pair(&f, V2, l, "mlp.gate_up_proj", ".default.weight", D, 2 * F);
        }
        m.config.rope_interleaved = interleaved;
        MUST(open_as(&a, &f, "fused.safetensors", &m, NULL));
        assert_string_equal(a->targets, "qkv_proj,gate_up_proj");
        const ic_lora *l = a->lora;
        assert_ptr_equal(l[IC_Q].a.data, l[IC_V].a.data);
        assert_ptr_equal(l[IC_GATE].a.data, l[IC_UP].a.data);
        assert_int_equal(l[IC_Q].b.rows, 8);
        assert_int_equal(l[IC_K].b.rows, 4);
        assert_int_equal(l[IC_UP].b.rows, F);
        assert_ptr_equal(l[IC_K].b.data, ic_mat_row(l[IC_Q].b, 8));
        assert_ptr_equal(l[IC_V].b.data, ic_mat_row(l[IC_Q].b, 12));
        assert_ptr_equal(l[IC_UP].b.data, ic_mat_row(l[IC_GATE].b, F));
        assert_null(l[IC_O].a.data);
        ic_safetensors st;
        MUST(ic_safetensors_open(&st, file("fused.safetensors")));
        const float *b = ic_safetensors_find(&st, a->tensors[2].name)->data; /* [16, 2] */
        const float *q = l[IC_Q].b.data;
        static const int order[8] = {0, 2, 1, 3, 4, 6, 5, 7};
        for (int i = 0; i < 8; i++)
            assert_true(q[2 * i] == b[2 * (interleaved ? order[i] : i)]);
        assert_memory_equal(l[IC_V].b.data, b + 2 * 12, 4 * 2 * sizeof *b);
        for (size_t i = 0; i < a->tensor_count; i++)
            assert_rows(&a->tensors[i], &st);
        ic_safetensors_close(&st);
        icae_adapter_free(a);
    }
    made f = {0};
    add(&f, "memory_token_embed.weight", K + 3, D);
    for (int l = 0; l < 2; l++) {
        add_pair(&f, V2, l, "self_attn.qkv_proj", ".default.weight", D, 8 + 4 + 4);
        add_pair(&f, V2, l, "self_attn.v_proj", ".default.weight", D, 4);
    }
    assert_refused(&f, &m, NULL, ICAE_EFORMAT, "both self_attn.v_proj and self_attn.qkv_proj");
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_peft(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    icae_adapter *a, *b;
    static const struct {
        const char *json, *message;
        int code;
    } cases[] = {
        {"{\"r\":2,\"lora_alpha\":16,\"target_modules\":[\"v_proj\",\"q_proj\"]}", NULL, 0},
        {"{\"r\":3,\"lora_alpha\":16}", "'r' is 3", ICAE_EFORMAT},
        {"{\"r\":2}", "lora_alpha", ICAE_EFORMAT},
        {"{\"r\":2,\"lora_alpha\":16,\"target_modules\":[\"q_proj\",\"o_proj\"]}", "'o_proj'",
         ICAE_EFORMAT},
        {"{\"r\":2,\"lora_alpha\":16,\"use_rslora\":true}", "use_rslora", ICAE_EUNSUPPORTED},
        {"{\"r\":2,\"lora_alpha\":16,\"rank_pattern\":{\"q\":8}}", "rank_pattern",
         ICAE_EUNSUPPORTED},
        {"{\"r\":2,", "adapter_config.json", ICAE_EFORMAT},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        made f = {0};
        add(&f, "memory_token_embed.weight", K + 3, D);
        for (int l = 0; l < 2; l++) {
            add_pair(&f, PEFT, l, "self_attn.q_proj", ".weight", D, 8);
            add_pair(&f, PEFT, l, "self_attn.v_proj", ".weight", D, 4);
        }
        write_text(file("adapter_config.json"), cases[i].json);
        int rc = open_as(&a, &f, "adapter_model.safetensors", &m, NULL);
        if (rc != cases[i].code)
            fail_msg("%s: %d, %s", cases[i].json, rc, icae_error_message());
        if (rc < 0) {
            assert_message(cases[i].message);
            continue;
        }
        assert_true(a->alpha == 16 && a->set.scale == 8);
        MUST(icae_adapter_open(&b, folder, &m, NULL)); /* the folder that PEFT saves */
        assert_string_equal(a->identity, b->identity);
        icae_adapter_free(b);
        assert_string_equal(a->tensors[1].name,
                            V2 "layers.0.self_attn.q_proj.lora_A.default.weight");
        icae_adapter_free(a);
    }
    unlink(file("adapter_config.json"));
    unlink(file("adapter_model.safetensors"));
    assert_int_equal(icae_adapter_open(&a, folder, &m, NULL), ICAE_ENOTFOUND);
}

static void test_v1(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    icae_adapter *a, *b;
    MUST(icae_adapter_open(&a, ICAE_TEST_DIR "/data/adapter_v1.pt", &m, NULL));
    for (int i = 0; i < 2; i++) {
        assert_string_equal(a->layout, "v1");
        assert_true(a->k == 4 && a->rank == 2 && a->rate == 4 && a->alpha == 32 && a->bos &&
                    a->span == 16);
        assert_int_equal(a->tensor_count, 9);
        const float *memory = a->memory.data, *v = a->lora[IC_TARGETS + IC_V].b.data;
        assert_true(memory[0] == 100 && memory[6 * D + 1] == 100 + 6.0f / 16 + 1.0f / 256);
        assert_true(v[0] == 23 && v[2] == 23 + 1.0f / 16);
        MUST(icae_adapter_save(a, file("v1.safetensors")));
        MUST(icae_adapter_open(&b, file("v1.safetensors"), &m, NULL));
        assert_string_equal(a->identity, b->identity);
        icae_adapter_free(a);
        a = b;
    }
    icae_adapter_free(a);
    m.config.ffn_width = 99; /* not touched by this adapter */
    m.config.kv_heads = 2;
    assert_int_equal(icae_adapter_open(&a, ICAE_TEST_DIR "/data/adapter_v1.pt", &m, NULL),
                     ICAE_EMISMATCH);
    assert_int_equal(icae_adapter_open(&a, ICAE_TEST_DIR "/data/bad_legacy.pt", &m, NULL),
                     ICAE_EUNSUPPORTED);
    assert_message("1.6");
}

/* A file whose data starts at an odd byte, as other writers leave them: matrices are copied. */
static void test_unaligned(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    icae_adapter *a, *b;
    made f = good_file();
    MUST(open_as(&a, &f, "aligned.safetensors", &m, NULL));
    ic_map map;
    MUST(ic_map_open(&map, file("aligned.safetensors")));
    uint64_t header;
    memcpy(&header, map.data, 8);
    FILE *out = fopen(file("odd.safetensors"), "wb");
    uint64_t longer = header + 1;
    fwrite(&longer, 8, 1, out);
    fwrite(map.data + 8, 1, header, out);
    fputc(' ', out);
    fwrite(map.data + 8 + header, 1, map.size - 8 - header, out);
    fclose(out);
    ic_map_close(&map);
    MUST(icae_adapter_open(&b, file("odd.safetensors"), &m, NULL));
    assert_string_equal(a->identity, b->identity);
    for (size_t i = 0; i < b->tensor_count; i++)
        assert_int_equal((uintptr_t)b->tensors[i].m.data % sizeof(float), 0);
    icae_adapter_free(a);
    icae_adapter_free(b);
}

/* Cut and flipped files: any code, no crash; what opens can be saved. */
static void test_damage(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    static const char *const files[] = {"good.safetensors", ICAE_TEST_DIR "/data/adapter_v1.pt"};
    icae_adapter *a;
    made f = good_file();
    set(&f, "rate", "4");
    set(&f, "rates", "2,4");
    set(&f, "targets", "q_proj,v_proj");
    MUST(open_as(&a, &f, "good.safetensors", &m, NULL));
    icae_adapter_free(a);
    for (int which = 0; which < 2; which++) {
        ic_map map;
        MUST(ic_map_open(&map, which ? files[1] : file(files[0])));
        char *data = malloc(map.size);
        memcpy(data, map.data, map.size);
        for (size_t i = 0; i < map.size; i += i < 1600 ? 1 : 13) {
            FILE *out = fopen(file("damaged"), "wb");
            data[i] = (char)(data[i] ^ 1 << i % 8);
            fwrite(data, 1, i % 5 == 4 ? i : map.size, out);
            data[i] = (char)(data[i] ^ 1 << i % 8);
            fclose(out);
            if (icae_adapter_open(&a, file("damaged"), &m, NULL) == ICAE_OK)
                icae_adapter_free(a);
        }
        free(data);
        ic_map_close(&map);
    }
}

static void test_io(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    icae_adapter *a, *b;
    made f = good_file();
    MUST(open_as(&a, &f, "io.safetensors", &m, NULL));
    assert_int_equal(icae_adapter_open(&b, file("absent"), &m, NULL), ICAE_ENOTFOUND);
    assert_int_equal(icae_adapter_open(&b, "/dev/null", &m, NULL), ICAE_EFORMAT);
    assert_int_equal(icae_adapter_save(a, file("absent/x")), ICAE_ENOTFOUND);
    assert_int_equal(icae_adapter_save(a, folder), ICAE_EINVAL);
    if (access("/dev/full", W_OK) == 0)
        assert_int_equal(icae_adapter_save(a, "/dev/full"), ICAE_EIO);
    MUST(icae_adapter_save(a, file("io.safetensors"))); /* over the file that it is mapped from */
    MUST(icae_adapter_open(&b, file("io.safetensors"), &m, NULL));
    assert_string_equal(a->identity, b->identity);
    icae_adapter_free(a);
    icae_adapter_free(b);
    icae_adapter_free(NULL);
}

static void test_no_memory(void **state)
{
    (void)state;
    icae_model m = tiny("llama");
    m.config.rope_interleaved = true; /* the most copies */
    icae_adapter *a = NULL;
    made f = good_file();
    MUST(open_as(&a, &f, "memory.safetensors", &m, NULL));
    icae_adapter_free(a);
    long live = ic_memory_live();
    int rc = ICAE_ENOMEM;
    for (long n = 0; rc != ICAE_OK; n++) {
        ic_memory_fail_after(n);
        rc = icae_adapter_open(&a, file("memory.safetensors"), &m, NULL);
        ic_memory_fail_after(-1);
        assert_true(rc == ICAE_OK || rc == ICAE_ENOMEM);
        if (rc < 0)
            assert_int_equal(ic_memory_live(), live);
    }
    live = ic_memory_live();
    rc = ICAE_ENOMEM;
    for (long n = 0; rc != ICAE_OK; n++) {
        ic_memory_fail_after(n);
        rc = icae_adapter_save(a, file("memory2.safetensors"));
        ic_memory_fail_after(-1);
        assert_true(rc == ICAE_OK || rc == ICAE_ENOMEM);
        assert_int_equal(ic_memory_live(), live);
    }
    icae_adapter_free(a);
}

static int set_up(void **state)
{
    (void)state;
    /* in memory where that can be: the library syncs what it writes */
    static const char *const places[] = {"/dev/shm", "/tmp"};
    for (size_t i = 0; i < IC_COUNT(places); i++) {
        snprintf(folder, sizeof folder, "%s/icae-test-adapter-XXXXXX", places[i]);
        if (mkdtemp(folder))
            return 0;
    }
    return -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),      cmocka_unit_test(test_gguf_rows),
        cmocka_unit_test(test_metadata),    cmocka_unit_test(test_bad_metadata),
        cmocka_unit_test(test_bad_tensors), cmocka_unit_test(test_checkpoint),
        cmocka_unit_test(test_fused),       cmocka_unit_test(test_peft),
        cmocka_unit_test(test_v1),          cmocka_unit_test(test_unaligned),
        cmocka_unit_test(test_damage),      cmocka_unit_test(test_io),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
