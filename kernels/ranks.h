// A recurrence whose step is a matrix product and something for each unit, and its gradients, over
// packed episodes: the k-th steps of all episodes lie together, longest episode first. Shapes: M
// steps of E episodes, H units, G gates. A thread takes every n-th episode, and four at a time share
// what they load of the matrix. Each sum has one order: results do not depend on episodes or threads.
//
// A Cell<T> says what a unit does. Its numbers: kGates G; kStates, the parts of the state; kParts,
// those and what else passes from step to step; kLeft, which part the matrix multiplies; kKept,
// values a unit keeps for the backward pass; kTwice, whether the gradients before and after the
// recurrent bias differ. Its functions, each for the W units from `o` of step `at` (see Place):
//     open(p, parts)                      the other parts, from those of the state
//     advance(p, product, kept, parts) -> output
//     reverse(p, kept, before, dy, d_parts, d_product, d_gates)   d_parts: of states, after -> before
//     join(p, kept, d_left, d_parts)      adds what comes through the product

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "lanes.h"

namespace {

using at::Tensor;

constexpr int kRegisters = kBytes == 64 ? 32 : 16;

// W units of a step: `o` is the first, `lanes` how many there are, `padded` H in whole vectors.
struct Place {
  int64_t at, o, lanes, width, padded;
};

// out (R, C vectors) = bias + left (R, depth) right (depth, columns).
template <typename T, int R, int C>
inline void product_block(const T* left, int64_t stride, int64_t depth, const T* right,
                          int64_t columns, const T* bias, T* out) {
  Vec<T> sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[r][c] = load(bias + c * kWidth<T>);
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) row[c] = load(right + k * columns + c * kWidth<T>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[r][c] += left[r * stride + k] * row[c];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(out + r * columns + c * kWidth<T>, sums[r][c]);
}

// The columns from `done` on, C vectors at a time, then fewer.
template <typename T, int R, int C>
inline void product_from(int64_t done, const T* left, int64_t stride, int64_t depth, const T* right,
                         int64_t columns, const T* bias, T* out) {
  for (; done + C * kWidth<T> <= columns; done += C * kWidth<T>)
    product_block<T, R, C>(left, stride, depth, right + done, columns, bias + done, out + done);
  if constexpr (C > 1)
    product_from<T, R, C / 2>(done, left, stride, depth, right, columns, bias, out);
}

template <typename T>
inline void product(int64_t rows, const T* left, int64_t stride, int64_t depth, const T* right,
                    int64_t columns, const T* bias, T* out) {
  if (rows == 4)
    product_from<T, 4, kRegisters / 8>(0, left, stride, depth, right, columns, bias, out);
  else if (rows == 2)
    product_from<T, 2, kRegisters / 4>(0, left, stride, depth, right, columns, bias, out);
  else
    product_from<T, 1, kRegisters / 4>(0, left, stride, depth, right, columns, bias, out);
}

inline int64_t rows_together(int64_t left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// The recurrent matrix (G H, H) for the forward product (H, G padded), and for the backward one
// (G padded, padded), with zeros between.
template <typename T>
struct Matrix {
  int64_t width, padded;
  std::vector<T> forward, backward, bias;

  Matrix(const Tensor& weight, const Tensor& b, int64_t gates)
      : width(weight.size(1)), padded((width + kWidth<T> - 1) / kWidth<T> * kWidth<T>) {
    const T* from = weight.const_data_ptr<T>();
    forward.resize(width * gates * padded), bias.resize(std::max(gates, int64_t(1)) * padded);
    backward.resize(gates * padded * padded);
    for (int64_t g = 0; g < gates; ++g)
      for (int64_t j = 0; j < width; ++j) {
        if (b.numel()) bias[g * padded + j] = b.const_data_ptr<T>()[g * width + j];
        for (int64_t k = 0; k < width; ++k) {
          const T u = from[(g * width + j) * width + k];
          forward[k * gates * padded + g * padded + j] = u;
          backward[(g * padded + j) * padded + k] = u;
        }
      }
  }

  Place place(int64_t at, int64_t o) const {
    return {at, o, std::min(kWidth<T>, width - o), width, padded};
  }
};

// Calls task(first, stride): it does the episodes first, first + stride, …
template <typename Task>
void share_episodes(int64_t episodes, int64_t operations, const Task& task) {
  int64_t threads = std::min<int64_t>(at::get_num_threads(), episodes);
  if (operations < (int64_t(1) << 21)) threads = 1;
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i, threads);
  });
}

