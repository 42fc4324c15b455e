/*
 * files.c - whole files in, text out.
 *
 * Text for a terminal loses its control characters: a model or a slot file must not be able to send
 * escape sequences to it. Files appear under their name only when they are whole.
 */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- in -------------------------------------------------------------------------------------- */

static int read_stream(cli_text *out, FILE *f, const char *path)
{
    size_t capacity = 1 << 16;
    *out = (cli_text){malloc(capacity), 0};
    while (out->data) {
        out->size += fread(out->data + out->size, 1, capacity - out->size, f);
        if (cli_interrupted || ferror(f) || feof(f))
            break;
        if (out->size < capacity)
            continue;
        char *larger = capacity > SIZE_MAX / 2 ? NULL : realloc(out->data, capacity * 2);
        if (!larger)
            free(out->data);
        out->data = larger;
        capacity *= 2;
    }
    if (!out->data)
        return cli_fail("no memory to read %s", path);
    if (!ferror(f) && !cli_interrupted)
        return CLI_DONE;
    if (!cli_interrupted)
        cli_fail("cannot read %s: %s", path, strerror(errno));
    free(out->data);
    *out = (cli_text){0};
    return CLI_FAILED;
}

int cli_read(cli_text *out, const char *path)
{
    *out = (cli_text){0};
    if (strcmp(path, "-") == 0)
        return read_stream(out, stdin, "standard input");
    FILE *f = fopen(path, "rb");
    if (!f)
        return cli_fail("cannot open %s: %s", path, strerror(errno));
    int status = read_stream(out, f, path);
    fclose(f);
    return status;
}

/* ---- what a file is -------------------------------------------------------------------------- */

cli_kind cli_kind_of(const char *path)
{
    unsigned char head[16] = {0};
    struct stat st;
    if (strcmp(path, "-") == 0 || stat(path, &st) < 0)
        return CLI_FILE_OTHER;
    if (S_ISDIR(st.st_mode))
        return CLI_FILE_FOLDER;
    FILE *f = S_ISREG(st.st_mode) ? fopen(path, "rb") : NULL;
    size_t n = f ? fread(head, 1, sizeof head, f) : 0;
    if (f)
        fclose(f);
    if (n >= 4 && memcmp(head, "GGUF", 4) == 0)
        return CLI_FILE_GGUF;
    if (n >= 4 && memcmp(head, "PK\3\4", 4) == 0)
        return CLI_FILE_ZIP;
    /* the header's size, little-endian and below 2^32, then the header itself */
    if (n >= 10 && !head[4] && !head[5] && !head[6] && !head[7] && head[8] == '{')
        return CLI_FILE_SAFETENSORS;
    return CLI_FILE_OTHER;
}

static bool ends_in(const char *path, const char *end)
{
    size_t n = strlen(path), m = strlen(end);
    return n > m && strcmp(path + n - m, end) == 0;
}

bool cli_is_slots(const char *path)
{
    if (ends_in(path, ".icae"))
        return true;
    return cli_kind_of(path) == CLI_FILE_SAFETENSORS && !ends_in(path, ".safetensors");
}

bool cli_same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* ---- out ------------------------------------------------------------------------------------- */

int cli_output_open(cli_output *o, const char *path)
{
    struct stat st;
    *o = (cli_output){.file = stdout, .last = '\n'};
    if (!path || strcmp(path, "-") == 0) {
        o->terminal = isatty(STDOUT_FILENO);
        return CLI_DONE;
    }
    size_t size = strlen(path) + 32;
    o->path = strdup(path);
    if (stat(path, &st) < 0 || S_ISREG(st.st_mode)) /* else a device or a pipe: written directly */
        o->temporary = malloc(size);
    if (o->temporary)
        snprintf(o->temporary, size, "%s.%ld.tmp", path, (long)getpid());
    o->file = o->path ? fopen(o->temporary ? o->temporary : path, "wb") : NULL;
    if (o->file)
        return CLI_DONE;
    int status = cli_fail("cannot write %s: %s", path, strerror(errno));
    free(o->path);
    free(o->temporary);
    *o = (cli_output){0};
    return status;
}

static bool is_control(const unsigned char *c, size_t left)
{
    if (*c == 0xC2 && left > 1)
        return c[1] >= 0x80 && c[1] <= 0x9F;
    return (*c < 0x20 && *c != '\n' && *c != '\t') || *c == 0x7F;
}

static void write_terminal(FILE *f, const char *text, size_t size)
{
    size_t from = 0;
    for (size_t i = 0; i < size; i++) {
        const unsigned char *c = (const unsigned char *)text + i;
        if (!is_control(c, size - i))
            continue;
        fwrite(text + from, 1, i - from, f);
        i += *c == 0xC2;
        from = i + 1;
        if (*c != '\r')
            fputs("\xEF\xBF\xBD", f); /* U+FFFD */
    }
    fwrite(text + from, 1, size - from, f);
}

int cli_output_text(void *output, const char *text, size_t size)
{
    cli_output *o = output;
    if (!size || o->error)
        return o->error;
    errno = 0;
    if (o->file == stdout)
        cli_progress_clear();
    if (o->terminal)
        write_terminal(o->file, text, size);
    else
        fwrite(text, 1, size, o->file);
    if (o->file == stdout)
        fflush(o->file); /* as it is made; and a reader that is gone is seen at once */
    if (ferror(o->file))
        o->error = errno ? errno : EIO;
    o->last = text[size - 1];
    o->bytes += size;
    return o->error || cli_interrupted;
}

void cli_output_mark(cli_output *o, const char *mark)
{
    bool terminal = o->terminal;
    char last = o->last;
    o->terminal = false;
    cli_output_text(o, mark, strlen(mark));
    o->terminal = terminal;
    o->last = last;
}

/* fclose forgets what the disk still has to take. */
static int close_file(FILE *f, bool sync)
{
    errno = 0;
    int error = fflush(f) ? errno : 0;
    if (!error && sync && fsync(fileno(f)) < 0 && errno != EINVAL && errno != EROFS)
        error = errno;
    if (fclose(f) && !error)
        error = errno;
    return error;
}

static int write_failed(const char *path, int error)
{
    if (error == EPIPE)
        return CLI_FAILED; /* who read has left, and knows it */
    return cli_fail("cannot write %s: %s", path, strerror(error));
}

int cli_output_close(cli_output *o, bool keep)
{
    int status = CLI_DONE;
    if (o->file == stdout) {
        status = o->error ? write_failed("standard output", o->error) : CLI_DONE;
        if (o->error)
            clearerr(stdout); /* said once */
    } else if (o->file) {
        int error = close_file(o->file, o->temporary && keep);
        if (!o->error)
            o->error = error;
        if (keep && !o->error && o->temporary && rename(o->temporary, o->path) < 0)
            o->error = errno;
        if (o->temporary && (!keep || o->error))
            remove(o->temporary);
        if (o->error)
            status = write_failed(o->path, o->error);
    }
    free(o->path);
    free(o->temporary);
    *o = (cli_output){0};
    return status;
}

int cli_flush(void)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return CLI_DONE;
    return write_failed("standard output", errno ? errno : EIO);
}
