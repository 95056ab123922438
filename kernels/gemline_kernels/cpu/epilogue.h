// What becomes of a row's 32 sums of a panel: bias, the gated activation, the cap, the output's dtype.
#pragma once

#include <algorithm>
#include <cmath>

#include "panels.h"
#include "simd.h"

namespace gemline {

// Where the results go: rows of num_outputs values each.
struct Output {
  void* y;
  bool is_bf16;
  float cap;  // 0: none
};

inline __m512 logistic(__m512 x) {  // 1 / (1 + e^-x)
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_xor_ps(x, _mm512_set1_ps(-0.0f)))));
}

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which is x times the logistic function of twice that argument.
inline __m512 gelu_tanh(__m512 x) {
  const __m512 linear = _mm512_set1_ps(1.59576912161f), cube = _mm512_set1_ps(0.0713548162726f);
  const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), cube, linear);
  return _mm512_mul_ps(x, logistic(_mm512_mul_ps(x, cubic)));
}

inline __m512 gelu(__m512 x) {
  alignas(64) float lanes[LANES];
  store(lanes, x);
  for (float& lane : lanes) lane = 0.5f * lane * std::erfc(lane * -0.707106781f);
  return load(lanes);
}

inline __m512 activate(int64_t activation, __m512 x) {
  switch (activation) {
    case GELU_TANH: return gelu_tanh(x);
    case GELU: return gelu(x);
    case SILU: return _mm512_mul_ps(x, logistic(x));
    default: return _mm512_max_ps(_mm512_setzero_ps(), x);  // this order keeps NaN
  }
}

// The columns of one panel, so that what is the same for all rows is looked up once.
class Epilogue {
 public:
  Epilogue(const Packed& w, const Output& output, int64_t panel)
      : out(output),
        width(w.num_outputs),
        column(panel * panel_outputs(w)),
        activation(w.activation),
        has_bias(w.bias != nullptr) {
    for (int half = 0; half < (activation == NOT_GATED ? 2 : 1); half++) {
      const int64_t first = column + half * LANES;
      mask[half] = first_lanes(std::max<int64_t>(width - first, 0));
      if (has_bias) bias[half] = load(w.bias + first, mask[half]);
    }
  }

  void operator()(int64_t row, __m512 first, __m512 second) const {
    const int64_t index = row * width + column;
    if (activation == NOT_GATED) {
      put(index, 0, first);
      put(index + LANES, 1, second);
    } else {
      put(index, 0, _mm512_mul_ps(activate(activation, first), second));
    }
  }

 private:
  void put(int64_t index, int half, __m512 value) const {
    if (has_bias) value = _mm512_add_ps(value, bias[half]);
    if (out.cap > 0) value = softcap(value, _mm512_set1_ps(out.cap), _mm512_set1_ps(1.0f / out.cap));
    if (out.is_bf16) {
      store((bf16*)out.y + index, value, mask[half]);
    } else {
      store((float*)out.y + index, value, mask[half]);
    }
  }

  const Output out;
  const int64_t width, column, activation;
  const bool has_bias;
  __mmask16 mask[2] = {};
  __m512 bias[2] = {};
};

}  // namespace gemline
