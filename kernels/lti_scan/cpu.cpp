// The linear time-invariant scan and its gradients: equation in __init__.py. Shapes: B rows, T steps, H
// channels of n complex states. Systems of W channels, a group, are walked at a time along a row, a
// lane each; no lane meets another. Work is cut by rows and groups, sums over rows come last: results
// do not depend on the number of threads.

#include "groups.h"

namespace {

template <typename T>
struct Pair {
  Vec<T> first, second;
};

template <typename T>
inline Vec<T> of(const T* fields, int field, int part) {
  return load(fields + (2 * field + part) * kWidth<T>);
}

// v · x.
template <typename T, bool kLow>
inline Vec<T> look(const Shape& s, const T* fields, const Vec<T>* x) {
  Vec<T> seen = {};
  if constexpr (kLow)
    for (int64_t i = 0; i < s.half; ++i, fields += 10 * kWidth<T>)
      seen += of(fields, kV, 0) * x[2 * i] + of(fields, kV, 1) * x[2 * i + 1];
  return seen;
}

// to = a from − w seen + b u; returns c · to and v · to. `to` may be `from`.
template <typename T, bool kLow>
inline Pair<T> advance(const Shape& s, const T* fields, Vec<T> u, Vec<T> seen, const Vec<T>* from,
                       Vec<T>* to) {
  Vec<T> y[2] = {}, next[2] = {};
  for (int64_t i = 0; i < s.half; ++i, fields += (kLow ? 10 : 6) * kWidth<T>) {
    const Vec<T> re = from[2 * i], im = from[2 * i + 1];
    Vec<T> x = of(fields, kB, 0) * u + of(fields, kA, 0) * re - of(fields, kA, 1) * im;
    Vec<T> z = of(fields, kB, 1) * u + of(fields, kA, 0) * im + of(fields, kA, 1) * re;
    if constexpr (kLow) {
      x -= of(fields, kW, 0) * seen, z -= of(fields, kW, 1) * seen;
      next[0] += of(fields, kV, 0) * x, next[1] += of(fields, kV, 1) * z;
    }
    y[0] += of(fields, kC, 0) * x, y[1] += of(fields, kC, 1) * z;
    to[2 * i] = x, to[2 * i + 1] = z;
  }
  return {y[0] + y[1], next[0] + next[1]};
}

template <typename T, bool kLow>
void forward_group(const Group<T>& at, const T* u, const T* state, const uint8_t* marks, T* y,
                   T* final, T* before) {
  const Shape& s = at.s;
  const Vectors<T> nothing(2 * s.half);
  Vectors<T> x = at.read(state);
  Vec<T> seen = look<T, kLow>(s, at.fields(), x.data());
  for (int64_t t = 0; t < s.steps; ++t) {
    if (before && t % kChunk == 0)
      std::memcpy(before + at.kept(t / kChunk), x.data(), x.size() * sizeof(Vec<T>));
    Pair<T> found = {Vec<T>{}, seen};
    const uint8_t mark = marks[at.step(t)];
    if (mark != kNone)
      found = advance<T, kLow>(s, at.fields(), load_some(u + at.place(t), at.lanes()),
                               mark == kStart ? Vec<T>{} : seen,
                               mark == kStart ? nothing.data() : x.data(), x.data());
    seen = found.second;
    store_some(y + at.place(t), found.first, at.lanes());
  }
  at.write(x.data(), final);
}

// A step that is looked back on: what went in, and what v saw; dL/dy; dL/d(what v saw).
template <typename T>
struct Step {
  int64_t t = 0;
  bool start = false;
  Vec<T> u = {}, seen = {}, dy = {}, d_seen = {};
  const Vec<T>* from = nullptr;
  Vec<T>* to = nullptr;
  Vec<T>* g = nullptr;  // dL/d to
};

// Where kCarry g, dL/d(the state after) of the next step, goes back through that step first; then
// y's part is added. Returns dL/du and dL/d seen.
template <typename T, bool kLow, bool kCarry>
inline Pair<T> reverse(const Shape& s, const T* fields, Vec<T> dy, Vec<T> d_seen, Vec<T>* g) {
  Vec<T> du[2] = {}, next[2] = {};
  for (int64_t i = 0; i < s.half; ++i, fields += (kLow ? 10 : 6) * kWidth<T>) {
    Vec<T> re = g[2 * i], im = g[2 * i + 1];
    if constexpr (kCarry) {
      const Vec<T> before = re;
      re = of(fields, kA, 0) * before + of(fields, kA, 1) * im;
      im = of(fields, kA, 0) * im - of(fields, kA, 1) * before;
      if constexpr (kLow) re += of(fields, kV, 0) * d_seen, im += of(fields, kV, 1) * d_seen;
    }
    re += of(fields, kC, 0) * dy, im += of(fields, kC, 1) * dy;
    du[0] += of(fields, kB, 0) * re, du[1] += of(fields, kB, 1) * im;
    if constexpr (kLow) next[0] -= of(fields, kW, 0) * re, next[1] -= of(fields, kW, 1) * im;
    g[2 * i] = re, g[2 * i + 1] = im;
  }
  return {du[0] + du[1], next[0] + next[1]};
}

// What a chunk's steps add to the gradients of the packed system: c's alone unless kAll.
template <typename T, bool kLow, bool kAll>
void add_up(const Shape& s, const std::vector<Step<T>>& steps, T* sums) {
  constexpr int kNumbers = kLow ? 10 : 6;
  for (int64_t i = 0; i < s.half; ++i, sums += kNumbers * kWidth<T>) {
    Vec<T> d[10] = {};
    for (const Step<T>& step : steps) {
      d[2 * kC] += step.dy * step.to[2 * i], d[2 * kC + 1] += step.dy * step.to[2 * i + 1];
      if constexpr (!kAll) continue;
      const Vec<T> re = step.from[2 * i], im = step.from[2 * i + 1];
      const Vec<T> g = step.g[2 * i], h = step.g[2 * i + 1];
      d[2 * kA] += g * re + h * im, d[2 * kA + 1] += h * re - g * im;
      d[2 * kB] += g * step.u, d[2 * kB + 1] += h * step.u;
      if constexpr (!kLow) continue;
      d[2 * kW] -= g * step.seen, d[2 * kW + 1] -= h * step.seen;
      d[2 * kV] += step.d_seen * re, d[2 * kV + 1] += step.d_seen * im;
    }
    for (int k = kAll ? 0 : 2 * kC; k < (kAll ? kNumbers : 2 * kC + 2); ++k)
      store(sums + k * kWidth<T>, load(sums + k * kWidth<T>) + d[k]);
  }
}

template <typename T>
struct Gradients {
  T *u, *state, *system;  // (B, T, H), (B, H, n, 2), each row's part of the packed system's
};

template <typename T, bool kLow, bool kAll>
void backward_group(const Group<T>& at, const T* u, const uint8_t* marks, const T* before,
                    const T* d_y, const T* d_final, const Gradients<T>& d) {
  const Shape& s = at.s;
  const int64_t size = 2 * s.half;
  const T* fields = at.fields();
  const Vectors<T> nothing(size);
  Vectors<T> g = at.read(d_final), x((kChunk + 1) * size), gs(kAll ? kChunk * size : 0);
  std::vector<Step<T>> steps;
  Vec<T> d_seen = {};
  bool carried = false;  // whether g belongs to a step that went on from the state before
  for (int64_t chunk = s.chunks - 1; chunk >= 0; --chunk) {
    steps.clear();
    std::memcpy(x.data(), before + at.kept(chunk), size * sizeof(Vec<T>));
    Vec<T> seen = look<T, kLow>(s, fields, x.data());
    for (int64_t t = chunk * kChunk; t < std::min((chunk + 1) * kChunk, s.steps); ++t) {
      store_some(d.u + at.place(t), Vec<T>{}, at.lanes());
      const uint8_t mark = marks[at.step(t)];
      if (mark == kNone) continue;
      const int64_t k = steps.size();
      Step<T>& step = steps.emplace_back();
      step.t = t, step.start = mark == kStart;
      step.u = load_some(u + at.place(t), at.lanes());
      step.dy = load_some(d_y + at.place(t), at.lanes());
      if (!step.start) step.seen = seen;
      step.from = step.start ? nothing.data() : x.data() + k * size;
      step.to = x.data() + (k + 1) * size;
      if (kAll) step.g = gs.data() + k * size;
      seen = advance<T, kLow>(s, fields, step.u, step.seen, step.from, step.to).second;
    }
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      const Pair<T> found = carried ? reverse<T, kLow, true>(s, fields, step->dy, d_seen, g.data())
                                    : reverse<T, kLow, false>(s, fields, step->dy, d_seen, g.data());
      store_some(d.u + at.place(step->t), found.first, at.lanes());
      step->d_seen = d_seen = found.second;
      if (kAll) std::copy(g.begin(), g.end(), step->g);
      carried = !step->start;
      if (!carried) std::fill(g.begin(), g.end(), Vec<T>{});
    }
    add_up<T, kLow, kAll>(s, steps, d.system + (at.row * s.groups + at.group) * s.system() * kWidth<T>);
  }
  if (carried) reverse<T, kLow, true>(s, fields, Vec<T>{}, d_seen, g.data());
  at.write(g.data(), d.state);
}

