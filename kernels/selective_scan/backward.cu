constexpr int FRAGS = TT * PER / 16;  // results (16 x 8) of the matrix unit for a tile
struct Tile {
    float2 in[2][TT][CHANNELS];      // dt, dt u
    float dout[2][TT][CHANNELS];     // dL/dy before the gate
    float slope[2][TT][CHANNELS];    // of softplus
    float2 out[2][TT][CHANNELS][S];  // what each lane adds to dL/d(dt u), dL/d(dt) by way of A
    float part[2][WARPS][2 * FRAGS][32][4];  // dB, then dC, over the channels of a quad of lanes
    float table[2][TABLE];
    float2 each[CHANNELS];           // bias, D
};

// Adds up a step's values over the lanes of each quad. A result holds sixteen values of a lane, in
// the order of steps, then states; values 4i ... 4i + 3 end in lane i of the quad. By the matrix
// unit, or, APART, by shuffles: NaN of one step does not reach the others then.
template <bool APART>
__device__ __forceinline__ void gather(float (&d)[FRAGS][4], int t, const float (&v)[PER],
                                       const float (&pick)[8], int lane) {
#pragma unroll
    for (int p = 0; p < PER; p += 4) {
        const int value = t * PER + p, f = value / 16, i = value % 16 / 4;
        float x[4] = {v[p], v[p + 1], v[p + 2], v[p + 3]};
        if (APART) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                x[r] += __shfl_xor_sync(ALL, x[r], 1);
                x[r] += __shfl_xor_sync(ALL, x[r], 2);
                if ((lane & 3) == i) d[f][r == 1 ? 2 : r == 2 ? 1 : r] = x[r];
            }
            continue;
        }
#if !LOW  // the part that TF32 drops
        float rest[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            rest[r] = x[r];
            x[r] = __uint_as_float(__float_as_uint(x[r]) & 0xffffe000u);
            rest[r] -= x[r];
        }
        mma(d[f], rest, pick[2 * i], pick[2 * i + 1]);
#endif
        mma(d[f], x, pick[2 * i], pick[2 * i + 1]);
    }
}
// Into memory for `finish_table`: columns 2i, 2i + 1 of rows g, g + 8 hold values 4i, 4i + 2, 4i + 1, 4i + 3.
__device__ __forceinline__ void put_part(float (*part)[32][4], int lane, const float (&d)[FRAGS][4]) {
#pragma unroll
    for (int f = 0; f < FRAGS; ++f)
        *reinterpret_cast<float4*>(part[f][lane]) = make_float4(d[f][0], d[f][2], d[f][1], d[f][3]);
}

template <bool CUTS>
__device__ __forceinline__ void retreat(Tile& m, int buffer, const Place& at, const float (&rate)[G][PER],
                                        const float (&h0)[G][PER], float (&passed)[G][PER], float (&flows)[G][PER],
                                        unsigned mask, const float (&pick)[8]) {
    float a[TT][G][PER], h[TT][G][PER], dC[FRAGS][4] = {}, dB[FRAGS][4] = {};
#pragma unroll
    for (int t = 0; t < TT; ++t) {
        float b[PER], to_C[PER] = {};
        load(&m.table[buffer][t * PAD + at.n0], b);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float2 q2 = m.in[buffer][t][at.channel + g * NEXT];
            float4 q = make_float4(q2.x, q2.y, m.dout[buffer][t][at.channel + g * NEXT], 0.f);
#pragma unroll
            for (int p = 0; p < PER; ++p) {
                float before = t ? h[t ? t - 1 : 0][g][p] : h0[g][p];
                if (CUTS) before = mask >> t & 1 ? 0.f : before;
                a[t][g][p] = ex2(q.x * rate[g][p]);
                h[t][g][p] = fmaf(a[t][g][p], before, q.y * b[p]);
                to_C[p] = g ? fmaf(h[t][g][p], q.z, to_C[p]) : h[t][g][p] * q.z;
            }
        }
        gather<CUTS>(dC, t, to_C, pick, at.lane);
    }
    put_part(m.part[buffer][at.warp] + FRAGS, at.lane, dC);
