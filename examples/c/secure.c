/* A server that asks who comes, over TLS: secure URI CA-FILE TOKEN-FILE. */
#include <genie.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    genie_error error;
    genie_session *session;
    uint64_t nanoseconds;
    if (argc != 4) {
        fprintf(stderr, "usage: secure URI CA-FILE TOKEN-FILE\n");
        return 2;
    }

    genie_connect_options options = {.ca_file = argv[2], .timeout_ms = 5000, .lease_ms = 60000};
    if (genie_connect(argv[1], &options, &session, &error) != GENIE_ERROR_ACCESS) {
        fprintf(stderr, "secure: let in without a token\n");
        return 1;
    }
    printf("without a token: %s\n", error.message);

    options.token_file = argv[3];
    if (genie_connect(argv[1], &options, &session, &error) != GENIE_OK ||
        genie_ping(session, &nanoseconds, &error) != GENIE_OK) {
        fprintf(stderr, "secure: %s\n", error.message);
        return 1;
    }
    printf("with one: there and back in %.0f us\n", (double)nanoseconds / 1000);
    genie_close(session, NULL);
    return 0;
}
