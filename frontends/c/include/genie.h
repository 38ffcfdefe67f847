/*
 * Genie: a GPU on another machine, as if it were here. docs/guide/c.md begins from nothing; this file is the reference.
 *
 * Results. Every function that can fail returns a genie_status, and writes a genie_error that the caller passes as the last argument, or
 * NULL. What it gives goes to the places that its pointers name, and only if it returns GENIE_OK: after an error they are as they were.
 * Unless it is said of one that it may be NULL, a pointer that a function writes or reads must not be.
 *
 * Ownership. Objects (genie_session, genie_tensor, ...) are the caller's, who frees each once, by the function that its type names. An object
 * that was freed, is of another kind, or was never made is GENIE_ERROR_HANDLE: no memory is touched, for these pointers lead nowhere and
 * must not be followed. Everything else stays whose it was: strings, arrays, structures and payloads are the caller's, must be initialised,
 * and are read before the function returns, unless it says for how long. Strings are UTF-8 and end with a 0.
 *
 * Threads. Any function may be called from any thread, on the same object, too, at any time; one that frees an object while others use it lets
 * these end first, or end with GENIE_ERROR_HANDLE. Requests of several threads in one session are in flight together: the thread that
 * waits moves the bytes of all, and what takes long for one does not hold up others, where no function says otherwise. Nothing is
 * called back but what a function is passed, on the thread that called it. After fork() only the parent may go on.
 *
 * Sessions. What a session has made belongs to it, and no other session can be passed it. A connection that is lost is made again, and what
 * was in flight is sent again and takes effect once; GENIE_ERROR_SESSION_LOST says that the server no longer has what the session held.
 *
 * Units. Sizes and offsets are bytes, times are what their name ends with. Tensors are row-major and little-endian.
 */


#ifndef GENIE_H
#define GENIE_H

/* Made by cbindgen from frontends/c/src. Do not edit: change the declarations there. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * Bytes of an error's message, the 0 at its end among them.
 */
#define GENIE_MESSAGE_BYTES 1012

/**
 * The version of this interface: the number in the shared library's name. Functions are added within a version, none is changed.
 */
#define GENIE_ABI_VERSION 0

/**
 * `genie_connect_options.poll_us` for a thread that sleeps at once.
 */
#define GENIE_NO_POLL UINT32_MAX

/**
 * The most dimensions that a tensor has.
 */
#define GENIE_MAX_RANK 8

/**
 * A dimension that is known when a program runs: rows that run together.
 */
#define GENIE_DIM_BATCH (UINT64_MAX - 1)

/**
 * The same: tokens of this step.
 */
#define GENIE_DIM_SEQUENCE (UINT64_MAX - 2)

/**
 * The same: tokens that are in the cache.
 */
#define GENIE_DIM_POSITION (UINT64_MAX - 3)

/**
 * `genie_wait_any` without an end.
 */
#define GENIE_FOREVER UINT32_MAX

/**
 * How a call ended. What is not listed is a failure, too: later versions may add some.
 */
typedef enum {
    /**
     * It did what it was asked.
     */
    GENIE_OK = 0,
    /**
     * An argument is NULL, out of range, or does not fit another. Nothing was sent.
     */
    GENIE_ERROR_ARGUMENT = 1,
    /**
     * A pointer is to no object of this kind: it was freed, is of another kind, or never was one. Nothing was sent.
     */
    GENIE_ERROR_HANDLE = 2,
    /**
     * A fault of this library. The objects that were passed should be freed and not used otherwise.
     */
    GENIE_ERROR_INTERNAL = 3,
    /**
     * The server could not be reached for as long as the session's options say.
     */
    GENIE_ERROR_UNREACHABLE = 4,
    /**
     * The server restarted, or the session's lease ran out: what the session held is gone. It goes on as an empty one.
     */
    GENIE_ERROR_SESSION_LOST = 5,
    /**
     * The server sent something that is not the protocol.
     */
    GENIE_ERROR_PROTOCOL = 6,
    /**
     * Bytes were corrupted on the way, again and again.
     */
    GENIE_ERROR_CORRUPT = 7,
    /**
     * There is no memory, thread or descriptor left on this side.
     */
    GENIE_ERROR_NO_MEMORY = 8,
    /**
     * A token or certificate is missing, wrong, or does not allow this.
     */
    GENIE_ERROR_ACCESS = 9,
    /**
     * The connection was lost, and the request is of a kind that is not sent again.
     */
    GENIE_ERROR_INTERRUPTED = 10,
    /**
     * The session was closed.
     */
    GENIE_ERROR_CLOSED = 11,
    /**
     * Nothing has this name or hash.
     */
    GENIE_ERROR_NOT_FOUND = 12,
    /**
     * The graph does not pass the verifier, or the device lacks one of its ops.
     */
    GENIE_ERROR_GRAPH = 13,
    /**
     * The model's files cannot be used, or the prompt does not fit the model.
     */
    GENIE_ERROR_MODEL = 14,
    /**
     * A quota does not allow it, or the server's device has no memory left.
     */
    GENIE_ERROR_SERVER_MEMORY = 15,
    /**
     * The request was cancelled.
     */
    GENIE_ERROR_CANCELLED = 16,
    /**
     * The server refused or failed it for another reason: `genie_error.server_code` has the number of docs/protocol.md, or 0 where the server
     * is too old to be asked.
     */
    GENIE_ERROR_SERVER = 17,
} genie_status;

