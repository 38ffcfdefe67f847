/* Genie as the transport of another frontend: registered memory, puts and gets in flight together, and their completions.
 * transport URI [MEGABYTES] moves so much there and back, in blocks, with several in flight at any time. */
#include <genie.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1 << 20, IN_FLIGHT = 4 };

#define CHECK(call)                                              \
    do {                                                         \
        if ((call) != GENIE_OK) {                                \
            fprintf(stderr, "transport: %s\n", error.message);   \
            return 1;                                            \
        }                                                        \
    } while (0)

int main(int argc, char **argv)
{
    genie_error error;
    genie_session *session;
    const size_t blocks = argc > 2 ? (size_t)atoi(argv[2]) : 16;
    const uint64_t size = BLOCK;
    if (argc < 2 || blocks == 0 || blocks > 4096) {
        fprintf(stderr, "usage: transport URI [MEGABYTES]\n");
        return 2;
    }
    CHECK(genie_connect(argv[1], NULL, &session, &error));

    /* One piece of memory for all blocks. Over shm:// the server maps it, and a put of a part of it sends a few bytes. */
    genie_memory *memory;
    void *start;
    CHECK(genie_memory_alloc(session, blocks * BLOCK, &memory, &error));
    CHECK(genie_memory_data(memory, &start, NULL, &error));
    unsigned char *bytes = start;
    for (size_t i = 0; i < blocks * BLOCK; i++)
        bytes[i] = (unsigned char)(i * 7 + i / BLOCK);

    /* Puts: IN_FLIGHT at a time, each finished when it is its turn to be noticed, whatever the order. */
    genie_tensor **tensors = calloc(blocks, sizeof *tensors);
    genie_pending *pending[IN_FLIGHT];
    size_t which[IN_FLIGHT], flying = 0, next = 0, notified = 0;
    while (notified < blocks) {
        while (flying < IN_FLIGHT && next < blocks) {
            CHECK(genie_start_put(session, GENIE_U8, 1, &size, bytes + next * BLOCK, NULL, &pending[flying], &error));
            which[flying++] = next++;
        }
        size_t done;
        CHECK(genie_wait_any(pending, flying, GENIE_FOREVER, &done, &error));
        CHECK(genie_finish_put(pending[done], &tensors[which[done]], &error));
        CHECK(genie_pending_free(pending[done], &error));
        flying--, notified++;
        pending[done] = pending[flying], which[done] = which[flying];
    }

    /* Gets, the same way; the bytes arrive in memory of Genie's, which is given back. */
    for (next = notified = 0; notified < blocks;) {
        while (flying < IN_FLIGHT && next < blocks) {
            CHECK(genie_start_get(tensors[next], 0, BLOCK, &pending[flying], &error));
            which[flying++] = next++;
        }
        size_t done;
        CHECK(genie_wait_any(pending, flying, GENIE_FOREVER, &done, &error));
        genie_memory *got;
        void *there;
        CHECK(genie_finish_get(pending[done], &got, &error));
        CHECK(genie_memory_data(got, &there, NULL, &error));
        if (memcmp(there, bytes + which[done] * BLOCK, BLOCK) != 0) {
            fprintf(stderr, "transport: block %lu came back different\n", (unsigned long)which[done]);
            return 1;
        }
        CHECK(genie_memory_free(got, &error));
        CHECK(genie_pending_free(pending[done], &error));
        flying--, notified++;
        pending[done] = pending[flying], which[done] = which[flying];
    }

    /* A get to a place of the caller's: in registered memory the server writes it there itself. */
    genie_memory *place;
    void *target;
    CHECK(genie_memory_alloc(session, BLOCK, &place, &error));
    CHECK(genie_memory_data(place, &target, NULL, &error));
    CHECK(genie_get(tensors[blocks - 1], target, BLOCK, &error));
    if (memcmp(target, bytes + (blocks - 1) * BLOCK, BLOCK) != 0) {
        fprintf(stderr, "transport: the last block came back different\n");
        return 1;
    }
    CHECK(genie_memory_free(place, &error));

    /* One that nobody wants any more: its memory is the caller's again when this returns. */
    CHECK(genie_start_put(session, GENIE_U8, 1, &size, bytes, NULL, &pending[0], &error));
    CHECK(genie_pending_free(pending[0], &error));

    uint64_t sent, received;
    CHECK(genie_traffic(session, &sent, &received, &error));
    const double each = (double)sent / (double)(blocks * BLOCK);
    printf("%lu MB there and back, %s\n", (unsigned long)blocks, each < 0.1 ? "passed" : "sent");
    for (size_t i = 0; i < blocks; i++)
        genie_tensor_free(tensors[i], NULL);
    free(tensors);
    genie_memory_free(memory, NULL);
    CHECK(genie_close(session, &error));
    return 0;
}
