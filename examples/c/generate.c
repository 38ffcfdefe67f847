/* Tokens that the server makes: a language model of one layer, written here, with a KV cache that stays on the server. */
#include <genie.h>
#include <stdio.h>
#include <string.h>

enum { VOCABULARY = 16, WIDTH = 4 };

#define CHECK(call)                                             \
    do {                                                        \
        if ((call) != GENIE_OK) {                               \
            fprintf(stderr, "generate: %s\n", error.message);   \
            return 1;                                           \
        }                                                       \
    } while (0)

struct seen {
    int32_t tokens[64];
    size_t count, most;
};

/* Wants no more once there are as many as are wanted. */
static bool see(const int32_t *tokens, size_t count, void *user)
{
    struct seen *seen = user;
    for (size_t i = 0; i < count && seen->count < seen->most; i++)
        seen->tokens[seen->count++] = tokens[i];
    return seen->count < seen->most;
}

static void print(const char *what, const struct seen *seen)
{
    printf("%s:", what);
    for (size_t i = 0; i < seen->count; i++)
        printf(" %d", (int)seen->tokens[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    genie_error error;
    genie_session *session;
    if (argc != 2) {
        fprintf(stderr, "usage: generate URI\n");
        return 2;
    }
    CHECK(genie_connect(argv[1], NULL, &session, &error));

    const uint64_t b = GENIE_DIM_BATCH, s = GENIE_DIM_SEQUENCE;
    const uint64_t table_dims[] = {VOCABULARY, WIDTH}, steps[] = {b, s}, pair[] = {b, 2};
    const uint64_t cache_dims[] = {GENIE_DIM_POSITION, 1, 2, 1, 64, WIDTH};
    genie_graph *g;
    uint32_t table, kv, tokens, positions, real, integer, x, y, last, row, logits, next;
    CHECK(genie_graph_new("tiny", &g, &error));
    CHECK(genie_graph_annotate(g, GENIE_PHASE_DECODE, GENIE_MODALITY_TEXT, &error));
    CHECK(genie_graph_input(g, "table", GENIE_ROLE_WEIGHT, GENIE_F32, 2, table_dims, &table, &error));
    CHECK(genie_graph_input(g, "cache", GENIE_ROLE_KV_CACHE, GENIE_F32, 6, cache_dims, &kv, &error));
    CHECK(genie_graph_input(g, "tokens", GENIE_ROLE_TOKENS, GENIE_I32, 2, steps, &tokens, &error));
    CHECK(genie_graph_input(g, "positions", GENIE_ROLE_POSITIONS, GENIE_I32, 2, steps, &positions, &error));
    CHECK(genie_graph_input(g, "real", GENIE_ROLE_SAMPLING_REAL, GENIE_F32, 2, pair, &real, &error));
    CHECK(genie_graph_input(g, "int", GENIE_ROLE_SAMPLING_INT, GENIE_I64, 2, pair, &integer, &error));
    CHECK(genie_graph_op(g, "embedding", (uint32_t[]){table, tokens}, 2, "dtype=f32", &x, &error));
    CHECK(genie_graph_op(g, "attention", (uint32_t[]){x, x, x, kv}, 4, "heads=1 kv_heads=1 head_dim=4 scale=0.5", &y, &error));
    CHECK(genie_graph_op(g, "slice", &y, 1, "axis=1 start=-1", &last, &error));
    CHECK(genie_graph_op(g, "reshape", &last, 1, "dims=batch,4", &row, &error));
    CHECK(genie_graph_op(g, "linear", (uint32_t[]){row, table}, 2, NULL, &logits, &error));
    CHECK(genie_graph_op(g, "sample", (uint32_t[]){logits, real, integer, positions}, 4, NULL, &next, &error));
    CHECK(genie_graph_output(g, "token", next, &error));
    genie_program *program;
    CHECK(genie_define(session, 0, g, &program, &error));

    float numbers[VOCABULARY * WIDTH];
    for (int i = 0; i < VOCABULARY * WIDTH; i++)
        numbers[i] = (float)(i * 37 % 64) / 32 - 1;
    const genie_put_options as_weight = {.weight = 1};
    genie_tensor *weight;
    CHECK(genie_put(session, GENIE_F32, 2, table_dims, numbers, &as_weight, &weight, &error));

    /* Temperature 0: always the likeliest token. */
    const uint64_t two[] = {1, 2};
    const float sampling[] = {0, 1};
    const int64_t choice[] = {0, 0};
    const genie_argument fixed[] = {
        {.input = real, .dtype = GENIE_F32, .rank = 2, .dims = two, .data = sampling},
        {.input = integer, .dtype = GENIE_I64, .rank = 2, .dims = two, .data = choice},
    };
    const int32_t prompt[] = {3, 1, 2};
    const genie_generate_options options = {.max_new = 12};
    struct seen all = {.most = 64}, some = {.most = 5}, rest = {.most = 64};
    genie_finish finish;

    genie_cache *cache;
    genie_binding *binding;
    CHECK(genie_cache_create(program, kv, 64, &cache, &error));
    const genie_bound bound[] = {{.input = table, .tensor = weight}, {.input = kv, .cache = cache}};
    CHECK(genie_bind(program, bound, 2, fixed, 2, &binding, &error));
    CHECK(genie_generate(binding, binding, prompt, 3, &options, see, &all, &finish, &error));
    print(finish == GENIE_FINISH_LENGTH ? "as many as asked for" : "stopped", &all);

    /* Another cache with the same first tokens: cut back to the prompt, it goes on the same way, until the callback wants no more. */
    genie_cache *fork;
    genie_binding *forked;
    CHECK(genie_cache_fork(cache, &fork, &error));
    CHECK(genie_cache_truncate(fork, 2, &error));
    const genie_bound again[] = {{.input = table, .tensor = weight}, {.input = kv, .cache = fork}};
    CHECK(genie_bind(program, again, 2, fixed, 2, &forked, &error));
    CHECK(genie_generate(forked, forked, prompt + 2, 1, &options, see, &some, &finish, &error));
    print(finish == GENIE_FINISH_STOP ? "stopped" : "not stopped", &some);
    if (some.count != 5 || memcmp(all.tokens, some.tokens, 5 * sizeof(int32_t)) != 0)
        return 1;

    /* What ends it is a token. */
    const genie_generate_options until = {.max_new = 12, .stop = all.tokens + 2, .stop_count = 1};
    CHECK(genie_cache_truncate(fork, 2, &error));
    CHECK(genie_generate(forked, forked, prompt + 2, 1, &until, see, &rest, &finish, &error));
    print(finish == GENIE_FINISH_STOP ? "stop token" : "no stop token", &rest);

    genie_binding_free(forked, NULL);
    genie_cache_free(fork, NULL);
    genie_binding_free(binding, NULL);
    genie_cache_free(cache, NULL);
    genie_tensor_free(weight, NULL);
    genie_program_free(program, NULL);
    genie_graph_free(g, NULL);
    CHECK(genie_close(session, &error));
    return 0;
}
