// The ops' kernels, written once for CPU and GPU: read the attributes, check and bind the tensors,
// allocate, and leave the arithmetic to a `Device`, which provides
//
//     Start(construction)                   once for each node
//     Matmul(ctx, args)
//     Unpack(ctx, layout, weights, weight)
//     Dequantize(ctx, args)                 into args.real
//     Quantize(ctx, args, x, packed)
//
// each of which returns a status. Its file ends with TFQUANT_REGISTER_KERNELS.
#ifndef TFQUANT_CUSTOM_OPS_KERNELS_OP_KERNELS_H_
#define TFQUANT_CUSTOM_OPS_KERNELS_OP_KERNELS_H_

#include "checks.h"

namespace tfquant {

template <class Device, class T>
class LowbitMatmulOp : public tensorflow::OpKernel {
 public:
  explicit LowbitMatmulOp(tensorflow::OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadMatmul(c, TypeOf<T>(), &args_));
    OP_REQUIRES_OK(c, device_.Start(c));
  }

  void Compute(tensorflow::OpKernelContext* ctx) override {
    MatmulArgs args = args_;
    OP_REQUIRES_OK(ctx, BindMatmul(ctx, &args));
    OP_REQUIRES_OK(ctx, device_.Matmul(ctx, args));
  }

 private:
  Device device_;
  MatmulArgs args_;
};

template <class Device>
class LowbitUnpackOp : public tensorflow::OpKernel {
 public:
  explicit LowbitUnpackOp(tensorflow::OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadUnpack(c, &layout_));
    OP_REQUIRES_OK(c, device_.Start(c));
  }

  void Compute(tensorflow::OpKernelContext* ctx) override {
    const tensorflow::Tensor& weights = ctx->input(0);
    OP_REQUIRES_OK(ctx, Rank(weights, 1, "weights"));
    OP_REQUIRES_OK(ctx, Words(CheckPackedBytes(weights.NumElements(), layout_)));
    tensorflow::Tensor* weight = nullptr;
    OP_REQUIRES_OK(
        ctx, ctx->allocate_output(0, tensorflow::TensorShape({layout_.k, layout_.n}), &weight));
    OP_REQUIRES_OK(ctx, device_.Unpack(ctx, layout_, weights.flat<uint8_t>().data(),
                                       weight->flat<float>().data()));
  }

 private:
  Device device_;
  PackedLayout layout_;
};

template <class Device, class T>
class DequantizeOp : public tensorflow::OpKernel {
 public:
  explicit DequantizeOp(tensorflow::OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadPlain(c, &args_));
    OP_REQUIRES_OK(c, c->GetAttr("columns", &args_.columns));
    OP_REQUIRES_OK(c, device_.Start(c));
    args_.type = TypeOf<T>();
  }

  void Compute(tensorflow::OpKernelContext* ctx) override {
    PlainArgs args = args_;
    OP_REQUIRES_OK(ctx, BindDequantize(ctx, &args));
    tensorflow::Tensor* real = nullptr;
    OP_REQUIRES_OK(
        ctx, ctx->allocate_output(0, tensorflow::TensorShape({args.rows, args.columns}), &real));
    args.real = real->data();
    OP_REQUIRES_OK(ctx, device_.Dequantize(ctx, args));
  }

 private:
  Device device_;
  PlainArgs args_;
};

template <class Device>
class QuantizePackOp : public tensorflow::OpKernel {
 public:
  explicit QuantizePackOp(tensorflow::OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadPlain(c, &args_));
    OP_REQUIRES_OK(c, device_.Start(c));
  }

  void Compute(tensorflow::OpKernelContext* ctx) override {
    PlainArgs args = args_;
    OP_REQUIRES_OK(ctx, BindQuantize(ctx, &args));
    const int64_t width = PlainRowBytes(args.columns, args.num_bits);
    tensorflow::Tensor* packed = nullptr;
    OP_REQUIRES_OK(ctx,
                   ctx->allocate_output(0, tensorflow::TensorShape({args.rows, width}), &packed));
    OP_REQUIRES_OK(ctx, device_.Quantize(ctx, args, ctx->input(0).flat<float>().data(),
                                         packed->flat<uint8_t>().data()));
  }

 private:
  Device device_;
  PlainArgs args_;
};

// Registers the kernels of a device, `Cpu` or `Gpu`, for what TensorFlow calls `place`.
#define TFQUANT_REGISTER_REAL(place, device, T)                                              \
  REGISTER_KERNEL_BUILDER(Name("Tfquant>LowbitMatmul").Device(place).TypeConstraint<T>("T"), \
                          LowbitMatmulOp<device, T>);                                        \
  REGISTER_KERNEL_BUILDER(Name("Tfquant>Dequantize").Device(place).TypeConstraint<T>("T"),   \
                          DequantizeOp<device, T>);
#define TFQUANT_REGISTER_KERNELS(place, device)                                                \
  TFQUANT_FOR_REAL_TYPES(TFQUANT_REGISTER_REAL, place, device)                                 \
  REGISTER_KERNEL_BUILDER(Name("Tfquant>LowbitUnpack").Device(place), LowbitUnpackOp<device>); \
  REGISTER_KERNEL_BUILDER(Name("Tfquant>QuantizePack").Device(place), QuantizePackOp<device>)

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_KERNELS_OP_KERNELS_H_
