// Kernels that test what runs kernels on the CPU, and no other: `src/host/selftest.rs` launches them. They are not in the table.
#include "async.cuh"
#include "matrix.cuh"

struct SelfTest {
    const void *in;
    u32 *out;
};

// What each lane gets, a row of 32 a kind of exchange.
KERNEL(64, selftest_shuffles, SelfTest) {
    const u32 lane = threadIdx.x % WARP, value = 100 + threadIdx.x;
    u32 *out = p.out + threadIdx.x;
    const auto put = [&](u32 got) {
        *out = got;
        out += blockDim.x;
    };
    put(__shfl_sync(FULL, value, 7));
    put(__shfl_sync(FULL, value, int(lane + 5)));
    put(__shfl_sync(FULL, value, 3, 8));
    put(__shfl_xor_sync(FULL, value, 3));
    put(__shfl_xor_sync(FULL, value, 17, 16));
    put(__shfl_down_sync(FULL, value, 4));
    put(__shfl_down_sync(FULL, value, 4, 8));
    put(__shfl_up_sync(FULL, value, 3));
    put(__shfl_up_sync(FULL, value, 3, 8));
    put(u32(__shfl_sync(FULL, u64(value) << 32 | lane, 9) >> 32));
    put(__ballot_sync(FULL, lane % 3 == 0));
    put(u32(__any_sync(FULL, lane == 31)) + 2 * u32(__all_sync(FULL, lane != 31)) + 4 * u32(__any_sync(FULL, 0)));
    // Two parts of a warp, each by itself.
    u32 votes;
    if (lane < 20) {
        votes = __ballot_sync(0x000fffff, lane % 2);
    } else {
        votes = __ballot_sync(0xfff00000, lane % 5 == 0) + __shfl_sync(0xfff00000, lane, 25);
    }
    put(votes);
    // Lanes that have ended are waited for no more.
    if (lane >= 24) return;
    __syncwarp();
    put(__shfl_down_sync(0x00ffffff, value, 1));
}

// Turns of a loop with barriers; the last warp leaves early, and a half of it earlier.
KERNEL(96, selftest_barriers, SelfTest) {
    SHARED(u32, line, 96);
    const u32 me = threadIdx.x;
    if (me >= 80) return;
    u32 sum = 0;
    for (u32 turn = 0; turn < 5; turn++) {
        line[me] = me + turn;
        __syncthreads();
        sum += line[(me + 33) % 64];
        __syncthreads();
        if (turn == 2 && me >= 64) {
            p.out[me] = sum;
            return;
        }
    }
    if (__syncthreads_or(me == 40 && sum > 0)) sum += 1000;
    if (__syncthreads_or(0)) sum += 5000;
    p.out[me] = sum;
}

// A barrier that half of a warp comes to, while the other half waits for it.
KERNEL(64, selftest_stuck, SelfTest) {
    if (threadIdx.x >= 32 || threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncwarp();
    }
    p.out[threadIdx.x] = 1;
}

// What shared memory holds before anything is written to it.
KERNEL(32, selftest_poison, SelfTest) {
    SHARED(u32, fixed, 32);
    DYNAMIC_SHARED(dynamic);
    u32 *const asked = reinterpret_cast<u32 *>(dynamic);
    const u32 at = blockIdx.x * 64 + threadIdx.x;
    p.out[at] = fixed[threadIdx.x];
    p.out[at + 32] = asked[threadIdx.x];
    fixed[threadIdx.x] = asked[threadIdx.x] = 5;
}

