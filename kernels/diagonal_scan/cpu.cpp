// The diagonal recurrence and its gradients: equation in __init__.py. Shapes: B rows, T steps, N numbers
// a state: P, or 2 P where they are complex, real and imaginary parts in turns. Numbers do not touch
// others but for these pairs: C vectors of W, a block, are walked at a time. Work is cut by rows and
// blocks, sums over rows come last: results do not depend on the number of threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "lanes.h"

namespace {

using at::Tensor;

constexpr int64_t kVectors = 4;  // at most, of a block
enum Mark : uint8_t { kNone = 0, kStart = 2 };

template <typename T, size_t... I>
inline Vec<T> swap_pairs(Vec<T> x, std::index_sequence<I...>) {
#ifdef __clang__
  return __builtin_shufflevector(x, x, (I ^ 1)...);
#else
  return __builtin_shuffle(x, typename Lanes<T>::I{(I ^ 1)...});
#endif
}

// Real and imaginary parts exchanged.
template <typename T>
inline Vec<T> swapped(Vec<T> x) {
  return swap_pairs<T>(x, std::make_index_sequence<kWidth<T>>{});
}

struct Shape {
  int64_t rows, steps, numbers;
};

// A block of a row: C vectors from number `first` on, the last ones perhaps not full.
template <typename T, int C>
struct Block {
  int64_t row, first, count;

  int64_t lanes(int c) const {
    return std::clamp<int64_t>(count - c * kWidth<T>, 0, kWidth<T>);
  }
  Vec<T> read(const T* from, int c) const {
    return load_some(from + first + c * kWidth<T>, lanes(c));
  }
  void write(T* to, const Vec<T>* from) const {
    for (int c = 0; c < C; ++c) store_some(to + first + c * kWidth<T>, from[c], lanes(c));
  }
};

// Poles as factors: of a number itself, and of the other one of its pair.
template <typename T, bool kComplex, int C>
struct Poles {
  Vec<T> own[C], other[C] = {};

  Poles(const Block<T, C>& block, const T* a, bool conjugate) {
    for (int c = 0; c < C; ++c) {
      own[c] = block.read(a, c);
      if (!kComplex) continue;
      for (int64_t i = 0; i < kWidth<T>; i += 2) {
        const T imaginary = conjugate ? -own[c][i + 1] : own[c][i + 1];
        own[c][i + 1] = own[c][i];
        other[c][i] = -imaginary, other[c][i + 1] = imaginary;
      }
    }
  }
  Vec<T> times(int c, Vec<T> x, Vec<T> plus) const {
    plus += own[c] * x;
    if constexpr (kComplex) plus += other[c] * swapped<T>(x);
    return plus;
  }
};

template <typename T, bool kComplex, int C>
void forward_block(const Shape& s, const Block<T, C>& block, const T* u, const T* a, const T* state,
                   const uint8_t* marks, T* x, T* final) {
  const Poles<T, kComplex, C> poles(block, a, false);
  Vec<T> now[C];
  for (int c = 0; c < C; ++c) now[c] = block.read(state + block.row * s.numbers, c);
  const Vec<T> nothing[C] = {};
  for (int64_t t = 0; t < s.steps; ++t) {
    const int64_t at = block.row * s.steps + t;
    if (marks[at] == kNone) {
      block.write(x + at * s.numbers, nothing);
      continue;
    }
    for (int c = 0; c < C; ++c) {
      const Vec<T> u_t = block.read(u + at * s.numbers, c);
      now[c] = marks[at] == kStart ? u_t : poles.times(c, now[c], u_t);
    }
    block.write(x + at * s.numbers, now);
  }
  block.write(final + block.row * s.numbers, now);
}

// Σ conj(x) g, of real parts and of imaginary ones apart.
template <typename T, bool kComplex, int C>
struct Sums {
  Vec<T> own[C] = {}, other[C] = {};

