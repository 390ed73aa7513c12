constexpr int FRAGS = TT * PER / 16;  // results (16 x 8) of the matrix unit for a tile
struct Tile {
    float4 in[2][TT][CHANNELS];      // dt, dt u, dL/dy before the gate, slope of softplus
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
            float4 q = m.in[buffer][t][at.channel + g * NEXT];
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
            float4 q = m.in[buffer][t][at.channel + g * NEXT];
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

struct Loaded {
    Pair u[EACH], delta[EACH], dy[EACH], z[EACH], ungated[EACH];
    Value table[READS];
    unsigned start;
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT / WARPS) backward(
    const Value* u, const Value* delta, const float* A, const Value* B, const Value* C, const float* skip,
    const Value* z, const float* bias, const unsigned char* start, const Value* ungated, const float* states,
    const Value* dy, const float* dfinal, Value* du, Value* ddelta, float* dA, float* dB, float* dC,
    float* dD, Value* dz, float* dbias, float* dstate, int steps, int channels) {
    SHARED;
    Tile& m = *reinterpret_cast<Tile*>(memory);
    const Place at(channels);
    const size_t row = blockIdx.x, first_element = row * steps * channels;
    u += first_element, delta += first_element, z += first_element, ungated += first_element;
    dy += first_element, du += first_element, ddelta += first_element, dz += first_element;
    B += row * steps * N, C += row * steps * N, start += row * steps;
    const size_t part_row = (size_t(blockIdx.y) * gridDim.x + row) * steps * N;
    dB += part_row, dC += part_row;
    const int tiles = (steps + TT - 1) / TT;
    float rate[G][PER], passed[G][PER], flows[G][PER] = {}, pick[8], h0[G][PER], h1[G][PER];
    get_states(A, at.d, at.n0, channels, rate);
    get_states(dfinal + row * channels * N, at.d, at.n0, channels, passed);
#pragma unroll
    for (int i = 0; i < G * PER; ++i) rate[i / PER][i % PER] *= LOG2E;
#pragma unroll
    for (int i = 0; i < 8; ++i) pick[i] = at.lane >> 2 == i ? 1.f : 0.f;
    float2 sum_D = make_float2(0.f, 0.f), sum_bias = sum_D;
    for (int k = threadIdx.x; k < CHANNELS; k += THREADS) {
        int d = blockIdx.y * CHANNELS + k;
        m.each[k] = make_float2(HAS_BIAS && d < channels ? bias[d] : 0.f, HAS_D && d < channels ? skip[d] : 0.f);
    }
    __syncthreads();

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
        get_table(B, C, tile, steps, x.table);
        x.start = get_start(start, tile, steps, at.lane);
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
            m.in[buffer][step][2 * at.pair] = one_channel(x.x, raw.x, dout.x, shift.x, here);
            m.in[buffer][step][2 * at.pair + 1] = one_channel(x.y, raw.y, dout.y, shift.z, here && (EVEN || at.both));
        }
        put_table(m.table[buffer], l.table);
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
            float4 q = m.in[buffer][step][2 * at.pair], r = m.in[buffer][step][2 * at.pair + 1];
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
    auto finish_table = [&](int tile, int buffer) {  // over warps, and quads of the same states
#pragma unroll
        for (int i = 0; i < READS; ++i) {
            int o = threadIdx.x + i * THREADS;
            if (TABLE % THREADS != 0) o = min(o, TABLE - 1);
            int which = o / (TT * PAD), v = o % (TT * PAD), f = v / (16 * S), lane = v / 4 % (4 * S), r = v % 4;
            float sum = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; ++w)
#pragma unroll
                for (int high = 0; high < 8 / S; ++high)
                    sum += m.part[buffer][w][which * FRAGS + f][high * 4 * S + lane][r];
            int j = f * 16 + lane % 4 * 4 + r, t = tile * TT + j / PER, n = lane / 4 * PER + j % PER;
            bool here = unsigned(t) < unsigned(steps) && (N == PAD || n < N);
            put_if(here, (which ? dC : dB) + unsigned(t * N + n), sum);
        }
    };
    auto get_kept = [&](int tile, float (&x)[G][PER]) {
        const size_t kept = row * ((steps + KEPT - 1) / KEPT) + max(tile, 0) * (TT / KEPT);
        get_states(states + kept * channels * N, at.d, at.n0, channels, x);
    };

    Loaded next;
    Pair own[EACH] = {}, own1[EACH];  // of the tile after, and of this one
    fetch(tiles - 1, next);
    prepare(tiles - 1, 0, next);
    get_kept(tiles - 1, h0);
    unsigned begins = next.start;
#pragma unroll
    for (int k = 0; k < EACH; ++k) own1[k] = next.u[k];
    fetch(tiles - 2, next);
    __syncthreads();
    for (int i = 0; i < tiles; ++i) {
        const int buffer = i & 1, tile = tiles - 1 - i;
        unsigned mask = CUT ? __ballot_sync(ALL, begins != 0) : 0;
        auto body = [&](auto cuts) {  // one block of code, whose parts wait for each other as little as may be
            finish(tile + 1, buffer ^ 1, own);
            finish_table(tile + 1, buffer ^ 1);
#pragma unroll
            for (int k = 0; k < EACH; ++k) own[k] = own1[k], own1[k] = next.u[k];
            begins = next.start;
            prepare(tile - 1, buffer ^ 1, next);
            fetch(tile - 2, next);
            get_kept(tile - 1, h1);
            retreat<decltype(cuts)::value>(m, buffer, at, rate, h0, passed, flows, mask, pick);
#pragma unroll
            for (int i = 0; i < G * PER; ++i) h0[i / PER][i % PER] = h1[i / PER][i % PER];
        };
        if (!CUT || mask == 0) body(Flag<false>());
        else body(Flag<true>());
        __syncthreads();
    }
    finish(0, (tiles - 1) & 1, own);
    finish_table(0, (tiles - 1) & 1);
    put_states(dA + row * channels * N, at.d, at.n0, channels, flows);
    put_states(dstate + row * channels * N, at.d, at.n0, channels, passed);
    if (!HAS_D && !HAS_BIAS) return;
    __syncthreads();
    float4* sums = reinterpret_cast<float4*>(memory);  // of all threads of a pair
    sums[threadIdx.x] = make_float4(sum_D.x, sum_D.y, sum_bias.x, sum_bias.y);
    __syncthreads();
    if (threadIdx.x < PAIRS && at.here) {
        float4 total = sums[threadIdx.x];
        for (int k = threadIdx.x + PAIRS; k < THREADS; k += PAIRS) {
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