// How many of the episodes first, first + stride, … are among the first `count`.
inline int64_t share(int64_t count, int64_t first, int64_t stride) {
  return (count - first + stride - 1) / stride;
}

struct Order {
  const std::vector<int64_t>& counts;  // steps of each rank
  int64_t steps;                       // M

  explicit Order(const std::vector<int64_t>& counts) : counts(counts), steps(0) {
    for (const int64_t count : counts) steps += count;
  }
  int64_t episodes() const { return counts[0]; }
};

template <typename T, typename Cell>
struct Forward {
  const Cell& cell;
  const Matrix<T>& matrix;
  const Order& order;
  const T* state;  // (E, kStates, H)
  T *hidden, *final, *before, *kept;  // (M, H), as state, (M, H) and (M, kKept, H): none unless kept

  void run(int64_t first, int64_t stride) const {
    const int64_t own = share(order.episodes(), first, stride), row = Cell::kParts * matrix.padded;
    std::vector<T> parts(own * row), out(4 * Cell::kGates * matrix.padded);
    for (int64_t i = 0; i < own; ++i) begin(first + i * stride, parts.data() + i * row);
    int64_t offset = 0;
    for (const int64_t count : order.counts) {
      const int64_t active = share(count, first, stride);
      for (int64_t i = 0, n; i < active; i += n) {
        n = rows_together(active - i);
        const T* left = parts.data() + i * row + Cell::kLeft * matrix.padded;
        product(n, left, row, matrix.width, matrix.forward.data(), Cell::kGates * matrix.padded,
                matrix.bias.data(), out.data());
        for (int64_t r = 0; r < n; ++r)
          step(offset + first + (i + r) * stride, out.data() + r * Cell::kGates * matrix.padded,
               parts.data() + (i + r) * row);
      }
      offset += count;
    }
    for (int64_t i = 0; i < own; ++i) end(first + i * stride, parts.data() + i * row);
  }

  void begin(int64_t episode, T* parts) const {
    for (int64_t part = 0; part < Cell::kStates; ++part)
      std::copy_n(state + (episode * Cell::kStates + part) * matrix.width, matrix.width,
                  parts + part * matrix.padded);
    for (int64_t o = 0; o < matrix.width; o += kWidth<T>) cell.open(matrix.place(0, o), parts + o);
  }

  void step(int64_t at, const T* out, T* parts) const {
    if (before)
      std::copy_n(parts + Cell::kLeft * matrix.padded, matrix.width, before + at * matrix.width);
    for (int64_t o = 0; o < matrix.width; o += kWidth<T>) {
      const Place p = matrix.place(at, o);
      T* keep = kept ? kept + at * Cell::kKept * matrix.width + o : nullptr;
      const Vec<T> y = cell.advance(p, out + o, keep, parts + o);
      store_some(hidden + at * matrix.width + o, y, p.lanes);
    }
  }

  void end(int64_t episode, const T* parts) const {
    for (int64_t part = 0; part < Cell::kStates; ++part)
      std::copy_n(parts + part * matrix.padded, matrix.width,
                  final + (episode * Cell::kStates + part) * matrix.width);
  }
};

template <typename T, typename Cell>
struct Backward {
  const Cell& cell;
  const Matrix<T>& matrix;
  const Order& order;
  const T *before, *kept, *d_hidden, *d_final;  // (M, H), (M, kKept, H), (M, H), (E, kStates, H)
  T *d_product, *d_gates, *d_state;  // (M, G H) both, the same unless kTwice; (E, kStates, H)

  void run(int64_t first, int64_t stride) const {
    const int64_t own = share(order.episodes(), first, stride), width = matrix.width;
    const int64_t row = Cell::kStates * matrix.padded, depth = Cell::kGates * matrix.padded;
    std::vector<T> parts(own * row), d_out(4 * depth), d_left(4 * matrix.padded);
    const std::vector<T> zeros(matrix.padded);
    for (int64_t i = 0; i < own * Cell::kStates; ++i)
      std::copy_n(d_final + place(i, first, stride) * width, width, parts.data() + i * matrix.padded);
    int64_t offset = order.steps;
    for (auto count = order.counts.rbegin(); count != order.counts.rend(); ++count) {
      offset -= *count;
      const int64_t active = share(*count, first, stride);
      for (int64_t i = 0, n; i < active; i += n) {
        n = rows_together(active - i);
        for (int64_t r = 0; r < n; ++r)
          step(offset + first + (i + r) * stride, parts.data() + (i + r) * row,
               d_out.data() + r * depth);
        product(n, d_out.data(), depth, depth, matrix.backward.data(), matrix.padded, zeros.data(),
                d_left.data());
        for (int64_t r = 0; r < n; ++r)
          join(offset + first + (i + r) * stride, d_left.data() + r * matrix.padded,
               parts.data() + (i + r) * row);
      }
    }
    for (int64_t i = 0; i < own * Cell::kStates; ++i)
      std::copy_n(parts.data() + i * matrix.padded, width, d_state + place(i, first, stride) * width);
  }