/**
 * Whether a call that failed changed anything on the server.
 */
typedef enum {
    /**
     * Nothing changed.
     */
    GENIE_EFFECT_NONE = 0,
    /**
     * It took effect in part: a generate that was cut short.
     */
    GENIE_EFFECT_PARTIAL = 1,
    /**
     * Not known: the connection or the server was lost before the reply.
     */
    GENIE_EFFECT_UNKNOWN = 2,
} genie_effect;

/**
 * Why a generate ended.
 */
typedef enum {
    /**
     * It made as many tokens as were asked for.
     */
    GENIE_FINISH_LENGTH = 0,
    /**
     * It made a stop token, or the callback wanted no more.
     */
    GENIE_FINISH_STOP = 1,
} genie_finish;

/**
 * The type of a tensor's elements, which are little-endian. Functions take it as an `int32_t`.
 */
typedef enum {
    /**
     * IEEE 754 binary32.
     */
    GENIE_F32 = 0,
    /**
     * IEEE 754 binary16.
     */
    GENIE_F16 = 1,
    /**
     * The upper half of a binary32 (bfloat16).
     */
    GENIE_BF16 = 2,
    /**
     * 64-bit two's complement.
     */
    GENIE_I64 = 3,
    /**
     * 32-bit two's complement.
     */
    GENIE_I32 = 4,
    /**
     * Unsigned byte.
     */
    GENIE_U8 = 5,
    /**
     * One byte an element, 0 or 1.
     */
    GENIE_BOOL = 6,
} genie_dtype;

/**
 * What an input is for. Functions take it as an `int32_t`.
 */
typedef enum {
    /**
     * A tensor that comes with each run, or is bound once.
     */
    GENIE_ROLE_ARGUMENT = 0,
    /**
     * An immutable tensor, bound once.
     */
    GENIE_ROLE_WEIGHT = 1,
    /**
     * A KV cache, bound once: float [GENIE_DIM_POSITION, layers, 2, kv_heads, 64, head_dim].
     */
    GENIE_ROLE_KV_CACHE = 2,
    /**
     * Token ids, i32 [GENIE_DIM_BATCH, GENIE_DIM_SEQUENCE]; generate feeds each new token back here.
     */
    GENIE_ROLE_TOKENS = 3,
    /**
     * Positions, i32 [GENIE_DIM_BATCH, GENIE_DIM_SEQUENCE], filled by the server.
     */
    GENIE_ROLE_POSITIONS = 4,
    /**
     * f32 [GENIE_DIM_BATCH, 2]: temperature (0: the likeliest token), top-p.
     */
    GENIE_ROLE_SAMPLING_REAL = 5,
    /**
     * i64 [GENIE_DIM_BATCH, 2]: top-k (0: off), seed.
     */
    GENIE_ROLE_SAMPLING_INT = 6,
} genie_role;

/**
 * Which part of a model's work nodes belong to; the server orders its queues by it. Functions take it as an `int32_t`.
 */
typedef enum {
    /**
     * Not said.
     */
    GENIE_PHASE_UNKNOWN = 0,
    /**
     * Work over a whole prompt.
     */
    GENIE_PHASE_PREFILL = 1,
    /**
     * One token a step.
     */
    GENIE_PHASE_DECODE = 2,
    /**
     * Image encoders.
     */
    GENIE_PHASE_VISION = 3,
    /**
     * Where modalities meet.
     */
    GENIE_PHASE_FUSION = 4,
} genie_phase;

/**
 * What kind of data nodes stand for. Functions take it as an `int32_t`.
 */
typedef enum {
    /**
     * Not said.
     */
    GENIE_MODALITY_NONE = 0,
    /**
     * Text.
     */
    GENIE_MODALITY_TEXT = 1,
    /**
     * Images.
     */
    GENIE_MODALITY_VISION = 2,
    /**
     * Sound.
     */
    GENIE_MODALITY_AUDIO = 3,
} genie_modality;

/**
 * A program joined with what it reads: what runs. Freed by `genie_binding_free`.
 */
typedef struct genie_binding genie_binding;

/**
 * A KV cache on the server. Freed by `genie_cache_free`.
 */
typedef struct genie_cache genie_cache;

/**
 * A graph that is being written. Freed by `genie_graph_free`. Nodes are numbered from 0 in the order in which they are added.
 */
typedef struct genie_graph genie_graph;

