/* A model from a file goes on with a text: chat URI MODEL PROMPT. */
#include <genie.h>
#include <stdio.h>

static bool say(const char *text, void *user)
{
    FILE *out = user;
    return fputs(text, out) >= 0 && fflush(out) == 0;
}

int main(int argc, char **argv)
{
    genie_error error;
    genie_model *model;
    genie_finish finish;
    const genie_text_options options = {.max_new = 32};
    if (argc != 4) {
        fprintf(stderr, "usage: chat URI MODEL PROMPT\n");
        return 2;
    }
    if (genie_model_load(argv[1], NULL, argv[2], 0, &model, &error) != GENIE_OK) {
        fprintf(stderr, "chat: %s\n", error.message);
        return 1;
    }
    genie_status status = genie_model_generate(model, argv[3], &options, say, stdout, &finish, &error);
    printf("\n");
    if (status != GENIE_OK)
        fprintf(stderr, "chat: %s\n", error.message);
    genie_model_free(model, NULL);
    return status == GENIE_OK ? 0 : 1;
}