  // Where the i-th part of a thread's states lies among those of all.
  static int64_t place(int64_t i, int64_t first, int64_t stride) {
    return (first + i / Cell::kStates * stride) * Cell::kStates + i % Cell::kStates;
  }

  void step(int64_t at, T* parts, T* d_out) const {
    const int64_t width = matrix.width;
    for (int64_t o = 0; o < width; o += kWidth<T>) {
      const Place p = matrix.place(at, o);
      const Vec<T> dy = load_some(d_hidden + at * width + o, p.lanes);
      Vec<T> to_product[Cell::kGates], to_gates[Cell::kGates];
      cell.reverse(p, kept + at * Cell::kKept * width + o, before + at * width + o, dy, parts + o,
                   to_product, to_gates);
      for (int64_t g = 0; g < Cell::kGates; ++g) {
        const int64_t to = (at * Cell::kGates + g) * width + o;
        store(d_out + g * matrix.padded + o, to_product[g]);
        store_some(d_product + to, to_product[g], p.lanes);
        if (Cell::kTwice) store_some(d_gates + to, to_gates[g], p.lanes);
      }
    }
  }

  void join(int64_t at, const T* d_left, T* parts) const {
    for (int64_t o = 0; o < matrix.width; o += kWidth<T>)
      cell.join(matrix.place(at, o), kept + at * Cell::kKept * matrix.width + o, load(d_left + o),
                parts + o);
  }
};

// (hidden (M, H), final state, before (M, H), kept (M, kKept, H)); the last two empty unless `keep`.
template <typename T, typename Cell>
std::vector<Tensor> run_forward(const Cell& cell, const Tensor& weight, const Tensor& bias,
                                const Tensor& state, const std::vector<int64_t>& counts, bool keep) {
  const Order order(counts);
  const Matrix<T> matrix(weight, bias, Cell::kGates);
  const int64_t width = matrix.width, many = keep ? order.steps : 0;
  Tensor hidden = at::empty({order.steps, width}, state.options()), final = at::empty_like(state);
  Tensor before = at::empty({many, width}, state.options());
  Tensor kept = at::empty({many, Cell::kKept, width}, state.options());
  const Forward<T, Cell> pass{cell, matrix, order, state.const_data_ptr<T>(), hidden.data_ptr<T>(),
                              final.data_ptr<T>(), keep ? before.data_ptr<T>() : nullptr,
                              keep ? kept.data_ptr<T>() : nullptr};
  share_episodes(order.episodes(), order.steps * Cell::kGates * width * width,
                 [&](int64_t first, int64_t stride) { pass.run(first, stride); });
  return {hidden, final, before, kept};
}

// (gradient of the product (M, G H), of the gates, the same tensor unless they differ, of the state).
template <typename T, typename Cell>
std::vector<Tensor> run_backward(const Cell& cell, const Tensor& weight,
                                 const std::vector<int64_t>& counts, const Tensor& before,
                                 const Tensor& kept, const Tensor& d_hidden, const Tensor& d_final) {
  const Order order(counts);
  const Matrix<T> matrix(weight, at::empty({0}, weight.options()), Cell::kGates);
  Tensor d_product = at::empty({order.steps, Cell::kGates * matrix.width}, weight.options());
  Tensor d_gates = Cell::kTwice ? at::empty_like(d_product) : d_product;
  Tensor d_state = at::empty_like(d_final);
  const Backward<T, Cell> pass{cell, matrix, order, before.const_data_ptr<T>(),
                               kept.const_data_ptr<T>(), d_hidden.const_data_ptr<T>(),
                               d_final.const_data_ptr<T>(), d_product.data_ptr<T>(),
                               d_gates.data_ptr<T>(), d_state.data_ptr<T>()};
  share_episodes(order.episodes(), order.steps * Cell::kGates * matrix.width * matrix.width,
                 [&](int64_t first, int64_t stride) { pass.run(first, stride); });
  return {d_product, d_gates, d_state};
}

}  // namespace