/**
 * Memory of Genie's: what `genie_memory_alloc` made, or what a get brought. Freed by `genie_memory_free`.
 */
typedef struct genie_memory genie_memory;

/**
 * A language model on a server, in a session of its own. Freed by `genie_model_free`.
 */
typedef struct genie_model genie_model;

/**
 * What a run gave. Freed by `genie_outputs_free`.
 */
typedef struct genie_outputs genie_outputs;

/**
 * A request in flight. Ended by the `genie_finish_` function of its kind, or by `genie_pending_free`.
 */
typedef struct genie_pending genie_pending;

/**
 * A graph that the server has verified and planned. Freed by `genie_program_free`.
 */
typedef struct genie_program genie_program;

/**
 * A session on a server. What is put, defined and bound belongs to one, and ends with it. Closed by `genie_close`.
 */
typedef struct genie_session genie_session;

/**
 * A tensor that is resident on the server. Freed by `genie_tensor_free`.
 */
typedef struct genie_tensor genie_tensor;

/**
 * How to connect. All zeros, or NULL instead of it, are the defaults: begin with `= {0}`.
 */
typedef struct {
    /**
     * The file with the token that proves who this is, as `genie token new` writes it; NULL: no token.
     */
    const char *token_file;
    /**
     * Whom to trust on tcps:// and urings://: the file (PEM) with the certificate of who signed the server's. With genie://, what leaves
     * this host is encrypted then. NULL: nobody.
     */
    const char *ca_file;
    /**
     * This side's certificate (PEM), for a server that asks for one; with `key_file`, or NULL.
     */
    const char *cert_file;
    /**
     * Its key.
     */
    const char *key_file;
    /**
     * For genie://HOST:PORT, use this link or none: "tcp", "tcps", "shm", "rdma", "uring", "urings". NULL: the best that both ends have.
     */
    const char *link;
    /**
     * Bytes that the session may hold on the server; 0: the server's default.
     */
    uint64_t quota;
    /**
     * How long to try to reach the server, at first and after a loss, in milliseconds; 0: 15,000.
     */
    uint32_t timeout_ms;
    /**
     * How long the session outlives its connection, in milliseconds; 0: 600,000. A session says nothing between calls, and the server takes
     * it for gone after some 30 s without one: the next call connects again, as long as the lease has not run out.
     */
    uint32_t lease_ms;
    /**
     * How long a thread polls for an answer before it sleeps, while answers come fast, in microseconds; 0: what suits the machine;
     * `GENIE_NO_POLL`: not at all.
     */
    uint32_t poll_us;
    /**
     * Zeros.
     */
    uint32_t reserved[9];
} genie_connect_options;

/**
 * What went wrong. The caller's own memory, which need not be initialised, holds nothing to be freed, and is written by each call that it
 * is passed to: after GENIE_OK its message is empty.
 */
typedef struct {
    /**
     * What the call returned.
     */
    genie_status status;
    /**
     * Whether anything changed.
     */
    genie_effect effect;
    /**
     * The server's own number for it (docs/protocol.md), 0 if the server did not refuse it.
     */
    uint32_t server_code;
    /**
     * What happened and what to do: UTF-8, one sentence or a few, cut if it is longer.
     */
    char message[GENIE_MESSAGE_BYTES];
} genie_error;

/**
 * A device of a server.
 */
typedef struct {
    /**
     * What calls name it by.
     */
    uint32_t index;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Bytes that tensors may take.
     */
    uint64_t total_bytes;
    /**
     * Bytes not taken.
     */
    uint64_t free_bytes;
    /**
     * "cpu:0", "cuda:3".
     */
    char name[32];
    /**
     * What the hardware calls itself.
     */
    char model[128];
    /**
     * Instruction set or compute capability.
     */
    char capability[64];
} genie_device;

/**
 * A counter of a server.
 */
typedef struct {
    /**
     * What it counts: "genie_copied_bytes_total", for one.
     */
    char name[56];
    /**
     * Its value.
     */
    uint64_t value;
} genie_counter;

/**
 * What becomes of a tensor that is put. All zeros, or NULL instead of it: private to the session, on device 0.
 */
typedef struct {
    /**
     * A name by which others find it: it is then a snapshot that outlives the session. NULL: none.
     */
    const char *name;
    /**
     * Which device.
     */
    uint32_t device;
    /**
     * Not 0: it is a weight, named by the hash of its bytes (which is taken first): immutable, shared by all sessions that put the same,
     * and checked by the server.
     */
    uint32_t weight;
    /**
     * Zeros.
     */
    uint64_t reserved[4];
} genie_put_options;

/**
 * What a tensor is.
 */
typedef struct {
    /**
     * Its elements: a `genie_dtype`.
     */
    int32_t dtype;
    /**
     * How many of `dims` count.
     */
    uint32_t rank;
    /**
     * Outermost first; the elements are row-major.
     */
    uint64_t dims[GENIE_MAX_RANK];
    /**
     * Its size in bytes.
     */
    uint64_t bytes;
    /**
     * Its device.
     */
    uint32_t device;
    /**
     * Zero.
     */
    uint32_t reserved;
} genie_tensor_info;

