// How a packed weight lies in memory. Knows no arithmetic.
//
// A panel is 32 outputs x all inputs (K, padded with zeros to whole chunks); panels follow each other, and within one
// the inputs run outermost, so that a product reads memory from front to back:
//
//   bf16   [K / 2][32][2]            pairs of inputs, as VDPBF16PS takes them
//   int8   [K / 4][32][4]            value + 128, unsigned: VPDPBUSD multiplies unsigned by signed bytes
//   int4   [K / 128] x { [32] scales in bf16, [16][32][4] bytes }
//          byte (i, n, j) of a group: value + 8 of input 8 i + j below, of input 8 i + 4 + j above
//
// A gated pair of weights shares panels: 16 outputs of gate, then the same 16 of up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemline {

constexpr int64_t PANEL = 32;
constexpr int64_t GROUP = 128;  // inputs that share an int4 scale
constexpr int64_t GROUP_BYTES = PANEL * 2 + PANEL * GROUP / 2;

enum Format : int64_t { BF16 = 0, INT8 = 1, INT4 = 2 };
enum Activation : int64_t { NOT_GATED = 0, GELU_TANH = 1, GELU = 2, SILU = 3, RELU = 4 };

// A mirror of Packed in packed.py.
struct Packed {
  int64_t format;
  int64_t num_outputs;  // N; F of a gated pair
  int64_t num_inputs;   // K
  int64_t activation;
  uint8_t* panels;
  float* scale;       // int8: of each column of each panel
  const float* bias;  // num_outputs of them, or null
};

inline int64_t up_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Inputs of a chunk: what a product goes through between two looks at anything else.
inline int64_t chunk_inputs(int64_t format) { return format == BF16 ? 16 : format == INT8 ? 64 : GROUP; }
inline int64_t chunk_bytes(int64_t format) { return format == BF16 ? 1024 : format == INT8 ? 2048 : GROUP_BYTES; }

inline int64_t num_chunks(const Packed& w) {
  const int64_t inputs = chunk_inputs(w.format);
  return (w.num_inputs + inputs - 1) / inputs;
}
inline int64_t panel_bytes(const Packed& w) { return num_chunks(w) * chunk_bytes(w.format); }

inline int64_t panel_outputs(const Packed& w) { return w.activation == NOT_GATED ? PANEL : PANEL / 2; }
inline int64_t num_panels(const Packed& w) {
  return (w.num_outputs + panel_outputs(w) - 1) / panel_outputs(w);
}

}  // namespace gemline
