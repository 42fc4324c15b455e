/*
 * run.c - one evaluation from options to files: suite, systems, texts, experiments, report.
 *
 * The report is written when all experiments are done; until then their records are in the journal,
 * from which an interrupted run with the same settings goes on.
 */
#include "eval/eval.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- suites ----------------------------------------------------------------------------------- */

static const char quick[] =
    "{\"samples\": 16,"
    " \"autoencoding\": {\"lengths\": [64, 128, 256, 512]},"
    " \"continuation\": {\"contexts\": [128, 256, 512], \"tokens\": 128},"
    " \"content\": {\"length\": 256},"
    " \"instruct\": {\"max_tokens\": 32},"
    " \"latency\": {\"shapes\": [[1, 512], [8, 512]], \"tokens\": 32, \"repeats\": 3},"
    " \"span\": {\"lengths\": [512, 1024, 2048], \"tokens\": 128, \"samples\": 8}}";

/* The lengths and shapes of the paper's tables and figures. */
static const char paper[] =
    "{\"samples\": 200,"
    " \"autoencoding\": {\"lengths\": [100, 200, 300, 400, 500, 512, 1024]},"
    " \"continuation\": {\"contexts\": [128, 256, 512], \"tokens\": 128},"
    " \"content\": {\"length\": 512},"
    " \"instruct\": {\"max_tokens\": 128},"
    " \"latency\": {\"shapes\": [[8, 2048], [8, 512], [32, 512]], \"tokens\": 128, \"repeats\": 3},"
    " \"span\": {\"lengths\": [512, 1024, 2048, 4096, 8192], \"tokens\": 128, \"samples\": 50}}";

static const char *const suite_keys[] = {"samples",  "seed",         "texts",        "systems",
                                         "rates",    "autoencoding", "continuation", "content",
                                         "instruct", "latency",      "span"};

/* Settings of each experiment. `list`: the first is one, and must be there. */
static const struct {
    const char *name;
    bool list;
    const char *setting[4];
} known[] = {
    {"autoencoding", true, {"lengths", "samples"}},
    {"continuation", true, {"contexts", "tokens", "samples"}},
    {"content", false, {"length", "samples"}},
    {"instruct", false, {"max_tokens", "samples"}},
    {"latency", true, {"shapes", "tokens", "repeats"}},
    {"span", true, {"lengths", "tokens", "samples"}},
};

/* A number from 1 on; at depth 1 a list of such, or of pairs. */
static bool is_setting(const ic_json *v, int depth)
{
    if (!depth)
        return ic_json_number(v, 0) >= 1;
    size_t n = ic_json_count(v);
    bool right = ic_json_is_array(v) && n >= 1 && n <= IC_LIST;
    for (const ic_json *i = ic_json_first(v); i && right; i = ic_json_next(i))
        right = is_setting(i, 0) || (ic_json_count(i) == 2 && is_setting(i, 1));
    return right;
}

static int check_experiment(const ic_json *experiment, size_t kind, const char *path)
{
    const char *name = known[kind].name, *first = known[kind].setting[0];
    if (!ic_json_is_object(experiment))
        return ic_fail(ICAE_EFORMAT, "%s: \"%s\" must be an object", path, name);
    for (const ic_json *i = ic_json_first(experiment); i; i = ic_json_next(i)) {
        size_t k = 0;
        while (k < 4 && known[kind].setting[k] && strcmp(ic_json_key(i), known[kind].setting[k]))
            k++;
        if (k == 4 || !known[kind].setting[k])
            return ic_fail(ICAE_EFORMAT, "%s: \"%s\" has no setting \"%s\"", path, name,
                           ic_json_key(i));
        bool list = !k && known[kind].list;
        if (!is_setting(i, list))
            return ic_fail(ICAE_EFORMAT, "%s: \"%s\": \"%s\" must be %s", path, name,
                           ic_json_key(i),
                           list ? "a list of 1 to 32 entries from 1 on" : "a number from 1 on");
    }
    if (known[kind].list && !ic_json_get(experiment, first))
        return ic_fail(ICAE_EFORMAT, "%s: \"%s\" needs \"%s\"", path, name, first);
    return ICAE_OK;
}

static int check_experiments(const ic_json *suite, const char *path)
{
    int rc = ICAE_OK;
    for (size_t i = 0; i < IC_COUNT(known) && rc == ICAE_OK; i++) {
        const ic_json *experiment = ic_json_get(suite, known[i].name);
        if (experiment)
            rc = check_experiment(experiment, i, path);
    }
    return rc;
}