/**
 * An input of a graph, and the tensor or cache on the server that it is bound to: one of the two, the other NULL.
 */
typedef struct {
    /**
     * The input's node.
     */
    uint32_t input;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * A tensor: a weight, or an argument that each run reads as it then is.
     */
    const genie_tensor *tensor;
    /**
     * A KV cache.
     */
    const genie_cache *cache;
} genie_bound;

/**
 * An input of a graph, and its value, which goes with the request.
 */
typedef struct {
    /**
     * The input's node: at most 65535.
     */
    uint32_t input;
    /**
     * Its elements: a `genie_dtype`.
     */
    int32_t dtype;
    /**
     * How many dimensions.
     */
    size_t rank;
    /**
     * Outermost first.
     */
    const uint64_t *dims;
    /**
     * The elements, row-major.
     */
    const void *data;
} genie_argument;

/**
 * How a binding runs. NULL instead of it: the first output comes back, whatever the cache's length.
 */
typedef struct {
    /**
     * Bit i: output i comes back.
     */
    uint64_t wanted;
    /**
     * Bit i: output i stays on the server, as a tensor.
     */
    uint64_t keep;
    /**
     * Not 0: the run fails if the cache has not `position` tokens.
     */
    uint32_t check_position;
    /**
     * See `check_position`.
     */
    uint32_t position;
    /**
     * Zeros.
     */
    uint64_t reserved[2];
} genie_run_options;

/**
 * One output of a run.
 */
typedef struct {
    /**
     * Which output of the graph.
     */
    uint32_t index;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * The elements, row-major, `info.bytes` of them, if it came back: the outputs' own, valid until `genie_outputs_free`. NULL if it stayed
     * on the server: `genie_outputs_take` gives its tensor.
     */
    const void *data;
    /**
     * What it is.
     */
    genie_tensor_info info;
} genie_output;

/**
 * How tokens are made. All zeros make none.
 */
typedef struct {
    /**
     * Tokens to make, at the most.
     */
    uint32_t max_new;
    /**
     * How many `stop` has.
     */
    uint32_t stop_count;
    /**
     * Tokens that end it; may be NULL without any.
     */
    const int32_t *stop;
    /**
     * Inputs that were not bound, but for the tokens; may be NULL without any.
     */
    const genie_argument *arguments;
    /**
     * How many.
     */
    size_t argument_count;
    /**
     * Not 0: it fails if the cache has not `position` tokens.
     */
    uint32_t check_position;
    /**
     * See `check_position`.
     */
    uint32_t position;
    /**
     * Zeros.
     */
    uint64_t reserved[2];
} genie_generate_options;

/**
 * Is called with `count` new tokens, in the order in which they were made, on the thread that called generate, and may call functions of
 * this library, on the same session, too. `tokens` is valid until it returns. Returns whether there shall be more. It must return: no
 * longjmp, no exception.
 */
typedef bool (*genie_on_tokens)(const int32_t *tokens, size_t count, void *user);

/**
 * How text is made. All zeros make none; begin with `= {0}`, and say `max_new`.
 */
typedef struct {
    /**
     * Tokens to make, at the most.
     */
    uint32_t max_new;
    /**
     * Not 0: the prompt is what a user says, and is put into the model's chat template.
     */
    uint32_t chat;
    /**
     * 0: always the likeliest token; above, the larger the more even the choice.
     */
    float temperature;
    /**
     * Choose among the likeliest tokens that together have this probability; 0: among all.
     */
    float top_p;
    /**
     * Choose among so many of the likeliest tokens; 0: among all.
     */
    uint32_t top_k;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * The same seed gives the same text.
     */
    int64_t seed;
} genie_text_options;

/**
 * Is called with the next piece of the text, UTF-8, whole characters, on the thread that called generate. `text` is valid until it
 * returns. Returns whether there shall be more. It must return: no longjmp, no exception; and it must not use the same model.
 */
typedef bool (*genie_on_text)(const char *text, void *user);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that is linked, "0.1.0". The text is the library's, and stays.
 */
const char *genie_version(void);

/**
 * The `GENIE_ABI_VERSION` of the library that is linked: compare it with the header's where the library is loaded at run time.
 */
uint32_t genie_abi_version(void);

/**
 * Connects to `uri` ("tcp://HOST:PORT", "tcps://", "uring://", "urings://", "shm:///PATH", or "genie://HOST:PORT" for the best of
 * them) and opens a session. Waits for a server that is not there for as long as the options say.
 *
 * `uri` and `options` (which may be NULL) are read before it returns. `*session` is the caller's, to be closed by `genie_close`.
 * Errors: GENIE_ERROR_ARGUMENT for what is no address, GENIE_ERROR_UNREACHABLE, GENIE_ERROR_ACCESS for tokens and certificates.
 */
