// Selective scan for CUDA: what the forward and the backward kernel share. Compiled for one case:
// N states; S lanes share G channels, PER states of each; TT steps a tile; WARPS scan, HELP more do what is before
// and after that, with HOLD_SCAN and HOLD_HELP registers a thread; LOW: bfloat16 in place of float32; EVEN: the number
// of channels is; HAS_D, HAS_Z, HAS_BIAS, SOFTPLUS, KEEP.
constexpr unsigned ALL = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f;
constexpr int SCANNERS = 32 * WARPS, HELPERS = 32 * HELP;
constexpr int NEXT = 32 / S, CHANNELS = WARPS * NEXT * G, PAIRS = CHANNELS / 2;
constexpr int PAD = PER * S, TABLE = 2 * TT * PAD, READS = (TABLE + HELPERS - 1) / HELPERS;
constexpr int STRIDE = HELPERS / PAIRS, EACH = TT > STRIDE ? TT / STRIDE : 1;  // pairs of elements a helper and tile
#if __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool HOLDS = HOLD_SCAN > 0;  // else each thread has as many, and one block all if it needs them
#else
constexpr bool HOLDS = false;
#endif
constexpr int THREADS = SCANNERS + HELPERS, BLOCKS = HOLD_SCAN > 160 && !HOLDS ? 1 : 32 * RESIDENT / THREADS;
// A multiprocessor has 65,536 registers; those that scan would wait for more than there are without end.
static_assert(!HOLDS || WARPS * HOLD_SCAN + HELP * HOLD_HELP <= (WARPS + HELP) * (65536 / (BLOCKS * THREADS) / 8 * 8),
              "registers");
static_assert((TT % STRIDE == 0 || STRIDE > TT) && TT * PER % 16 == 0 && PER % 4 == 0, "tile");

#ifndef ON_CPU  // else tests/kernels/emulate.h has them
#define SHARED extern __shared__ __align__(16) char memory[]
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float rcp(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ unsigned narrow(float a, float b) {
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(b), "f"(a));
    return y;
}
__device__ __forceinline__ void barrier() { asm volatile("bar.sync 0;" ::: "memory"); }  // wherever a warp stands
// Registers a thread, of all four warps in step: those that scan take what those that help leave.
__device__ __forceinline__ void take() {
    if constexpr (HOLDS) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(HOLD_SCAN));
}
__device__ __forceinline__ void leave() {
    if constexpr (HOLDS) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(HOLD_HELP));
}
// d += a b, (16 x 8) (8 x 8), in TF32; what each lane holds: PTX, "Matrix fragments for mma.m16n8k8".
__device__ __forceinline__ void mma(float (&d)[4], const float (&a)[4], float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
// Stores under a predicate in place of a branch, around which nothing could be moved.
__device__ __forceinline__ void put_if(bool ok, unsigned short* p, unsigned short x) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.b16 [%1], %2;}" ::"r"(int(ok)), "l"(p), "h"(x));
}
__device__ __forceinline__ void put_if(bool ok, unsigned* p, unsigned x) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.b32 [%1], %2;}" ::"r"(int(ok)), "l"(p), "r"(x));
}
__device__ __forceinline__ void put_if(bool ok, float* p, float x) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.f32 [%1], %2;}" ::"r"(int(ok)), "l"(p), "f"(x));
}
__device__ __forceinline__ void put_if(bool ok, float2* p, float2 x) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.v2.f32 [%1], {%2, %3};}"
                 ::"r"(int(ok)), "l"(p), "f"(x.x), "f"(x.y));
}
__device__ __forceinline__ void put_if(bool ok, float4* p, float4 x) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.v4.f32 [%1], {%2, %3, %4, %5};}"
                 ::"r"(int(ok)), "l"(p), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w));
}
#endif

// Two neighbouring channels of u, delta, z ...: Pair as they lie in memory, float2 to compute with.
#if LOW
typedef unsigned short Value;
typedef unsigned Pair;
__device__ __forceinline__ float one(Value x) { return __uint_as_float(unsigned(x) << 16); }
__device__ __forceinline__ float2 wide(Pair x) {
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
}
__device__ __forceinline__ Pair close(float a, float b) { return narrow(a, b); }
__device__ __forceinline__ Pair join(Value a, Value b) { return a | (unsigned(b) << 16); }
__device__ __forceinline__ Value first(Pair x) { return Value(x); }
__device__ __forceinline__ Value second(Pair x) { return Value(x >> 16); }
#else
typedef float Value;
typedef float2 Pair;
__device__ __forceinline__ float one(Value x) { return x; }
__device__ __forceinline__ float2 wide(Pair x) { return x; }
__device__ __forceinline__ Pair close(float a, float b) { return make_float2(a, b); }
__device__ __forceinline__ Pair join(Value a, Value b) { return make_float2(a, b); }
__device__ __forceinline__ Value first(Pair x) { return x.x; }
__device__ __forceinline__ Value second(Pair x) { return x.y; }
#endif

// `here`: the first of both exists; `both`: the second too (the same where EVEN).
__device__ __forceinline__ Pair get(const Value* p, bool here, bool both) {
#if EVEN
    return here ? *reinterpret_cast<const Pair*>(p) : join(Value(0), Value(0));
#else
    return join(here ? p[0] : Value(0), here && both ? p[1] : Value(0));
#endif
}
__device__ __forceinline__ void put(bool here, Value* p, Pair x, bool both) {
#if EVEN
    put_if(here, reinterpret_cast<Pair*>(p), x);
#else
    put_if(here, p, first(x));
    put_if(here && both, p + 1, second(x));
#endif
}

