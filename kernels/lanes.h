// Vectors of a machine's width, and the exponential on them. In an anonymous namespace: each library
// is compiled for an instruction set of its own, and must not take another's by the same name.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t kBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kBytes = 32;
#else
constexpr int64_t kBytes = 16;
#endif

template <typename T>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(kBytes)));
  typedef int32_t I __attribute__((vector_size(kBytes)));
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 6;
  // Minimax of 2^x on [-1/2, 1/2]: relative error 2e-9.
  static constexpr float kPower[] = {1.0f, 0.69314720670283259577f, 0.24022650922288758071f,
                                     0.055503272266703020589f, 0.0096180566785246380754f,
                                     0.001340042817761583794f, 0.00015461444698569129083f};
};

template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef int64_t I __attribute__((vector_size(kBytes)));
  static constexpr int kMantissa = 52, kBias = 1023, kDegree = 11;
  // The same: 3e-18.
  static constexpr double kPower[] = {
      0.99999999999999999693,   0.69314718055994530925,    0.24022650695910159567,
      0.055504108664821627039,  0.0096181291075872566681,  0.0013333558146406470697,
      0.00015403530463724354209, 0.000015252733841556772589, 1.3215432535912376166e-6,
      1.0178057087733941105e-7, 7.0741942972885210056e-9,  4.455817908336064493e-10};
};

template <typename T>
using Vec = typename Lanes<T>::V;
template <typename T>
constexpr int64_t kWidth = kBytes / sizeof(T);

template <typename T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename T>
inline void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof v);
}

// The first `count` lanes; the others are zero. A mask where there are masks: a loop of unknown
// length is a call, before which all registers are put away.
#if defined(__AVX512F__)
inline Vec<float> load_first(const float* from, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps((1u << count) - 1, from);
}
inline Vec<double> load_first(const double* from, int64_t count) {
  return (Vec<double>)_mm512_maskz_loadu_pd((1u << count) - 1, from);
}
inline void store_first(float* to, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)v);
}
inline void store_first(double* to, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(to, (1u << count) - 1, (__m512d)v);
}
#else
template <typename T>
inline Vec<T> load_first(const T* from, int64_t count) {
  Vec<T> v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}
template <typename T>
inline void store_first(T* to, Vec<T> v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
#endif

template <typename T>
inline Vec<T> load_some(const T* from, int64_t count) {
  return count == kWidth<T> ? load(from) : load_first(from, count);
}

template <typename T>
inline void store_some(T* to, Vec<T> v, int64_t count) {
  count == kWidth<T> ? store(to, v) : store_first(to, v, count);
}

// x = n + f, n whole, |f| <= 1/2: 2^x = scale (1 + excess), scale = 2^n made from its exponent bits.
template <typename T>
struct Power {
  Vec<T> scale, excess;
};

template <typename T>
inline Power<T> power(Vec<T> x) {
  using L = Lanes<T>;
  using I = typename L::I;
  constexpr T rounder = T(1.5) * T(int64_t(1) << L::kMantissa);  // adding it rounds to whole numbers
  const Vec<T> shifted = x + rounder;
  const Vec<T> f = x - (shifted - rounder);
  Vec<T> p = f * L::kPower[L::kDegree] + L::kPower[L::kDegree - 1];
  for (int i = L::kDegree - 2; i >= 1; --i) p = p * f + L::kPower[i];
  const auto one = decltype(I{}[0] + 0)(int64_t(L::kBias) << L::kMantissa);
  return {(Vec<T>)(((I)shifted << L::kMantissa) + one), p * f};
}

// 2^x, also beyond the exponent's range.
template <typename T>
inline Vec<T> exp2(Vec<T> x) {
  const Power<T> p = power<T>(x);
  const Vec<T> zero = {}, infinity = zero + std::numeric_limits<T>::infinity();
  const Vec<T> y = x > T(Lanes<T>::kBias + 0.5) ? infinity : p.scale * (p.excess + T(1));
  return x < T(1 - Lanes<T>::kBias) ? zero : y;
}

constexpr double kLog2E = 1.4426950408889634074;

template <typename T>
inline Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (T(1) + exp2<T>(x * T(-kLog2E)));
}

// -(e^-2|x| - 1) / (e^-2|x| + 1), with x's sign: exact to the last bits near zero too.
template <typename T>
inline Vec<T> tanh(Vec<T> x) {
  const Vec<T> zero = {}, least = zero - T(100);
  const Vec<T> exponent = (x < zero ? x : -x) * T(2 * kLog2E);
  const Power<T> p = power<T>(exponent < least ? least : exponent);
  const Vec<T> less = p.scale * p.excess + (p.scale - T(1));
  const Vec<T> size = less / (T(-2) - less);
  return x < zero ? -size : size;
}

}  // namespace