static int check_keys(const ic_json *suite, const char *path)
{
    if (!ic_json_is_object(suite))
        return ic_fail(ICAE_EFORMAT, "%s: a suite is a JSON object", path);
    for (const ic_json *i = ic_json_first(suite); i; i = ic_json_next(i)) {
        bool found = false;
        for (size_t k = 0; k < IC_COUNT(suite_keys); k++)
            found |= !strcmp(ic_json_key(i), suite_keys[k]);
        if (!found)
            return ic_fail(ICAE_EFORMAT,
                           "%s: unknown key \"%s\"; known: samples, seed, texts, systems, rates, "
                           "autoencoding, "
                           "continuation, content, instruct, latency, span",
                           path, ic_json_key(i));
    }
    return ICAE_OK;
}

static int open_suite(ic_eval *e, char hash[65])
{
    int rc = ICAE_OK;
    const char *name = e->options->suite ? e->options->suite : "quick";
    const char *text = !strcmp(name, "quick") ? quick : !strcmp(name, "paper") ? paper : NULL;
    ic_map map = {0};
    if (!text)
        IC_TRY(ic_map_open(&map, name));
    size_t size = text ? strlen(text) : map.size;
    if (!text)
        text = (const char *)map.data;
    IC_TRY(ic_json_parse(&e->suite, text ? text : "", size, name));
    IC_TRY(check_keys(e->suite, name));
    IC_TRY(check_experiments(e->suite, name));
    IC_TRY(ic_hash_of(hash, text, size));
    double samples = ic_json_number(ic_json_get(e->suite, "samples"), 16);
    if (!(samples >= 1 && samples <= 1e6)) {
        rc = ic_fail(ICAE_EINVAL, "%s: \"samples\" must lie between 1 and 1000000", name);
        goto done;
    }
    e->samples = e->options->samples ? e->options->samples : (uint64_t)samples;
    e->seed = e->options->seed;
    if (!e->seed)
        e->seed = (uint64_t)fmin(fmax(ic_json_number(ic_json_get(e->suite, "seed"), 1), 0), 1e15);
done:
    ic_map_close(&map);
    return rc;
}

/* ---- texts and systems ------------------------------------------------------------------------ */

static int add_bundled(ic_data *d)
{
    char *folder;
    int rc = ic_bundled_path(&folder, "eval");
    if (rc < 0)
        return rc;
    rc = ic_data_add(d, folder);
    ic_free(folder);
    return rc;
}

static int open_data(ic_eval *e)
{
    int rc = ICAE_OK;
    const ic_json *list = ic_json_get(e->suite, "texts");
    for (size_t i = 0; i < e->options->text_count; i++)
        IC_TRY(ic_data_add(&e->data, e->options->texts[i]));
    if (!e->options->text_count)
        for (const ic_json *i = ic_json_first(list); i; i = ic_json_next(i))
            IC_TRY(ic_data_add(&e->data, ic_json_string(i) ? ic_json_string(i) : ""));
    if (!e->options->text_count && !ic_json_first(list))
        IC_TRY(add_bundled(&e->data));
    if (!e->data.documents && !e->data.questions)
        rc = ic_fail(ICAE_EINVAL, "there is nothing to measure: the texts are empty");
done:
    return rc;
}

/* "model", "model/adapter" or "bundled", from the last parts of the paths. */
static char *system_name(const char *model, const char *adapter)
{
    const char *path = adapter ? adapter : model;
    if (!path)
        return ic_strdup("bundled");
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    size_t begin = n;
    while (begin && path[begin - 1] != '/')
        begin--;
    char *name = ic_strndup(path + begin, n - begin);
    char *dot = name ? strrchr(name, '.') : NULL;
    if (dot && dot > name &&
        (!strcmp(dot, ".safetensors") || !strcmp(dot, ".pt") || !strcmp(dot, ".gguf")))
        *dot = 0;
    return name;
}