genie_status genie_connect(const char *uri,
                           const genie_connect_options *options,
                           genie_session **session,
                           genie_error *error);

/**
 * Ends a session, and frees all that it holds on the server. Calls of other threads that wait in it end with GENIE_ERROR_CLOSED. What else
 * was made in it (tensors, programs, ...) is of no use any more, and is still to be freed, which then always works.
 *
 * `session` is freed whatever the result, and must not be used again. NULL is nothing, and is GENIE_OK. On an error the server frees what
 * the session held when its lease has run out.
 */
genie_status genie_close(genie_session *session,
                         genie_error *error);

/**
 * The time of an empty round trip, in nanoseconds; `nanoseconds` may be NULL.
 */
genie_status genie_ping(const genie_session *session, uint64_t *nanoseconds, genie_error *error);

/**
 * The server's devices: the first `room` of them go to `devices`, and how many there are to `*count`. With `room` 0 it only counts.
 */
genie_status genie_devices(const genie_session *session,
                           genie_device *devices,
                           size_t room,
                           size_t *count,
                           genie_error *error);

/**
 * The server's counters: the first `room` of them go to `counters`, and how many there are to `*count`. With `room` 0 it only counts.
 */
genie_status genie_stats(const genie_session *session,
                         genie_counter *counters,
                         size_t room,
                         size_t *count,
                         genie_error *error);

/**
 * Bytes that this session has sent and received so far, headers included; either may be NULL.
 */
genie_status genie_traffic(const genie_session *session, uint64_t *sent, uint64_t *received, genie_error *error);

/**
 * Makes `size` bytes of memory, zeroed, that the server reads and writes itself where the link shares memory (shm://, and genie:// on one
 * host): a put from it, or from a part of it, copies nothing, and neither does a get to it. Over other links it is ordinary memory, and
 * both work the same. It takes long for much memory (seconds for some GB), and holds up the session's other calls meanwhile: allocate
 * once, at the beginning, and use it again.
 *
 * `*memory` is the caller's, to be freed by `genie_memory_free`. While a tensor that was put from it lives, its bytes must not be
 * written: over shared memory the tensor lies there.
 */
genie_status genie_memory_alloc(const genie_session *session,
                                size_t size,
                                genie_memory **memory,
                                genie_error *error);

/**
 * Where the memory is, and how large, in bytes; either may be NULL. It begins on a page. What `genie_memory_alloc` made may be written
 * (see there), what a get brought only read. `*data` is valid until `genie_memory_free`.
 */
genie_status genie_memory_data(const genie_memory *memory,
                               void **data,
                               size_t *size,
                               genie_error *error);

/**
 * Frees memory: its bytes must not be touched from here on. What the server still has of it stays mapped there. NULL is nothing, and is
 * GENIE_OK.
 */
genie_status genie_memory_free(genie_memory *memory,
                               genie_error *error);

/**
 * Makes a tensor of `dims[0] * ... * dims[rank - 1]` elements resident, and waits for it. `rank` may be 0: one element.
 *
 * `data` is sent from where it lies (over shared memory copied once, unless it lies in memory of `genie_memory_alloc`), and is the
 * caller's again when it returns, whatever the result. `dims` and `options` (which may be NULL) are read before it returns. `*tensor`
 * is the caller's, to be freed by `genie_tensor_free`. On an error of the server's nothing changed there.
 */
genie_status genie_put(const genie_session *session,
                       int32_t dtype,
                       size_t rank,
                       const uint64_t *dims,
                       const void *data,
                       const genie_put_options *options,
                       genie_tensor **tensor,
                       genie_error *error);

/**
 * Replaces `size` bytes of a private tensor from byte `offset` on, all at once: whoever reads it meanwhile reads the old bytes or the
 * new. `data` is the caller's again when it returns.
 */
genie_status genie_put_range(const genie_tensor *tensor,
                             uint64_t offset,
                             size_t size,
                             const void *data,
                             genie_error *error);

/**
 * Reads a whole tensor into the caller's memory, which has `room` bytes; GENIE_ERROR_ARGUMENT if that is less than the tensor has.
 *
 * Bytes arrive there directly (over shared memory they are copied once, unless `data` lies in memory of `genie_memory_alloc`). After
 * an error what is there is undefined. `data` is the caller's again when it returns.
 */
genie_status genie_get(const genie_tensor *tensor,
                       void *data,
                       size_t room,
                       genie_error *error);

/**
 * Reads `size` bytes of a tensor from byte `offset` on into the caller's memory, as `genie_get`.
 */
genie_status genie_get_range(const genie_tensor *tensor, uint64_t offset, size_t size, void *data, genie_error *error);

/**
 * Reads `size` bytes of a tensor from byte `offset` on into memory of Genie's: over shared memory the server writes there itself, and
 * nothing is copied. `*memory` is the caller's, to be freed by `genie_memory_free`.
 */