#pragma unroll
    for (int t = TT - 1; t >= 0; --t) {
        float b[PER], c[PER], to_B[PER];
        load(&m.table[buffer][t * PAD + at.n0], b);
        load(&m.table[buffer][(TT + t) * PAD + at.n0], c);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float2 q2 = m.in[buffer][t][at.channel + g * NEXT];
            float4 q = make_float4(q2.x, q2.y, m.dout[buffer][t][at.channel + g * NEXT], 0.f);
            float driven = 0.f, exponent = 0.f;
#pragma unroll
            for (int p = 0; p < PER; ++p) {
                float before = t ? h[t ? t - 1 : 0][g][p] : h0[g][p];
                if (CUTS) before = mask >> t & 1 ? 0.f : before;
                float dh = fmaf(q.z, c[p], passed[g][p]);  // dL/dh
                to_B[p] = g ? fmaf(dh, q.y, to_B[p]) : dh * q.y;
                driven = fmaf(dh, b[p], driven);
                dh *= a[t][g][p];
                float flow = dh * before;  // dL/d(dt A)
                exponent = fmaf(flow, rate[g][p], exponent);
                flows[g][p] = fmaf(flow, q.x, flows[g][p]);
                passed[g][p] = CUTS && (mask >> t & 1) ? 0.f : dh;
            }
            m.out[buffer][t][at.channel + g * NEXT][at.s] = make_float2(driven, exponent);
        }
        gather<CUTS>(dB, t, to_B, pick, at.lane);
    }
    put_part(m.part[buffer][at.warp], at.lane, dB);
}

// What scanning warps do: all tiles, from the last to the first.
__device__ __forceinline__ void scan(Tile& m, const Place& at, const float* A, const unsigned char* start,
                                     const float* states, const float* dfinal, float* dA, float* dstate, int steps,
                                     int channels, int tiles) {
    take();
    float rate[G][PER], passed[G][PER], flows[G][PER] = {}, pick[8], h0[G][PER], h1[G][PER];
    get_states(A, at.d, at.n0, channels, rate);
    get_states(dfinal, at.d, at.n0, channels, passed);
#pragma unroll
    for (int i = 0; i < G * PER; ++i) rate[i / PER][i % PER] *= LOG2E;
#pragma unroll
    for (int i = 0; i < 8; ++i) pick[i] = at.lane >> 2 == i ? 1.f : 0.f;
    auto get_kept = [&](int tile, float (&x)[G][PER]) {
        get_states(states + size_t(max(tile, 0)) * (TT / KEPT) * channels * N, at.d, at.n0, channels, x);
    };
    get_kept(tiles - 1, h0);
    unsigned begins = get_start(start, tiles - 1, steps, at.lane);
    barrier();
    for (int i = 0; i < tiles; ++i) {
        const int tile = tiles - 1 - i;
        unsigned mask = __ballot_sync(ALL, begins != 0);
        begins = get_start(start, tile - 1, steps, at.lane);
        get_kept(tile - 1, h1);
        if (mask == 0) retreat<false>(m, i & 1, at, rate, h0, passed, flows, mask, pick);
        else retreat<true>(m, i & 1, at, rate, h0, passed, flows, mask, pick);
#pragma unroll
        for (int i = 0; i < G * PER; ++i) h0[i / PER][i % PER] = h1[i / PER][i % PER];
        barrier();
    }
    put_states(dA, at.d, at.n0, channels, flows);
    put_states(dstate, at.d, at.n0, channels, passed);
    if (HAS_D || HAS_BIAS) barrier(), barrier();  // with the others
}

