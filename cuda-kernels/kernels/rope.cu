// Rotary embedding of queries and keys.
//
// Bound by memory. A block takes a token: its angles' cosines and sines are computed once, for all heads, into shared memory, and
// then each thread turns as many pairs as 16 bytes have elements. For few tokens the heads are spread over more blocks.
#include "genie.cuh"

// A tensor `[tokens, heads * 2 * half]` whose rows are `stride` elements apart.
struct RopePart {
    const void *x;
    void *y;
    i64 x_stride, y_stride;
    u32 heads;
    // Whether packs can be loaded and stored.
    u32 wide;
};

struct RopeParams {
    RopePart parts[2];
    const i32 *positions;
    const float *frequencies;
    u32 half;
    u32 interleaved;
};

#define MOST_HALF 512

// x reduced to [-pi/4, pi/4] in f64, where positions up to 2^31 leave more digits than f32 has, and Taylor's series there. An
// angle from 2^33 on, which no position makes by a frequency up to 1, says nothing about a place in the circle: NaN.
__device__ __forceinline__ float2 cos_sin(float angle) {
    if (!(fabsf(angle) < 8589934592.0f)) return make_float2(NAN, NAN);
    const double wide = angle;
    const double turns = rint(wide * 0.63661977236758134);
    // pi / 2 in two parts. The first difference is exact: a fused product is not rounded, and what is left of it is small.
    const double rest = fma(-turns, 6.123233995736766e-17, fma(-turns, 1.5707963267948966, wide));
    const u32 quarter = u32(i64(turns)) & 3;
    const float r = float(rest), s = r * r;
    float sine = 2.7557319e-6f, cosine = -2.7557319e-7f;
    sine = fmaf(sine, s, -1.9841270e-4f);
    sine = fmaf(sine, s, 8.3333333e-3f);
    sine = fmaf(sine, s, -1.6666667e-1f);
    sine = fmaf(sine * s, r, r);
    cosine = fmaf(cosine, s, 2.4801587e-5f);
    cosine = fmaf(cosine, s, -1.3888889e-3f);
    cosine = fmaf(cosine, s, 4.1666667e-2f);
    cosine = fmaf(cosine, s, -0.5f);
    cosine = fmaf(cosine, s, 1.0f);
    const float c = quarter & 1 ? sine : cosine, d = quarter & 1 ? cosine : sine;
    return make_float2(quarter == 1 || quarter == 2 ? -c : c, quarter & 2 ? -d : d);
}

template <int N> __device__ __forceinline__ void load_shared(float (&to)[N], const float *from) {
    constexpr int WIDTH = N < 4 ? N : 4;
#pragma unroll
    for (int i = 0; i < N; i += WIDTH) {
        const Pack<float, WIDTH> pack = load<float, WIDTH>(from + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) to[i + j] = pack.at[j];
    }
}

// Pairs `first` to `first + N` of a head at x.
template <typename T, int N>
__device__ __forceinline__ void turn(const T *x, T *y, u32 first, const RopeParams &p, const float *cosines, const float *sines) {
    // Half: element i of the head goes with i + half. Interleaved: 2 i with 2 i + 1.
    const u32 one = p.interleaved ? 2 * first : first, other = p.interleaved ? one + N : one + p.half;
    Pack<T, N> low = load<T, N>(x + one), high = load<T, N>(x + other);
    float a[N], b[N], c[N], s[N];
    load_shared(c, cosines + first);
    load_shared(s, sines + first);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int at = 2 * j;
        a[j] = to_f32(!p.interleaved ? low.at[j] : at < N ? low.at[at % N] : high.at[at % N]);
        b[j] = to_f32(!p.interleaved ? high.at[j] : at + 1 < N ? low.at[(at + 1) % N] : high.at[(at + 1) % N]);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float turned = a[j] * c[j] - b[j] * s[j];
        b[j] = b[j] * c[j] + a[j] * s[j];
        a[j] = turned;
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        low.at[j] = from_f32<T>(!p.interleaved ? a[j] : j % 2 == 0 ? a[j / 2] : b[j / 2]);
        high.at[j] = from_f32<T>(!p.interleaved ? b[j] : (N + j) % 2 == 0 ? a[(N + j) / 2] : b[(N + j) / 2]);
    }
    store(y + one, low);
    store(y + other, high);
}

template <typename T, int N>
__device__ __forceinline__ void
turn_heads(const RopePart &part, i64 token, const RopeParams &p, const float *cosines, const float *sines) {
    const T *x = static_cast<const T *>(part.x) + token * part.x_stride;
    T *y = static_cast<T *>(part.y) + token * part.y_stride;
    const u32 packs = p.half / N, step = gridDim.y * blockDim.x;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < packs * part.heads; i += step) {
        const u32 head = i / packs * (2 * p.half);
        turn<T, N>(x + head, y + head, i % packs * N, p, cosines, sines);
    }
}

template <typename T> __device__ __forceinline__ void rope(const RopeParams &p) {
    SHARED(float, cosines, MOST_HALF);
    SHARED(float, sines, MOST_HALF);
    const i64 token = blockIdx.x;
    const float position = float(p.positions[token]);
    for (u32 i = threadIdx.x; i < p.half; i += blockDim.x) {
        // Rounded before it is reduced, as the CPU does it: at position 10^6 that is most of what an angle is off.
        const float2 both = cos_sin(__fmul_rn(position, p.frequencies[i]));
        cosines[i] = both.x;
        sines[i] = both.y;
    }
    __syncthreads();
#pragma unroll 1
    for (u32 i = 0; i < 2; i++) {
        const RopePart &part = p.parts[i];
        if (part.wide) {
            turn_heads<T, WIDE<T>>(part, token, p, cosines, sines);
        } else {
            turn_heads<T, 1>(part, token, p, cosines, sines);
        }
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, rope_##name, RopeParams) { rope<T>(p); }
EACH_FLOAT(X)
#undef X

struct FrequencyParams {
    float *y;
    double theta;
    u32 half, padding;
};

// theta^(-i / half), as the CPU has it: in f64, rounded once.
KERNEL(128, rope_frequencies, FrequencyParams) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.half) p.y[i] = float(pow(p.theta, -double(i) / double(p.half)));
}
