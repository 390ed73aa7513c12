struct Tile {
    float2 in[2][TT][CHANNELS];     // dt, dt u
    float out[2][TT][CHANNELS][S];  // what each lane adds to y
    float table[2][TABLE];
};

// y of a tile, in parts, and the states after it; `mask`: the steps at which episodes start. Keeps the
// states before every KEPT-th of the `left` steps.
template <bool CUTS>
__device__ __forceinline__ void advance(Tile& m, int buffer, const Place& at, const float (&rate)[G][PER],
                                        float (&h)[G][PER], unsigned mask, float*& kept, int channels, int left) {
#pragma unroll
    for (int t = 0; t < TT; ++t) {
        if (KEEP && t % KEPT == 0) {
            put_states(kept, at.d, at.n0, t < left ? channels : 0, h);
            kept += size_t(channels) * N;
        }
        float b[PER], c[PER];
        load(&m.table[buffer][t * PAD + at.n0], b);
        load(&m.table[buffer][(TT + t) * PAD + at.n0], c);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float2 q = m.in[buffer][t][at.channel + g * NEXT];
            float y = 0.f;
#pragma unroll
            for (int p = 0; p < PER; ++p) {
                if (CUTS) h[g][p] = mask >> t & 1 ? 0.f : h[g][p];
                h[g][p] = fmaf(ex2(q.x * rate[g][p]), h[g][p], q.y * b[p]);
                y = fmaf(h[g][p], c[p], y);
            }
            m.out[buffer][t][at.channel + g * NEXT][at.s] = y;
        }
    }
}

// Pairs of elements of a tile as they come from memory.
struct Loaded {
    Pair u[EACH], delta[EACH], z[EACH];
    Value table[READS];
    unsigned start;
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT / WARPS) forward(
    const Value* u, const Value* delta, const float* A, const Value* B, const Value* C, const float* skip,
    const Value* z, const float* bias, const unsigned char* start, const float* state, Value* y,
    Value* ungated, float* states, float* final, int steps, int channels) {
    SHARED;
    Tile& m = *reinterpret_cast<Tile*>(memory);
    const Place at(channels);
    const size_t row = blockIdx.x, first_element = row * steps * channels;
    u += first_element, delta += first_element, z += first_element, y += first_element;
    ungated += first_element, B += row * steps * N, C += row * steps * N, start += row * steps;
    const int tiles = (steps + TT - 1) / TT;
    float rate[G][PER], h[G][PER];
    get_states(A, at.d, at.n0, channels, rate);
    get_states(state + row * channels * N, at.d, at.n0, channels, h);
#pragma unroll
    for (int i = 0; i < G * PER; ++i) rate[i / PER][i % PER] *= LOG2E;
    float2 shift = make_float2(0.f, 0.f), D = shift;
    if (HAS_BIAS) shift = make_float2(at.here ? bias[at.d2] : 0.f, at.both ? bias[at.d2 + 1] : 0.f);
    if (HAS_D) D = make_float2(at.here ? skip[at.d2] : 0.f, at.both ? skip[at.d2 + 1] : 0.f);

    auto fetch = [&](int tile, Loaded& x) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            int t = tile * TT + at.step + k * STRIDE;
            bool here = at.here && t < steps;
            unsigned where = unsigned(t) * channels + at.d2;
            x.u[k] = get(u + where, here, at.both);
            x.delta[k] = get(delta + where, here, at.both);
            if (HAS_Z) x.z[k] = get(z + where, here, at.both);
        }
        get_table(B, C, tile, steps, x.table);
        x.start = get_start(start, tile, steps, at.lane);
    };
    auto prepare = [&](int tile, int buffer, const Loaded& x) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            float2 v = wide(x.u[k]), dt = wide(x.delta[k]);
            if (HAS_BIAS) dt.x += shift.x, dt.y += shift.y;
            if (SOFTPLUS) dt = make_float2(softplus(dt.x, fall(dt.x)), softplus(dt.y, fall(dt.y)));
            if (tile * TT + at.step + k * STRIDE >= steps) dt = make_float2(0.f, 0.f);  // passes states on
            if (at.owner) *reinterpret_cast<float4*>(&m.in[buffer][at.step + k * STRIDE][2 * at.pair]) =
                make_float4(dt.x, dt.x * v.x, dt.y, dt.y * v.y);
        }
        put_table(m.table[buffer], x.table);
    };
    auto finish = [&](int tile, int buffer, const Pair (&own)[EACH], const Pair (&gates)[EACH]) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            int t = tile * TT + at.step + k * STRIDE;
            bool here = at.here && unsigned(t) < unsigned(steps);
            float parts[2 * S], a = 0.f, b = 0.f;
            load(&m.out[buffer][min(at.step, TT - 1) + k * STRIDE][2 * at.pair][0], parts);
#pragma unroll
            for (int i = 0; i < S; ++i) a += parts[i], b += parts[S + i];
            float2 x = wide(own[k]);
            if (HAS_D) a = fmaf(D.x, x.x, a), b = fmaf(D.y, x.y, b);
            unsigned where = unsigned(t) * channels + at.d2;
            if (HAS_Z) {
                if (KEEP) put(here, ungated + where, close(a, b), at.both);
                float2 gate = wide(gates[k]);
                a *= gate.x * sigmoid(gate.x), b *= gate.y * sigmoid(gate.y);
            }
            put(here, y + where, close(a, b), at.both);
        }
    };

    Loaded next;
    Pair own[EACH] = {}, gates[EACH] = {}, own1[EACH], gates1[EACH];  // of the tile before, and of this one
    fetch(0, next);
    prepare(0, 0, next);
    unsigned begins = next.start;
#pragma unroll
    for (int k = 0; k < EACH; ++k) own1[k] = next.u[k], gates1[k] = next.z[k];
    fetch(1, next);
    float* kept = states + row * ((steps + KEPT - 1) / KEPT) * channels * N;
    __syncthreads();
    for (int tile = 0; tile < tiles; ++tile) {
        const int buffer = tile & 1;
        unsigned mask = CUT ? __ballot_sync(ALL, begins != 0) : 0;
        auto body = [&](auto cuts) {  // one block of code, whose parts wait for each other as little as may be
            finish(tile - 1, buffer ^ 1, own, gates);
#pragma unroll
            for (int k = 0; k < EACH; ++k) own[k] = own1[k], gates[k] = gates1[k], own1[k] = next.u[k], gates1[k] = next.z[k];
            begins = next.start;
            prepare(tile + 1, buffer ^ 1, next);
            fetch(tile + 2, next);
            advance<decltype(cuts)::value>(m, buffer, at, rate, h, mask, kept, channels, steps - tile * TT);
        };
        if (!CUT || mask == 0) body(Flag<false>());
        else body(Flag<true>());
        __syncthreads();
    }
    finish(tiles - 1, (tiles - 1) & 1, own, gates);
    put_states(final + row * channels * N, at.d, at.n0, channels, h);
}