static int add_system(ic_eval *e, const char *name, const char *model, const char *adapter,
                      double refine, double expand)
{
    int rc = ICAE_OK;
    ic_system *more = ic_resize(e->system, e->systems + 1, sizeof *more);
    if (!more)
        return ICAE_ENOMEM;
    e->system = more;
    ic_system *s = &more[e->systems++];
    *s = (ic_system){.name = name ? ic_strdup(name) : system_name(model, adapter)};
    if (!s->name)
        return ICAE_ENOMEM;
    for (size_t i = 0; i + 1 < e->systems; i++)
        if (!strcmp(e->system[i].name, s->name)) {
            char *other = ic_format("%s #%zu", s->name, e->systems);
            if (!other)
                return ICAE_ENOMEM;
            ic_free(s->name);
            s->name = other;
            break;
        }
    if (!(refine >= 0 && refine <= IC_MOST_REFINING))
        return ic_fail(ICAE_EINVAL, "%s: %g steps of refining: expected 0 to %d", s->name, refine,
                       IC_MOST_REFINING);
    s->refine = e->options->refine ? e->options->refine : (int)refine;
    if (!(expand >= 0 && expand <= IC_MOST_EXPANDING))
        return ic_fail(ICAE_EINVAL, "%s: %g segments to expand: expected 0 or more", s->name,
                       expand);
    s->expand = e->options->expand ? e->options->expand : (int)expand;
    icae_session_options options = e->options->session;
    options.progress = NULL; /* experiments report */
    IC_TRY(icae_model_open(&s->model, model, &e->options->model));
    if (!s->model->tokenizer) {
        rc = ic_fail(ICAE_ENOTFOUND, "%s: no tokenizer.json, so text cannot be read",
                     s->model->path);
        goto done;
    }
    IC_TRY(icae_adapter_open(&s->adapter, adapter, s->model, &e->options->adapter));
    IC_TRY(icae_session_new(&s->session, s->model, s->adapter, &options));
    if (!(s->ids = ic_alloc(e->data.documents + 1, sizeof *s->ids)))
        rc = ICAE_ENOMEM;
done:
    return rc;
}

static int open_systems(ic_eval *e)
{
    int rc = ICAE_OK;
    const icae_eval_options *o = e->options;
    const ic_json *list = ic_json_get(e->suite, "systems");
    for (size_t i = 0; i < o->system_count; i++)
        IC_TRY(add_system(e, o->systems[i].name, o->systems[i].model, o->systems[i].adapter, 0, 0));
    if (!o->system_count)
        for (const ic_json *i = ic_json_first(list); i; i = ic_json_next(i))
            IC_TRY(add_system(e, ic_json_string(ic_json_get(i, "name")),
                              ic_json_string(ic_json_get(i, "model")),
                              ic_json_string(ic_json_get(i, "adapter")),
                              ic_json_number(ic_json_get(i, "refine"), 0),
                              ic_json_number(ic_json_get(i, "expand"), 0)));
    if (!e->systems)
        IC_TRY(add_system(e, NULL, NULL, NULL, 0, 0));
done:
    return rc;
}

static void system_free(ic_system *s, size_t documents)
{
    for (size_t i = 0; i < documents && s->ids; i++)
        ic_ids_free(&s->ids[i]);
    ic_free(s->ids);
    icae_session_free(s->session);
    icae_adapter_free(s->adapter);
    icae_model_free(s->model);
    ic_free(s->name);
}

static void eval_free(ic_eval *e)
{
    for (size_t i = 0; i < e->systems; i++)
        system_free(&e->system[i], e->data.documents);
    ic_free(e->system);
    ic_data_free(&e->data);
    ic_json_free(e->suite);
    (void)ic_journal_close(e->journal);
    ic_buffer_free(&e->report.json);
    for (size_t i = 0; i < e->highlights; i++) {
        ic_free(e->highlight[i].value);
        ic_free(e->highlight[i].detail);
    }
}

/* ---- identity of a run ------------------------------------------------------------------------ */

/* Everything that decides a record; not what only decides how fast, or who judges. */
static int describe_settings(ic_buffer *out, const ic_eval *e, const char *suite_hash,
                             const char *data_hash)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(out, "icae %s, suite %.16s, texts %.16s, samples %llu, seed %llu",
                          ICAE_VERSION, suite_hash, data_hash,
                          (unsigned long long)e->options->samples, (unsigned long long)e->seed));
    for (size_t i = 0; i < e->systems; i++) {
        const ic_system *s = &e->system[i];
        IC_TRY(ic_buffer_addf(out, ", %s: base %.16s adapter %.16s k %d rate %g alpha %g %s",
                              s->name, s->model->identity, s->adapter->identity, s->adapter->k,
                              (double)s->adapter->rate, (double)s->adapter->alpha,
                              ic_dtypes[s->session->act].name));
        if (s->refine)
            IC_TRY(ic_buffer_addf(out, " refine %d", s->refine));
        if (s->expand)
            IC_TRY(ic_buffer_addf(out, " expand %d", s->expand));
    }
