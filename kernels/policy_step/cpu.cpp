// One step of a whole policy over linear state-space layers: see plan.py, naive.py and fold.py.
// Rows are independent and computed alike whatever the batch, so a row's result never depends on
// the others. Shapes: D width, n complex states a channel, interleaved (re, im).

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// erf as the rational approximation that Eigen and XLA use in float32.
inline float erf_fast(float x) {
  x = std::max(-4.0f, std::min(4.0f, x));
  const float s = x * x;
  float p = -2.72614225801306e-10f;
  p = p * s + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = p * s - 1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * s - 2.13374055278905e-04f;
  q = q * s - 1.68282697438203e-03f;
  q = q * s - 7.37332916720468e-03f;
  q = q * s - 1.42647390514189e-02f;
  return x * p / q;
}

void apply_g(float* z, int64_t size) {
  for (int64_t i = 0; i < size; ++i) z[i] += z[i] * erf_fast(z[i]);
}

struct Affine {
  Tensor weight, bias;  // (in, out), (out,)

  int64_t in() const { return weight.size(0); }
  int64_t out() const { return weight.size(1); }

  void operator()(const float* __restrict x, float* __restrict y) const {
    const int64_t columns = out();
    const float* __restrict w = weight.const_data_ptr<float>();
    std::copy_n(bias.const_data_ptr<float>(), columns, y);
    int64_t i = 0;
    for (; i + 4 <= in(); i += 4, w += 4 * columns)  // four rows a pass: y is stored less often
      for (int64_t o = 0; o < columns; ++o)
        y[o] += x[i] * w[o] + x[i + 1] * w[columns + o] + x[i + 2] * w[2 * columns + o] +
                x[i + 3] * w[3 * columns + o];
    for (; i < in(); ++i, w += columns)
      for (int64_t o = 0; o < columns; ++o) y[o] += x[i] * w[o];
  }
};

struct Norm {
  Tensor weight, bias;  // (D,)
  float eps;

  void operator()(const float* __restrict x, float* __restrict y) const {
    const int64_t size = weight.size(0);
    const float* __restrict w = weight.const_data_ptr<float>();
    const float* __restrict b = bias.const_data_ptr<float>();
    float mean = 0, variance = 0;
    for (int64_t i = 0; i < size; ++i) mean += x[i];
    mean /= size;
    for (int64_t i = 0; i < size; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(variance / size + eps);
    for (int64_t i = 0; i < size; ++i) y[i] = (x[i] - mean) * scale * w[i] + b[i];
  }
};

struct Recurrence {
  Tensor a, b, w, v, c;  // (D, 2n): a, b, w interleaved complex, v and c rows
  Tensor d;              // (D,)

  // `state` moves on by `stride` a channel; 0 reads one zero state for all.
  void operator()(const float* __restrict u, const float* state, int64_t stride,
                  float* after, float* __restrict y) const {
    const int64_t size = a.size(1);
    for (int64_t h = 0; h < a.size(0); ++h, state += stride, after += size)
      y[h] = channel(h * size, size, u[h], state, after) + d.const_data_ptr<float>()[h] * u[h];
  }

  float channel(int64_t offset, int64_t size, float u, const float* __restrict x,
                float* __restrict after) const {
    const float* __restrict a_ = a.const_data_ptr<float>() + offset;
    const float* __restrict b_ = b.const_data_ptr<float>() + offset;
    const float* __restrict w_ = w.const_data_ptr<float>() + offset;
    const float* __restrict v_ = v.const_data_ptr<float>() + offset;
    const float* __restrict c_ = c.const_data_ptr<float>() + offset;
    float s = 0, y = 0;
    for (int64_t i = 0; i < size; ++i) s += v_[i] * x[i];
    for (int64_t i = 0; i < size; i += 2) {
      const float re = a_[i] * x[i] - a_[i + 1] * x[i + 1] + b_[i] * u + w_[i] * s;
      const float im = a_[i] * x[i + 1] + a_[i + 1] * x[i] + b_[i + 1] * u + w_[i + 1] * s;
      after[i] = re;
      after[i + 1] = im;
      y += c_[i] * re + c_[i + 1] * im;
    }
    return y;
  }
};

struct Layer {
  Norm norm;
  Recurrence recurrence;
  Affine mix;
  std::optional<std::tuple<Norm, Affine, Affine>> mlp;
};

// A thread's vectors, each as long as the longest of the policy.
struct Scratch {
  std::vector<float> x, u, y, zeros;
  explicit Scratch(int64_t size) : x(size), u(size), y(size), zeros(size) {}
};

class PolicyStep {
 public:
  PolicyStep(Tensor shift, Affine embed, Affine project, std::vector<Layer> layers, Norm norm,
             std::optional<Affine> head, Tensor centre, Tensor reach, bool squash)
      : shift_(shift), embed_(embed), project_(project), layers_(layers), norm_(norm), head_(head),
        centre_(centre), reach_(reach), squash_(squash) {
    longest_ = std::max({shift_.size(0), embed_.out(), project_.out()});
    for (const Layer& layer : layers_) {
      longest_ = std::max(longest_, layer.recurrence.a.size(1));
      if (layer.mlp) longest_ = std::max(longest_, std::get<1>(*layer.mlp).out());
    }
  }

