/* Many threads, one session: each puts, reads and frees tensors of its own, small and large, while the others do. */
#include <genie.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, ROUNDS = 25, LARGE = 700 * 1000 };

static genie_session *session;
/* Freed by one thread while others read it. */
static genie_tensor *shared;

static void *work(void *number)
{
    const long me = (long)number;
    unsigned char *out = malloc(LARGE), *in = malloc(LARGE);
    genie_error error;
    long bad = out == NULL || in == NULL;
    for (int round = 0; round < ROUNDS && !bad; round++) {
        const uint64_t size = (uint64_t)(round % 5 == 0 ? LARGE - me : 64 + me);
        genie_tensor *tensor;
        memset(out, (int)(me * 31 + round), size);
        memset(in, 0, size);
        bad = genie_put(session, GENIE_U8, 1, &size, out, NULL, &tensor, &error) != GENIE_OK ||
              genie_get(tensor, in, size, &error) != GENIE_OK || genie_tensor_free(tensor, &error) != GENIE_OK;
        if (bad)
            fprintf(stderr, "thread %ld: %s\n", me, error.message);
        else if (memcmp(in, out, size) != 0)
            bad = 1, fprintf(stderr, "thread %ld: other bytes came back\n", me);
        if (round == ROUNDS / 2 && me == 0)
            genie_tensor_free(shared, NULL);
        /* Either there, or freed: never anything else. */
        unsigned char byte;
        genie_status status = genie_get_range(shared, 0, 1, &byte, &error);
        if (status != GENIE_OK && status != GENIE_ERROR_HANDLE && status != GENIE_ERROR_SERVER)
            bad = 1, fprintf(stderr, "thread %ld: %s\n", me, error.message);
    }
    free(out);
    free(in);
    return (void *)bad;
}

/* Waits in a call until another thread closes the session. */
static void *wait_for_end(void *unused)
{
    genie_error error;
    (void)unused;
    while (genie_ping(session, NULL, &error) == GENIE_OK)
        ;
    return (void *)(long)(error.status != GENIE_ERROR_CLOSED && error.status != GENIE_ERROR_HANDLE);
}

int main(int argc, char **argv)
{
    genie_error error;
    pthread_t threads[THREADS], waiting;
    const uint64_t one = 1;
    long bad = 0;
    void *result;
    if (argc != 2) {
        fprintf(stderr, "usage: threads URI\n");
        return 2;
    }
    if (genie_connect(argv[1], NULL, &session, &error) != GENIE_OK ||
        genie_put(session, GENIE_U8, 1, &one, "x", NULL, &shared, &error) != GENIE_OK) {
        fprintf(stderr, "threads: %s\n", error.message);
        return 1;
    }
    for (long i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i) != 0)
            return 1;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], &result);
        bad += (long)result;
    }
    if (pthread_create(&waiting, NULL, wait_for_end, NULL) != 0)
        return 1;
    bad += genie_close(session, &error) != GENIE_OK;
    pthread_join(waiting, &result);
    bad += (long)result;
    printf("%d threads, %d rounds, %ld failure(s)\n", THREADS, ROUNDS, bad);
    return bad != 0;
}