// Copies that are looked at before they were waited for, and after.
KERNEL(32, selftest_copies, SelfTest) {
    SHARED(uint4, first, 32);
    SHARED(uint4, second, 32);
    const u32 me = threadIdx.x;
    const uint4 *const in = static_cast<const uint4 *>(p.in);
    first[me].y = second[me].y = 7;
    __syncthreads();
    cp_async_16(&first[me], in + me);
    cp_async_commit();
    // Of the odd ones only the first eight bytes, of lane 0 none: there is nothing to read.
    cp_async_16(&second[me], me == 0 ? nullptr : in + me, me == 0 ? 0 : me % 2 ? 8 : 16);
    cp_async_commit();
    p.out[me] = first[me].y;
    cp_async_wait<1>();
    p.out[32 + me] = first[me].y;
    p.out[64 + me] = second[me].y;
    // A neighbour's copy is there after its wait and a barrier.
    cp_async_wait<0>();
    __syncthreads();
    p.out[96 + me] = second[(me + 1) % 32].y;
    p.out[128 + me] = second[(me + 1) % 32].z;
}

// Every f16 as f32, and back.
KERNEL(256, selftest_halves, SelfTest) {
    for (u32 i = threadIdx.x; i < 65536; i += blockDim.x) {
        const float wide = to_f32(f16{u16(i)});
        p.out[i] = __float_as_uint(wide);
        p.out[65536 + i] = from_f32<f16>(wide).bits;
    }
}

// d = a * b, 16 x 16 by 16 x 16, b given by columns, and again by rows.
template <typename T> __device__ __forceinline__ void fragments(const SelfTest &p) {
    SHARED(T, memory, 3 * 256);
    const u32 lane = threadIdx.x;
    for (u32 i = lane; i < 3 * 256; i += WARP) memory[i] = static_cast<const T *>(p.in)[i];
    __syncthreads();
    u32 a[4], by_columns[4], by_rows[4];
    ldmatrix_x4(a, memory + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x4(by_columns, memory + 256 + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
    ldmatrix_x4_transposed(by_rows, memory + 512 + lane % 16 * 16 + lane / 16 * 8);
    for (u32 half = 0; half < 2; half++) {
        float d[2][4] = {};
        mma<T>(d[0], a, {by_columns[2 * half], by_columns[2 * half + 1]});
        mma<T>(d[1], a, {by_rows[2 * half], by_rows[2 * half + 1]});
        for (u32 i = 0; i < 4; i++) {
            const u32 row = lane / 4 + i / 2 * 8, column = half * 8 + 2 * (lane % 4) + i % 2;
            for (u32 k = 0; k < 2; k++) p.out[k * 256 + row * 16 + column] = __float_as_uint(d[k][i]);
        }
    }
}
KERNEL(32, selftest_fragments_f16, SelfTest) { fragments<f16>(p); }
KERNEL(32, selftest_fragments_bf16, SelfTest) { fragments<bf16>(p); }

// Mistakes: a barrier that is missing between warps, and one within a warp; and sums of floats in the order in which threads come.
KERNEL(128, selftest_race_of_warps, SelfTest) {
    SHARED(u32, line, 128);
    line[threadIdx.x] = threadIdx.x;
    __syncwarp();
    p.out[threadIdx.x] = line[127 - threadIdx.x];
}
KERNEL(32, selftest_race_in_a_warp, SelfTest) {
    SHARED(u32, line, 32);
    line[threadIdx.x] = threadIdx.x;
    p.out[threadIdx.x] = line[31 - threadIdx.x];
}
KERNEL(64, selftest_race_of_copies, SelfTest) {
    SHARED(uint4, line, 64);
    cp_async_16(&line[threadIdx.x], static_cast<const uint4 *>(p.in) + threadIdx.x);
    cp_async_commit();
    cp_async_wait<0>();
    // Only the copies of this warp are there.
    __syncwarp();
    p.out[threadIdx.x] = line[63 - threadIdx.x].y;
}
KERNEL(64, selftest_race_of_sums, SelfTest) {
    SHARED(float, sum, 1);
    if (threadIdx.x == 0) sum[0] = 0.0f;
    __syncthreads();
    atomicAdd(sum, 1.0f / float(threadIdx.x + 1));
    __syncthreads();
    p.out[threadIdx.x] = __float_as_uint(sum[0]);
}
