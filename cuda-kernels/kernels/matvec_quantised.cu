// Products of up to 8 rows with weights of quantised blocks, by matrix units. How it goes: `matvec.cuh`.
#include "matvec_fragments.cuh"
#include "quantised.cuh"

#if defined(GENIE_HOST) || __CUDA_ARCH__ >= 800
constexpr int UNROLLED = 2;
#else
// Products of bf16 are long there.
constexpr int UNROLLED = 1;
#endif

// Quantised weights, rows of blocks: 16 columns of y by 4 blocks a step. The quants are whole numbers that bf16 holds exactly; x is
// cut into as many bf16 as its type needs to be held exactly (`pieces`), so the products are exact, too. A block's sum is scaled
// as f32.
//
// Rows of blocks begin at any even address: of each, the copies bring all packs of 16 bytes that it touches.
template <u32 FORMAT> struct Quantised {
    static constexpr int BLOCKS = 4, TILE = 16, STEP = BLOCKS * BLOCK, SUMS = 4, LEFT = 4, BYTES = block_bytes(FORMAT);
    // Packs that four blocks touch when they begin 14 bytes (Q4_1: 12) into one.
    static constexpr int PACKS = (BLOCKS * BYTES + 14 + 15) / 16, ROW = 16 * PACKS, STAGE = 16 * ROW;
    static constexpr bool SYNC = true;

    __device__ __forceinline__ Quantised(const MatvecParams &, u32) {}

    static __device__ __forceinline__ u64 offset(const MatvecParams &p, i64 row, i64 k) {
        return u64(row * (p.k / BLOCK) + k / BLOCK) * BYTES;
    }

    static __device__ __forceinline__ void fetch(const MatvecParams &p, u8 *slot, const void *weight, i64 n, i64 k, u32 lane) {
        const u8 *bytes = static_cast<const u8 *>(weight);
        const u64 all = offset(p, p.n, 0);
#pragma unroll
        for (u32 i = 0; i < u32(16 * PACKS / WARP); i++) {
            const u32 pack = i * WARP + lane, row = pack / PACKS;
            const u64 begin = offset(p, n + row, k), end = offset(p, n + row, min(p.k, k + STEP));
            const u64 at = begin / 16 * 16 + 16 * (pack % PACKS);
            const u32 valid = n + row < p.n && at < end ? u32(min(all - at, u64(16))) : 0;
            cp_async_16(slot + 16 * pack, bytes + (valid == 0 ? 0 : at), valid);
        }
    }

    static __host__ __device__ __forceinline__ u32 pieces(u32 type) { return type == TYPE_F32 ? 3 : type == TYPE_F16 ? 2 : 1; }

    // Where element k of a row stands. Nibbles: 0 to 3, 16 to 19, 4 to 7, 20 to 23, ...: lane t's eight are neighbours, as those of
    // bytes are.
    static __device__ __forceinline__ u32 position(u32 k) {
        if constexpr (FORMAT == Q8_0) return k;
        return k / BLOCK * BLOCK + k % 16 / 4 * 8 + k % BLOCK / 16 * 4 + k % 4;
    }

    // What a bf16 leaves of a value; nothing of one that is not finite.
    static __device__ __forceinline__ float rest(float value) {
        const float rest = value - to_f32(from_f32<bf16>(value));
        return rest == rest ? rest : 0.0f;
    }

    static __device__ __forceinline__ void stage_x(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, float *scratch, unsigned char *x) {
        const u32 pieces = Quantised::pieces(p.as_type), piece_size = p.rows * p.x_stride;
        bf16 *to = reinterpret_cast<bf16 *>(x);
        row_statistics(p, statistics, scratch);
        __syncthreads();
        each_element(
            p, p.as_type, lo, hi, statistics,
            [&](u32 row, u32 k, float value) {
#pragma unroll 1
                for (u32 piece = 0; piece < pieces; piece++) {
                    to[piece * piece_size + row * p.x_stride + position(k)] = from_f32<bf16>(value);
                    value = rest(value);
                }
            },
            [&](u32 row, u32 k, float(&values)[8]) {
#pragma unroll 1
                for (u32 piece = 0; piece < pieces; piece++) {
                    bf16 *at = to + piece * piece_size + row * p.x_stride;
                    const uint2 low = make_uint2(pack_pair<bf16>(values[0], values[1]), pack_pair<bf16>(values[2], values[3]));
                    const uint2 high = make_uint2(pack_pair<bf16>(values[4], values[5]), pack_pair<bf16>(values[6], values[7]));
                    *reinterpret_cast<uint2 *>(at + position(k)) = low;
                    *reinterpret_cast<uint2 *>(at + position(k + 4)) = high;
#pragma unroll
                    for (int i = 0; i < 8; i++) values[i] = rest(values[i]);
                }
            });
        if constexpr (FORMAT == Q4_1) {
            // The minimum's part: sums of x over each block.
            __syncthreads();
            float *sums = block_sums(p, x);
#pragma unroll 1
            for (u32 i = threadIdx.x; i < p.chunk / BLOCK * p.rows; i += THREADS) {
                const u32 block = i / p.rows, row = i % p.rows;
                float sum = 0.0f;
                for (u32 piece = 0; piece < pieces; piece++) {
                    const bf16 *at = to + piece * piece_size + row * p.x_stride + block * BLOCK;
                    for (u32 j = 0; j < BLOCK; j++) sum += to_f32(at[j]);
                }
                sums[block * ROWS + row] = sum;
            }
        }
    }

    static __device__ __forceinline__ float *block_sums(const MatvecParams &p, const unsigned char *x) {
        return reinterpret_cast<float *>(const_cast<unsigned char *>(x) + 2 * pieces(p.as_type) * p.rows * p.x_stride);
    }

    // The eight quants of lane t in the block at `at`, as the halves that two fragments have of a row.
    static __device__ __forceinline__ void unpack(const u8 *at, u32 t, u32 (&pairs)[4]) {
        at += block_head(FORMAT) + (FORMAT == Q8_0 ? 8 : 4) * t;
        // The address is even: the word begins in one half of an aligned word or the other.
        const u32 odd = u32(u64(at)) & 2;
        const u32 *words = reinterpret_cast<const u32 *>(at - odd);
        const u32 first = __funnelshift_r(words[0], words[1], 8 * odd);
        if constexpr (FORMAT == Q8_0) {
            const u32 second = __funnelshift_r(words[1], words[2], 8 * odd);
            pairs[0] = bytes_to_bf16(spread_low(first)), pairs[1] = bytes_to_bf16(spread_high(first));
            pairs[2] = bytes_to_bf16(spread_low(second)), pairs[3] = bytes_to_bf16(spread_high(second));
        } else {
            const u32 low = spread_low(first), high = spread_high(first);
            pairs[0] = nibbles_to_bf16<FORMAT>(low), pairs[1] = nibbles_to_bf16<FORMAT>(high);
            pairs[2] = nibbles_to_bf16<FORMAT>(low >> 4), pairs[3] = nibbles_to_bf16<FORMAT>(high >> 4);
        }
    }

    static __device__ __forceinline__ void multiply(const MatvecParams &p, float (&sums)[SUMS], const u8 *slot,
                                                    const unsigned char *x, i64 n, u32 k_in, i64 lo, i64 hi, u32 lane) {
        const i64 k = lo + k_in;
        const u32 g = lane / 4, t = lane % 4, pieces = Quantised::pieces(p.as_type), piece_size = p.rows * p.x_stride;
        const u8 *low = slot + g * ROW + offset(p, n + g, k) % 16, *high = slot + (g + 8) * ROW + offset(p, n + g + 8, k) % 16;
        const bf16 *row = reinterpret_cast<const bf16 *>(x) + min(g, p.rows - 1) * p.x_stride + (k - lo) + 8 * t;
        const int blocks = int(min((hi - k) / BLOCK, i64(BLOCKS)));
#pragma unroll UNROLLED
        for (int block = 0; block < BLOCKS; block++) {
            if (block >= blocks) break;
            u32 a[4], c[4];
            unpack(low + block * BYTES, t, a);
            unpack(high + block * BYTES, t, c);
            const u32 first[4] = {a[0], c[0], a[1], c[1]}, second[4] = {a[2], c[2], a[3], c[3]};
            float d[4] = {};
#pragma unroll 1
            for (u32 piece = 0; piece < pieces; piece++) {
                const uint4 b = *reinterpret_cast<const uint4 *>(row + piece * piece_size + block * BLOCK);
                const u32 b_first[2] = {b.x, b.y}, b_second[2] = {b.z, b.w};
                mma<bf16>(d, first, b_first);
                mma<bf16>(d, second, b_second);
            }
            const float scale[2] = {half_at(low + block * BYTES), half_at(high + block * BYTES)};
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i] = fmaf(scale[i / 2], d[i], sums[i]);
            if constexpr (FORMAT == Q4_1) {
                const float least[2] = {half_at(low + block * BYTES + 2), half_at(high + block * BYTES + 2)};
                const u32 at = (u32(k - lo) / BLOCK + block) * ROWS + 2 * t;
                const float2 of_x = *reinterpret_cast<const float2 *>(block_sums(p, x) + at);
#pragma unroll
                for (int i = 0; i < 4; i++) sums[i] = fmaf(least[i / 2], i % 2 == 0 ? of_x.x : of_x.y, sums[i]);
            }
        }
    }

    static __device__ __forceinline__ void combine(float (&)[SUMS], u32) {}

    static __device__ __forceinline__ void place(int i, u32 lane, u32 &n, u32 &m) { place_in_fragment(i, lane, n, m); }
};

KERNEL(BOUNDS, matvec_q8_0, MatvecParams) { matvec<Quantised<Q8_0>>(p); }
KERNEL(BOUNDS, matvec_q4_0, MatvecParams) { matvec<Quantised<Q4_0>>(p); }
KERNEL(BOUNDS, matvec_q4_1, MatvecParams) { matvec<Quantised<Q4_1>>(p); }