__device__ __forceinline__ float sigmoid(float x) { return rcp(1.f + ex2(-x * LOG2E)); }

// e = exp(-|x|), with which softplus(x) = max(x, 0) + log(1 + e): a polynomial, relative error 2e-7.
__device__ __forceinline__ float fall(float x) { return ex2(fabsf(x) * -LOG2E); }
__device__ __forceinline__ float softplus(float x, float e) {
    float r = fmaf(e, 0.005232629366219044f, -0.029504986479878426f);
    r = fmaf(e, r, 0.07822556048631668f);
    r = fmaf(e, r, -0.13663214445114136f);
    r = fmaf(e, r, 0.1910599321126938f);
    r = fmaf(e, r, -0.2484297901391983f);
    r = fmaf(e, r, 0.3331909775733948f);
    r = fmaf(e, r, -0.4999949336051941f);
    r = fmaf(e, r, 0.9999999403953552f);
    return fmaf(e, r, fmaxf(x, 0.f));
}

template <int COUNT>
__device__ __forceinline__ void load(const float* p, float (&x)[COUNT]) {
    if constexpr (COUNT == 2) {
        float2 v = *reinterpret_cast<const float2*>(p);
        x[0] = v.x, x[1] = v.y;
        return;
    } else
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        float4 v = *reinterpret_cast<const float4*>(p + i);
        x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
}
// This lane's states of its channels: (channels, N) at `p`, of which the lane's are d, d + NEXT ...
__device__ __forceinline__ void get_states(const float* p, int d, int n0, int channels, float (&x)[G][PER]) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
        bool live = d + g * NEXT < channels;
        const float* from = p + size_t(d + g * NEXT) * N + n0;
#pragma unroll
        for (int i = 0; i < PER; i += 4) {
            float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
            if (N == PAD && live) v = *reinterpret_cast<const float4*>(from + i);
            x[g][i] = v.x, x[g][i + 1] = v.y, x[g][i + 2] = v.z, x[g][i + 3] = v.w;
        }
        if (N == PAD) continue;
#pragma unroll
        for (int i = 0; i < PER; ++i) x[g][i] = live && n0 + i < N ? from[i] : 0.f;
    }
}
__device__ __forceinline__ void put_states(float* p, int d, int n0, int channels, const float (&x)[G][PER]) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
        bool live = d + g * NEXT < channels;
        float* to = p + size_t(d + g * NEXT) * N + n0;
        if (N == PAD) {
#pragma unroll
            for (int i = 0; i < PER; i += 4)
                put_if(live, reinterpret_cast<float4*>(to + i),
                       make_float4(x[g][i], x[g][i + 1], x[g][i + 2], x[g][i + 3]));
            continue;
        }
#pragma unroll
        for (int i = 0; i < PER; ++i) put_if(live && n0 + i < N, to + i, x[g][i]);
    }
}

// Of a thread that scans: one of the S lanes of `channel` and the G - 1 others at NEXT after it. Of one that
// helps: owner of pair `pair` at every STRIDE-th step. A quad of lanes is four channels or, `beside`, lanes of one.
struct Place {
    int lane, warp, s, channel, d, n0, helper, pair, step, d2;
    bool owner, here, both;
    __device__ __forceinline__ Place(int channels, bool beside) {
        lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        s = beside ? lane % S : (lane >> 2) % S, n0 = s * PER;
        channel = warp * NEXT * G + (beside ? lane / S : (lane >> 2) / S * 4 + (lane & 3));
        d = blockIdx.y * CHANNELS + channel;
        helper = int(threadIdx.x) - SCANNERS;
        pair = helper % PAIRS, step = helper / PAIRS, d2 = blockIdx.y * CHANNELS + 2 * pair;
        owner = STRIDE <= TT || step < TT, here = owner && d2 < channels, both = d2 + 1 < channels;
    }
};

// B, then C, of a tile; in registers until it is written. B and C at the row.
__device__ __forceinline__ void get_table(const Value* B, const Value* C, int tile, int steps, int helper,
                                          Value (&x)[READS]) {
#pragma unroll
    for (int i = 0; i < READS; ++i) {
        int k = helper + i * HELPERS, n = k % PAD, t = tile * TT + k / PAD % TT;
        bool ok = (N == PAD || n < N) && (TABLE % HELPERS == 0 || k < TABLE) && unsigned(t) < unsigned(steps);
        x[i] = ok ? (k < TT * PAD ? B : C)[unsigned(t * N + n)] : Value(0);
    }
}
__device__ __forceinline__ void put_table(float* table, int helper, const Value (&x)[READS]) {
#pragma unroll
    for (int i = 0; i < READS; ++i) {
        int k = helper + i * HELPERS;
        if (TABLE % HELPERS == 0 || k < TABLE) table[k] = one(x[i]);
    }
}
// Whether an episode starts at the step of this lane; none does where `start` is null.
__device__ __forceinline__ unsigned get_start(const unsigned char* start, int tile, int steps, int lane) {
    int t = tile * TT + lane;
    return start && lane < TT && unsigned(t) < unsigned(steps) ? start[t] : 0;
}

template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};
