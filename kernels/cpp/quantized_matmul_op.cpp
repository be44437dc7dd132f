// The MLX operation around the kernels of quantized_matmul.
#include "quantized_matmul_op.h"

#include <memory>
#include <stdexcept>
#include <tuple>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "operation.h"

namespace tinyllm {

namespace mx = mlx::core;

namespace {

constexpr size_t kFewRows = 4; // up to so many rows the time goes into reading weights, above into arithmetic

// ---- the node in the graph ----

class QuantizedMatmulNode : public mx::Primitive {
 public:
  QuantizedMatmulNode(mx::Stream stream, int group_size, int bits, int version)
      : mx::Primitive(stream), group_size_(group_size), bits_(bits), version_(version) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("this quantized_matmul runs on the CPU only");
  }

  const char* name() const override {
    return "QuantizedMatmulNode";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& same = static_cast<const QuantizedMatmulNode&>(other);
    return std::tie(group_size_, bits_, version_) == std::tie(same.group_size_, same.bits_, same.version_);
  }

 private:
  int group_size_;
  int bits_;
  int version_;
};

// ---- cpu ----

template <typename T>
void run(const QuantizedMatmul<T>& call, int version) {
  switch (version ? version : call.M <= kFewRows ? 4 : 5) {
    case 1:
      return quantized_matmul_plain(call);
    case 2:
      return quantized_matmul_grouped(call);
    case 3:
      return quantized_matmul_vector(call);
    case 4:
      return quantized_matmul_threads(call);
    default:
      return quantized_matmul_tiled(call);
  }
}

void QuantizedMatmulNode::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  auto& encoder = mx::cpu::get_command_encoder(stream());
  for (const auto& input : inputs) {
    encoder.set_input_array(input);
  }
  encoder.set_output_array(out);
  with_type(out.dtype(), [&]<typename T>(T) {
    QuantizedMatmul<T> call;
    call.a = in_order<T>(inputs[0], encoder);
    call.packed = in_order<uint32_t>(inputs[1], encoder);
    call.scales = in_order<T>(inputs[2], encoder);
    call.biases = in_order<T>(inputs[3], encoder);
    call.out = out.data<T>();
    call.I = inputs[0].shape(-1);
    call.O = inputs[1].shape(0);
    call.M = call.I ? inputs[0].size() / call.I : 0;
    call.group_size = group_size_;
    call.bits = bits_;
    // Runs later, on the stream's own thread. The pointers stay good: MLX keeps the arrays until then.
    encoder.dispatch(noted([call, version = version_]() {
      watched("quantized_matmul", call.out, call.M * call.O, [&](T* room) {
        auto watched_call = call;
        watched_call.out = room;
        run(watched_call, version);
      });
    }));
  });
}

void require(bool holds, const char* message) {
  if (!holds) {
    throw std::invalid_argument(message);
  }
}

} // namespace

// ---- the function: checks, and builds the node ----

mx::array quantized_matmul_op(
    const mx::array& a,
    const mx::array& packed,
    const mx::array& scales,
    const mx::array& biases,
    int group_size,
    int bits,
    int version) {
  require(bits == 4 || bits == 8, "quantized_matmul: bits must be 4 or 8");
  require(group_size == 32 || group_size == 64 || group_size == 128, "quantized_matmul: groups are of 32, 64 or 128");
  require(version >= 0 && version <= 5, "quantized_matmul: versions go from 1 to 5, and 0 chooses");
  require(is_supported(a.dtype()), "quantized_matmul: a must be float32, float16 or bfloat16");
  require(
      scales.dtype() == a.dtype() && biases.dtype() == a.dtype(),
      "quantized_matmul: a, scales and biases must have one dtype");
  require(packed.dtype() == mx::uint32 && packed.ndim() == 2, "quantized_matmul: packed weights are uint32, O x words");
  require(a.ndim() >= 1, "quantized_matmul: a needs at least one axis");
  const int I = a.shape(-1);
  const int O = packed.shape(0);
  require(I > 0 && I % group_size == 0, "quantized_matmul: a row of a must be a whole number of groups");
  require(packed.shape(1) * 32 == I * bits, "quantized_matmul: rows of a and of the weights differ in length");
  const mx::Shape groups{O, I / group_size};
  require(
      scales.shape() == groups && biases.shape() == groups,
      "quantized_matmul: scales and biases must be O x groups of a row");
  auto shape = a.shape();
  shape.back() = O;
  auto stream = mx::default_stream(mx::Device::cpu);
  settle(stream);
  return mx::array(
      shape,
      a.dtype(),
      std::make_shared<QuantizedMatmulNode>(stream, group_size, bits, version),
      {a, packed, scales, biases});
}

} // namespace tinyllm
