// What a GPU kernel is told: one struct for all of them, filled by launches.cc. Reads ../settings.h
// before it and includes nothing, so that NVRTC, nvcc and g++ read the same text.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_ARGUMENTS_H_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_ARGUMENTS_H_

namespace tfquant {

constexpr int kGpuThreads = 256;  // of every block

// Rows of x that a block of the tensor-core matmul owns, and tiles of 16 rows that one for fewer
// rows owns: of x in one part, and of x split into three, which take three times the room.
constexpr int kGemmRows = 128, kSplitGemmRows = 64;
constexpr int kSkinnyTiles = 4, kSplitSkinnyTiles = 2;
constexpr int kGemmColumns = 128;
constexpr int kBinaryGemmRows = 32;
constexpr int kSignStep = 8;  // words of signs that one tensor-core step takes

// Panels that a block of the tensor-core matmul for fewer rows owns, with one tile and with more.
constexpr int kOneTilePanels = 1, kMoreTilesPanels = 2;

// The packed format, as the device reads it; launches.cc holds it against ../blocks.h.
constexpr int kPanelWidth = 16;  // columns
constexpr int kPanelRowBytes = 64;
constexpr int kBlockK = 32;      // values of k in a block
constexpr int kScaleBytes = 32;  // a group's f16 scales
constexpr int kBinaryColumns = 64;
constexpr unsigned kMagic = 0x31514654u;

struct GpuArguments {
  // Matmul: y = fused(x . weights + bias). The pointers into the packed buffer are those of
  // ../blocks.h; the header is compared with these numbers on the device.
  long long m, k, n;
  long long padded_m, padded_k;  // of the prepared rows
  int num_bits;
  int group_blocks;  // blocks of 32 k that share a scale; 0: per channel
  long long groups, group_bytes, panel_bytes;
  const unsigned char* weights;
  const unsigned char* panels;
  const float* column_scale;
  const float* column_sum;
  const float* bias;  // or null
  const void* x;
  void* y;
  Activations activations;
  Fused fused;
  float x_scale;
  int zero_point;
  int brain;     // x and y (or the dequantized values) are bfloat16
  int x_vector;  // four values of x can be loaded at once
  int y_vector;  // four floats of y can be stored at once

  // Rows of x made ready: int8 [padded_m][padded_k], brain parts [part][padded_m][padded_k], or
  // signs [padded_m][sign_words].
  unsigned char* rows;
  long long sign_words;
  float* row_scale;    // [padded_m], or null
  float* group_scale;  // [padded_m][groups], or null

  // Plain rows: ../dequantize.h.
  long long plain_rows, columns, row_bytes, row_group, column_group, scales_in_row;
  unsigned char* packed;
  const float* scale;
  const float* zero_points;  // or null
  const float* codebook;     // or null
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_ARGUMENTS_H_
