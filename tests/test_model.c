/*
 * test_model.c - model folders that must be refused, each with its line; the compute types; the cache.
 *
 * Broken folders are made from a golden one: its config.json with one text replaced, its tensors with
 * one left out or changed.
 */
#include "golden.h"

#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static void put_file(const char *name, const void *data, size_t size)
{
    ic_file f = {0};
    char *path = golden_path(folder, name);
    MUST(ic_file_create(&f, path));
    MUST(ic_file_write(&f, data, size));
    MUST(ic_file_commit(&f));
    ic_free(path);
}

static void take_file(ic_buffer *out, const char *from, const char *name)
{
    ic_map map;
    char *source = golden_path(golden_folder(), from), *path = golden_path(source, name);
    out->size = 0;
    MUST(ic_map_open(&map, path));
    MUST(ic_buffer_add(out, map.data, map.size));
    ic_map_close(&map);
    ic_free(path);
    ic_free(source);
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/test-model-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json",
                                        "model.safetensors.index.json", "tokenizer_config.json"};
    for (size_t i = 0; i < IC_COUNT(names); i++) {
        char *path = golden_path(folder, names[i]);
        unlink(path);
        ic_free(path);
    }
    return rmdir(folder);
}

/* config.json of a golden case, `old` replaced by `new`. */
static void put_config(const char *from, const char *old, const char *new)
{
    ic_buffer text = {0}, changed = {0};
    take_file(&text, from, "config.json");
    const char *at = old ? strstr(text.data, old) : text.data + text.size;
    assert_non_null(at);
    MUST(ic_buffer_add(&changed, text.data, (size_t)(at - text.data)));
    if (old) {
        MUST(ic_buffer_add(&changed, new, strlen(new)));
        MUST(ic_buffer_add(&changed, at + strlen(old), strlen(at + strlen(old))));
    }
    put_file("config.json", changed.data, changed.size);
    ic_buffer_free(&text);
    ic_buffer_free(&changed);
}

static void put_whole(const char *from, const char *name)
{
    ic_buffer b = {0};
    take_file(&b, from, name);
    put_file(name, b.data, b.size);
    ic_buffer_free(&b);
}

/* Opening the folder fails with this code, and the message holds `words`. */
static void refused(int code, const char *words)
{
    icae_model *m = NULL;
    long live = ic_memory_live();
    int rc = icae_model_open(&m, folder, NULL);
    if (rc != code || !strstr(icae_error_message(), words)) {
        print_error("code %d, expected %d; message: %s; expected in it: %s\n", rc, code,
                    rc < 0 ? icae_error_message() : "(none)", words);
        fail();
    }
    assert_int_equal(ic_memory_live(), live);
}

/* ---- configuration ---------------------------------------------------------------------------- */

static void test_config(void **state)
{
    (void)state;
    refused(ICAE_ENOTFOUND, "config.json");
    put_whole("llama", "model.safetensors");
    static const struct {
        const char *old, *new;
        int code;
        const char *words;
    } cases[] = {
        {"\"llama\"", "\"mamba\"", ICAE_EUNSUPPORTED, "mamba"},
        {"\"model_type\": \"llama\"", "\"model_type\": 7", ICAE_EFORMAT, "model_type"},
        {"\"hidden_size\"", "\"hidden\"", ICAE_EFORMAT, "no hidden_size"},
        {"\"hidden_size\": 64", "\"hidden_size\": 1e30", ICAE_EFORMAT, "hidden_size"},
        {"\"hidden_size\": 64", "\"hidden_size\": 63.5", ICAE_EFORMAT, "hidden_size"},
        {"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1000000", ICAE_EFORMAT,
         "num_hidden_layers"},
        {"\"num_attention_heads\": 4", "\"num_attention_heads\": 0", ICAE_EFORMAT,
         "num_attention_heads"},
        {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", ICAE_EFORMAT, "share"},
        {"\"silu\"", "\"relu\"", ICAE_EUNSUPPORTED, "relu"},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}",
         ICAE_EUNSUPPORTED, "yarn"},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"linear\"}", ICAE_EFORMAT,
         "factor"},
        {"\"rope_theta\": 10000.0", "\"rope_theta\": -1", ICAE_EFORMAT, "rope_theta"},
        {"{", "[", ICAE_EFORMAT, "config.json"},
        {"\"hidden_size\": 64", "\"hidden_size\": 128", ICAE_EFORMAT, "64"},
        {"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", ICAE_ENOTFOUND, "layers.3"},
        {"\"vocab_size\": 320", "\"vocab_size\": 321", ICAE_EFORMAT, "embed_tokens"},
    };
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        put_config("llama", cases[i].old, cases[i].new);
        refused(cases[i].code, cases[i].words);
    }
}

/* ---- weights ---------------------------------------------------------------------------------- */

