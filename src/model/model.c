/*
 * model.c - opening a base model: a Hugging Face folder or a GGUF file.
 *
 * Owns the files, the tokenizer and the chat template; weights.c finds the weights in them.
 */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

/* ---- finding the bundled model ---------------------------------------------------------------- */

#ifndef ICAE_DATA_DIR
#define ICAE_DATA_DIR "/usr/local/share/icae"
#endif

/* $ICAE_DATA, where the library was installed, or the source tree. */
int ic_bundled_path(char **out, const char *name)
{
    const char *places[] = {
        getenv("ICAE_DATA"),
        ICAE_DATA_DIR,
#ifdef ICAE_SOURCE_DIR
        ICAE_SOURCE_DIR "/demo",
#endif
    };
    for (size_t i = 0; i < IC_COUNT(places); i++) {
        if (!places[i])
            continue;
        char *path = ic_path_join(places[i], name);
        if (!path)
            return ICAE_ENOMEM;
        if (ic_path_is_folder(path)) {
            *out = path;
            return ICAE_OK;
        }
        ic_free(path);
    }
    return ic_fail(ICAE_ENOTFOUND,
                   "the bundled %s is not in %s; give a path, or set ICAE_DATA to the "
                   "folder that holds it",
                   name, ICAE_DATA_DIR);
}

/* ---- Hugging Face folders --------------------------------------------------------------------- */

/* Parses FOLDER/name; *json stays NULL if an optional file is absent. */
static int read_json(ic_json **json, const char *folder, const char *name, bool optional)
{
    int rc = ICAE_OK;
    ic_map map = {0};
    *json = NULL;
    char *path = ic_path_join(folder, name);
    if (!path)
        return ICAE_ENOMEM;
    if (optional && !ic_path_exists(path))
        goto done;
    IC_TRY(ic_map_open(&map, path));
    IC_TRY(ic_json_parse(json, (const char *)map.data, map.size, path));
done:
    ic_map_close(&map);
    ic_free(path);
    return rc;
}

static int add_shard(icae_model *m, const char *name)
{
    for (size_t i = 0; i < m->shards; i++) {
        const char *slash = strrchr(m->shard[i].path, '/');
        if (!strcmp(slash ? slash + 1 : m->shard[i].path, name))
            return ICAE_OK;
    }
    if (strchr(name, '/') || !strcmp(name, "..") || !*name)
        return ic_fail(ICAE_EFORMAT, "%s: the index names a shard outside the folder: %s", m->path,
                       name);
    ic_safetensors *list = ic_resize(m->shard, m->shards + 1, sizeof *list);
    if (!list)
        return ICAE_ENOMEM;
    m->shard = list;
    char *path = ic_path_join(m->path, name);
    if (!path)
        return ICAE_ENOMEM;
    int rc = ic_safetensors_open(&m->shard[m->shards], path);
    if (rc == ICAE_OK)
        m->shards++;
    ic_free(path);
    return rc;
}

static int open_shards(icae_model *m)
{
    int rc = ICAE_OK;
    ic_json *index = NULL;
    IC_TRY(read_json(&index, m->path, "model.safetensors.index.json", true));
    if (!index)
        return add_shard(m, "model.safetensors");
    const ic_json *map = ic_json_get(index, "weight_map");
    if (!ic_json_is_object(map)) {
        rc = ic_fail(ICAE_EFORMAT, "%s/model.safetensors.index.json: no weight_map", m->path);
        goto done;
    }
    for (const ic_json *e = ic_json_first(map); e; e = ic_json_next(e)) {
        const char *name = ic_json_string(e);
        if (!name) {
            rc = ic_fail(ICAE_EFORMAT, "%s/model.safetensors.index.json: %s names no file", m->path,
                         ic_json_key(e));
            goto done;
        }
        IC_TRY(add_shard(m, name));
    }
done:
    ic_json_free(index);
    return rc;
}

/* tokenizer.json may be absent: then the model works on ids only. */
static int open_tokenizer(icae_model *m, ic_json **settings)
{
    int rc = ICAE_OK;
    char *path = ic_path_join(m->path, "tokenizer.json");
    if (!path)
        return ICAE_ENOMEM;
    if (ic_path_exists(path))
        IC_TRY(ic_tokenizer_open(&m->tokenizer, path));
    IC_TRY(read_json(settings, m->path, "tokenizer_config.json", true));
done:
    ic_free(path);
    return rc;
}

static int open_folder(icae_model *m)
{
    int rc = ICAE_OK;
    ic_json *config = NULL, *generation = NULL, *settings = NULL;
    char *name = ic_path_join(m->path, "config.json");
    if (!name)
        return ICAE_ENOMEM;
    IC_TRY(read_json(&config, m->path, "config.json", false));
    IC_TRY(ic_config_from_json(&m->config, config, name));
    IC_TRY(read_json(&generation, m->path, "generation_config.json", true));
    ic_config_add_generation(&m->config, generation);
    IC_TRY(open_shards(m));
    IC_TRY(open_tokenizer(m, &settings));
    const ic_json *chat = ic_json_get(settings, "chat_template");
    const char *jinja = ic_json_string(chat);
    if (!jinja && ic_json_is_array(chat)) /* several named ones: the first */
        jinja = ic_json_string(ic_json_get(ic_json_first(chat), "template"));
    m->chat = ic_chat_template_recognise(jinja, jinja ? strlen(jinja) : 0, m->tokenizer);
done:
    ic_json_free(config);
    ic_json_free(generation);
    ic_json_free(settings);
    ic_free(name);
    return rc;
}