  void add(int c, Vec<T> x, Vec<T> g) {
    own[c] += x * g;
    if constexpr (kComplex) other[c] += x * swapped<T>(g);
  }
  void write(const Block<T, C>& block, T* to) const {
    Vec<T> sums[C];
    for (int c = 0; c < C; ++c) {
      sums[c] = own[c];
      for (int64_t i = 0; kComplex && i < kWidth<T>; i += 2) {
        sums[c][i] = own[c][i] + own[c][i + 1];
        sums[c][i + 1] = other[c][i] - other[c][i + 1];
      }
    }
    block.write(to, sums);
  }
};

template <typename T>
struct Gradients {
  T *u, *a, *state;  // (B, T, N), (B, N) each row's part, (B, N)
};

// g is dL/dx of the step at hand by all that follows. It meets the pole, and the state before, when
// the walk comes to that: the valid step before, or the row's begin.
template <typename T, bool kComplex, int C>
void backward_block(const Shape& s, const Block<T, C>& block, const T* a, const T* state,
                    const uint8_t* marks, const T* x, const T* d_x, const T* d_final,
                    const Gradients<T>& d) {
  const Poles<T, kComplex, C> poles(block, a, true);
  Sums<T, kComplex, C> sums;
  Vec<T> g[C];
  for (int c = 0; c < C; ++c) g[c] = block.read(d_final + block.row * s.numbers, c);
  const Vec<T> nothing[C] = {};
  bool carried = false;  // whether g belongs to a step that went on from the state before
  const auto pass = [&](int c, const T* before, Vec<T> plus) {
    if (!carried) return g[c] + plus;
    sums.add(c, block.read(before, c), g[c]);
    return poles.times(c, g[c], plus);
  };
  for (int64_t t = s.steps - 1; t >= 0; --t) {
    const int64_t at = block.row * s.steps + t, place = at * s.numbers;
    if (marks[at] == kNone) {
      block.write(d.u + place, nothing);
      continue;
    }
    for (int c = 0; c < C; ++c) g[c] = pass(c, x + place, block.read(d_x + place, c));
    block.write(d.u + place, g);
    carried = marks[at] != kStart;
    if (!carried) std::fill_n(g, C, Vec<T>{});
  }
  for (int c = 0; c < C; ++c) g[c] = pass(c, state + block.row * s.numbers, nothing[c]);
  block.write(d.state + block.row * s.numbers, g);
  sums.write(block, d.a + block.row * s.numbers);
}

// Calls task(block) for the blocks of all rows.
template <typename T, typename Task>
void for_blocks(const Shape& s, const Task& task) {
  constexpr int64_t size = kVectors * kWidth<T>;
  const int64_t blocks = (s.numbers + size - 1) / size;
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 16) / (s.steps * size + 1));
  at::parallel_for(0, s.rows * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, first = i % blocks * size;
      const int64_t count = std::min(size, s.numbers - first);
      if (count > 2 * kWidth<T>)
        task(Block<T, kVectors>{row, first, count});
      else if (count > kWidth<T>)
        task(Block<T, 2>{row, first, count});
      else
        task(Block<T, 1>{row, first, count});
    }
  });
}

// Calls task(T, kComplex as a type) for the type of the numbers.
template <typename Task>
void by_type(const Tensor& u, const Task& task) {
  AT_DISPATCH_FLOATING_TYPES(c10::toRealValueType(u.scalar_type()), "diagonal_scan", [&] {
    if (u.is_complex())
      task(scalar_t(), std::true_type());
    else
      task(scalar_t(), std::false_type());
  });
}

// Its numbers, complex ones as pairs.
template <typename T>
const T* read(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* write(Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

Shape shape_of(const Tensor& u, const Tensor& a, const Tensor& state, const Tensor& marks) {
  TORCH_CHECK(u.dim() == 3 && a.sizes() == u.sizes().slice(2), "diagonal_scan: u ", u.sizes(),
              " and a ", a.sizes(), " do not go together");
  TORCH_CHECK(state.sizes() == at::IntArrayRef({u.size(0), u.size(2)}) &&
                  marks.sizes() == u.sizes().slice(0, 2),
              "diagonal_scan: u ", u.sizes(), ", state ", state.sizes(), " and starts ",
              marks.sizes(), " do not go together");
  return {u.size(0), u.size(1), u.size(2) * (u.is_complex() ? 2 : 1)};
}

// u (B, T, P), a (P,), state (B, P), marks (B, T) -> x, final state.
std::vector<Tensor> forward(const Tensor& u, const Tensor& a, const Tensor& state,
                            const Tensor& marks) {
  const Shape s = shape_of(u, a, state, marks);
  Tensor x = at::empty_like(u), final = at::empty_like(state);
  by_type(u, [&](auto number, auto complex) {
    using T = decltype(number);
    for_blocks<T>(s, [&](auto block) {
      forward_block<T, complex.value>(s, block, read<T>(u), read<T>(a), read<T>(state),
                                      read<uint8_t>(marks), write<T>(x), write<T>(final));
    });
  });
  return {x, final};
}

// Gradients of u, a and state, by x that went out and what reaches it and the final state.
std::vector<Tensor> backward(const Tensor& a, const Tensor& state, const Tensor& marks,
                             const Tensor& x, const Tensor& d_x, const Tensor& d_final) {
  const Shape s = shape_of(x, a, state, marks);
  Tensor d_u = at::empty_like(x), d_a = at::empty_like(state), d_state = at::empty_like(state);
  by_type(x, [&](auto number, auto complex) {
    using T = decltype(number);
    const Gradients<T> d{write<T>(d_u), write<T>(d_a), write<T>(d_state)};
    for_blocks<T>(s, [&](auto block) {
      backward_block<T, complex.value>(s, block, read<T>(a), read<T>(state), read<uint8_t>(marks),
                                       read<T>(x), read<T>(d_x), read<T>(d_final), d);
    });
  });
  return {d_u, d_a.sum(0), d_state};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
