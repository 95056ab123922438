// One call's arguments, and the curve from product to weight.
#pragma once

#include "attention_math.h"
#include "scratch.h"

namespace gemline::attention {

template <typename T>
struct Problem {
  const T* query;        // [T, H, K]
  const T* keys;         // [N, S, G, K]
  const T* values;       // [N, S, G, K]
  const int64_t* table;  // [B, P]
  T* out;                // [T, H, K]
  int64_t num_heads;     // H
  int64_t num_groups;    // G
  int64_t width;         // K, a multiple of 16
  int64_t block_size;    // S
  int64_t table_width;   // P
  int64_t window;        // INT64_MAX when there is none

  int64_t heads_per_group() const { return num_heads / num_groups; }  // R
  int64_t slot_size() const { return num_groups * width; }

  // Where the keys (or values) of all groups at those positions begin, in elements.
  void slot_offsets(int64_t sequence, int64_t position, int64_t num_positions, int64_t* offsets) const {
    const int64_t* block = table + sequence * table_width + position / block_size;
    int64_t within = position % block_size;
    for (int64_t i = 0; i < num_positions; i++) {
      offsets[i] = (*block * block_size + within) * slot_size();
      if (++within == block_size) {
        within = 0;
        block++;
      }
    }
  }

  int64_t first_key(int64_t position) const { return position < window ? 0 : position - window + 1; }
};

// The weight of a key with the product s is 2^(level(s) - m), for any m that is the same for all keys of a query.
//
// With a cap of at most 60 every weight lies between e^-60 = 9e-27 and e^60 = 1e26: both far inside float32's range,
// even summed over a million keys and multiplied by values up to 1e6. m = 0 then loses no digit, there is no largest
// score to find, and the parts of a query's keys are combined by adding them up. Without such a cap m is the maximum.
struct Curve {
  float inner;  // of tanh, or of everything when there is no cap
  float outer;
  bool capped;
  bool bounded;

  Curve(float scale, float cap) {
    const float log2_e = 1.44269504088896f;
    capped = cap > 0;
    bounded = capped && cap <= 60;
    inner = capped ? scale / cap : scale * log2_e;
    outer = cap * log2_e;
  }

  __m512 level(__m512 product) const {
    const __m512 x = _mm512_mul_ps(product, _mm512_set1_ps(inner));
    return capped ? _mm512_mul_ps(tanh_rational(x), _mm512_set1_ps(outer)) : x;
  }
};

}  // namespace gemline::attention
