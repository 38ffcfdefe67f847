// Rotary embedding (Su et al. 2021): pairs of a head's elements, turned by an angle.
#pragma once

#include "genie.cuh"

// Sine and cosine of an angle of any size, to 2 units in the last place of 1: the remainder by half a turn's half is taken in f64,
// which keeps the part that f32 would lose.
__device__ __forceinline__ void sine_and_cosine(float angle, float &sine, float &cosine) {
    const double quarters = rint(double(angle) * 0.63661977236758134);
    const float x = float(fma(-quarters, 1.5707963267948966, double(angle))), xx = x * x;
    // Taylor's series to the terms that f32 holds up to pi / 4.
    float s = fmaf(xx, 2.7557319e-6f, -1.9841270e-4f);
    s = fmaf(xx, s, 8.3333333e-3f);
    s = fmaf(xx, s, -0.16666667f);
    s = fmaf(xx * s, x, x);
    float c = fmaf(xx, -2.7557319e-7f, 2.4801587e-5f);
    c = fmaf(xx, c, -1.3888889e-3f);
    c = fmaf(xx, c, 4.1666667e-2f);
    c = fmaf(xx, c, -0.5f);
    c = fmaf(xx, c, 1.0f);
    const u32 quadrant = u32(i64(quarters)) & 3;
    sine = quadrant & 1 ? c : s;
    cosine = quadrant & 1 ? s : c;
    if (quadrant & 2) sine = -sine;
    if (quadrant == 1 || quadrant == 2) cosine = -cosine;
}

// The pair, turned. Products and sums are rounded as they stand here, so that every kernel gives the same bits.
__device__ __forceinline__ float2 turned(float a, float b, float sine, float cosine) {
    return make_float2(__fmul_rn(a, cosine) - __fmul_rn(b, sine), __fmul_rn(b, cosine) + __fmul_rn(a, sine));
}
