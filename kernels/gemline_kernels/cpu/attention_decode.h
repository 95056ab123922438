// Attention of one query row over a chunk of its keys, all heads: each key and value is read once, in order.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention_problem.h"

namespace gemline::attention {

constexpr int64_t MAX_CHUNK = 256;  // keys
constexpr int64_t AHEAD = 16;       // keys between the one worked on and the one asked for

struct DecodeItem {
  int64_t sequence;
  int64_t row;  // of the query
  int64_t first_key;
  int64_t last_key;  // exclusive, at most MAX_CHUNK after the first
  float* partial;    // [H, K] sums of weighted values, [H] sums of weights, [H] their m; null: write the result
};

template <typename T, int HEADS>
inline void dot_4_keys(const T* const key[4], const T* const ahead[4], const float* query, int64_t width, float* scores,
                       int64_t stride) {
  __m512 sum[HEADS][4];
  for (int h = 0; h < HEADS; h++) {
    for (int i = 0; i < 4; i++) sum[h][i] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < width; k += 16) {
    __m512 x[4];
    for (int i = 0; i < 4; i++) x[i] = load(key[i] + k);
    {
      constexpr int LINES = sizeof(T);  // of 64 bytes that 4 x 16 elements fill
      const int first = LINES == 4 ? 0 : k / 16 % 2 * 2;
      for (int i = first; i < first + LINES; i++) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead[i] + k), _MM_HINT_T0);
      }
    }
    for (int h = 0; h < HEADS; h++) {
      const __m512 q = _mm512_load_ps(query + h * width + k);
      for (int i = 0; i < 4; i++) sum[h][i] = _mm512_fmadd_ps(x[i], q, sum[h][i]);
    }
  }
  for (int h = 0; h < HEADS; h++) {
    _mm_store_ps(scores + h * stride, sums_of_4(sum[h][0], sum[h][1], sum[h][2], sum[h][3]));
  }
}

template <typename T, int HEADS, int VECTORS>
inline void add_values(const T* values, const int64_t* offset, int64_t num_keys, const float* weights, int64_t stride,
                       float* out, int64_t width) {
  __m512 sum[HEADS][VECTORS];
  for (int h = 0; h < HEADS; h++) {
    for (int v = 0; v < VECTORS; v++) sum[h][v] = _mm512_load_ps(out + h * width + 16 * v);
  }
  for (int64_t j = 0; j < num_keys; j++) {
    const T* value = values + offset[j];
    const T* ahead = values + offset[j + 16];
    __m512 weight[HEADS];
    for (int h = 0; h < HEADS; h++) weight[h] = _mm512_set1_ps(weights[h * stride + j]);
    for (int v = 0; v < VECTORS; v++) {
      const __m512 x = load(value + 16 * v);
      if (sizeof(T) == 4 || v % 2 == 0) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + 16 * v), _MM_HINT_T0);
      }
      for (int h = 0; h < HEADS; h++) sum[h][v] = _mm512_fmadd_ps(x, weight[h], sum[h][v]);
    }
  }
  for (int h = 0; h < HEADS; h++) {
    for (int v = 0; v < VECTORS; v++) _mm512_store_ps(out + h * width + 16 * v, sum[h][v]);
  }
}

template <typename T, int HEADS>
inline void add_values_of_heads(const T* values, const int64_t* offset, int64_t num_keys, const float* weights,
                                int64_t stride, float* out, int64_t width) {
  constexpr int WIDE = HEADS > 2 ? 4 : 8;  // at most 16 sums in registers
  int64_t k = 0;
  for (; k + 16 * WIDE <= width; k += 16 * WIDE) {
    add_values<T, HEADS, WIDE>(values + k, offset, num_keys, weights, stride, out + k, width);
  }
  for (; k + 32 <= width; k += 32) {
    add_values<T, HEADS, 2>(values + k, offset, num_keys, weights, stride, out + k, width);
  }
  if (k < width) add_values<T, HEADS, 1>(values + k, offset, num_keys, weights, stride, out + k, width);
}