genie_status genie_get_memory(const genie_tensor *tensor,
                              uint64_t offset,
                              uint64_t size,
                              genie_memory **memory,
                              genie_error *error);

/**
 * What a tensor is: known on this side, nothing is sent.
 */
genie_status genie_tensor_describe(const genie_tensor *tensor, genie_tensor_info *info, genie_error *error);

/**
 * Finds a tensor by the name under which somebody of the same token put it; GENIE_ERROR_NOT_FOUND if nothing has it. `*tensor` is the
 * caller's, to be freed by `genie_tensor_free`: that frees this session's hold, not the named tensor.
 */
genie_status genie_lookup(const genie_session *session,
                          const char *name,
                          genie_tensor **tensor,
                          genie_error *error);

/**
 * Copies a tensor on the server, to this device. `*copy` is the caller's, to be freed by `genie_tensor_free`.
 */
genie_status genie_tensor_copy(const genie_tensor *tensor, uint32_t device, genie_tensor **copy, genie_error *error);

/**
 * Frees a tensor, here and on the server, and waits for it. `tensor` is freed whatever the result, and must not be used again. NULL is
 * nothing, and so is a tensor whose session was closed or lost: GENIE_OK.
 */
genie_status genie_tensor_free(genie_tensor *tensor,
                               genie_error *error);

/**
 * An empty graph of this name (for logs; at most 256 bytes). `*graph` is the caller's, to be freed by `genie_graph_free`. It belongs to
 * no session; two threads that write one at once write one node after the other.
 */
genie_status genie_graph_new(const char *name,
                             genie_graph **graph,
                             genie_error *error);

/**
 * Sets the phase (`genie_phase`) and modality (`genie_modality`) of the nodes that follow.
 */
genie_status genie_graph_annotate(const genie_graph *graph, int32_t phase, int32_t modality, genie_error *error);

/**
 * Adds an input: its name (unique in the graph), its role (`genie_role`), its elements (`genie_dtype`) and dimensions, `GENIE_DIM_BATCH`
 * and the like among them. `*node` is its number, by which it is bound.
 */
genie_status genie_graph_input(const genie_graph *graph,
                               const char *name,
                               int32_t role,
                               int32_t dtype,
                               size_t rank,
                               const uint64_t *dims,
                               uint32_t *node,
                               genie_error *error);

/**
 * Adds an op that reads earlier nodes: its name ("relu", "matmul", ...) and its attributes, "name=value" with spaces between them, or
 * NULL: "axis=-1", "kind=sum axes=0,1 keep_dims=true", "dims=batch,-1". Numbers have a point, whatever the locale. docs/guide/c.md lists ops
 * and attributes. The type of its result follows from what it reads. `*node` is its number.
 */
genie_status genie_graph_op(const genie_graph *graph,
                            const char *op,
                            const uint32_t *inputs,
                            size_t input_count,
                            const char *attributes,
                            uint32_t *node,
                            genie_error *error);

/**
 * Adds an op that makes a tensor of this type out of nothing: "zeros", "ones", "full" (value=), "arange" (start=, step=), "rand" and
 * "randn" (seed=). `*node` is its number.
 */
genie_status genie_graph_create(const genie_graph *graph,
                                const char *op,
                                int32_t dtype,
                                size_t rank,
                                const uint64_t *dims,
                                const char *attributes,
                                uint32_t *node,
                                genie_error *error);

/**
 * Makes a node a result of the graph: output 0 is the first that is named so.
 */
genie_status genie_graph_output(const genie_graph *graph, const char *name, uint32_t node, genie_error *error);

/**
 * Checks a graph as a whole, and gives the 32 bytes of its hash, by which servers know it (`genie_define_known`). Errors:
 * GENIE_ERROR_GRAPH with the verifier's words.
 */
genie_status genie_graph_hash(const genie_graph *graph,
                              uint8_t *hash,
                              genie_error *error);

/**
 * Checks a graph as a whole, and encodes it: the first `room` bytes go to `encoded`, and how many there are to `*size`. With `room` 0
 * it only counts.
 */
genie_status genie_graph_encode(const genie_graph *graph,
                                void *encoded,
                                size_t room,
                                size_t *size,
                                genie_error *error);

/**
 * Reads an encoded graph of `size` bytes, to be looked at or defined. `encoded` is read before it returns. `*graph` is the caller's, to be
 * freed by `genie_graph_free`; nodes can be added to it.
 */
genie_status genie_graph_decode(const void *encoded,
                                size_t size,
                                genie_graph **graph,
                                genie_error *error);

/**
 * Frees a graph; what was defined by it goes on. NULL is nothing, and is GENIE_OK.
 */
genie_status genie_graph_free(genie_graph *graph, genie_error *error);

/**
 * Registers a graph with the server, for this device. `graph` stays the caller's, and can be defined on other sessions, too. `*program`
 * is the caller's, to be freed by `genie_program_free`. Errors: GENIE_ERROR_GRAPH with the verifier's words.
 */