struct Loaded {
    Pair u[EACH], delta[EACH], dy[EACH], z[EACH], ungated[EACH];
    Value table[READS];
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward(
    const Value* u, const Value* delta, const float* A, const Value* B, const Value* C, const float* skip,
    const Value* z, const float* bias, const unsigned char* start, const Value* ungated, const float* states,
    const Value* dy, const float* dfinal, Value* du, Value* ddelta, float* dA, float* dB, float* dC,
    float* dD, Value* dz, float* dbias, float* dstate, int steps, int channels) {
    SHARED;
    Tile& m = *reinterpret_cast<Tile*>(memory);
    const Place at(channels, false);
    const size_t row = blockIdx.x, first_element = row * steps * channels;
    u += first_element, delta += first_element, z += first_element, ungated += first_element;
    dy += first_element, du += first_element, ddelta += first_element, dz += first_element;
    B += row * steps * N, C += row * steps * N, start += start ? row * steps : 0;
    const size_t part_row = (size_t(blockIdx.y) * gridDim.x + row) * steps * N;
    dB += part_row, dC += part_row;
    const int tiles = (steps + TT - 1) / TT;
    float2 sum_D = make_float2(0.f, 0.f), sum_bias = sum_D;
    for (int k = threadIdx.x; k < CHANNELS; k += THREADS) {
        int d = blockIdx.y * CHANNELS + k;
        m.each[k] = make_float2(HAS_BIAS && d < channels ? bias[d] : 0.f, HAS_D && d < channels ? skip[d] : 0.f);
    }
    barrier();
    if (at.helper < 0) {
        const size_t all = row * channels * N;
        scan(m, at, A, start, states + row * ((steps + KEPT - 1) / KEPT) * channels * N, dfinal + all, dA + all,
             dstate + all, steps, channels, tiles);
        return;
    }
    leave();

    auto fetch = [&](int tile, Loaded& x) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            int t = tile * TT + at.step + k * STRIDE;
            bool here = at.here && unsigned(t) < unsigned(steps);
            unsigned where = unsigned(t) * channels + at.d2;
            x.u[k] = get(u + where, here, at.both);
            x.delta[k] = get(delta + where, here, at.both);
            x.dy[k] = get(dy + where, here, at.both);
            if (HAS_Z) x.z[k] = get(z + where, here, at.both), x.ungated[k] = get(ungated + where, here, at.both);
        }
        get_table(B, C, tile, steps, at.helper, x.table);
    };
    auto one_channel = [&](float x, float raw, float dout, float shift, bool here) {
        float dt = raw + shift, slope = 1.f;
        if (SOFTPLUS) {
            float e = fall(dt), r = rcp(1.f + e);
            slope = dt >= 0.f ? r : e * r;
            dt = softplus(dt, e);
        }
        if (!here) dt = 0.f;
        return make_float4(dt, dt * x, dout, slope);
    };
    auto prepare = [&](int tile, int buffer, const Loaded& l) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            int step = at.step + k * STRIDE, t = tile * TT + step;
            bool here = at.here && unsigned(t) < unsigned(steps);
            float2 x = wide(l.u[k]), raw = wide(l.delta[k]), dout = wide(l.dy[k]);
            float4 shift = *reinterpret_cast<const float4*>(&m.each[2 * at.pair]);
            if (HAS_Z) {
                float2 gate = wide(l.z[k]), out = wide(l.ungated[k]);
                float sx = sigmoid(gate.x), sy = sigmoid(gate.y);
                put(here, dz + (unsigned(t) * channels + at.d2),
                    close(dout.x * out.x * sx * fmaf(gate.x, 1.f - sx, 1.f),
                          dout.y * out.y * sy * fmaf(gate.y, 1.f - sy, 1.f)), at.both);
                dout.x *= gate.x * sx, dout.y *= gate.y * sy;
            }
            if (!at.owner) continue;
            float4 q = one_channel(x.x, raw.x, dout.x, shift.x, here);
            float4 r = one_channel(x.y, raw.y, dout.y, shift.z, here && (EVEN || at.both));
            *reinterpret_cast<float4*>(&m.in[buffer][step][2 * at.pair]) = make_float4(q.x, q.y, r.x, r.y);
            *reinterpret_cast<float2*>(&m.dout[buffer][step][2 * at.pair]) = make_float2(q.z, r.z);
            *reinterpret_cast<float2*>(&m.slope[buffer][step][2 * at.pair]) = make_float2(q.w, r.w);
        }
        put_table(m.table[buffer], at.helper, l.table);
    };
    auto finish = [&](int tile, int buffer, const Pair (&own)[EACH]) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            int step = min(at.step, TT - 1) + k * STRIDE, t = tile * TT + step;
            bool here = at.here && unsigned(t) < unsigned(steps);
            float parts[4 * S], sums[4] = {};
            load(&m.out[buffer][step][2 * at.pair][0].x, parts);
