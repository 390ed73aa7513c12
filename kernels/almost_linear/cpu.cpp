// The almost-linear recurrence, forward and backward: equation in __init__.py, the loop in ranks.h.
// What the matrix multiplies, Φ(z), is a part of its own beside z.

#include "ranks.h"

namespace {

template <typename T>
struct AlmostLinear {
  static constexpr int64_t kGates = 1, kStates = 1, kParts = 2, kLeft = 1, kKept = 1;
  static constexpr bool kTwice = false;
  const T *inputs, *decay;  // (M, H), (H,)
  int64_t linear;           // units that Φ leaves alone

  // Whether each unit passes Φ: linear, or above zero.
  Vec<T> passes(const Place& p, Vec<T> z) const {
    const Vec<T> zero = {}, one = zero + T(1);
    Vec<T> open = z > zero ? one : zero;
    for (int64_t i = 0; i < std::min(kWidth<T>, linear - p.o); ++i) open[i] = T(1);
    return open;
  }

  void open(const Place& p, T* z) const { bend(p, z, load(z)); }

  // A closed unit gives zero whatever it holds; NaN passes, as through ReLU.
  void bend(const Place& p, T* parts, Vec<T> z) const {
    const Vec<T> zero = {};
    store(parts + p.padded, passes(p, z) == zero & z == z ? zero : z);
  }

  Vec<T> advance(const Place& p, const T* product, T* kept, T* parts) const {
    const Vec<T> z = load(parts), u = load_some(inputs + p.at * p.width + p.o, p.lanes);
    const Vec<T> next = u + load(product) + load_some(decay + p.o, p.lanes) * z;
    if (kept) store_some(kept, z, p.lanes);
    store(parts, next);
    bend(p, parts, next);
    return next;
  }

  void reverse(const Place& p, const T*, const T*, Vec<T> dy, T* d_parts, Vec<T>* d_product,
               Vec<T>*) const {
    d_product[0] = load(d_parts) + dy;
    store(d_parts, d_product[0] * load_some(decay + p.o, p.lanes));
  }

  void join(const Place& p, const T* kept, Vec<T> d_left, T* d_parts) const {
    const Vec<T> zero = {}, open = passes(p, load_some(kept, p.lanes));
    store(d_parts, load(d_parts) + (open == zero ? zero : d_left));
  }
};

std::vector<Tensor> forward(const Tensor& inputs, const Tensor& decay, const Tensor& weight,
                            const Tensor& state, int64_t linear, const std::vector<int64_t>& counts,
                            bool keep) {
  return AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "almost_linear", [&] {
    using T = scalar_t;
    const AlmostLinear<T> cell{inputs.const_data_ptr<T>(), decay.const_data_ptr<T>(), linear};
    return run_forward<T>(cell, weight, at::empty({0}, weight.options()), state, counts, keep);
  });
}

std::vector<Tensor> backward(const Tensor& decay, const Tensor& weight, int64_t linear,
                             const std::vector<int64_t>& counts, const Tensor& before,
                             const Tensor& kept, const Tensor& d_hidden, const Tensor& d_final) {
  return AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "almost_linear", [&] {
    using T = scalar_t;
    const AlmostLinear<T> cell{nullptr, decay.const_data_ptr<T>(), linear};
    return run_backward<T>(cell, weight, counts, before, kept, d_hidden, d_final);
  });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
