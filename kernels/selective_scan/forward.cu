#define MATRIX (LOW && S == 4)  // whether the matrix unit sums y over states
struct Tile {
    float2 in[2][TT][CHANNELS];      // dt, dt u
#if MATRIX
    float out[2][TT][CHANNELS + 4];  // y; so wide that a quad writes to banks apart
#else
    float out[2][TT][CHANNELS][S];   // what each lane adds to y
#endif
    float table[2][TABLE];
};

#if MATRIX
// y, the sum of h C over states. A quad of lanes holds those of a channel; a product has channels at an even step
// and at the next for rows, C at eight steps for columns. Two of these are wanted; NaN of others is not in them.
struct Output {
    float even[G][PER], c[PER], y[G][2] = {};
    __device__ __forceinline__ void begin(const Tile& m, int buffer, const Place& at, int t) {
        if (t % 8 == 0) load(&m.table[buffer][(TT + t + (at.lane >> 2)) * PAD + at.n0], c);
    }
    __device__ __forceinline__ void add(Tile& m, int buffer, const Place& at, int t, int g, const float (&h)[PER]) {
        if (t % 2 == 0) {
#pragma unroll
            for (int p = 0; p < PER; ++p) even[g][p] = h[p];
            return;
        }
        float d[4] = {};
#pragma unroll
        for (int p = 0; p < PER; p += 2) {
            const float a[4] = {even[g][p], h[p], even[g][p + 1], h[p + 1]};
            mma(d, a, c[p], c[p + 1]);
        }
        bool mine = at.s == t % 8 / 2;
        y[g][0] = mine ? d[0] : y[g][0], y[g][1] = mine ? d[3] : y[g][1];
        if (t % 8 < 7) return;
#pragma unroll
        for (int i = 0; i < 2; ++i) m.out[buffer][t - 7 + 2 * at.s + i][at.channel + g * NEXT] = y[g][i];
    }
};
#else
struct Output {
    float c[PER];
    __device__ __forceinline__ void begin(const Tile& m, int buffer, const Place& at, int t) {
        load(&m.table[buffer][(TT + t) * PAD + at.n0], c);
    }
    __device__ __forceinline__ void add(Tile& m, int buffer, const Place& at, int t, int g, const float (&h)[PER]) {
        float y = 0.f;
#pragma unroll
        for (int p = 0; p < PER; ++p) y = fmaf(h[p], c[p], y);
        m.out[buffer][t][at.channel + g * NEXT][at.s] = y;
    }
};
#endif

// y of a tile and the states after it; `mask`: the steps at which episodes start. Keeps the states before every
// KEPT-th of the `left` steps.
template <bool CUTS>
__device__ __forceinline__ void advance(Tile& m, int buffer, const Place& at, const float (&rate)[G][PER],
                                        float (&h)[G][PER], unsigned mask, float*& kept, int channels, int left) {
    Output output;
#pragma unroll
    for (int t = 0; t < TT; ++t) {
        if (KEEP && t % KEPT == 0) {
            put_states(kept, at.d, at.n0, t < left ? channels : 0, h);
            kept += size_t(channels) * N;
        }
        float b[PER];
        load(&m.table[buffer][t * PAD + at.n0], b);
        output.begin(m, buffer, at, t);
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float2 q = m.in[buffer][t][at.channel + g * NEXT];
#pragma unroll
            for (int p = 0; p < PER; ++p) {
                if (CUTS) h[g][p] = mask >> t & 1 ? 0.f : h[g][p];
                h[g][p] = fmaf(ex2(q.x * rate[g][p]), h[g][p], q.y * b[p]);
            }
            output.add(m, buffer, at, t, g, h[g]);
        }
    }
}

// What scanning warps do: all tiles, while helping warps finish the one before and prepare the next.
__device__ __forceinline__ void scan(Tile& m, const Place& at, const float* A, const unsigned char* start, float* kept,
                                     const float* state, float* final, int steps, int channels, int tiles) {
    take();
    float rate[G][PER], h[G][PER];
    get_states(A, at.d, at.n0, channels, rate);
    get_states(state, at.d, at.n0, channels, h);
#pragma unroll
    for (int i = 0; i < G * PER; ++i) rate[i / PER][i % PER] *= LOG2E;
    unsigned begins = get_start(start, 0, steps, at.lane);
    barrier();
    for (int tile = 0; tile < tiles; ++tile) {
        unsigned mask = __ballot_sync(ALL, begins != 0);
        begins = get_start(start, tile + 1, steps, at.lane);
        if (mask == 0) advance<false>(m, tile & 1, at, rate, h, mask, kept, channels, steps - tile * TT);
        else advance<true>(m, tile & 1, at, rate, h, mask, kept, channels, steps - tile * TT);
        barrier();
    }
    put_states(final, at.d, at.n0, channels, h);
}

// Pairs of elements of a tile as they come from memory.
struct Loaded {
    Pair u[EACH], delta[EACH], z[EACH];
    Value table[READS];
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) forward(
    const Value* u, const Value* delta, const float* A, const Value* B, const Value* C, const float* skip,
    const Value* z, const float* bias, const unsigned char* start, const float* state, Value* y,
    Value* ungated, float* states, float* final, int steps, int channels) {
    SHARED;
    Tile& m = *reinterpret_cast<Tile*>(memory);
    const Place at(channels, true);
    const size_t row = blockIdx.x, first_element = row * steps * channels;
    u += first_element, delta += first_element, z += first_element, y += first_element;
    ungated += first_element, B += row * steps * N, C += row * steps * N, start += start ? row * steps : 0;
    const int tiles = (steps + TT - 1) / TT;
    if (at.helper < 0) {
        scan(m, at, A, start, states + row * ((steps + KEPT - 1) / KEPT) * channels * N, state + row * channels * N,
             final + row * channels * N, steps, channels, tiles);
        return;
    }
    leave();
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
        get_table(B, C, tile, steps, at.helper, x.table);
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
        put_table(m.table[buffer], at.helper, x.table);
    };
    auto finish = [&](int tile, int buffer, const Pair (&own)[EACH], const Pair (&gates)[EACH]) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            int t = tile * TT + at.step + k * STRIDE;
            bool here = at.here && unsigned(t) < unsigned(steps);
#if MATRIX
            int step = min(at.step, TT - 1) + k * STRIDE;
            float2 sums = *reinterpret_cast<const float2*>(&m.out[buffer][step][2 * at.pair]);
            float a = sums.x, b = sums.y;
#else
            float parts[2 * S], a = 0.f, b = 0.f;
            load(&m.out[buffer][min(at.step, TT - 1) + k * STRIDE][2 * at.pair][0], parts);
#pragma unroll
            for (int i = 0; i < S; ++i) a += parts[i], b += parts[S + i];
#endif
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
#pragma unroll
    for (int k = 0; k < EACH; ++k) own1[k] = next.u[k], gates1[k] = next.z[k];
    fetch(1, next);
    barrier();
#pragma unroll 3  // so that what passes from tile to tile need not be moved
    for (int tile = 0; tile < tiles; ++tile) {
        const int buffer = tile & 1;
        finish(tile - 1, buffer ^ 1, own, gates);
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            own[k] = own1[k], gates[k] = gates1[k];
            own1[k] = next.u[k], gates1[k] = next.z[k];
        }
        prepare(tile + 1, buffer ^ 1, next);
        fetch(tile + 2, next);
        barrier();
    }
    finish(tiles - 1, (tiles - 1) & 1, own, gates);
}
