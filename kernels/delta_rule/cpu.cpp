// The gated delta rule and its gradients: equation in __init__.py. Shapes: B rows, T steps, H heads,
// K key and V value width. A state's columns do not touch one another: C vectors of W columns, a
// block, are walked at a time. Work is cut by rows and heads, sums have one order: results do not
// depend on the number of threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace {

using at::Tensor;

constexpr int64_t kChunk = 16;  // steps between the states kept for the backward pass
enum Mark : uint8_t { kNone = 0, kStart = 2 };

template <typename T>
inline T sum(Vec<T> x) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < kWidth<T>; ++i) total += x[i];
  return total;
}

struct Shape {
  int64_t rows, steps, heads, key, value, gates, chunks, padded;
};

template <typename T>
struct Inputs {
  Shape s;
  const T *q, *k, *w, *v, *gate;  // (B, T, H, ·); gate (B, T, H, K or 1)
  const uint8_t* marks;           // (B, T)

  Inputs(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& v, const Tensor& gate,
         const Tensor& marks)
      : q(q.const_data_ptr<T>()),
        k(k.const_data_ptr<T>()),
        w(w.const_data_ptr<T>()),
        v(v.const_data_ptr<T>()),
        gate(gate.const_data_ptr<T>()),
        marks(marks.const_data_ptr<uint8_t>()) {
    const int64_t steps = q.size(1), value = v.size(3);
    s = {q.size(0),    steps, q.size(2), q.size(3), value, gate.size(3), (steps + kChunk - 1) / kChunk,
         (value + kWidth<T> - 1) / kWidth<T> * kWidth<T>};
  }
};

// Columns `first` … of a head's values and states: C vectors, the last ones perhaps not full.
template <typename T, int C>
struct Columns {
  int64_t first, count;

  int64_t lanes(int c) const {
    return std::clamp<int64_t>(count - c * kWidth<T>, 0, kWidth<T>);
  }
  void read(const T* from, Vec<T>* to) const {
    for (int c = 0; c < C; ++c) to[c] = load_some(from + first + c * kWidth<T>, lanes(c));
  }
  void write(T* to, const Vec<T>* from) const {
    for (int c = 0; c < C; ++c) store_some(to + first + c * kWidth<T>, from[c], lanes(c));
  }
};

template <typename T, int C>
inline T dot(const Vec<T>* a, const Vec<T>* b) {
  Vec<T> total = a[0] * b[0];
  for (int c = 1; c < C; ++c) total += a[c] * b[c];
  return sum<T>(total);
}

// One step's walk: S ← gate S, u = v − Sᵀ k, S ← S + w uᵀ; `kept`, if any, is S before w uᵀ.
template <typename T, int C>
inline void advance(const Inputs<T>& in, int64_t at, const Columns<T, C>& columns, Vec<T>* S,
                    Vec<T>* u, Vec<T>* kept) {
  const Shape& s = in.s;
  const T *k = in.k + at * s.key, *w = in.w + at * s.key, *gate = in.gate + at * s.gates;
  columns.read(in.v + at * s.value, u);
  for (int64_t i = 0; i < s.key; ++i) {
    const T g = gate[s.gates == 1 ? 0 : i];
    for (int c = 0; c < C; ++c) {
      S[i * C + c] *= g;
      u[c] -= k[i] * S[i * C + c];
      if (kept) kept[i * C + c] = S[i * C + c];
    }
  }
  for (int64_t i = 0; i < s.key; ++i)
    for (int c = 0; c < C; ++c) S[i * C + c] += w[i] * u[c];
}

template <typename T, int C>
void forward_block(const Inputs<T>& in, int64_t row, int64_t head, const Columns<T, C>& columns,
                   const T* state, T* o, T* final, T* before) {
  const Shape& s = in.s;
  const int64_t place = row * s.heads + head;
  std::vector<Vec<T>> S(s.key * C);
  for (int64_t i = 0; i < s.key; ++i) columns.read(state + (place * s.key + i) * s.value, &S[i * C]);
  for (int64_t t = 0; t < s.steps; ++t) {
    const int64_t step = row * s.steps + t, at = step * s.heads + head;
    if (before && t % kChunk == 0)
      for (int64_t i = 0; i < s.key; ++i)
        for (int c = 0; c < C; ++c)
          store(before + ((place * s.chunks + t / kChunk) * s.key + i) * s.padded + columns.first +
                    c * kWidth<T>,
                S[i * C + c]);
    Vec<T> out[C] = {}, u[C];
    if (in.marks[step] != kNone) {
      if (in.marks[step] == kStart) std::fill(S.begin(), S.end(), Vec<T>{});
      advance<T, C>(in, at, columns, S.data(), u, nullptr);
      const T* q = in.q + at * s.key;
      for (int64_t i = 0; i < s.key; ++i)
        for (int c = 0; c < C; ++c) out[c] += q[i] * S[i * C + c];
    }
    columns.write(o + at * s.value, out);
  }
  for (int64_t i = 0; i < s.key; ++i) columns.write(final + (place * s.key + i) * s.value, &S[i * C]);
}

template <typename T>
struct Gradients {
  T *q, *k, *w, *v, *gate, *state;  // of the logarithm of gate, (B, T, H, K); all but v add up
};

