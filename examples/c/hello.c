/* A tensor that lives on the server: put, read back, in whole and in part. */
#include <genie.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    genie_error error;
    genie_session *session;
    if (argc != 2) {
        fprintf(stderr, "usage: hello URI\n");
        return 2;
    }
    if (genie_connect(argv[1], NULL, &session, &error) != GENIE_OK) {
        fprintf(stderr, "hello: %s\n", error.message);
        return 1;
    }

    const float numbers[2][3] = {{1, 2, 3}, {4, 5, 6}};
    const uint64_t dims[2] = {2, 3};
    genie_tensor *tensor;
    float back[2][3] = {{0}}, last = 0;
    if (genie_put(session, GENIE_F32, 2, dims, numbers, NULL, &tensor, &error) != GENIE_OK ||
        genie_get(tensor, back, sizeof back, &error) != GENIE_OK ||
        genie_get_range(tensor, 5 * sizeof(float), sizeof last, &last, &error) != GENIE_OK) {
        fprintf(stderr, "hello: %s\n", error.message);
        genie_close(session, NULL);
        return 1;
    }
    printf("genie %s: %s, the last is %g\n", genie_version(), memcmp(numbers, back, sizeof back) ? "lost" : "6 numbers came back", last);

    genie_tensor_free(tensor, NULL);
    genie_close(session, NULL);
    return 0;
}