// scores_HJ: products of the row's heads with the chunk's keys. offset has one entry a key, filled up to 16 of them.
template <typename T>
void chunk_scores(const Problem<T>& problem, const float* query, const int64_t* offset, int64_t num_keys,
                  float* scores) {
  const int64_t width = problem.width, per_group = problem.heads_per_group();
  for (int64_t j = 0; j < num_keys; j += 4) {
    for (int64_t group = 0; group < problem.num_groups; group++) {
      const T* keys = problem.keys + group * width;
      const T* next = j + AHEAD < num_keys ? keys : problem.values + group * width;
      const int64_t* at = offset + j;
      const int64_t* then = offset + (j + AHEAD < num_keys ? j + AHEAD : j & 15);
      const T* const key[4] = {keys + at[0], keys + at[1], keys + at[2], keys + at[3]};
      const T* const ahead[4] = {next + then[0], next + then[1], next + then[2], next + then[3]};
      int64_t head = group * per_group, stop = head + per_group;
      float* to = scores + j;
      for (; head + 4 <= stop; head += 4) {
        dot_4_keys<T, 4>(key, ahead, query + head * width, width, to + head * MAX_CHUNK, MAX_CHUNK);
      }
      for (; head + 2 <= stop; head += 2) {
        dot_4_keys<T, 2>(key, ahead, query + head * width, width, to + head * MAX_CHUNK, MAX_CHUNK);
      }
      if (head < stop) dot_4_keys<T, 1>(key, ahead, query + head * width, width, to + head * MAX_CHUNK, MAX_CHUNK);
    }
  }
}

struct Weighed {
  float sum;
  float level;  // m
};

// One head's scores become weights, in place; those after num_keys become 0.
inline Weighed weigh(const Curve& curve, float* scores, int64_t num_keys) {
  __m512 largest = _mm512_set1_ps(curve.bounded ? 0.0f : -__builtin_inff());
  for (int64_t j = 0; j < num_keys; j += 16) {
    const __mmask16 valid = num_keys - j >= 16 ? 0xffff : (1u << (num_keys - j)) - 1;
    const __m512 level = curve.level(_mm512_load_ps(scores + j));
    if (!curve.bounded) largest = _mm512_mask_max_ps(largest, valid, largest, level);
    _mm512_store_ps(scores + j, level);
  }
  const float m = curve.bounded ? 0.0f : _mm512_reduce_max_ps(largest);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < num_keys; j += 16) {
    const __mmask16 valid = num_keys - j >= 16 ? 0xffff : (1u << (num_keys - j)) - 1;
    const __m512 level = _mm512_sub_ps(_mm512_load_ps(scores + j), _mm512_set1_ps(m));
    const __m512 weight = _mm512_maskz_mov_ps(valid, exp2_poly(level));
    sum = _mm512_add_ps(sum, weight);
    _mm512_store_ps(scores + j, weight);
  }
  return {_mm512_reduce_add_ps(sum), m};
}

// out_HK += weights . values of the chunk.
template <typename T>
void chunk_values(const Problem<T>& problem, const float* weights, const int64_t* offset, int64_t num_keys,
                  float* out) {
  const int64_t width = problem.width, per_group = problem.heads_per_group();
  for (int64_t j = 0; j < num_keys; j += 16) {
    const int64_t here = std::min<int64_t>(16, num_keys - j);
    for (int64_t group = 0; group < problem.num_groups; group++) {
      const T* values = problem.values + group * width;
      int64_t head = group * per_group, stop = head + per_group;
      const float* from = weights + j;
      for (; head + 4 <= stop; head += 4) {
        add_values_of_heads<T, 4>(values, offset + j, here, from + head * MAX_CHUNK, MAX_CHUNK, out + head * width,
                                  width);
      }
      for (; head + 2 <= stop; head += 2) {
        add_values_of_heads<T, 2>(values, offset + j, here, from + head * MAX_CHUNK, MAX_CHUNK, out + head * width,
                                  width);
      }
      if (head < stop) {
        add_values_of_heads<T, 1>(values, offset + j, here, from + head * MAX_CHUNK, MAX_CHUNK, out + head * width,
                                  width);
      }
    }
  }
}

