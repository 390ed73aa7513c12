// Gated linear attention and its gradients: equation in __init__.py. Shapes: B rows, T steps, H heads,
// K key and V value width, W lanes of a vector. No element of a state touches another: it is cut into
// tiles of W keys by W values, each of which walks all steps in W registers. Outputs and the gradient
// of v are sums over keys, so there a vector is a key's values; those of q, k and the gates are sums
// over values, so there it is a value's keys. Work is cut by rows and heads, sums have one order:
// results do not depend on the number of threads.

#include "tiles.h"

namespace {

// o and the state after; the state before each chunk too, where `kept` is not null.
template <bool PerKey, typename T, bool Full>
void forward_tile(const Tile<T, Full>& tile, const T* before, T* o, T* after, T* kept) {
  const Inputs<T>& in = tile.in;
  const int64_t keys = tile.keys();
  Vec<T> S[kWidth<T>];
  ROWS(i, keys) S[i] = load_some(before + tile.to_state(i), tile.values());
  for (int64_t t = tile.begin; t < tile.end; ++t) {
    if (kept && t % kChunk == 0) {
      T* to = kept + tile.to_kept(t / kChunk);
      ROWS(i, keys) store(to + i * kWidth<T>, S[i]);
    }
    const uint8_t mark = in.marks[tile.step(t)];
    Vec<T> out[2] = {};
    if (mark != kNone) {
      if (mark == kStart)
        ROWS(i, keys) S[i] = Vec<T>{};
      const T *q = in.q + tile.to_given_keys(t), *k = in.k + tile.to_given_keys(t);
      const T* gate = in.gate + tile.to_gates(t);
      const Vec<T> v = load_some(in.v + tile.to_values(t), tile.values());
      ROWS(i, keys) {
        S[i] = S[i] * gate[PerKey ? i : 0] + k[i] * v;
        out[i % 2] += q[i] * S[i];
      }
    }
    put(o + tile.to_values(t), out[0] + out[1], tile.values(), tile.key > 0);
  }
  ROWS(i, keys) store_some(after + tile.to_state(i), S[i], tile.values());
}

// The gradients of v and of the state before: the same walk back, with q and k changed over.
template <bool PerKey, typename T, bool Full>
void back_to_values(const Tile<T, Full>& tile, const T* d_out, const T* d_after, T* d_v, T* d_before) {
  const Inputs<T>& in = tile.in;
  const int64_t keys = tile.keys();
  Vec<T> dS[kWidth<T>];
  ROWS(i, keys) dS[i] = load_some(d_after + tile.to_state(i), tile.values());
  for (int64_t t = tile.end - 1; t >= tile.begin; --t) {
    const uint8_t mark = in.marks[tile.step(t)];
    Vec<T> out[2] = {};
    if (mark != kNone) {
      const T *q = in.q + tile.to_given_keys(t), *k = in.k + tile.to_given_keys(t);
      const T* gate = in.gate + tile.to_gates(t);
      const Vec<T> d_o = load_some(d_out + tile.to_values(t), tile.values());
      ROWS(i, keys) {
        dS[i] += q[i] * d_o;
        out[i % 2] += k[i] * dS[i];
        dS[i] *= gate[PerKey ? i : 0];
      }
      if (mark == kStart)
        ROWS(i, keys) dS[i] = Vec<T>{};
    }
    put(d_v + tile.to_values(t), out[0] + out[1], tile.values(), tile.key > 0);
  }
  ROWS(i, keys) store_some(d_before + tile.to_state(i), dS[i], tile.values());
}

template <typename T>
struct Gradients {
  T *q, *k, *gate;  // (B, T, H, K), gate's logarithm as the gates
};

template <bool PerKey, typename T, bool Full>
inline Vec<T> gates_of(const Tile<T, Full>& tile, int64_t t) {
  const T* gate = tile.in.gate + tile.to_gates(t);
  return PerKey ? load_some(gate, tile.keys()) : Vec<T>{} + gate[0];
}

// Steps begin … end forth from the state S, and the gradient of q; `decayed` gets each step's state
// before k v.
template <bool PerKey, typename T, bool Full>
__attribute__((noinline)) void forth(const Tile<T, Full>& tile, int64_t begin, int64_t end, const T* d_out,
                                     const Vec<T>* from, Vec<T>* decayed, T* d_q) {
  const Inputs<T>& in = tile.in;
  const int64_t values = tile.values();
  Vec<T> S[kWidth<T>];
  ROWS(j, values) S[j] = from[j];
  for (int64_t t = begin; t < end; ++t, decayed += kWidth<T>) {
    const uint8_t mark = in.marks[tile.step(t)];
    Vec<T> found[2] = {};
    if (mark != kNone) {
      if (mark == kStart)
        ROWS(j, values) S[j] = Vec<T>{};
      const Vec<T> gate = gates_of<PerKey>(tile, t);
      const Vec<T> k = load_some(in.k + tile.to_given_keys(t), tile.keys());
      const T *v = in.v + tile.to_values(t), *d_o = d_out + tile.to_values(t);
      ROWS(j, values) {
        S[j] *= gate;
        decayed[j] = S[j];
        S[j] += v[j] * k;
        found[j % 2] += d_o[j] * S[j];
      }
    }
    put(d_q + tile.to_keys(t), found[0] + found[1], tile.keys(), tile.value > 0);
  }
}

// The same steps back from the gradient dS: those of k and of the gates.
template <bool PerKey, typename T, bool Full>
__attribute__((noinline)) void back(const Tile<T, Full>& tile, int64_t begin, int64_t end, const T* d_out,
                                    Vec<T>* gradient, const Vec<T>* decayed, const Gradients<T>& g) {
  const Inputs<T>& in = tile.in;
  const int64_t values = tile.values();
  Vec<T> dS[kWidth<T>];
  ROWS(j, values) dS[j] = gradient[j];
  for (int64_t t = end - 1; t >= begin; --t) {
    const uint8_t mark = in.marks[tile.step(t)];
    Vec<T> d_k[2] = {}, d_gate[2] = {};
    if (mark != kNone) {
      const Vec<T> gate = gates_of<PerKey>(tile, t);
      const Vec<T> q = load_some(in.q + tile.to_given_keys(t), tile.keys());
      const T *v = in.v + tile.to_values(t), *d_o = d_out + tile.to_values(t);
      const Vec<T>* S = decayed + (t - begin) * kWidth<T>;
      ROWS(j, values) {
        dS[j] += d_o[j] * q;
        d_k[j % 2] += v[j] * dS[j];
        d_gate[j % 2] += dS[j] * S[j];
        dS[j] *= gate;
      }
      if (mark == kStart)
        ROWS(j, values) dS[j] = Vec<T>{};
    }
    put(g.k + tile.to_keys(t), d_k[0] + d_k[1], tile.keys(), tile.value > 0);
    const Vec<T> of_gates = d_gate[0] + d_gate[1];
    T* to = g.gate + tile.to_gates(t);
    if (PerKey) {
      put(to, of_gates, tile.keys(), tile.value > 0);
    } else {
      to[0] = sum<T>(of_gates, tile.keys()) + (tile.number > 0 ? to[0] : T(0));
    }
  }
  ROWS(j, values) gradient[j] = dS[j];
}

// The gradients of q, k and the gates: chunk by chunk from the last, its states made again first.
template <bool PerKey, typename T, bool Full>
void back_to_keys(const Tile<T, Full>& tile, const T* kept, const T* d_out, const T* d_after,
                  const Gradients<T>& g) {
  Vec<T> S[kWidth<T>], dS[kWidth<T>], decayed[kChunk * kWidth<T>];
  turn(tile, d_after + tile.to_state(0), tile.in.s.value, dS);
  const int64_t chunks = (tile.end + kChunk - 1) / kChunk;
  for (int64_t chunk = chunks - 1; chunk * kChunk >= tile.begin; --chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, tile.end);
    turn(tile, kept + tile.to_kept(chunk), kWidth<T>, S);
    forth<PerKey>(tile, begin, end, d_out, S, decayed, g.q);
    back<PerKey>(tile, begin, end, d_out, dS, decayed, g);
  }
}

