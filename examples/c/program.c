/* A program: a linear layer with relu, defined once, bound to its weight, run with a few bytes a call. */
#include <genie.h>
#include <stdio.h>
#include <string.h>

#define CHECK(call)                                            \
    do {                                                       \
        if ((call) != GENIE_OK) {                              \
            fprintf(stderr, "program: %s\n", error.message);   \
            return 1;                                          \
        }                                                      \
    } while (0)

int main(int argc, char **argv)
{
    genie_error error;
    genie_session *session;
    if (argc != 2) {
        fprintf(stderr, "usage: program URI\n");
        return 2;
    }
    CHECK(genie_connect(argv[1], NULL, &session, &error));

    genie_device devices[16];
    size_t count;
    CHECK(genie_devices(session, devices, 16, &count, &error));
    printf("%lu device(s), the first is %s\n", (unsigned long)count, devices[0].name);

    /* y = relu(x w'), for any number of rows x. */
    genie_graph *graph;
    uint32_t x, w, product, y;
    const uint64_t rows[2] = {GENIE_DIM_BATCH, 3}, matrix[2] = {2, 3};
    CHECK(genie_graph_new("layer", &graph, &error));
    CHECK(genie_graph_input(graph, "x", GENIE_ROLE_ARGUMENT, GENIE_F32, 2, rows, &x, &error));
    CHECK(genie_graph_input(graph, "w", GENIE_ROLE_WEIGHT, GENIE_F32, 2, matrix, &w, &error));
    const uint32_t both[2] = {x, w};
    CHECK(genie_graph_op(graph, "linear", both, 2, "layout=out-in", &product, &error));
    CHECK(genie_graph_op(graph, "relu", &product, 1, NULL, &y, &error));
    CHECK(genie_graph_output(graph, "y", y, &error));

    /* Who knows a graph's hash need not send it. */
    uint8_t hash[32];
    genie_program *program;
    CHECK(genie_graph_hash(graph, hash, &error));
    genie_status known = genie_define_known(session, 0, hash, &program, &error);
    if (known == GENIE_ERROR_NOT_FOUND)
        CHECK(genie_define(session, 0, graph, &program, &error));
    else
        CHECK(known);

    /* The weight stays on the server, shared by all who put the same. */
    const float weight[6] = {1, 2, 3, -1, -2, -3};
    const genie_put_options as_weight = {.weight = 1};
    genie_tensor *resident;
    CHECK(genie_put(session, GENIE_F32, 2, matrix, weight, &as_weight, &resident, &error));
    const genie_bound bound = {.input = w, .tensor = resident};
    genie_binding *binding;
    CHECK(genie_bind(program, &bound, 1, NULL, 0, &binding, &error));

    const float row[3] = {1, 1, 1};
    const uint64_t one[2] = {1, 3};
    const genie_argument argument = {.input = x, .dtype = GENIE_F32, .rank = 2, .dims = one, .data = row};
    genie_outputs *outputs;
    genie_output output;
    CHECK(genie_run(binding, &argument, 1, NULL, &outputs, &error));
    CHECK(genie_outputs_at(outputs, 0, &output, &error));
    float back[2];
    memcpy(back, output.data, sizeof back);
    printf("relu gave %g and %g\n", back[0], back[1]);
    CHECK(genie_outputs_free(outputs, &error));

    /* The same, but the result stays there, as a tensor. */
    const genie_run_options keep = {.keep = 1};
    genie_tensor *kept;
    genie_tensor_info info;
    CHECK(genie_run(binding, &argument, 1, &keep, &outputs, &error));
    CHECK(genie_outputs_take(outputs, 0, &kept, &error));
    CHECK(genie_tensor_describe(kept, &info, &error));
    CHECK(genie_get(kept, back, sizeof back, &error));
    printf("kept %lu bytes, the first number is %g\n", (unsigned long)info.bytes, back[0]);

    genie_outputs_free(outputs, NULL);
    genie_tensor_free(kept, NULL);
    genie_binding_free(binding, NULL);
    genie_tensor_free(resident, NULL);
    genie_program_free(program, NULL);
    genie_graph_free(graph, NULL);
    CHECK(genie_close(session, &error));
    return 0;
}
