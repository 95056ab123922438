// Norms and rotation for float32 and bfloat16, as specified by `rms_norm`, `add_norm` and `rope_write` in reference.py.
//
// A decode step's rows are done sooner than a thread is woken, so only long prompts are shared out.

#include "operations.h"
#include "simd.h"

namespace gemline {
namespace {

constexpr int64_t MANY_ELEMENTS = 1 << 16;

// Calls f(k, lanes that count) for each 16 of [0, size).
template <typename F>
inline void for_lanes(int64_t size, F f) {
  int64_t k = 0;
  for (; k + LANES <= size; k += LANES) f(k, __mmask16(0xFFFF));
  if (k < size) f(k, first_lanes(size - k));
}

// 1 / sqrt(mean(x^2) + eps) of a row.
template <typename T>
float inverse_rms(const T* x, int64_t width, float eps) {
  __m512 sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * LANES <= width; k += 4 * LANES) {
    for (int i = 0; i < 4; i++) {
      const __m512 lanes = load(x + k + i * LANES);
      sums[i] = _mm512_fmadd_ps(lanes, lanes, sums[i]);
    }
  }
  for_lanes(width - k, [&](int64_t i, __mmask16 mask) {
    const __m512 lanes = load(x + k + i, mask);
    sums[0] = _mm512_fmadd_ps(lanes, lanes, sums[0]);
  });
  const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  return 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(sum) / float(width) + eps);
}

// Sixteen elements of x * inverse * (1 + weight).
template <typename T>
inline __m512 normed(const T* x, const T* weight, __m512 inverse, __mmask16 mask) {
  const __m512 scale = _mm512_add_ps(_mm512_set1_ps(1.0f), load(weight, mask));
  return _mm512_mul_ps(_mm512_mul_ps(load(x, mask), inverse), scale);
}

template <typename T>
void rms_norm_row(const T* x, const T* weight, float eps, int64_t width, T* out) {
  const __m512 inverse = _mm512_set1_ps(inverse_rms(x, width, eps));
  for_lanes(width, [&](int64_t k, __mmask16 mask) { store(out + k, normed(x + k, weight + k, inverse, mask), mask); });
}

template <typename T>
void add_norm_row(const T* x, const T* residual, const T* post, const T* next, float eps, int64_t width, T* sum,
                  T* out) {
  const __m512 inverse = _mm512_set1_ps(inverse_rms(x, width, eps));
  for_lanes(width, [&](int64_t k, __mmask16 mask) {
    store(sum + k, _mm512_add_ps(load(residual + k, mask), normed(x + k, post + k, inverse, mask)), mask);
  });
  rms_norm_row(sum, next, eps, width, out);
}

// Each pair (x[k], x[k + half]) turned by the angle with that cosine and sine.
template <typename T>
void rotate(const T* x, const float* cos, const float* sin, int64_t half, T* out) {
  for_lanes(half, [&](int64_t k, __mmask16 mask) {
    const __m512 first = load(x + k, mask), second = load(x + half + k, mask);
    const __m512 c = load(cos + k, mask), s = load(sin + k, mask);
    store(out + k, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)), mask);
    store(out + half + k, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)), mask);
  });
}

template <typename F>
void with_type(int64_t is_bf16, F f) {
  if (is_bf16) {
    f(bf16{});
  } else {
    f(float{});
  }
}

}  // namespace
}  // namespace gemline

using namespace gemline;

extern "C" {

void gemline_rms_norm(int64_t is_bf16, const void* x, const void* weight, float eps, int64_t num_rows, int64_t width,
                      void* out) {
  with_type(is_bf16, [=](auto element) {
    using T = decltype(element);
#pragma omp parallel for schedule(static) if (num_rows * width > MANY_ELEMENTS)
    for (int64_t row = 0; row < num_rows; row++) {
      rms_norm_row((const T*)x + row * width, (const T*)weight, eps, width, (T*)out + row * width);
    }
  });
}

void gemline_add_norm(int64_t is_bf16, const void* x, const void* residual, const void* post, const void* next,
                      float eps, int64_t num_rows, int64_t width, void* sum, void* out) {
  with_type(is_bf16, [=](auto element) {
    using T = decltype(element);
#pragma omp parallel for schedule(static) if (num_rows * width > MANY_ELEMENTS)
    for (int64_t row = 0; row < num_rows; row++) {
      const int64_t at = row * width;
      add_norm_row((const T*)x + at, (const T*)residual + at, (const T*)post, (const T*)next, eps, width, (T*)sum + at,
                   (T*)out + at);
    }
  });
}

void gemline_rope_write(int64_t is_bf16, const void* projected, const float* cos, const float* sin,
                        const int64_t* positions, const int64_t* slots, int64_t num_rows, int64_t num_heads,
                        int64_t num_groups, int64_t width, void* query, void* keys, void* values) {
  with_type(is_bf16, [=](auto element) {
    using T = decltype(element);
    const int64_t half = width / 2, row_size = (num_heads + 2 * num_groups) * width;
#pragma omp parallel for schedule(static) if (num_rows * row_size > MANY_ELEMENTS)
    for (int64_t row = 0; row < num_rows; row++) {
      const T* from = (const T*)projected + row * row_size;
      const float *row_cos = cos + positions[row] * half, *row_sin = sin + positions[row] * half;
      T* to_query = (T*)query + row * num_heads * width;
      T* to_keys = (T*)keys + slots[row] * num_groups * width;
      for (int64_t head = 0; head < num_heads; head++) {
        rotate(from + head * width, row_cos, row_sin, half, to_query + head * width);
      }
      from += num_heads * width;
      for (int64_t group = 0; group < num_groups; group++) {
        rotate(from + group * width, row_cos, row_sin, half, to_keys + group * width);
      }
      __builtin_memcpy((T*)values + slots[row] * num_groups * width, from + num_groups * width,
                       num_groups * width * sizeof(T));
    }
  });
}
}