// The adjoint of one step; dS is dL/dS of what follows, S the state before w uᵀ was added.
template <typename T, int C>
inline void reverse(const Inputs<T>& in, int64_t at, const Columns<T, C>& columns, const Vec<T>* S,
                    const Vec<T>* u, const T* d_out, const Gradients<T>& g, Vec<T>* dS) {
  const Shape& s = in.s;
  const T *q = in.q + at * s.key, *k = in.k + at * s.key, *w = in.w + at * s.key;
  const T* gate = in.gate + at * s.gates;
  Vec<T> d_o[C], d_u[C] = {};
  columns.read(d_out + at * s.value, d_o);
  const T by_write = dot<T, C>(u, d_o);
  for (int64_t i = 0; i < s.key; ++i) {
    Vec<T>* row = dS + i * C;
    for (int c = 0; c < C; ++c) {
      row[c] += q[i] * d_o[c];
      d_u[c] += w[i] * row[c];
    }
    g.q[at * s.key + i] += dot<T, C>(S + i * C, d_o) + w[i] * by_write;
    g.w[at * s.key + i] += dot<T, C>(row, u);
  }
  columns.write(g.v + at * s.value, d_u);
  for (int64_t i = 0; i < s.key; ++i) {
    Vec<T>* row = dS + i * C;
    const T factor = gate[s.gates == 1 ? 0 : i];
    for (int c = 0; c < C; ++c) row[c] -= k[i] * d_u[c];
    g.k[at * s.key + i] -= dot<T, C>(S + i * C, d_u);
    g.gate[at * s.key + i] += dot<T, C>(row, S + i * C);
    for (int c = 0; c < C; ++c) row[c] *= factor;
  }
}

template <typename T, int C>
void backward_block(const Inputs<T>& in, int64_t row, int64_t head, const Columns<T, C>& columns,
                    const T* before, const T* d_out, const T* d_final, const Gradients<T>& g) {
  const Shape& s = in.s;
  const int64_t place = row * s.heads + head, size = s.key * C;
  std::vector<Vec<T>> S(size), dS(size), kept(kChunk * size), u(kChunk * C);
  for (int64_t i = 0; i < s.key; ++i)
    columns.read(d_final + (place * s.key + i) * s.value, &dS[i * C]);
  for (int64_t chunk = s.chunks - 1; chunk >= 0; --chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, s.steps);
    for (int64_t i = 0; i < s.key; ++i)
      for (int c = 0; c < C; ++c)
        S[i * C + c] = load(before + ((place * s.chunks + chunk) * s.key + i) * s.padded +
                            columns.first + c * kWidth<T>);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t step = row * s.steps + t;
      if (in.marks[step] == kNone) continue;
      if (in.marks[step] == kStart) std::fill(S.begin(), S.end(), Vec<T>{});
      advance<T, C>(in, step * s.heads + head, columns, S.data(), &u[(t - begin) * C],
                    &kept[(t - begin) * size]);
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      const int64_t step = row * s.steps + t;
      if (in.marks[step] == kNone) continue;
      reverse<T, C>(in, step * s.heads + head, columns, &kept[(t - begin) * size],
                    &u[(t - begin) * C], d_out, g, dS.data());
      if (in.marks[step] == kStart) std::fill(dS.begin(), dS.end(), Vec<T>{});
    }
  }
  for (int64_t i = 0; i < s.key; ++i)
    columns.write(g.state + (place * s.key + i) * s.value, &dS[i * C]);
}

// Calls task(row, head, columns) for all blocks; those of a head one after the other.
template <typename T, typename Task>
void for_blocks(const Shape& s, const Task& task) {
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 15) / (s.steps * s.key * s.padded + 1));
  at::parallel_for(0, s.rows * s.heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t first = 0; first < s.value;) {
        const int64_t row = i / s.heads, head = i % s.heads, left = s.value - first;
        if (left > kWidth<T>)
          task(row, head, Columns<T, 2>{first, std::min(left, 2 * kWidth<T>)});
        else
          task(row, head, Columns<T, 1>{first, left});
        first += left > kWidth<T> ? 2 * kWidth<T> : kWidth<T>;
      }
  });
}

// (o (B, T, H, V), final state, states before each chunk; none unless `keep`).
std::vector<Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& v,
                            const Tensor& gate, const Tensor& state, const Tensor& marks, bool keep) {
  Tensor o = at::empty_like(v), final = at::empty_like(state), before;
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "delta_rule", [&] {
    using T = scalar_t;
    const Inputs<T> in(q, k, w, v, gate, marks);
    const Shape& s = in.s;
    before = at::empty({keep ? s.rows * s.heads * s.chunks * s.key * s.padded : 0}, state.options());
    T* kept = keep ? before.data_ptr<T>() : nullptr;
    for_blocks<T>(s, [&](int64_t row, int64_t head, auto columns) {
      forward_block(in, row, head, columns, state.const_data_ptr<T>(), o.data_ptr<T>(),
                    final.data_ptr<T>(), kept);
    });
  });
  return {o, final, before};
}

// Gradients of q, k, w, v, the logarithm of each gate (B, T, H, K), and the state.
std::vector<Tensor> backward(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& v,
                             const Tensor& gate, const Tensor& marks, const Tensor& before,
                             const Tensor& d_out, const Tensor& d_final) {
  Tensor dq = at::zeros_like(q), dk = at::zeros_like(k), dw = at::zeros_like(w);
  Tensor dv = at::zeros_like(v), d_gate = at::zeros_like(k), d_state = at::empty_like(d_final);
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "delta_rule_backward", [&] {
    using T = scalar_t;
    const Inputs<T> in(q, k, w, v, gate, marks);
    const Gradients<T> g{dq.data_ptr<T>(), dk.data_ptr<T>(),     dw.data_ptr<T>(),
                         dv.data_ptr<T>(), d_gate.data_ptr<T>(), d_state.data_ptr<T>()};
    for_blocks<T>(in.s, [&](int64_t row, int64_t head, auto columns) {
      backward_block(in, row, head, columns, before.const_data_ptr<T>(), d_out.const_data_ptr<T>(),
                     d_final.const_data_ptr<T>(), g);
    });
  });
  return {dq, dk, dw, dv, d_gate, d_state};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
