// Tiles of the states of gated linear attention: where they lie, and in what turns they walk. A tile is
// W keys by W values, W lanes of a vector. Shapes: B rows, T steps, H heads, K key and V value width.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace {

using at::Tensor;

// The rows of a tile: a loop left as one keeps them in memory.
#define ROWS(i, count) _Pragma("GCC unroll 16") for (int64_t i = 0; i < count; ++i)

constexpr int64_t kChunk = 16;  // steps between the states kept for the backward pass
constexpr int64_t kPart = 64;   // steps a tile walks before the next has its turn; whole chunks
constexpr int64_t kFew = 8;     // tiles that walk all steps at once
enum Mark : uint8_t { kNone = 0, kStart = 2 };

struct Shape {
  int64_t rows, steps, heads, key_heads, key, value, gates, chunks, tiles;
};

template <typename T>
struct Inputs {
  Shape s;
  const T *q, *k, *v, *gate;  // (B, T, H or 1, K), (B, T, H, V), gate (B, T, H, K or 1)
  const uint8_t* marks;       // (B, T)

  Inputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate, const Tensor& marks)
      : q(q.const_data_ptr<T>()),
        k(k.const_data_ptr<T>()),
        v(v.const_data_ptr<T>()),
        gate(gate.const_data_ptr<T>()),
        marks(marks.const_data_ptr<uint8_t>()) {
    const int64_t steps = v.size(1), key = k.size(3), value = v.size(3);
    const auto up = [](int64_t n, int64_t by) { return (n + by - 1) / by; };
    s = {v.size(0),    steps,           v.size(2),
         k.size(2),    key,             value,
         gate.size(3), up(steps, kChunk), up(key, kWidth<T>) * up(value, kWidth<T>)};
  }
};

// A tile of the state of one head in one row, `keys` by `values` (W each where it is Full), on its way
// through the steps begin … end.
template <typename T, bool Full>
struct Tile {
  const Inputs<T>& in;
  int64_t row, head, given_head, begin, end, number, key, key_count, value, value_count;

  int64_t keys() const { return Full ? kWidth<T> : key_count; }
  int64_t values() const { return Full ? kWidth<T> : value_count; }

  int64_t state() const { return row * in.s.heads + head; }
  int64_t step(int64_t t) const { return row * in.s.steps + t; }
  int64_t at(int64_t t) const { return step(t) * in.s.heads + head; }
  // Where a step's keys, values and gates lie in tensors of these.
  int64_t to_keys(int64_t t) const { return at(t) * in.s.key + key; }
  int64_t to_values(int64_t t) const { return at(t) * in.s.value + value; }
  int64_t to_gates(int64_t t) const { return at(t) * in.s.gates + (in.s.gates == 1 ? 0 : key); }
  int64_t to_given_keys(int64_t t) const {
    return (step(t) * in.s.key_heads + given_head) * in.s.key + key;
  }
  int64_t to_state(int64_t i) const { return (state() * in.s.key + key + i) * in.s.value + value; }
  int64_t to_kept(int64_t chunk) const {
    return ((state() * in.s.chunks + chunk) * in.s.tiles + number) * kWidth<T> * kWidth<T>;
  }
};

// Of the first lanes: what others hold may be NaN.
template <typename T>
inline T sum(Vec<T> x, int64_t count) {
  T total = 0;
  if (count == kWidth<T>) {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < kWidth<T>; ++i) total += x[i];
  } else {
    for (int64_t i = 0; i < count; ++i) total += x[i];
  }
  return total;
}

// Writes x, or adds it to what tiles before this one have written.
template <typename T>
inline void put(T* to, Vec<T> x, int64_t count, bool add) {
  store_some(to, add ? load_some(to, count) + x : x, count);
}

// A tile with a key a row, turned into one with a value a row.
template <typename T, bool Full>
inline void turn(const Tile<T, Full>& tile, const T* from, int64_t stride, Vec<T>* to) {
  T rows[kWidth<T>][kWidth<T>] = {};
  for (int64_t i = 0; i < tile.keys(); ++i)
    for (int64_t j = 0; j < tile.values(); ++j) rows[j][i] = from[i * stride + j];
  for (int64_t j = 0; j < kWidth<T>; ++j) to[j] = load(rows[j]);
}

// Calls task(tile, whether gates are one a key), both known as it compiles, for the tiles of a head.
template <typename T, typename Task>
void for_tiles(const Inputs<T>& in, int64_t row, int64_t head, int64_t begin, int64_t end,
               const Task& task) {
  const Shape& s = in.s;
  const int64_t wide = kWidth<T>, given = s.key_heads == 1 ? 0 : head;
  const auto call = [&](auto tile) {
    s.gates > 1 ? task(tile, std::true_type{}) : task(tile, std::false_type{});
  };
  int64_t number = 0;
  for (int64_t key = 0; key < s.key; key += wide)
    for (int64_t value = 0; value < s.value; value += wide, ++number) {
      const int64_t keys = std::min(wide, s.key - key), values = std::min(wide, s.value - value);
      if (keys == wide && values == wide)
        call(Tile<T, true>{in, row, head, given, begin, end, number, key, keys, value, values});
      else
        call(Tile<T, false>{in, row, head, given, begin, end, number, key, keys, value, values});
    }
}

// Calls task(row, head, begin, end, whether this comes first) for all heads and parts of their steps:
// tiles take turns where there are many, so that what they read stays near.
template <typename T, typename Task>
void for_parts(const Inputs<T>& in, bool back, const Task& task) {
  const Shape& s = in.s;
  const int64_t length = s.tiles > kFew ? kPart : std::max<int64_t>(1, s.steps);
  const int64_t parts = std::max<int64_t>(1, (s.steps + length - 1) / length);
  const int64_t work = std::max<int64_t>(1, s.steps * s.tiles * kWidth<T> * kWidth<T>);
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 15) / work);
  at::parallel_for(0, s.rows * s.heads, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      for (int64_t n = 0; n < parts; ++n) {
        const int64_t begin = (back ? parts - 1 - n : n) * length;
        task(i / s.heads, i % s.heads, begin, std::min(begin + length, s.steps), n == 0);
      }
  });
}

}  // namespace