/* ---- GGUF ------------------------------------------------------------------------------------- */

static int open_gguf(icae_model *m)
{
    int rc = ICAE_OK;
    m->gguf = ic_alloc(1, sizeof *m->gguf);
    if (!m->gguf)
        return ICAE_ENOMEM;
    IC_TRY(ic_gguf_open(m->gguf, m->path));
    IC_TRY(ic_config_from_gguf(&m->config, m->gguf));
    if (ic_gguf_get(m->gguf, "tokenizer.ggml.model"))
        IC_TRY(ic_tokenizer_from_gguf(&m->tokenizer, m->gguf));
    size_t size = 0;
    const char *jinja = ic_gguf_string(m->gguf, "tokenizer.chat_template", &size);
    m->chat = ic_chat_template_recognise(jinja, size, m->tokenizer);
done:
    return rc;
}

/* ---- public ----------------------------------------------------------------------------------- */

int icae_model_open(icae_model **out, const char *path, const icae_model_options *options)
{
    int rc = ICAE_OK;
    static const icae_model_options defaults;
    const icae_model_options *o = options ? options : &defaults;
    icae_model *m = ic_alloc(1, sizeof *m);
    if (!m)
        return ICAE_ENOMEM;
    m->compute = o->compute;
    if (path)
        m->path = ic_strdup(path);
    else
        IC_TRY(ic_bundled_path(&m->path, "model"));
    if (!m->path) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    IC_TRY(ic_path_is_folder(m->path) ? open_folder(m) : open_gguf(m));
    IC_TRY(ic_weights_bind(m));
    if (o->template_name) {
        m->chat = ic_chat_template_named(o->template_name);
        if (!m->chat) {
            rc = ic_fail(ICAE_EINVAL, "unknown chat template \"%s\" (known: %s)", o->template_name,
                         ic_chat_template_names());
            goto done;
        }
    }
    *out = m;
    return ICAE_OK;
done:
    icae_model_free(m);
    return rc;
}

void icae_model_free(icae_model *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->shards; i++)
        ic_safetensors_close(&m->shard[i]);
    ic_free(m->shard);
    if (m->gguf)
        ic_gguf_close(m->gguf);
    ic_free(m->gguf);
    for (size_t i = 0; i < m->owned_count; i++)
        ic_free(m->owned[i]);
    ic_free(m->owned);
    ic_tokenizer_free(m->tokenizer);
    ic_free(m->layer);
    ic_free(m->path);
    ic_free(m);
}

icae_model_info icae_model_describe(const icae_model *m)
{
    static const char *const compute[] = {"auto", "f32", "bf16"};
    const ic_config *c = &m->config;
    return (icae_model_info){
        .path = m->path,
        .architecture = c->architecture,
        .dtype = ic_dtypes[m->weight_dtype].name,
        .compute = compute[m->compute],
        .chat_template = m->chat->name,
        .identity = m->identity,
        .width = c->width,
        .layers = c->layers,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_width = c->head_width,
        .ffn_width = c->ffn_width,
        .vocabulary = c->vocabulary,
        .max_positions = c->max_positions,
        .sliding_window = c->window,
        .parameters = m->parameters,
        .bytes = m->bytes,
    };
}

static int needs_tokenizer(const icae_model *m)
{
    if (m->tokenizer)
        return ICAE_OK;
    return ic_fail(ICAE_ENOTFOUND, "%s: no tokenizer.json, so only token ids can be used", m->path);
}

int icae_tokenize(int32_t **ids, size_t *count, const icae_model *m, const char *text, size_t size,
                  bool special)
{
    ic_ids list = {0};
    int rc = needs_tokenizer(m);
    if (rc == ICAE_OK)
        rc = ic_tokenizer_encode(&list, m->tokenizer, text, size, special);
    if (rc < 0) {
        ic_ids_free(&list);
        return rc;
    }
    *ids = list.ids;
    *count = list.count;
    return ICAE_OK;
}

int icae_detokenize(char **text, size_t *size, const icae_model *m, const int32_t *ids,
                    size_t count, bool skip_special)
{
    ic_buffer b = {0};
    int rc = needs_tokenizer(m);
    if (rc == ICAE_OK)
        rc = ic_tokenizer_decode(&b, m->tokenizer, ids, count, skip_special);
    if (rc < 0) {
        ic_buffer_free(&b);
        return rc;
    }
    *text = b.data;
    *size = b.size;
    return ICAE_OK;
}