done:
    return rc;
}

static void describe_run(ic_eval *e, const char *settings, const char *data_hash)
{
    ic_report *r = &e->report;
    ic_report_text(r, "icae", ICAE_VERSION);
    ic_report_text(r, "kind", "evaluation");
    ic_report_text(r, "suite", e->options->suite ? e->options->suite : "quick");
    ic_report_text(r, "settings", settings);
    ic_report_number(r, "samples", (double)e->samples);
    ic_report_number(r, "seed", (double)e->seed);
    ic_report_text(r, "judge", e->options->judge ? e->options->judge_model : NULL);
    ic_report_open(r, "texts", '{');
    ic_report_number(r, "documents", (double)e->data.documents);
    ic_report_number(r, "questions", (double)e->data.questions);
    ic_report_text(r, "sha256", data_hash);
    ic_report_close(r, '}');
    ic_report_open(r, "systems", '[');
    for (size_t i = 0; i < e->systems; i++) {
        const ic_system *s = &e->system[i];
        const icae_adapter *a = s->adapter;
        ic_report_open(r, NULL, '{');
        ic_report_text(r, "name", s->name);
        ic_report_text(r, "model", s->model->path);
        ic_report_text(r, "base", s->model->identity);
        ic_report_text(r, "adapter", a->identity);
        ic_report_number(r, "parameters", (double)s->model->parameters);
        ic_report_number(r, "k", a->k);
        ic_report_number(r, "rate", (double)a->rate);
        ic_report_number(r, "rank", a->rank);
        ic_report_number(r, "refine", s->refine);
        ic_report_number(r, "expand", s->expand);
        ic_report_text(r, "positions", a->spread ? "spread" : "sequential");
        ic_report_text(r, "slots", a->proportional ? "proportional" : "fixed");
        ic_report_text(r, "compute", ic_dtypes[s->session->act].name);
        ic_report_text(r, "cpu", s->session->be->isa);
        ic_report_number(r, "threads", s->session->be->threads);
        ic_report_close(r, '}');
    }
    ic_report_close(r, ']');
}

/* ---- the run ---------------------------------------------------------------------------------- */

static const struct {
    const char *key;
    bool questions; /* needs questions, else texts */
    int (*run)(ic_eval *e);
} experiments[] = {
    {"autoencoding", false, ic_experiment_autoencoding},
    {"continuation", false, ic_experiment_continuation},
    {"content", false, ic_experiment_content},
    {"instruct", true, ic_experiment_instruct},
    {"latency", false, ic_experiment_latency},
    {"span", false, ic_experiment_span},
};

static int run_experiments(ic_eval *e)
{
    int rc = ICAE_OK;
    ic_report_open(&e->report, "sections", '[');
    for (size_t i = 0; i < IC_COUNT(experiments); i++) {
        const ic_json *settings = ic_json_get(e->suite, experiments[i].key);
        if (!settings)
            continue;
        if (!(experiments[i].questions ? e->data.questions : e->data.documents)) {
            ic_report_section(&e->report, experiments[i].key, experiments[i].key, "");
            ic_report_note(&e->report, "%s: not measured, there are no %s.", experiments[i].key,
                           experiments[i].questions ? "questions in the files"
                                                    : "texts in the files");
            ic_report_section_end(&e->report);
            continue;
        }
        IC_TRY(experiments[i].run(e));
        if (experiments[i].run == ic_experiment_instruct)
            IC_TRY(ic_experiment_ablations(e));
    }
    IC_TRY(ic_experiment_systems(e));
    ic_report_close(&e->report, ']');
    ic_report_close(&e->report, '}');
    rc = e->report.rc;
done:
    return rc;
}

static int write_file(const char *folder, const char *name, const ic_buffer *b)
{
    int rc = ICAE_OK;
    ic_file f = {0};
    char *path = ic_path_join(folder, name);
    if (!path)
        return ICAE_ENOMEM;
    IC_TRY(ic_file_create(&f, path));
    IC_TRY(ic_file_write(&f, b->data, b->size));
    IC_TRY(ic_file_commit(&f));
done:
    ic_file_abandon(&f);
    ic_free(path);
    return rc;
}