genie_status genie_define(const genie_session *session,
                          uint32_t device,
                          const genie_graph *graph,
                          genie_program **program,
                          genie_error *error);

/**
 * Registers an encoded graph of `size` bytes (`genie_graph_encode`, or another frontend's), as `genie_define`. `encoded` is read before
 * it returns.
 */
genie_status genie_define_encoded(const genie_session *session,
                                  uint32_t device,
                                  const void *encoded,
                                  size_t size,
                                  genie_program **program,
                                  genie_error *error);

/**
 * Registers a graph that the server has, by the 32 bytes of its hash (`genie_graph_hash`); GENIE_ERROR_NOT_FOUND if it has none: define
 * it then. `hash` is read before it returns. `*program` is the caller's, to be freed by `genie_program_free`.
 */
genie_status genie_define_known(const genie_session *session,
                                uint32_t device,
                                const uint8_t *hash,
                                genie_program **program,
                                genie_error *error);

/**
 * Joins a program with `bound_count` tensors and caches of its session and `fixed_count` values that are the same in every run. What is
 * not bound goes with each run. All arrays are read before it returns; the tensors and caches stay the caller's, and may be freed: the
 * binding keeps what it needs of weights. `*binding` is the caller's, to be freed by `genie_binding_free`.
 */
genie_status genie_bind(const genie_program *program,
                        const genie_bound *bound,
                        size_t bound_count,
                        const genie_argument *fixed,
                        size_t fixed_count,
                        genie_binding **binding,
                        genie_error *error);

/**
 * Runs a binding once, with `argument_count` inputs that were not bound, and waits for it. All arguments are read before it returns.
 * `*outputs` is the caller's, to be freed by `genie_outputs_free`. On an error of the server's no cache has grown.
 */
genie_status genie_run(const genie_binding *binding,
                       const genie_argument *arguments,
                       size_t argument_count,
                       const genie_run_options *options,
                       genie_outputs **outputs,
                       genie_error *error);

/**
 * How many outputs a run gave, which device ran it, and the cache's length after it; each may be NULL.
 */
genie_status genie_outputs_count(const genie_outputs *outputs,
                                 size_t *count,
                                 uint32_t *device,
                                 uint32_t *position,
                                 genie_error *error);

/**
 * One of a run's outputs: the i-th of those that were wanted or kept. `output->data` is the outputs' own, and valid until
 * `genie_outputs_free`.
 */
genie_status genie_outputs_at(const genie_outputs *outputs,
                              size_t i,
                              genie_output *output,
                              genie_error *error);

/**
 * Takes an output that stayed on the server. `*tensor` is the caller's, to be freed by `genie_tensor_free`; what is not taken is freed
 * with the outputs.
 */
genie_status genie_outputs_take(const genie_outputs *outputs,
                                size_t i,
                                genie_tensor **tensor,
                                genie_error *error);

/**
 * Frees a run's outputs, and on the server those that stayed there and were not taken. NULL is nothing, and is GENIE_OK.
 */
genie_status genie_outputs_free(genie_outputs *outputs,
                                genie_error *error);

/**
 * Frees a program, here and on the server; bindings of it go on. NULL is nothing, and so is one whose session is gone: GENIE_OK.
 */
genie_status genie_program_free(genie_program *program,
                                genie_error *error);

/**
 * Frees a binding, here and on the server. NULL is nothing, and so is one whose session is gone: GENIE_OK.
 */
genie_status genie_binding_free(genie_binding *binding, genie_error *error);

/**
 * Makes an empty KV cache that fits input `input` of a program, with room for `reserve` tokens at first (it grows). `*cache` is the
 * caller's, to be freed by `genie_cache_free`.
 */
genie_status genie_cache_create(const genie_program *program,
                                uint32_t input,
                                uint32_t reserve,
                                genie_cache **cache,
                                genie_error *error);

/**
 * Makes a second cache with the same tokens; they share memory until one of the two goes on. `*fork` is the caller's, to be freed by
 * `genie_cache_free`.
 */
genie_status genie_cache_fork(const genie_cache *cache,
                              genie_cache **fork,
                              genie_error *error);

/**
 * Forgets a cache's tokens from `length` on.
 */
genie_status genie_cache_truncate(const genie_cache *cache, uint32_t length, genie_error *error);

/**
 * Frees a cache, here and on the server. NULL is nothing, and so is one whose session is gone: GENIE_OK.
 */
genie_status genie_cache_free(genie_cache *cache, genie_error *error);

/**
 * Runs `prompt` (`prompt_count` token ids, at least 1) through `prefill`, then makes tokens by `decode`, one after another, on the server:
 * both are bindings of one cache. `on_tokens` (which may be NULL) sees them as they come. Other threads use the session meanwhile.
 *
 * `prompt` and `options` are read before the first token comes. `user` is passed on as it is. `*finish` (which may be NULL) says why it
 * ended. On an error tokens that were seen stay in the cache.
 */
