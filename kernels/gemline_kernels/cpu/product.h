// y = x . weight^T over packed weights: how rows, panels and inputs are cut up and shared out. Knows no weight format.
//
// Rows are cut into tiles of at most 12, all about as tall: a tile's 12 x 32 sums fill the registers. The packed x of
// a tile is [chunks][rows of the tile][64 bytes], so that every address in a kernel is one pointer and a constant. The
// inputs are cut into blocks whose piece of a panel stays in the first-level cache while all tiles go over it; sums
// wait in memory between blocks. Every sum is formed in the order of its inputs whatever tile its row is in, so a
// row's results do not depend on the rows beside it, nor on the number of threads.
//
// While a block is worked on, the next one is fetched: of memory's time nothing shows as long as it is the shorter.
//
// A format F offers:
//   Sum                                a sum's type, 4 bytes
//   CHUNK_INPUTS, CHUNK_BYTES          a chunk's inputs, and its bytes of a panel
//   LINES                              64-byte pieces of packed x that a row has per chunk
//   BLOCK_CHUNKS                       chunks of a block at most
//   Row                                what is to be known of a row of x besides its values
//   pack(x, K, out, step, row)         a row of x, its lines `step` bytes apart
//   kernel<ROWS>(work)                 adds a block's products to ROWS x 32 sums
//   Columns(w, panel)                  the panel's outputs; value(half, row, sums) makes 16 of their sums float32
#pragma once

#include <omp.h>

#include <algorithm>

#include "epilogue.h"
#include "scratch.h"

