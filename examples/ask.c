/*
 * ask.c - a whole program on icae.h: compress a file, say how well it was kept, ask a question.
 *
 *     cc ask.c -o ask $(pkg-config --cflags --libs icae)
 *     ./ask article.txt "Who wrote it?" [MODEL_FOLDER]
 */
#include <icae.h>

#include <stdio.h>

static int print(void *user, const char *text, size_t size)
{
    (void)user;
    return fwrite(text, 1, size, stdout) != size;
}

int main(int argc, char **argv)
{
    static char text[1 << 20];
    icae_model *model = NULL;
    icae_adapter *adapter = NULL;
    icae_session *session = NULL;
    icae_slots *slots = NULL;
    int status = 1;

    FILE *file = argc > 2 ? fopen(argv[1], "rb") : NULL;
    if (!file) {
        fputs("usage: ask FILE QUESTION [MODEL_FOLDER]\n", stderr);
        return 2;
    }
    size_t size = fread(text, 1, sizeof text, file);
    fclose(file);

    /* NULL opens the bundled model, and the adapter that lies beside a model. */
    if (icae_model_open(&model, argc > 3 ? argv[3] : NULL, NULL) < 0 ||
        icae_adapter_open(&adapter, NULL, model, NULL) < 0 ||
        icae_session_new(&session, model, adapter, NULL) < 0)
        goto done;

    icae_adapter_info advice = icae_adapter_describe(adapter); /* what pays with it */
    if (icae_compress(&slots, session, text, size,
                      &(icae_compress_options){.check = true, .refine = advice.refine}) < 0)
        goto done;
    icae_slots_info info = icae_slots_describe(slots);
    printf("%llu tokens in %llu slots; the model would restore %.1f%% of the tokens rightly\n",
           (unsigned long long)info.tokens, (unsigned long long)info.slots,
           100 * info.fidelity.accuracy);

    icae_part context = {.slots = slots};
    icae_generate_options options = {.sampling.max_tokens = 64, .expand = advice.expand};
    if (icae_ask(session, &context, 1, argv[2], &options, print, NULL) < 0)
        goto done;
    putchar('\n');
    status = 0;

done:
    if (status)
        fprintf(stderr, "ask: %s\n", icae_error_message());
    icae_slots_free(slots);
    icae_session_free(session);
    icae_adapter_free(adapter);
    icae_model_free(model);
    return status;
}