static int write_report(const ic_eval *e)
{
    int rc = ICAE_OK;
    ic_json *json = NULL;
    ic_buffer html = {0}, csv = {0};
    const char *name = "";
    IC_TRY(ic_json_parse(&json, e->report.json.data, e->report.json.size, "report.json"));
    const ic_json *one = json;
    IC_TRY(ic_html_write(&html, &one, &name, 1));
    IC_TRY(ic_csv_write(&csv, json));
    IC_TRY(write_file(e->options->out, "report.json", &e->report.json));
    IC_TRY(write_file(e->options->out, "report.csv", &csv));
    IC_TRY(write_file(e->options->out, "report.html", &html));
done:
    ic_json_free(json);
    ic_buffer_free(&html);
    ic_buffer_free(&csv);
    return rc;
}

static int open_journal(ic_eval *e, const char *settings)
{
    if (mkdir(e->options->out, 0777) < 0 && errno != EEXIST)
        return ic_fail(ICAE_EIO, "%s: %s", e->options->out, strerror(errno));
    char *path = ic_path_join(e->options->out, "records.jsonl");
    if (!path)
        return ICAE_ENOMEM;
    int rc = ic_journal_open(&e->journal, path, settings, e->options->resume);
    ic_free(path);
    return rc;
}

int icae_eval(const icae_eval_options *o)
{
    int rc = ICAE_OK;
    char suite_hash[65], data_hash[65];
    ic_buffer settings = {0};
    if (!o || !o->out || !*o->out)
        return ic_fail(ICAE_EINVAL, "an evaluation needs a folder for its report");
    ic_eval e = {
        .options = o, .judging = o->judge != NULL, .report = {.note = o->note, .user = o->user}};
    IC_TRY(open_suite(&e, suite_hash));
    IC_TRY(open_data(&e));
    IC_TRY(ic_data_hash(data_hash, &e.data));
    IC_TRY(open_systems(&e));
    IC_TRY(describe_settings(&settings, &e, suite_hash, data_hash));
    IC_TRY(open_journal(&e, settings.data));
    ic_report_open(&e.report, NULL, '{');
    describe_run(&e, settings.data, data_hash);
    IC_TRY(run_experiments(&e));
    IC_TRY(write_report(&e));
done:
    ic_buffer_free(&settings);
    eval_free(&e);
    return rc;
}

/* ---- side by side ----------------------------------------------------------------------------- */

static int open_report(ic_json **out, const char *path)
{
    int rc = ICAE_OK;
    ic_map map = {0};
    IC_TRY(ic_map_open(&map, path));
    IC_TRY(ic_json_parse(out, (const char *)map.data, map.size, path));
    const char *kind = ic_json_string(ic_json_get(*out, "kind"));
    if (!kind || strcmp(kind, "evaluation") || !ic_json_is_array(ic_json_get(*out, "sections")))
        rc = ic_fail(ICAE_EFORMAT, "%s: not the report.json of an evaluation", path);
done:
    ic_map_close(&map);
    return rc;
}

/* "a" of "runs/a/report.json", else the path. */
static char *run_name(const char *path)
{
    const char *end = strrchr(path, '/');
    if (!end || end == path || strcmp(end, "/report.json"))
        return ic_strdup(path);
    const char *begin = end;
    while (begin > path && begin[-1] != '/')
        begin--;
    return ic_strndup(begin, (size_t)(end - begin));
}

int icae_eval_compare(const char *out, const char *const *reports, size_t count)
{
    int rc = ICAE_OK;
    if (!out || !count)
        return ic_fail(ICAE_EINVAL, "comparing needs reports, and a file to write to");
    ic_buffer html = {0};
    ic_file f = {0};
    ic_json **json = ic_alloc(count, sizeof *json);
    char **names = ic_alloc(count, sizeof *names);
    if (!json || !names) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < count; i++) {
        IC_TRY(open_report(&json[i], reports[i]));
        if (!(names[i] = run_name(reports[i]))) {
            rc = ICAE_ENOMEM;
            goto done;
        }
    }
    IC_TRY(ic_html_write(&html, (const ic_json *const *)json, (const char *const *)names, count));
    IC_TRY(ic_file_create(&f, out));
    IC_TRY(ic_file_write(&f, html.data, html.size));
    IC_TRY(ic_file_commit(&f));
done:
    ic_file_abandon(&f);
    for (size_t i = 0; i < count; i++) {
        if (json)
            ic_json_free(json[i]);
        if (names)
            ic_free(names[i]);
    }
    ic_free(json);
    ic_free(names);
    ic_buffer_free(&html);
    return rc;
}