namespace gemline {

constexpr int TILE_ROWS = 12;
constexpr int64_t STAGE_TILES = 8;  // whose packed x is to stay in the second-level cache, block by block
constexpr int64_t SHARE_PANELS = 8;  // that a thread takes at once at most
constexpr int64_t NEAR_BYTES = 2048;
constexpr int64_t LONE_BYTES = 1 << 17;  // of panels, once per tile: for less it does not pay to wake other threads

// A block of a panel for a tile of rows.
template <class Sum>
struct Work {
  const uint8_t* x;
  const uint8_t* panel;
  Sum* sums;  // [rows][32]
  int64_t chunks;
  bool fresh;        // sums begin at zero
  const char* next;  // to be fetched: per chunk, so many lines
  int64_t lines;
  bool soon;
};

// Fetches what is due with a chunk: to be used soon, into the first-level cache, or when other tiles are through.
template <class Sum>
const char* fetch(const Work<Sum>& work, const char* next) {
  if (work.soon) {
    for (int64_t line = 0; line < work.lines; line++, next += 64) _mm_prefetch(next, _MM_HINT_T0);
  } else {
    for (int64_t line = 0; line < work.lines; line++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
  }
  return next;
}

// Rows [0, num_rows) in num_tiles tiles whose heights differ by one at most.
struct Tiles {
  Tiles(int64_t rows, int64_t height) : num_rows(rows), num_tiles((rows + height - 1) / height) {}
  int64_t first(int64_t tile) const { return tile * (num_rows / num_tiles) + std::min(tile, num_rows % num_tiles); }
  int64_t height(int64_t tile) const { return first(tile + 1) - first(tile); }
  int64_t tile_of(int64_t row) const {
    const int64_t low = num_rows / num_tiles, tall = num_rows % num_tiles;
    return row < tall * (low + 1) ? row / (low + 1) : tall + (row - tall * (low + 1)) / low;
  }
  int64_t num_rows, num_tiles;
};

template <class F>
class Product {
  using Sum = typename F::Sum;
  using Kernel = void (*)(const Work<Sum>&);

 public:
  Product(const Packed& weight, const Output& output, int64_t num_rows)
      : w(weight), out(output), tiles(num_rows, TILE_ROWS), panels(num_panels(w)) {
    chunks = num_chunks(w);
    row_bytes = chunks * F::LINES * 64;
    num_blocks = (chunks + F::BLOCK_CHUNKS - 1) / F::BLOCK_CHUNKS;
    const int64_t stages = (tiles.num_tiles + STAGE_TILES - 1) / STAGE_TILES;
    stage_tiles = (tiles.num_tiles + stages - 1) / stages;
    threads = panels * panel_bytes(w) * tiles.num_tiles < LONE_BYTES ? 1 : omp_get_max_threads();
    share = std::clamp<int64_t>(panels / (16 * threads), 1, SHARE_PANELS);
  }

  template <class T>
  void run(const T* x) {
    thread_local Scratch packed_x, row_facts;
    const int64_t most_rows = std::min(stage_tiles * TILE_ROWS, tiles.num_rows);
    uint8_t* packed = (uint8_t*)packed_x.take(most_rows * row_bytes);
    typename F::Row* facts = (typename F::Row*)row_facts.take(most_rows * sizeof(typename F::Row));
    // One tile is packed in no time: sooner than threads meet, above all where other programs hold the cores.
    const bool alone = tiles.num_tiles == 1;
    for (int64_t row = 0; alone && row < tiles.num_rows; row++) pack(x, row, stage_of(0, packed, facts));
#pragma omp parallel num_threads(threads)
    {
      thread_local Scratch sums_memory;
      Sum* sums = (Sum*)sums_memory.take(most_rows * PANEL * sizeof(Sum));
      for (int64_t first = 0; first < tiles.num_tiles; first += stage_tiles) {
        const Stage stage = stage_of(first, packed, facts);
        if (!alone) {
#pragma omp for schedule(static)
          for (int64_t row = 0; row < stage.num_rows; row++) pack(x, row, stage);
        }
#pragma omp for schedule(dynamic, share)
        for (int64_t panel = 0; panel < panels; panel++) multiply(panel, stage, sums);
      }
    }
  }

 private:
  // The tiles [first, last) of rows, whose packed x, facts and sums begin with first_row.
  struct Stage {
    int64_t first, last, first_row, num_rows;
    uint8_t* packed;
    typename F::Row* facts;
  };

  Stage stage_of(int64_t first, uint8_t* packed, typename F::Row* facts) const {
    const int64_t last = std::min(first + stage_tiles, tiles.num_tiles), first_row = tiles.first(first);
    return {first, last, first_row, tiles.first(last) - first_row, packed, facts};
  }

  template <class T>
  void pack(const T* x, int64_t row, const Stage& stage) const {
    const int64_t tile = tiles.tile_of(stage.first_row + row), start = tiles.first(tile) - stage.first_row;
    uint8_t* lines = stage.packed + start * row_bytes + (row - start) * 64;
    const T* values = x + (stage.first_row + row) * w.num_inputs;
    F::pack(values, w.num_inputs, lines, tiles.height(tile) * 64, stage.facts[row]);
  }

  void multiply(int64_t panel, const Stage& stage, Sum* sums) const {
    for (int64_t block = 0; block < num_blocks; block++) {
      const int64_t first_chunk = chunks * block / num_blocks, num_tiles = stage.last - stage.first;
      Work<Sum> work;
      work.panel = w.panels + (panel * chunks + first_chunk) * F::CHUNK_BYTES;
      work.chunks = chunks * (block + 1) / num_blocks - first_chunk;
      work.fresh = block == 0;
      work.soon = num_tiles == 1;  // a lone tile takes memory as fast as it comes, best from not far ahead
      work.next = (const char*)work.panel + (work.soon ? NEAR_BYTES : work.chunks * F::CHUNK_BYTES);
      work.lines = (F::CHUNK_BYTES / 64 + num_tiles - 1) / num_tiles;
      for (int64_t tile = stage.first; tile < stage.last; tile++) {
        const int64_t row = tiles.first(tile) - stage.first_row, height = tiles.height(tile);
        work.x = stage.packed + row * row_bytes + first_chunk * F::LINES * height * 64;
        work.sums = sums + row * PANEL;
        KERNELS[height - 1](work);
        if (!work.soon) work.next += work.chunks * work.lines * 64;
      }
    }
    write(panel, stage, sums);
  }

  void write(int64_t panel, const Stage& stage, const Sum* sums) const {
    const Epilogue finish(w, out, panel);
    const typename F::Columns columns(w, panel);
    for (int64_t row = 0; row < stage.num_rows; row++, sums += PANEL) {
      const typename F::Row& fact = stage.facts[row];
      finish(stage.first_row + row, columns.value(0, fact, sums), columns.value(1, fact, sums + LANES));
    }
  }

  static constexpr Kernel KERNELS[TILE_ROWS] = {
      F::template kernel<1>, F::template kernel<2>,  F::template kernel<3>,  F::template kernel<4>,
      F::template kernel<5>, F::template kernel<6>,  F::template kernel<7>,  F::template kernel<8>,
      F::template kernel<9>, F::template kernel<10>, F::template kernel<11>, F::template kernel<12>};

  const Packed& w;
  const Output& out;
  const Tiles tiles;
  const int64_t panels;
  int64_t chunks, row_bytes, num_blocks, stage_tiles, threads, share;
};

}  // namespace gemline
