// The recurrence of the selective scan and its gradients: see __init__.py and naive.py.
// Shapes: B rows, T steps, D channels, N states a channel. W channels, a block, lie in one vector
// register; a block's states are N such vectors. Work is cut by shape alone and sums have one
// order, so that results do not depend on the number of threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "lanes.h"

namespace {

using at::Tensor;

constexpr int64_t kChunk = 16;  // steps between the states kept for the backward pass
constexpr int64_t kTasks = 32;  // pieces of the backward pass, at least, where the shape allows

template <typename T>
inline T sum(const T* x) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < kWidth<T>; ++i) total += x[i];
  return total;
}

struct Shape {
  int64_t rows, steps, channels, states, blocks, chunks;
};

template <typename T>
Shape shape_of(const Tensor& u, const Tensor& A) {
  const int64_t steps = u.size(1), channels = u.size(2);
  const int64_t blocks = (channels + kWidth<T> - 1) / kWidth<T>;
  return {u.size(0), steps, channels, A.size(1), blocks, (steps + kChunk - 1) / kChunk};
}

template <typename T>
struct Inputs {
  Shape s;
  const T *u, *delta, *A, *B, *C;
  const bool* start;

  Inputs(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
         const std::optional<Tensor>& start)
      : s(shape_of<T>(u, A)),
        u(u.const_data_ptr<T>()),
        delta(delta.const_data_ptr<T>()),
        A(A.const_data_ptr<T>()),
        B(B.const_data_ptr<T>()),
        C(C.const_data_ptr<T>()),
        start(start ? start->const_data_ptr<bool>() : nullptr) {}

  bool starts(int64_t step) const { return start && start[step]; }
  int64_t lanes(int64_t block) const {
    return std::min(kWidth<T>, s.channels - block * kWidth<T>);
  }
};

// (D, N) rows of a block -> N vectors, times `factor`; and back.
template <typename T>
void gather(const T* from, int64_t states, int64_t lanes, T factor, T* to) {
  std::fill_n(to, states * kWidth<T>, T(0));
  for (int64_t l = 0; l < lanes; ++l)
    for (int64_t n = 0; n < states; ++n) to[n * kWidth<T> + l] = factor * from[l * states + n];
}

template <typename T>
void scatter(const T* from, int64_t states, int64_t lanes, T* to) {
  for (int64_t l = 0; l < lanes; ++l)
    for (int64_t n = 0; n < states; ++n) to[l * states + n] = from[n * kWidth<T> + l];
}

template <typename T>
void forward_block(const Inputs<T>& in, int64_t row, int64_t block, const T* state, T* y, T* final,
                   T* before, T* scratch) {
  constexpr int64_t W = kWidth<T>;
  const Shape& s = in.s;
  const int64_t lanes = in.lanes(block), first = block * W, size = s.states * W;
  T *exponent = scratch, *h = scratch + size;
  gather(in.A + first * s.states, s.states, lanes, T(kLog2E), exponent);
  gather(state + (row * s.channels + first) * s.states, s.states, lanes, T(1), h);
  for (int64_t t = 0; t < s.steps; ++t) {
    const int64_t step = row * s.steps + t;
    if (before && t % kChunk == 0)
      std::copy_n(h, size, before + ((row * s.blocks + block) * s.chunks + t / kChunk) * size);
    if (in.starts(step)) std::fill_n(h, size, T(0));
    const Vec<T> delta = load_some(in.delta + step * s.channels + first, lanes);
    const Vec<T> drive = delta * load_some(in.u + step * s.channels + first, lanes);
    const T *B = in.B + step * s.states, *C = in.C + step * s.states;
    Vec<T> out = {};
    for (int64_t n = 0; n < s.states; ++n) {
      const Vec<T> decay = exp2<T>(delta * load(exponent + n * W));
      const Vec<T> next = decay * load(h + n * W) + drive * B[n];
      store(h + n * W, next);
      out += next * C[n];
    }
    store_some(y + step * s.channels + first, out, lanes);
  }
  scatter(h, s.states, lanes, final + (row * s.channels + first) * s.states);
}

template <typename T>
void forward(const Inputs<T>& in, const T* state, T* y, T* final, T* before) {
  const Shape& s = in.s;
  const int64_t size = s.states * kWidth<T>;
  const int64_t grain = std::max<int64_t>(1, 32768 / (s.steps * size));
  at::parallel_for(0, s.rows * s.blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(2 * size);
    for (int64_t i = begin; i < end; ++i)
      forward_block(in, i / s.blocks, i % s.blocks, state, y, final, before, scratch.data());
  });
}