/* The tensors of the golden llama, one of them changed by `change`, or left out if that is NULL. */
static void put_weights(const char *name, void (*change)(ic_tensor *))
{
    ic_safetensors st;
    char *source = golden_path(golden_folder(), "llama/model.safetensors");
    char *target = golden_path(folder, "model.safetensors");
    MUST(ic_safetensors_open(&st, source));
    ic_tensor *t = ic_alloc(st.count, sizeof *t);
    assert_non_null(t);
    size_t n = 0;
    for (size_t i = 0; i < st.count; i++) {
        t[n] = st.tensors[i];
        if (strcmp(t[n].name, name)) {
            n++;
        } else if (change) {
            change(&t[n]);
            n++;
        }
    }
    MUST(ic_safetensors_write(target, t, n, NULL, 0));
    ic_free(t);
    ic_safetensors_close(&st);
    ic_free(source);
    ic_free(target);
}

static void transpose(ic_tensor *t)
{
    int64_t d = t->dim[0];
    t->dim[0] = t->dim[1];
    t->dim[1] = d;
}

static void make_integer(ic_tensor *t)
{
    t->dtype = IC_I32;
}

static void flatten(ic_tensor *t)
{
    t->dim[0] *= t->dim[1];
    t->dim[1] = 1;
    t->rank = 1;
}

static void test_weights(void **state)
{
    (void)state;
    static const char q[] = "model.layers.1.self_attn.q_proj.weight",
                      k[] = "model.layers.1.self_attn.k_proj.weight";
    put_config("llama", NULL, NULL);
    put_weights(q, NULL);
    refused(ICAE_ENOTFOUND, q);
    put_weights(k, transpose);
    refused(ICAE_EFORMAT, k);
    put_weights(k, flatten);
    refused(ICAE_EFORMAT, k);
    put_weights(q, make_integer);
    refused(ICAE_EUNSUPPORTED, "I32");
    put_weights("model.norm.weight", make_integer);
    refused(ICAE_EUNSUPPORTED, "model.norm.weight");
    put_weights("lm_head.weight", NULL);
    refused(ICAE_ENOTFOUND, "lm_head.weight");
    put_file("model.safetensors", "\x08\0\0\0\0\0\0\0{\"a\":1", 14);
    refused(ICAE_EFORMAT, "model.safetensors");
}

static void test_shards(void **state)
{
    (void)state;
    put_config("llama", NULL, NULL);
    static const char missing[] = "{\"weight_map\": {\"a\": \"model-00001-of-00002.safetensors\"}}";
    put_file("model.safetensors.index.json", missing, sizeof missing - 1);
    refused(ICAE_ENOTFOUND, "model-00001-of-00002.safetensors");
    static const char outside[] = "{\"weight_map\": {\"a\": \"../../etc/passwd\"}}";
    put_file("model.safetensors.index.json", outside, sizeof outside - 1);
    refused(ICAE_EFORMAT, "outside");
    put_file("model.safetensors.index.json", "{}", 2);
    refused(ICAE_EFORMAT, "weight_map");
}

static void test_tokenizer(void **state)
{
    (void)state;
    put_config("llama", NULL, NULL);
    put_whole("llama", "model.safetensors");
    static const char unknown[] =
        "{\"model\": {\"type\": \"Quantum\", \"vocab\": {}, \"merges\": []}}";
    put_file("tokenizer.json", unknown, sizeof unknown - 1);
    refused(ICAE_EUNSUPPORTED, "Quantum");
    ic_buffer deep = {0};
    for (int i = 0; i < 100000; i++)
        MUST(ic_buffer_add(&deep, "[", 1));
    put_file("tokenizer.json", deep.data, deep.size);
    refused(ICAE_EFORMAT, "tokenizer.json");
    ic_buffer_free(&deep);
}

/* ---- choices ---------------------------------------------------------------------------------- */

static void test_options(void **state)
{
    (void)state;
    icae_model *m;
    char *path = golden_path(golden_folder(), "llama");
    assert_int_equal(icae_model_open(&m, path, &(icae_model_options){.template_name = "klingon"}),
                     ICAE_EINVAL);
    assert_non_null(strstr(icae_error_message(), "mistral"));
    MUST(icae_model_open(&m, path, &(icae_model_options){.template_name = "chatml"}));
    icae_model_info i = icae_model_describe(m);
    assert_string_equal(i.chat_template, "chatml");
    assert_string_equal(i.architecture, "llama");
    assert_int_equal(i.width, 64);
    assert_int_equal(strlen(i.identity), 64);
    char identity[65];
    strcpy(identity, i.identity);
    icae_model_free(m);
    ic_free(path);
    /* the same weights elsewhere are the same base; other weights are not */
    put_config("llama", NULL, NULL);
    put_whole("llama", "model.safetensors");
    MUST(icae_model_open(&m, folder, NULL));
    assert_string_equal(icae_model_describe(m).identity, identity);
    icae_model_free(m);
    put_config("llama-lora-all", NULL, NULL);
    put_whole("llama-lora-all", "model.safetensors");
    MUST(icae_model_open(&m, folder, NULL));
    assert_string_not_equal(icae_model_describe(m).identity, identity);
    /* without a tokenizer only ids work, and that is said */
    int32_t *ids;
    size_t n;
    assert_int_equal(icae_tokenize(&ids, &n, m, "a", 1, false), ICAE_ENOTFOUND);
    assert_non_null(strstr(icae_error_message(), "tokenizer.json"));
    icae_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_config, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_weights, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_shards, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_tokenizer, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_options, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