// u (B, T, H), system: a, b, c and, if of low rank, w, v (H, n), state (B, H, n, 2), marks (B, T)
// -> y, final state, states before each chunk; none of the last unless `keep`.
std::vector<Tensor> forward(const Tensor& u, const std::vector<Tensor>& system, const Tensor& state,
                            const Tensor& marks, bool keep) {
  Tensor y = at::empty_like(u), final = at::empty_like(state), before;
  AT_DISPATCH_FLOATING_TYPES(u.scalar_type(), "lti_scan", [&] {
    using T = scalar_t;
    const Shape s = shape_of<T>(u, system, state, marks);
    const Tensor numbers = packed<T>(s, system, u);
    const int64_t size = s.rows * s.groups * s.chunks * 2 * s.half * kWidth<T>;
    before = at::empty({keep ? size : 0}, u.options());
    for_groups<T>(s, numbers, [&](const Group<T>& group, auto low) {
      forward_group<T, low.value>(group, u.const_data_ptr<T>(), state.const_data_ptr<T>(),
                                  marks.const_data_ptr<uint8_t>(), y.data_ptr<T>(),
                                  final.data_ptr<T>(), keep ? before.data_ptr<T>() : nullptr);
    });
  });
  return {y, final, before};
}

// Gradients of u, the state and the system, of which c's alone is right unless `all`.
std::vector<Tensor> backward(const Tensor& u, const std::vector<Tensor>& system, const Tensor& marks,
                             const Tensor& before, const Tensor& d_y, const Tensor& d_final,
                             bool all) {
  std::vector<Tensor> found = {at::empty_like(u), at::empty_like(d_final)};
  AT_DISPATCH_FLOATING_TYPES(u.scalar_type(), "lti_scan_backward", [&] {
    using T = scalar_t;
    const Shape s = shape_of<T>(u, system, d_final, marks);
    const Tensor numbers = packed<T>(s, system, u);
    Tensor sums = at::zeros({s.rows, s.groups * s.system() * kWidth<T>}, u.options());
    const Gradients<T> d{found[0].data_ptr<T>(), found[1].data_ptr<T>(), sums.data_ptr<T>()};
    for_groups<T>(s, numbers, [&](const Group<T>& group, auto low) {
      const auto run = all ? backward_group<T, low.value, true> : backward_group<T, low.value, false>;
      run(group, u.const_data_ptr<T>(), marks.const_data_ptr<uint8_t>(), before.const_data_ptr<T>(),
          d_y.const_data_ptr<T>(), d_final.const_data_ptr<T>(), d);
    });
    for (const Tensor& field : unpacked<T>(s, system, sums.sum(0))) found.push_back(field);
  });
  return found;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
