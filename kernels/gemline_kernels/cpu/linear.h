// A linear over packed weights: one function per weight format.
#pragma once

#include "epilogue.h"
#include "panels.h"

namespace gemline {

struct Input {
  const void* x;  // [num_rows][num_inputs]
  int64_t num_rows;
  bool is_bf16;
};

void linear_bf16(const Packed& w, const Input& in, const Output& out);
void linear_int8(const Packed& w, const Input& in, const Output& out);
void linear_int4(const Packed& w, const Input& in, const Output& out);

}  // namespace gemline