  std::tuple<Tensor, Tensors> step(const Tensor& return_to_go, const Tensor& observation,
                                   const Tensor& action, const Tensor& start,
                                   const Tensors& state) const {
    const int64_t rows = start.size(0);
    check(return_to_go, {rows}, at::kFloat, "return_to_go");
    check(start, {rows}, at::kBool, "start");
    const int64_t seen = shift_.size(0) - 1 - action.size(-1);
    check(observation, {rows, seen}, at::kFloat, "observation");
    check(action, {rows, action.size(-1)}, at::kFloat, "previous_action");
    TORCH_CHECK(state.size() == layers_.size(), "policy_step: state has ", state.size(),
                " layers; the policy has ", layers_.size());
    Tensors before, after;
    for (size_t l = 0; l < state.size(); ++l) {
      const Tensor& a = layers_[l].recurrence.a;
      check(state[l], {rows, a.size(0), a.size(1) / 2, 2}, at::kFloat, "state");
      before.push_back(state[l].contiguous());
      after.push_back(at::empty_like(before[l]));
    }
    const Tensor r = return_to_go.contiguous(), o = observation.contiguous();
    const Tensor p = action.contiguous(), s = start.contiguous();
    Tensor out = at::empty({rows, head_ ? head_->out() : norm_.weight.size(0)}, r.options());
    at::parallel_for(0, rows, 8, [&](int64_t first, int64_t last) {
      Scratch scratch(longest_);
      for (int64_t row = first; row < last; ++row) {
        const bool fresh = s.const_data_ptr<bool>()[row];
        gather(r, o, p, row, fresh, scratch.x.data());
        one_row(scratch, row, fresh, before, after,
                out.mutable_data_ptr<float>() + row * out.size(1));
      }
    });
    return {out, after};
  }

 private:
  static void check(const Tensor& t, at::IntArrayRef shape, at::ScalarType type, const char* name) {
    TORCH_CHECK(t.sizes() == shape && t.scalar_type() == type && t.is_cpu(), "policy_step: ", name,
                " is ", t.scalar_type(), " ", t.sizes(), " on ", t.device(), "; it needs ", type,
                " ", shape, " on cpu");
  }

  static void gather(const Tensor& return_to_go, const Tensor& observation, const Tensor& action,
                     int64_t row, bool fresh, float* x) {
    const int64_t seen = observation.size(1), done = action.size(1);
    x[0] = return_to_go.const_data_ptr<float>()[row];
    std::copy_n(observation.const_data_ptr<float>() + row * seen, seen, x + 1);
    if (fresh)
      std::fill_n(x + 1 + seen, done, 0.0f);
    else
      std::copy_n(action.const_data_ptr<float>() + row * done, done, x + 1 + seen);
  }

  void one_row(Scratch& scratch, int64_t row, bool fresh, const Tensors& before,
               const Tensors& after, float* out) const {
    float *x = scratch.x.data(), *u = scratch.u.data(), *y = scratch.y.data();
    const float* shift = shift_.const_data_ptr<float>();
    for (int64_t i = 0; i < shift_.size(0); ++i) x[i] -= shift[i];
    embed_(x, u);
    apply_g(u, embed_.out());
    project_(u, x);
    const int64_t width = project_.out();
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = layers_[l];
      const int64_t offset = row * before[l].stride(0);
      layer.norm(x, u);
      const float* state = before[l].const_data_ptr<float>() + offset;
      layer.recurrence(u, fresh ? scratch.zeros.data() : state,
                       fresh ? 0 : layer.recurrence.a.size(1),
                       after[l].mutable_data_ptr<float>() + offset, y);
      apply_g(y, width);
      layer.mix(y, u);
      apply_g(u, width);
      for (int64_t i = 0; i < width; ++i) x[i] += u[i];
      if (layer.mlp) add_mlp(*layer.mlp, x, u, y, width);
    }
    norm_(x, head_ ? u : out);
    if (head_) act(u, out);
  }

  static void add_mlp(const std::tuple<Norm, Affine, Affine>& mlp, float* x, float* u, float* y,
                      int64_t width) {
    const auto& [norm, first, second] = mlp;
    norm(x, u);
    first(u, y);
    apply_g(y, first.out());
    second(y, u);
    for (int64_t i = 0; i < width; ++i) x[i] += u[i];
  }

  void act(const float* u, float* out) const {
    (*head_)(u, out);
    const float* centre = centre_.const_data_ptr<float>();
    const float* reach = reach_.const_data_ptr<float>();
    for (int64_t i = 0; i < head_->out(); ++i)
      out[i] = centre[i] + reach[i] * (squash_ ? std::tanh(out[i]) : out[i]);
  }

  Tensor shift_;
  Affine embed_, project_;
  std::vector<Layer> layers_;
  Norm norm_;
  std::optional<Affine> head_;
  Tensor centre_, reach_;
  bool squash_;
  int64_t longest_;
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  py::class_<Affine>(m, "Affine").def(py::init<Tensor, Tensor>());
  py::class_<Norm>(m, "Norm").def(py::init<Tensor, Tensor, float>());
  py::class_<Recurrence>(m, "Recurrence")
      .def(py::init<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>());
  py::class_<Layer>(m, "Layer")
      .def(py::init<Norm, Recurrence, Affine, std::optional<std::tuple<Norm, Affine, Affine>>>());
  py::class_<PolicyStep>(m, "PolicyStep")
      .def(py::init<Tensor, Affine, Affine, std::vector<Layer>, Norm, std::optional<Affine>, Tensor,
                    Tensor, bool>())
      .def("step", &PolicyStep::step, py::call_guard<py::gil_scoped_release>());
}