#pragma unroll
            for (int i = 0; i < 4 * S; ++i) sums[i / (2 * S) * 2 + i % 2] += parts[i];
            float2 x = wide(own[k]);
            float4 qr = *reinterpret_cast<const float4*>(&m.in[buffer][step][2 * at.pair]);
            float2 dd = *reinterpret_cast<const float2*>(&m.dout[buffer][step][2 * at.pair]);
            float2 ss = *reinterpret_cast<const float2*>(&m.slope[buffer][step][2 * at.pair]);
            float4 q = make_float4(qr.x, qr.y, dd.x, ss.x), r = make_float4(qr.z, qr.w, dd.y, ss.y);
            float4 D = *reinterpret_cast<const float4*>(&m.each[2 * at.pair]);
            unsigned where = unsigned(t) * channels + at.d2;
            float ux = q.x * sums[0], uy = r.x * sums[2];
            if (HAS_D) {
                ux = fmaf(D.y, q.z, ux), uy = fmaf(D.w, r.z, uy);
                sum_D.x += here ? q.z * x.x : 0.f, sum_D.y += here ? r.z * x.y : 0.f;
            }
            float rx = fmaf(x.x, sums[0], sums[1] * (1.f / LOG2E)) * q.w;
            float ry = fmaf(x.y, sums[2], sums[3] * (1.f / LOG2E)) * r.w;
            if (HAS_BIAS) sum_bias.x += here ? rx : 0.f, sum_bias.y += here ? ry : 0.f;
            put(here, du + where, close(ux, uy), at.both);
            put(here, ddelta + where, close(rx, ry), at.both);
        }
    };
    auto finish_table = [&](int tile, int buffer) {  // over warps, and quads of the same states; two neighbours
#pragma unroll
        for (int i = 0; i < (READS + 1) / 2; ++i) {
            int o = 2 * (at.helper + i * HELPERS);
            if (TABLE % (2 * HELPERS) != 0) o = min(o, TABLE - 2);
            int which = o / (TT * PAD), v = o % (TT * PAD), f = v / (16 * S), lane = v / 4 % (4 * S), r = v % 4;
            float2 sum = make_float2(0.f, 0.f);
#pragma unroll
            for (int w = 0; w < WARPS; ++w)
#pragma unroll
                for (int high = 0; high < 8 / S; ++high) {
                    auto& x = m.part[buffer][w][which * FRAGS + f][high * 4 * S + lane][r];
                    float2 two = reinterpret_cast<const float2&>(x);
                    sum.x += two.x, sum.y += two.y;
                }
            int j = f * 16 + lane % 4 * 4 + r, t = tile * TT + j / PER, n = lane / 4 * PER + j % PER;
            bool here = unsigned(t) < unsigned(steps);
            float* to = (which ? dC : dB) + unsigned(t * N + n);
            if (N == PAD) {
                put_if(here, reinterpret_cast<float2*>(to), sum);
                continue;
            }
            put_if(here && n < N, to, sum.x);
            put_if(here && n + 1 < N, to + 1, sum.y);
        }
    };

    Loaded next;
    Pair own[EACH] = {}, own1[EACH];  // of the tile after, and of this one
    fetch(tiles - 1, next);
    prepare(tiles - 1, 0, next);
#pragma unroll
    for (int k = 0; k < EACH; ++k) own1[k] = next.u[k];
    fetch(tiles - 2, next);
    barrier();
    for (int i = 0; i < tiles; ++i) {
        const int buffer = i & 1, tile = tiles - 1 - i;
        finish(tile + 1, buffer ^ 1, own);
        finish_table(tile + 1, buffer ^ 1);
#pragma unroll
        for (int k = 0; k < EACH; ++k) own[k] = own1[k], own1[k] = next.u[k];
        prepare(tile - 1, buffer ^ 1, next);
        fetch(tile - 2, next);
        barrier();
    }
    finish(0, (tiles - 1) & 1, own);
    finish_table(0, (tiles - 1) & 1);
    if (!HAS_D && !HAS_BIAS) return;
    barrier();
    float4* sums = reinterpret_cast<float4*>(memory);  // of all threads of a pair
    sums[at.helper] = make_float4(sum_D.x, sum_D.y, sum_bias.x, sum_bias.y);
    barrier();
    if (at.helper < PAIRS && at.here) {
        float4 total = sums[at.helper];
        for (int k = at.helper + PAIRS; k < HELPERS; k += PAIRS) {
            float4 x = sums[k];
            total.x += x.x, total.y += x.y, total.z += x.z, total.w += x.w;
        }
        float *to_D = dD + row * channels + at.d2, *to_bias = dbias + row * channels + at.d2;
        if (HAS_D) to_D[0] = total.x;
        if (HAS_D && at.both) to_D[1] = total.y;
        if (HAS_BIAS) to_bias[0] = total.z;
        if (HAS_BIAS && at.both) to_bias[1] = total.w;
    }
}