template <typename T>
struct Gradients {
  T *u, *delta;    // (B, T, D)
  T* A;            // (B, D, N), a part a row
  T *B, *C;        // (groups, B, T, N), a part a group of blocks
  T* state;        // (B, D, N)
  int64_t groups;
};

template <typename T>
struct Scratch {
  std::vector<T> data;
  T *h, *decay, *dB, *dC, *exponent, *A, *dA, *dh, *zeros;

  Scratch(int64_t size, int64_t blocks) : data((4 * kChunk + 4 + 2 * blocks) * size) {
    T* next = data.data();
    auto take = [&](int64_t count) { return std::exchange(next, next + count * size); };
    h = take(kChunk + 1), decay = take(kChunk), dB = take(kChunk), dC = take(kChunk);
    exponent = take(1), A = take(1), zeros = take(1), dA = take(blocks), dh = take(blocks);
  }
};

// Decays, and states before and after each step, of steps [begin, end), from the state in h[0].
template <typename T>
void recompute(const Inputs<T>& in, int64_t row, int64_t block, int64_t begin, int64_t end,
               const Scratch<T>& k) {
  constexpr int64_t W = kWidth<T>;
  const Shape& s = in.s;
  const int64_t lanes = in.lanes(block), first = block * W, size = s.states * W;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t step = row * s.steps + t;
    const Vec<T> delta = load_some(in.delta + step * s.channels + first, lanes);
    const Vec<T> drive = delta * load_some(in.u + step * s.channels + first, lanes);
    const T *B = in.B + step * s.states, *h = k.h + (t - begin) * size;
    T *decay = k.decay + (t - begin) * size, *next = k.h + (t - begin + 1) * size;
    if (in.starts(step)) h = k.zeros;
    for (int64_t n = 0; n < s.states; ++n) {
      const Vec<T> a = exp2<T>(delta * load(k.exponent + n * W));
      store(decay + n * W, a);
      store(next + n * W, a * load(h + n * W) + drive * B[n]);
    }
  }
}

// The adjoint recurrence over steps [begin, end), last first; dh is dL/dh of what follows.
template <typename T>
void reverse(const Inputs<T>& in, int64_t row, int64_t block, int64_t begin, int64_t end,
             const T* dy, const Gradients<T>& g, const Scratch<T>& k, T* dA, T* dh) {
  constexpr int64_t W = kWidth<T>;
  const Shape& s = in.s;
  const int64_t lanes = in.lanes(block), first = block * W, size = s.states * W;
  for (int64_t t = end - 1; t >= begin; --t) {
    const int64_t step = row * s.steps + t, at = step * s.channels + first;
    const int64_t local = (t - begin) * size;
    const Vec<T> delta = load_some(in.delta + at, lanes), u = load_some(in.u + at, lanes);
    const Vec<T> dout = load_some(dy + at, lanes), drive = delta * u;
    const T *B = in.B + step * s.states, *C = in.C + step * s.states;
    const T* previous = in.starts(step) ? k.zeros : k.h + local;
    Vec<T> driven = {}, exponent = {};
    for (int64_t n = 0; n < s.states; ++n) {
      const int64_t i = n * W;
      const Vec<T> adjoint = load(dh + i) + dout * C[n];
      const Vec<T> passed = adjoint * load(k.decay + local + i);
      const Vec<T> flow = passed * load(previous + i);  // dL/d(Δ A)
      store(k.dC + local + i, load(k.dC + local + i) + dout * load(k.h + local + size + i));
      store(k.dB + local + i, load(k.dB + local + i) + drive * adjoint);
      store(dA + i, load(dA + i) + flow * delta);
      store(dh + i, passed);
      driven += adjoint * B[n];
      exponent += flow * load(k.A + i);
    }
    if (in.starts(step)) std::fill_n(dh, size, T(0));
    store_some(g.u + at, delta * driven, lanes);
    store_some(g.delta + at, u * driven + exponent, lanes);
  }
}

