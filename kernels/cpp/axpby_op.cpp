// The MLX operation around the axpby kernel.
#include "axpby_op.h"

#include <memory>
#include <stdexcept>
#include <utility>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "operation.h"

namespace tinyllm {

namespace mx = mlx::core;

namespace {

// ---- the node in the graph ----

class Axpby : public mx::Primitive {
 public:
  Axpby(mx::Stream stream, float alpha, float beta) : mx::Primitive(stream), alpha_(alpha), beta_(beta) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("axpby runs on the CPU only");
  }

  const char* name() const override {
    return "Axpby";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& same = static_cast<const Axpby&>(other);
    return alpha_ == same.alpha_ && beta_ == same.beta_;
  }

 private:
  float alpha_;
  float beta_;
};

// ---- cpu ----

void Axpby::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  const auto& x = inputs[0];
  const auto& y = inputs[1];
  auto& z = outputs[0];
  z.set_data(mx::allocator::malloc(z.nbytes()));
  auto& encoder = mx::cpu::get_command_encoder(stream());
  encoder.set_input_array(x);
  encoder.set_input_array(y);
  encoder.set_output_array(z);
  with_type(z.dtype(), [&]<typename T>(T) {
    // Runs later, on the stream's own thread. The pointers stay good: MLX keeps the arrays until then.
    encoder.dispatch(noted(
        [x = x.data<T>(), y = y.data<T>(), z = z.data<T>(), size = z.size(), alpha = alpha_, beta = beta_]() {
          watched("axpby", z, size, [&](T* room) { axpby<T>(x, y, room, size, alpha, beta); });
        }));
  });
}

} // namespace

// ---- the function: checks, and builds the node ----

mx::array axpby_op(const mx::array& x, const mx::array& y, float alpha, float beta) {
  if (x.shape() != y.shape() || x.dtype() != y.dtype()) {
    throw std::invalid_argument("axpby: x and y must have one shape and one dtype");
  }
  if (!is_supported(x.dtype())) {
    throw std::invalid_argument("axpby: x must be float32, float16 or bfloat16");
  }
  auto stream = mx::default_stream(mx::Device::cpu);
  settle(stream);
  return mx::array(
      x.shape(),
      x.dtype(),
      std::make_shared<Axpby>(stream, alpha, beta),
      {mx::contiguous(x, false, stream), mx::contiguous(y, false, stream)});
}

} // namespace tinyllm
