// From a sum over k to y: scales, zero point, bias, the fused function, the type.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_OUTPUT_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_OUTPUT_CUH_

namespace tfquant {

// Is this the buffer that the arguments describe? Where it is not, y becomes NaN: the host cannot
// look at the device's memory without waiting for it.
TFQUANT_DEVICE bool HeaderFits(const GpuArguments& a) {
  const Words4 first = Load<Words4>(a.weights), second = Load<Words4>(a.weights + 16);
  const Index group_size = static_cast<Index>(a.group_blocks) * kBlockK;
  return first.word[0] == kMagic && first.word[1] == static_cast<unsigned>(a.num_bits) &&
         first.word[2] == static_cast<unsigned>(group_size) && first.word[3] == 0 &&
         second.word[0] == static_cast<unsigned>(a.k) &&
         second.word[1] == static_cast<unsigned>(a.k >> 32) &&
         second.word[2] == static_cast<unsigned>(a.n) &&
         second.word[3] == static_cast<unsigned>(a.n >> 32);
}

TFQUANT_DEVICE float Fuse(float v, Fused fused) {
  switch (fused) {
    case Fused::kRelu:  // NaN stays
      return v < 0.0f ? 0.0f : v;
    case Fused::kRelu6:
      return v < 0.0f ? 0.0f : (v > 6.0f ? 6.0f : v);
    case Fused::kGelu:
      return 0.5f * v * erfcf(v * -0.70710678118654752f);
    case Fused::kGeluTanh: {
      const float z = 0.79788456080286536f * (v + 0.044715f * v * v * v);
      return 0.5f * v * (1.0f + tanhf(z));
    }
    case Fused::kSilu:
      return v / (1.0f + expf(-v));
    case Fused::kSigmoid:
      return 1.0f / (1.0f + expf(-v));
    case Fused::kTanh:
      return tanhf(v);
    default:
      return v;
  }
}

// From a sum over k, with group scales in it, to y.
TFQUANT_DEVICE float Finish(const GpuArguments& a, float sum, Index row, Index column) {
  if (a.zero_point != 0) sum -= static_cast<float>(a.zero_point) * a.column_sum[column];
  if (a.row_scale) sum *= a.row_scale[row];
  const float y = sum * a.column_scale[column] + (a.bias ? a.bias[column] : 0.0f);
  return Fuse(y, a.fused);
}

// Columns column .. column + 3 of a row of y, as many as there are.
TFQUANT_DEVICE void StoreFour(const GpuArguments& a, bool fits, const float (&sum)[4], Index row,
                              Index column) {
  if (row >= a.m || column >= a.n) return;
  float y[4];
  const Index columns = a.n - column < 4 ? a.n - column : 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < columns) y[i] = fits ? Finish(a, sum[i], row, column + i) : BitsToFloat(0x7fc00000u);
  }
  const Index at = row * a.n + column;
  if (a.y_vector) {
    *reinterpret_cast<Floats4*>(static_cast<float*>(a.y) + at) = {{y[0], y[1], y[2], y[3]}};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < columns) StoreReal(a.y, at + i, y[i], a.brain);
  }
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_OUTPUT_CUH_