// (o (B, T, H, V), final state, states before each chunk; none unless `keep`).
std::vector<Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                            const Tensor& state, const Tensor& marks, bool keep) {
  Tensor o = at::empty_like(v), final = at::empty_like(state), before;
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "gated_linear", [&] {
    using T = scalar_t;
    const Inputs<T> in(q, k, v, gate, marks);
    const Shape& s = in.s;
    const int64_t size = s.rows * s.heads * s.chunks * s.tiles * kWidth<T> * kWidth<T>;
    before = at::empty({keep ? size : 0}, state.options());
    T* kept = keep ? before.data_ptr<T>() : nullptr;
    const T* from = state.const_data_ptr<T>();
    T *to = o.data_ptr<T>(), *last = final.data_ptr<T>();
    for_parts(in, false, [&](int64_t row, int64_t head, int64_t begin, int64_t end, bool first) {
      for_tiles(in, row, head, begin, end, [&](const auto& tile, auto per_key) {
        forward_tile<per_key()>(tile, first ? from : last, to, last, kept);
      });
    });
  });
  return {o, final, before};
}

// Gradients of q and k (B, T, H, K), v, the logarithm of each gate, and the state.
std::vector<Tensor> backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                             const Tensor& marks, const Tensor& before, const Tensor& d_out,
                             const Tensor& d_final) {
  Tensor dq = at::empty({v.size(0), v.size(1), v.size(2), k.size(3)}, v.options());
  Tensor dk = at::empty_like(dq), dv = at::empty_like(v), d_gate = at::empty_like(gate);
  Tensor d_state = at::empty_like(d_final);
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "gated_linear_backward", [&] {
    using T = scalar_t;
    const Inputs<T> in(q, k, v, gate, marks);
    const Gradients<T> g{dq.data_ptr<T>(), dk.data_ptr<T>(), d_gate.data_ptr<T>()};
    const T *kept = before.const_data_ptr<T>(), *d_o = d_out.const_data_ptr<T>();
    const T* d_last = d_final.const_data_ptr<T>();
    T *to = dv.data_ptr<T>(), *d_first = d_state.data_ptr<T>();
    for_parts(in, true, [&](int64_t row, int64_t head, int64_t begin, int64_t end, bool first) {
      for_tiles(in, row, head, begin, end, [&](const auto& tile, auto per_key) {
        const T* d_after = first ? d_last : d_first;
        back_to_keys<per_key()>(tile, kept, d_o, d_after, g);
        back_to_values<per_key()>(tile, d_o, d_after, to, d_first);
      });
    });
  });
  return {dq, dk, dv, d_gate, d_state};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
