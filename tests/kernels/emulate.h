// CUDA C++ on a CPU: a block's threads as fibers of one thread that meet at barriers. For tests.
// Included before a kernel; SWITCHES of it are read from `switches` in place of being compiled in.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#define ON_CPU
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED
using std::max;
using std::min;

struct Index { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static Index threadIdx, blockIdx, blockDim, gridDim;
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }

// Called where something is read or written at an address that its type does not allow (-fsanitize=alignment).
static int misaligned_count;
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) { ++misaligned_count; }
extern "C" int misaligned() { return misaligned_count; }

struct Fiber { ucontext_t context; std::vector<char> stack; bool done; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned running;
static std::function<void()> body;
alignas(16) static char memory[1 << 18];  // shared by a block, NaN before it starts

static void yield() { swapcontext(&fibers[running].context, &scheduler); }
struct Barrier {
    unsigned count = 0, generation = 0;
    void wait(unsigned all) {
        unsigned mine = generation;
        if (++count == all) count = 0, ++generation;
        else while (mine == generation) yield();
    }
};
static Barrier of_block, of_warp[32];
static float exchange[32][32][8];
static void barrier() { of_block.wait(blockDim.x); }
static void take() {}
static void leave() {}
static void meet() { of_warp[threadIdx.x >> 5].wait(32); }

static unsigned __ballot_sync(unsigned, bool vote) {
    unsigned warp = threadIdx.x >> 5, votes = 0;
    exchange[warp][threadIdx.x & 31][0] = vote;
    meet();
    for (int i = 0; i < 32; ++i) votes |= unsigned(exchange[warp][i][0] != 0) << i;
    meet();
    return votes;
}
static float __shfl_xor_sync(unsigned, float x, int mask) {
    unsigned warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    exchange[warp][lane][0] = x;
    meet();
    float found = exchange[warp][lane ^ mask][0];
    meet();
    return found;
}
// mma.m16n8k8 on TF32, with the layout of fragments that PTX documents.
static void mma(float (&d)[4], const float (&a)[4], float b0, float b1) {
    unsigned warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    float given[6] = {a[0], a[1], a[2], a[3], b0, b1};
    for (int i = 0; i < 6; ++i)
        exchange[warp][lane][i] = __uint_as_float(__float_as_uint(given[i]) & 0xffffe000u);
    meet();
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; ++k)
            d[i] += exchange[warp][row % 8 * 4 + k % 4][(row >= 8) + 2 * (k >= 4)] *
                    exchange[warp][column * 4 + k % 4][4 + (k >= 4)];
    }
    meet();
}
template <class T>
static void put_if(bool ok, T* p, T x) { if (ok) *p = x; }
static float ex2(float x) { return exp2f(x); }
static float rcp(float x) { return 1.f / x; }
static unsigned rounded(float x) {  // to bfloat16
    unsigned bits = __float_as_uint(x);
    return x != x ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static unsigned narrow(float a, float b) { return rounded(a) | rounded(b) << 16; }

static void start_fiber() {
    body();
    fibers[running].done = true;
    yield();
}
static void run_block(int threads) {
    std::fill_n(reinterpret_cast<float*>(memory), sizeof memory / 4, std::numeric_limits<float>::quiet_NaN());
    fibers.resize(threads);
    for (Fiber& fiber : fibers) {
        fiber.done = false;
        fiber.stack.resize(1 << 17);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        makecontext(&fiber.context, start_fiber, 0);
    }
    for (int left = threads; left;) {
        left = 0;
        for (int t = 0; t < threads; ++t) {
            if (fibers[t].done) continue;
            ++left;
            running = t, threadIdx = {unsigned(t), 0, 0};
            swapcontext(&scheduler, &fibers[t].context);
        }
    }
}

template <class... P, size_t... I>
static void launch(void (*kernel)(P...), unsigned x, unsigned y, int threads, void** pointers,
                   const int* sizes, std::index_sequence<I...>) {
    constexpr size_t POINTERS = (size_t(std::is_pointer_v<P>) + ...);
    body = [=] {
        kernel([&] {
            if constexpr (std::is_pointer_v<P>) return (P)pointers[I];
            else return sizes[I - POINTERS];
        }()...);
    };
    blockDim = {unsigned(threads), 1, 1}, gridDim = {x, y, 1};
    for (unsigned j = 0; j < y; ++j)
        for (unsigned i = 0; i < x; ++i) {
            blockIdx = {i, j, 0};
            run_block(threads);
        }
}
template <class... P>
static void launch(void (*kernel)(P...), unsigned x, unsigned y, int threads, void** pointers, const int* sizes) {
    launch(kernel, x, y, threads, pointers, sizes, std::index_sequence_for<P...>());
}