template <typename T>
void decode_item(const Problem<T>& problem, const Curve& curve, const DecodeItem& item, Scratch& scratch) {
  const int64_t num_heads = problem.num_heads, width = problem.width;
  auto* query = (float*)scratch.take((2 * width + MAX_CHUNK) * num_heads * sizeof(float));
  float* out = item.partial != nullptr ? item.partial : query + num_heads * width;
  float* scores = query + 2 * num_heads * width;
  const T* row = problem.query + item.row * num_heads * width;
  for (int64_t k = 0; k < num_heads * width; k += 16) {
    _mm512_store_ps(query + k, load(row + k));
    _mm512_store_ps(out + k, _mm512_setzero_ps());
  }
  const int64_t num_keys = item.last_key - item.first_key;
  int64_t offset[MAX_CHUNK + 32];
  problem.slot_offsets(item.sequence, item.first_key, num_keys, offset);
  for (int64_t j = num_keys; j < num_keys + 32; j++) offset[j] = offset[num_keys - 1];

  chunk_scores(problem, query, offset, num_keys, scores);
  T* result = problem.out + item.row * num_heads * width;
  float* sums = out + num_heads * width;
  for (int64_t head = 0; head < num_heads; head++) {
    const Weighed weighed = weigh(curve, scores + head * MAX_CHUNK, num_keys);
    if (item.partial != nullptr) {
      sums[head] = weighed.sum;
      sums[num_heads + head] = weighed.level;
    } else {  // the weights can as well be scaled first: there are fewer of them than of values
      const __m512 scale = _mm512_set1_ps(1.0f / weighed.sum);
      for (float* s = scores + head * MAX_CHUNK; s < scores + head * MAX_CHUNK + num_keys; s += 16) {
        _mm512_store_ps(s, _mm512_mul_ps(_mm512_load_ps(s), scale));
      }
    }
  }
  chunk_values(problem, scores, offset, num_keys, out);
  if (item.partial == nullptr) {
    for (int64_t k = 0; k < num_heads * width; k += 16) store(result + k, _mm512_load_ps(out + k));
  }
}

// The parts of one row, added up in their order, whoever computed them, in the memory of the first.
template <typename T>
void combine(const Problem<T>& problem, int64_t row, float* partials, int64_t num_parts, int64_t part_size) {
  const int64_t num_heads = problem.num_heads, width = problem.width;
  for (int64_t head = 0; head < num_heads; head++) {
    const float* sums = partials + num_heads * width + head;
    const float* levels = sums + num_heads;
    float* first = partials + head * width;
    float largest = levels[0], total = 0;
    for (int64_t part = 1; part < num_parts; part++) largest = std::max(largest, levels[part * part_size]);
    for (int64_t part = 0; part < num_parts; part++) {
      const float factor = exp2f(levels[part * part_size] - largest);
      total += sums[part * part_size] * factor;
      const float* from = first + part * part_size;
      for (int64_t k = 0; k < width; k += 16) {
        const __m512 scaled = _mm512_mul_ps(_mm512_load_ps(from + k), _mm512_set1_ps(factor));
        const __m512 before = part == 0 ? _mm512_setzero_ps() : _mm512_load_ps(first + k);
        _mm512_store_ps(first + k, _mm512_add_ps(before, scaled));
      }
    }
    T* out = problem.out + (row * num_heads + head) * width;
    for (int64_t k = 0; k < width; k += 16) {
      store(out + k, _mm512_div_ps(_mm512_load_ps(first + k), _mm512_set1_ps(total)));
    }
  }
}

}  // namespace gemline::attention