// One row and a group of blocks, which share the sums of dB and dC.
template <typename T>
void backward_group(const Inputs<T>& in, int64_t row, int64_t group, const T* dy, const T* dstate,
                    const T* before, const Gradients<T>& g, const Scratch<T>& k) {
  constexpr int64_t W = kWidth<T>;
  const Shape& s = in.s;
  const int64_t size = s.states * W;
  const int64_t from = group * s.blocks / g.groups, to = (group + 1) * s.blocks / g.groups;
  std::fill_n(k.dA, (to - from) * size, T(0));
  for (int64_t block = from; block < to; ++block)
    gather(dstate + (row * s.channels + block * W) * s.states, s.states, in.lanes(block), T(1),
           k.dh + (block - from) * size);
  for (int64_t chunk = s.chunks - 1; chunk >= 0; --chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, s.steps);
    std::fill_n(k.dB, (end - begin) * size, T(0));
    std::fill_n(k.dC, (end - begin) * size, T(0));
    for (int64_t block = from; block < to; ++block) {
      const T* A = in.A + block * W * s.states;
      gather(A, s.states, in.lanes(block), T(1), k.A);
      gather(A, s.states, in.lanes(block), T(kLog2E), k.exponent);
      std::copy_n(before + ((row * s.blocks + block) * s.chunks + chunk) * size, size, k.h);
      recompute(in, row, block, begin, end, k);
      const int64_t own = (block - from) * size;
      reverse(in, row, block, begin, end, dy, g, k, k.dA + own, k.dh + own);
    }
    const int64_t at = ((group * s.rows + row) * s.steps + begin) * s.states;
    for (int64_t i = 0; i < (end - begin) * s.states; ++i) {
      g.B[at + i] = sum(k.dB + i * W);
      g.C[at + i] = sum(k.dC + i * W);
    }
  }
  for (int64_t block = from; block < to; ++block) {
    const int64_t at = (row * s.channels + block * W) * s.states, own = (block - from) * size;
    scatter(k.dA + own, s.states, in.lanes(block), g.A + at);
    scatter(k.dh + own, s.states, in.lanes(block), g.state + at);
  }
}

template <typename T>
void backward(const Inputs<T>& in, const T* dy, const T* dstate, const T* before,
              const Gradients<T>& g) {
  const Shape& s = in.s;
  const int64_t most = (s.blocks + g.groups - 1) / g.groups, size = s.states * kWidth<T>;
  const int64_t grain = std::max<int64_t>(1, 8192 / (s.steps * size * most));
  at::parallel_for(0, s.rows * g.groups, grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(size, most);
    for (int64_t i = begin; i < end; ++i)
      backward_group(in, i / g.groups, i % g.groups, dy, dstate, before, g, scratch);
  });
}

// (y, final state, states before each chunk: empty unless kept)
std::tuple<Tensor, Tensor, Tensor> scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                        const Tensor& B, const Tensor& C, const Tensor& state,
                                        const std::optional<Tensor>& start, bool keep) {
  Tensor y = at::empty_like(u), final = at::empty_like(state), before;
  AT_DISPATCH_FLOATING_TYPES(u.scalar_type(), "selective_scan", [&] {
    using T = scalar_t;
    const Inputs<T> in(u, delta, A, B, C, start);
    const int64_t kept = keep ? in.s.rows * in.s.blocks * in.s.chunks : 0;
    before = at::empty({kept, in.s.states, kWidth<T>}, u.options());
    forward<T>(in, state.const_data_ptr<T>(), y.data_ptr<T>(), final.data_ptr<T>(),
               keep ? before.data_ptr<T>() : nullptr);
  });
  return {y, final, before};
}

// Gradients of u, delta, A, B, C, state.
std::vector<Tensor> gradients(const Tensor& u, const Tensor& delta, const Tensor& A,
                              const Tensor& B, const Tensor& C, const std::optional<Tensor>& start,
                              const Tensor& before, const Tensor& dy, const Tensor& dstate) {
  Tensor du = at::empty_like(u), ddelta = at::empty_like(u), dh = at::empty_like(dstate);
  Tensor dA = at::empty_like(dstate), dB, dC;
  AT_DISPATCH_FLOATING_TYPES(u.scalar_type(), "selective_scan_backward", [&] {
    using T = scalar_t;
    const Inputs<T> in(u, delta, A, B, C, start);
    const int64_t groups = std::min(in.s.blocks, (kTasks + in.s.rows - 1) / in.s.rows);
    dB = at::empty({groups, in.s.rows, in.s.steps, in.s.states}, u.options());
    dC = at::empty_like(dB);
    const Gradients<T> g{du.data_ptr<T>(), ddelta.data_ptr<T>(), dA.data_ptr<T>(),
                         dB.data_ptr<T>(), dC.data_ptr<T>(), dh.data_ptr<T>(), groups};
    backward<T>(in, dy.const_data_ptr<T>(), dstate.const_data_ptr<T>(),
                before.const_data_ptr<T>(), g);
  });
  return {du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dh};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &scan, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &gradients, pybind11::call_guard<pybind11::gil_scoped_release>());
}
