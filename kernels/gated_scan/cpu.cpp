// GRU and LSTM, forward and backward: equations in __init__.py, the loop over steps in ranks.h.
// Gates: the input's part of all steps, (M, G H); the recurrent bias belongs to the product.

#include "ranks.h"

namespace {

template <typename T>
struct GRU {
  static constexpr int64_t kGates = 3, kStates = 1, kParts = 1, kLeft = 0, kKept = 4;
  static constexpr bool kTwice = true;  // the reset gate stands between gate and product
  const T* gates;

  void open(const Place&, T*) const {}

  Vec<T> advance(const Place& p, const T* product, T* kept, T* h) const {
    const T* x = gates + p.at * 3 * p.width + p.o;
    const Vec<T> r = sigmoid<T>(load_some(x, p.lanes) + load(product));
    const Vec<T> z = sigmoid<T>(load_some(x + p.width, p.lanes) + load(product + p.padded));
    const Vec<T> inner = load(product + 2 * p.padded);
    const Vec<T> n = tanh<T>(load_some(x + 2 * p.width, p.lanes) + r * inner);
    const Vec<T> next = n + z * (load(h) - n);
    store(h, next);
    if (kept) {
      const Vec<T> values[] = {r, z, n, inner};
      for (int i = 0; i < kKept; ++i) store_some(kept + i * p.width, values[i], p.lanes);
    }
    return next;
  }

  void reverse(const Place& p, const T* kept, const T* before, Vec<T> dy, T* d_parts,
               Vec<T>* d_product, Vec<T>* d_gates) const {
    const Vec<T> r = load_some(kept, p.lanes), z = load_some(kept + p.width, p.lanes);
    const Vec<T> n = load_some(kept + 2 * p.width, p.lanes);
    const Vec<T> inner = load_some(kept + 3 * p.width, p.lanes);
    const Vec<T> dh = load(d_parts) + dy, one = Vec<T>{} + T(1);
    d_gates[2] = dh * (one - z) * (one - n * n);
    d_gates[1] = dh * (load_some(before, p.lanes) - n) * z * (one - z);
    d_gates[0] = d_gates[2] * inner * r * (one - r);
    d_product[0] = d_gates[0], d_product[1] = d_gates[1], d_product[2] = d_gates[2] * r;
    store(d_parts, dh * z);
  }

  void join(const Place&, const T*, Vec<T> d_left, T* d_parts) const {
    store(d_parts, load(d_parts) + d_left);
  }
};

template <typename T>
struct LSTM {
  static constexpr int64_t kGates = 4, kStates = 2, kParts = 2, kLeft = 0, kKept = 6;
  static constexpr bool kTwice = false;
  const T* gates;

  void open(const Place&, T*) const {}

  Vec<T> advance(const Place& p, const T* product, T* kept, T* parts) const {
    const T* x = gates + p.at * 4 * p.width + p.o;
    Vec<T> sums[4];
    for (int g = 0; g < 4; ++g)
      sums[g] = load_some(x + g * p.width, p.lanes) + load(product + g * p.padded);
    const Vec<T> i = sigmoid<T>(sums[0]), f = sigmoid<T>(sums[1]);
    const Vec<T> g = tanh<T>(sums[2]), o = sigmoid<T>(sums[3]), cell = load(parts + p.padded);
    const Vec<T> c = f * cell + i * g, bent = tanh<T>(c), h = o * bent;
    store(parts, h), store(parts + p.padded, c);
    if (kept) {
      const Vec<T> values[] = {i, f, g, o, cell, bent};
      for (int n = 0; n < kKept; ++n) store_some(kept + n * p.width, values[n], p.lanes);
    }
    return h;
  }

  void reverse(const Place& p, const T* kept, const T*, Vec<T> dy, T* d_parts, Vec<T>* d_product,
               Vec<T>*) const {
    Vec<T> v[kKept];
    for (int n = 0; n < kKept; ++n) v[n] = load_some(kept + n * p.width, p.lanes);
    const Vec<T> i = v[0], f = v[1], g = v[2], o = v[3], cell = v[4], bent = v[5];
    const Vec<T> dh = load(d_parts) + dy, one = Vec<T>{} + T(1);
    const Vec<T> dc = load(d_parts + p.padded) + dh * o * (one - bent * bent);
    d_product[0] = dc * g * i * (one - i);
    d_product[1] = dc * cell * f * (one - f);
    d_product[2] = dc * i * (one - g * g);
    d_product[3] = dh * bent * o * (one - o);
    store(d_parts + p.padded, dc * f);
  }

  void join(const Place&, const T*, Vec<T> d_left, T* d_parts) const { store(d_parts, d_left); }
};

template <template <typename> class Cell>
std::vector<Tensor> forward(const Tensor& gates, const Tensor& weight, const Tensor& bias,
                            const Tensor& state, const std::vector<int64_t>& counts, bool keep) {
  return AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "gated_scan", [&] {
    const Cell<scalar_t> cell{gates.const_data_ptr<scalar_t>()};
    return run_forward<scalar_t>(cell, weight, bias, state, counts, keep);
  });
}

template <template <typename> class Cell>
std::vector<Tensor> backward(const Tensor& weight, const std::vector<int64_t>& counts,
                             const Tensor& before, const Tensor& kept, const Tensor& d_hidden,
                             const Tensor& d_final) {
  return AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "gated_scan", [&] {
    const Cell<scalar_t> cell{nullptr};
    return run_backward<scalar_t>(cell, weight, counts, before, kept, d_hidden, d_final);
  });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("gru", &forward<GRU>, Unlocked());
  m.def("gru_backward", &backward<GRU>, Unlocked());
  m.def("lstm", &forward<LSTM>, Unlocked());
  m.def("lstm_backward", &backward<LSTM>, Unlocked());
}
