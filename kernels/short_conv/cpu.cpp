// The short convolution of packed rows and its gradients: equation in __init__.py. Shapes: B rows, T
// steps, D channels, W taps. A row is walked with pointers to its episode's last W − 1 inputs; before
// a start they point nowhere. Rows are shared out, and sums over rows come last: results do not depend
// on the number of threads.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <vector>

namespace {

using at::Tensor;

enum Mark : uint8_t { kNone = 0, kStart = 2 };

// The last W − 1 places, latest first; null: before the episode.
template <typename P>
struct Past {
  std::vector<P*> places;

  Past(P* state, int64_t taps, int64_t channels) : places(taps - 1) {  // state (W − 1, D), oldest first
    for (int64_t k = 1; k < taps; ++k) places[k - 1] = state + (taps - 1 - k) * channels;
  }
  void forget() { std::fill(places.begin(), places.end(), nullptr); }
  void push(P* place) {
    if (places.empty()) return;
    std::move_backward(places.begin(), places.end() - 1, places.end());
    places[0] = place;
  }
};

template <typename T>
inline void add(int64_t n, const T* a, const T* b, T* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += a[i] * b[i];
}

struct Shape {
  int64_t rows, steps, channels, taps;
};

Shape shape_of(const Tensor& x, const Tensor& weight) {
  return {x.size(0), x.size(1), x.size(2), weight.size(0)};
}

template <typename T>
void forward_row(const Shape& s, const T* x, const T* weight, const T* bias, const T* state,
                 const uint8_t* marks, T* y, T* final) {
  const int64_t d = s.channels;
  Past<const T> past(state, s.taps, d);
  for (int64_t t = 0; t < s.steps; ++t, x += d, y += d) {
    if (marks[t] == kNone) {
      std::fill_n(y, d, T(0));
      continue;
    }
    if (marks[t] == kStart) past.forget();
    std::copy_n(bias, d, y);
    add(d, x, weight + (s.taps - 1) * d, y);
    for (int64_t k = 1; k < s.taps; ++k)
      if (past.places[k - 1]) add(d, past.places[k - 1], weight + (s.taps - 1 - k) * d, y);
    past.push(x);
  }
  for (int64_t k = 1; k < s.taps; ++k) {
    T* to = final + (s.taps - 1 - k) * d;
    if (past.places[k - 1])
      std::copy_n(past.places[k - 1], d, to);
    else
      std::fill_n(to, d, T(0));
  }
}

// All gradients add up on zeros; those of the weight and the bias are of this row alone.
template <typename T>
void backward_row(const Shape& s, const T* x, const T* weight, const T* state, const uint8_t* marks,
                  const T* dy, const T* d_final, T* dx, T* d_weight, T* d_bias, T* d_state) {
  const int64_t d = s.channels, last = (s.taps - 1) * d;
  Past<const T> past(state, s.taps, d);
  Past<T> d_past(d_state, s.taps, d);
  for (int64_t t = 0; t < s.steps; ++t, x += d, dx += d, dy += d) {
    if (marks[t] == kNone) continue;
    if (marks[t] == kStart) past.forget(), d_past.forget();
    add(d, dy, weight + last, dx);
    add(d, dy, x, d_weight + last);
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) d_bias[i] += dy[i];
    for (int64_t k = 1; k < s.taps; ++k)
      if (past.places[k - 1]) {
        add(d, dy, weight + last - k * d, d_past.places[k - 1]);
        add(d, dy, past.places[k - 1], d_weight + last - k * d);
      }
    past.push(x), d_past.push(dx);
  }
  for (int64_t k = 1; k < s.taps; ++k)
    if (T* to = d_past.places[k - 1]) {
      const T* from = d_final + last - k * d;
      for (int64_t i = 0; i < d; ++i) to[i] += from[i];
    }
}

template <typename Task>
void for_rows(const Shape& s, const Task& task) {
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 18) / (s.steps * s.channels * s.taps + 1));
  at::parallel_for(0, s.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) task(row);
  });
}

// x (B, T, D), weight (W, D), bias (D,), state (B, W − 1, D), marks (B, T) -> y, final state.
std::vector<Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                            const Tensor& state, const Tensor& marks) {
  const Shape s = shape_of(x, weight);
  Tensor y = at::empty_like(x), final = at::empty_like(state);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "short_conv", [&] {
    using T = scalar_t;
    const int64_t row_size = s.steps * s.channels, state_size = (s.taps - 1) * s.channels;
    for_rows(s, [&](int64_t row) {
      forward_row(s, x.const_data_ptr<T>() + row * row_size, weight.const_data_ptr<T>(),
                  bias.const_data_ptr<T>(), state.const_data_ptr<T>() + row * state_size,
                  marks.const_data_ptr<uint8_t>() + row * s.steps, y.data_ptr<T>() + row * row_size,
                  final.data_ptr<T>() + row * state_size);
    });
  });
  return {y, final};
}

// Gradients of x, weight, bias and state.
std::vector<Tensor> backward(const Tensor& x, const Tensor& weight, const Tensor& state,
                             const Tensor& marks, const Tensor& dy, const Tensor& d_final) {
  const Shape s = shape_of(x, weight);
  Tensor dx = at::zeros_like(x), d_state = at::zeros_like(state);
  Tensor d_weight = at::zeros({s.rows, s.taps, s.channels}, x.options());
  Tensor d_bias = at::zeros({s.rows, s.channels}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "short_conv_backward", [&] {
    using T = scalar_t;
    const int64_t row_size = s.steps * s.channels, state_size = (s.taps - 1) * s.channels;
    for_rows(s, [&](int64_t row) {
      backward_row(s, x.const_data_ptr<T>() + row * row_size, weight.const_data_ptr<T>(),
                   state.const_data_ptr<T>() + row * state_size,
                   marks.const_data_ptr<uint8_t>() + row * s.steps,
                   dy.const_data_ptr<T>() + row * row_size,
                   d_final.const_data_ptr<T>() + row * state_size, dx.data_ptr<T>() + row * row_size,
                   d_weight.data_ptr<T>() + row * s.taps * s.channels,
                   d_bias.data_ptr<T>() + row * s.channels, d_state.data_ptr<T>() + row * state_size);
    });
  });
  return {dx, d_weight.sum(0), d_bias.sum(0), d_state};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
