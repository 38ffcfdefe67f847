/* What goes wrong is a status and a sentence, and nothing crashes: wrong arguments, objects that were freed, servers that are not there. */
#include <genie.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static void expect(const char *what, genie_status wanted, genie_status got, const genie_error *error)
{
    printf("%s: %s\n", what, got == GENIE_OK ? "it worked" : error->message);
    if (got != wanted || error->status != got || (got != GENIE_OK && error->message[0] == 0)) {
        printf("  status %d, not %d\n", (int)got, (int)wanted);
        failures++;
    }
}

int main(int argc, char **argv)
{
    genie_error error;
    genie_session *session, *nobody;
    genie_tensor *tensor = NULL;
    genie_graph *graph;
    genie_program *program;
    uint32_t node;
    const uint64_t dims[2] = {2, 2}, none[2] = {2, 0}, much[8] = {1u << 31, 1u << 31, 1u << 31, 1u << 31, 1, 1, 1, 1};
    float numbers[4] = {1, 2, 3, 4};
    if (argc != 2) {
        fprintf(stderr, "usage: errors URI\n");
        return 2;
    }
    const genie_connect_options patient = {.timeout_ms = 50};
    expect("no server", GENIE_ERROR_UNREACHABLE, genie_connect("tcp://127.0.0.1:1", &patient, &nobody, &error), &error);
    expect("no address", GENIE_ERROR_ARGUMENT, genie_connect("somewhere", NULL, &nobody, &error), &error);
    expect("NULL address", GENIE_ERROR_ARGUMENT, genie_connect(NULL, NULL, &nobody, &error), &error);
    expect("not UTF-8", GENIE_ERROR_ARGUMENT, genie_connect("tcp://\xff:1", NULL, &nobody, &error), &error);
    const genie_connect_options token = {.token_file = "/nonexistent/token"};
    expect("no token file", GENIE_ERROR_ACCESS, genie_connect(argv[1], &token, &nobody, &error), &error);
    expect("connect", GENIE_OK, genie_connect(argv[1], NULL, &session, &error), &error);

    expect("no place for the tensor", GENIE_ERROR_ARGUMENT, genie_put(session, GENIE_F32, 2, dims, numbers, NULL, NULL, &error), &error);
    expect("no data", GENIE_ERROR_ARGUMENT, genie_put(session, GENIE_F32, 2, dims, NULL, NULL, &tensor, &error), &error);
    expect("no type", GENIE_ERROR_ARGUMENT, genie_put(session, 99, 2, dims, numbers, NULL, &tensor, &error), &error);
    expect("rank 9", GENIE_ERROR_ARGUMENT, genie_put(session, GENIE_F32, 9, much, numbers, NULL, &tensor, &error), &error);
    expect("no elements", GENIE_ERROR_ARGUMENT, genie_put(session, GENIE_F32, 2, none, numbers, NULL, &tensor, &error), &error);
    expect("too many", GENIE_ERROR_ARGUMENT, genie_put(session, GENIE_F32, 8, much, numbers, NULL, &tensor, &error), &error);
    const genie_put_options elsewhere = {.device = 99};
    expect("no such device", GENIE_ERROR_SERVER, genie_put(session, GENIE_F32, 2, dims, numbers, &elsewhere, &tensor, &error), &error);
    if (error.server_code == 0 || error.effect != GENIE_EFFECT_NONE || tensor != NULL)
        failures++;
    expect("put", GENIE_OK, genie_put(session, GENIE_F32, 2, dims, numbers, NULL, &tensor, &error), &error);
    if (error.message[0] != 0)
        failures++;
    expect("no room", GENIE_ERROR_ARGUMENT, genie_get(tensor, numbers, 15, &error), &error);
    expect("beyond the end", GENIE_ERROR_SERVER, genie_get_range(tensor, 12, 8, numbers, &error), &error);
    expect("no such name", GENIE_ERROR_NOT_FOUND, genie_lookup(session, "nothing has this name", &tensor, &error), &error);

    expect("another kind", GENIE_ERROR_HANDLE, genie_get((genie_tensor *)session, numbers, 16, &error), &error);
    expect("no object", GENIE_ERROR_HANDLE, genie_get((genie_tensor *)numbers, numbers, 16, &error), &error);
    expect("NULL", GENIE_ERROR_ARGUMENT, genie_get(NULL, numbers, 16, &error), &error);
    expect("free", GENIE_OK, genie_tensor_free(tensor, &error), &error);
    expect("free again", GENIE_ERROR_HANDLE, genie_tensor_free(tensor, &error), &error);
    expect("use after free", GENIE_ERROR_HANDLE, genie_get(tensor, numbers, 16, &error), &error);
    expect("free NULL", GENIE_OK, genie_tensor_free(NULL, &error), &error);

    expect("graph", GENIE_OK, genie_graph_new("g", &graph, &error), &error);
    expect("no such node", GENIE_ERROR_GRAPH, genie_graph_op(graph, "relu", (uint32_t[]){7}, 1, NULL, &node, &error), &error);
    expect("no such op", GENIE_ERROR_ARGUMENT, genie_graph_op(graph, "frobnicate", NULL, 0, NULL, &node, &error), &error);
    expect("no such output", GENIE_ERROR_ARGUMENT, genie_graph_output(graph, "y", 0, &error), &error);
    expect("empty graph", GENIE_ERROR_GRAPH, genie_define(session, 0, graph, &program, &error), &error);
    expect("no graph", GENIE_ERROR_GRAPH, genie_define_encoded(session, 0, "GSRG", 4, &program, &error), &error);
    expect("no model", GENIE_ERROR_MODEL, genie_model_load(argv[1], NULL, "/nonexistent.gguf", 0, (genie_model **)&nobody, &error), &error);
    genie_graph_free(graph, NULL);

    genie_binding *binding;
    genie_outputs *outputs;
    const uint64_t million[1] = {2000000};
    float *large = calloc(2000000, sizeof *large);
    expect("graph", GENIE_OK, genie_graph_new("g", &graph, &error), &error);
    expect("input", GENIE_OK, genie_graph_input(graph, "x", GENIE_ROLE_ARGUMENT, GENIE_F32, 1, million, &node, &error), &error);
    expect("op", GENIE_OK, genie_graph_op(graph, "neg", &node, 1, NULL, &node, &error), &error);
    expect("output", GENIE_OK, genie_graph_output(graph, "y", node, &error), &error);
    expect("define", GENIE_OK, genie_define(session, 0, graph, &program, &error), &error);
    const genie_bound later = {.input = 0, .reserved = 1, .tensor = tensor};
    expect("reserved", GENIE_ERROR_ARGUMENT, genie_bind(program, &later, 1, NULL, 0, &binding, &error), &error);
    expect("bind", GENIE_OK, genie_bind(program, NULL, 0, NULL, 0, &binding, &error), &error);
    const genie_argument argument = {.input = 0, .dtype = GENIE_F32, .rank = 1, .dims = million, .data = large};
    expect("too large to go with a run", GENIE_ERROR_ARGUMENT, genie_run(binding, &argument, 1, NULL, &outputs, &error), &error);
    if (error.effect != GENIE_EFFECT_NONE)
        failures++;
    genie_binding_free(binding, NULL);
    genie_program_free(program, NULL);
    genie_graph_free(graph, NULL);
    free(large);

    expect("put", GENIE_OK, genie_put(session, GENIE_F32, 2, dims, numbers, NULL, &tensor, &error), &error);
    expect("close", GENIE_OK, genie_close(session, &error), &error);
    expect("close again", GENIE_ERROR_HANDLE, genie_close(session, &error), &error);
    expect("after the session", GENIE_ERROR_CLOSED, genie_get(tensor, numbers, 16, &error), &error);
    expect("freed with the session", GENIE_OK, genie_tensor_free(tensor, &error), &error);
    if (genie_close(NULL, NULL) != GENIE_OK || genie_get(tensor, numbers, 16, NULL) != GENIE_ERROR_HANDLE)
        failures++;
    printf("%d failure(s)\n", failures);
    return failures != 0;
}
