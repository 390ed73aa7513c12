// Systems of W channels, W lanes of a vector, side by side: how they are packed, and where a row's states
// lie. Shapes: B rows, T steps, H channels of n complex states.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "lanes.h"

namespace {

using at::Tensor;

constexpr int64_t kChunk = 16;  // steps between the states kept for the backward pass
enum Mark : uint8_t { kNone = 0, kStart = 2 };
enum Field { kA, kB, kC, kW, kV };  // two numbers each; c and v as rows: z · x is 2 Re z Re x − 2 Im z Im x

struct Shape {
  int64_t rows, steps, channels, half, groups, chunks;
  bool low_rank;

  int64_t numbers() const { return low_rank ? 10 : 6; }  // of the fields of a state
  int64_t system() const { return half * numbers(); }    // vectors of a group
};

template <typename T>
using Vectors = std::vector<Vec<T>>;

template <typename T>
Shape shape_of(const Tensor& u, const std::vector<Tensor>& system, const Tensor& state,
               const Tensor& marks) {
  const int64_t channels = u.size(-1), half = system[0].size(-1);
  bool fits = u.dim() == 3 && marks.sizes() == u.sizes().slice(0, 2) &&
              state.sizes() == at::IntArrayRef({u.size(0), channels, half, 2});
  for (const Tensor& z : system) fits &= z.sizes() == at::IntArrayRef({channels, half});
  TORCH_CHECK(fits, "lti_scan: u ", u.sizes(), ", a system of ", system[0].sizes(), ", state ",
              state.sizes(), " and starts ", marks.sizes(), " do not go together");
  return {u.size(0), u.size(1), channels, half, (channels + kWidth<T> - 1) / kWidth<T>,
          (u.size(1) + kChunk - 1) / kChunk, system.size() == 5};
}

template <typename T>
T sign(int64_t field, int64_t part) {
  return field == kC || field == kV ? (part ? T(-2) : T(2)) : T(1);
}

// Calls task(number in the packed system, field, number in the tensor of that, factor).
template <typename T, typename Task>
void for_numbers(const Shape& s, const Task& task) {
  for (int64_t h = 0; h < s.channels; ++h)
    for (int64_t i = 0; i < s.half; ++i)
      for (int64_t k = 0; k < s.numbers(); ++k) {
        const int64_t place = (h / kWidth<T> * s.half + i) * s.numbers() + k;
        task(place * kWidth<T> + h % kWidth<T>, k / 2, (h * s.half + i) * 2 + k % 2,
             sign<T>(k / 2, k % 2));
      }
}

// The fields (H, n), complex, as (groups, n, numbers, W).
template <typename T>
Tensor packed(const Shape& s, const std::vector<Tensor>& system, const Tensor& like) {
  Tensor to = at::zeros({s.groups * s.system() * kWidth<T>}, like.options());
  T* numbers = to.data_ptr<T>();
  for_numbers<T>(s, [&](int64_t place, int64_t field, int64_t from, T factor) {
    numbers[place] = factor * static_cast<const T*>(system[field].const_data_ptr())[from];
  });
  return to;
}

// Gradients of the fields, from those of the packed system.
template <typename T>
std::vector<Tensor> unpacked(const Shape& s, const std::vector<Tensor>& system, const Tensor& sums) {
  std::vector<Tensor> fields;
  for (const Tensor& z : system) fields.push_back(at::empty_like(z));
  const T* numbers = sums.const_data_ptr<T>();
  for_numbers<T>(s, [&](int64_t place, int64_t field, int64_t to, T factor) {
    static_cast<T*>(fields[field].data_ptr())[to] = factor * numbers[place];
  });
  return fields;
}

// W channels of a row.
template <typename T>
struct Group {
  Shape s;
  int64_t row, group;
  const T* system;  // packed

  int64_t lanes() const { return std::min(kWidth<T>, s.channels - group * kWidth<T>); }
  const T* fields() const { return system + group * s.system() * kWidth<T>; }
  int64_t step(int64_t t) const { return row * s.steps + t; }
  int64_t place(int64_t t) const { return step(t) * s.channels + group * kWidth<T>; }
  int64_t number(int64_t lane, int64_t i) const {  // of state (B, H, n, 2)
    return ((row * s.channels + group * kWidth<T> + lane) * s.half) * 2 + i;
  }
  int64_t kept(int64_t chunk) const {
    return ((row * s.groups + group) * s.chunks + chunk) * 2 * s.half * kWidth<T>;
  }
  Vectors<T> read(const T* state) const {
    Vectors<T> x(2 * s.half);
    for (int64_t i = 0; i < 2 * s.half; ++i)
      for (int64_t lane = 0; lane < lanes(); ++lane) x[i][lane] = state[number(lane, i)];
    return x;
  }
  void write(const Vec<T>* x, T* state) const {
    for (int64_t i = 0; i < 2 * s.half; ++i)
      for (int64_t lane = 0; lane < lanes(); ++lane) state[number(lane, i)] = x[i][lane];
  }
};

// Calls task(group, whether low rank as a type) for the groups of all rows.
template <typename T, typename Task>
void for_groups(const Shape& s, const Tensor& system, const Task& task) {
  const T* numbers = system.const_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 10) / (s.steps * s.half + 1));
  at::parallel_for(0, s.rows * s.groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Group<T> group{s, i / s.groups, i % s.groups, numbers};
      s.low_rank ? task(group, std::true_type()) : task(group, std::false_type());
    }
  });
}

}  // namespace