genie_status genie_generate(const genie_binding *prefill,
                            const genie_binding *decode,
                            const int32_t *prompt,
                            size_t prompt_count,
                            const genie_generate_options *options,
                            genie_on_tokens on_tokens,
                            void *user,
                            genie_finish *finish,
                            genie_error *error);

/**
 * Begins what `genie_put` does, and does not wait. `data` must stay in place and unchanged until `genie_finish_put` or
 * `genie_pending_free` has returned; `dims` and `options` are read before this returns. `*pending` is the caller's, to be freed by
 * `genie_pending_free` after it was finished. Small puts are sent before it returns; larger ones move while a thread waits in the session.
 */
genie_status genie_start_put(const genie_session *session,
                             int32_t dtype,
                             size_t rank,
                             const uint64_t *dims,
                             const void *data,
                             const genie_put_options *options,
                             genie_pending **pending,
                             genie_error *error);

/**
 * Waits for a put: the tensor is there, visible to every request that is made from now on, and its memory is the caller's again, whatever
 * the result. `*tensor` is the caller's, to be freed by `genie_tensor_free`. `pending` is still to be freed.
 */
genie_status genie_finish_put(const genie_pending *pending,
                              genie_tensor **tensor,
                              genie_error *error);

/**
 * Begins what `genie_get_memory` does, and does not wait. `*pending` is the caller's, to be freed by `genie_pending_free` after it was
 * finished.
 */
genie_status genie_start_get(const genie_tensor *tensor,
                             uint64_t offset,
                             uint64_t size,
                             genie_pending **pending,
                             genie_error *error);

/**
 * Waits for a get. `*memory` is the caller's, to be freed by `genie_memory_free`. `pending` is still to be freed.
 */
genie_status genie_finish_get(const genie_pending *pending, genie_memory **memory, genie_error *error);

/**
 * Begins what `genie_run` does, and does not wait: many runs can be in flight together. All arguments are read before this returns.
 * `*pending` is the caller's, to be freed by `genie_pending_free` after it was finished.
 */
genie_status genie_start_run(const genie_binding *binding,
                             const genie_argument *arguments,
                             size_t argument_count,
                             const genie_run_options *options,
                             genie_pending **pending,
                             genie_error *error);

/**
 * Waits for a run. `*outputs` is the caller's, to be freed by `genie_outputs_free`. `pending` is still to be freed.
 */
genie_status genie_finish_run(const genie_pending *pending, genie_outputs **outputs, genie_error *error);

/**
 * Waits until one of `count` requests of one session is answered, or `timeout_ms` have passed: `*index` says which (the first of
 * several), or is `count`. Finishing it then does not wait. Moves the bytes of everything in flight in the session meanwhile; with a time
 * of 0 it moves what can be moved at once. `GENIE_FOREVER`: without an end.
 */
genie_status genie_wait_any(genie_pending *const *pending,
                            size_t count,
                            uint32_t timeout_ms,
                            size_t *index,
                            genie_error *error);

/**
 * Asks the server to stop a request; what finishes it still waits, and gives what it did before that was noticed, or
 * GENIE_ERROR_CANCELLED.
 */
genie_status genie_pending_cancel(const genie_pending *pending, genie_error *error);

/**
 * Frees a request. One that was not finished is cancelled and waited for, and what it made is freed on the server; the memory of a
 * put is the caller's again when this returns. NULL is nothing, and is GENIE_OK.
 */
genie_status genie_pending_free(genie_pending *pending,
                                genie_error *error);

/**
 * Opens a model's files (a `.gguf` file, a `.safetensors` file beside its `config.json`, or a folder with both), and brings it to `device` of
 * the server at `uri`: weights that the server has are not sent. It has a session of its own, with these options (which may be NULL),
 * and builds again by itself what a restart of the server takes from it. All strings are read before it returns. `*model` is the
 * caller's, to be freed by `genie_model_free`.
 */
genie_status genie_model_load(const char *uri,
                              const genie_connect_options *options,
                              const char *path,
                              uint32_t device,
                              genie_model **model,
                              genie_error *error);

/**
 * Goes on with `prompt` (which is not called back with), in a context of its own. `on_text` sees pieces as they come; `user` is passed on as it
 * is. `*finish` (which may be NULL) says why it ended. One thread at a time generates with a model, others wait.
 */
genie_status genie_model_generate(const genie_model *model,
                                  const char *prompt,
                                  const genie_text_options *options,
                                  genie_on_text on_text,
                                  void *user,
                                  genie_finish *finish,
                                  genie_error *error);

/**
 * Frees a model, and ends its session: the server keeps its weights for as long as it has room. Waits for a generate that goes on.
 * `model` is freed whatever the result. NULL is nothing, and is GENIE_OK.
 */
genie_status genie_model_free(genie_model *model,
                              genie_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GENIE_H */
