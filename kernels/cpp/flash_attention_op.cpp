// The MLX operation around the kernels of flash_attention.
#include "flash_attention_op.h"

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

// ---- the node in the graph ----

class FlashAttentionNode : public mx::Primitive {
 public:
  FlashAttentionNode(mx::Stream stream, float scale, MaskKind kind, int version)
      : mx::Primitive(stream), scale_(scale), kind_(kind), version_(version) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("this flash_attention runs on the CPU only");
  }

  const char* name() const override {
    return "FlashAttentionNode";
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& same = static_cast<const FlashAttentionNode&>(other);
    return std::tie(scale_, kind_, version_) == std::tie(same.scale_, same.kind_, same.version_);
  }

 private:
  float scale_;
  MaskKind kind_;
  int version_;
};

// ---- cpu ----

// `x` by strides if the numbers of its rows are neighbours; else a copy of it is made, when the kernel's turn comes.
template <typename T>
Matrices<T> matrices(const mx::array& x, mx::cpu::CommandEncoder& encoder) {
  const auto size_of = [&](int axis) { return static_cast<size_t>(x.shape(axis)); };
  const auto& strides = x.strides();
  if (strides[3] == 1 && strides[0] >= 0 && strides[1] >= 0 && strides[2] >= 0) {
    const auto stride = [&](int axis) { return static_cast<size_t>(strides[axis]); };
    return {x.data<T>(), stride(0), stride(1), stride(2)};
  }
  const size_t row = size_of(3);
  return {in_order<T>(x, encoder), size_of(1) * size_of(2) * row, size_of(2) * row, row};
}

void FlashAttentionNode::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& out = outputs[0];
  auto& tiles = outputs[1];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  tiles.set_data(mx::allocator::malloc(tiles.nbytes()));
  auto& encoder = mx::cpu::get_command_encoder(stream());
  for (const auto& input : inputs) {
    encoder.set_input_array(input);
  }
  encoder.set_output_array(out);
  encoder.set_output_array(tiles);
  with_type(out.dtype(), [&]<typename T>(T) {
    FlashAttention<T> call{};
    call.query = matrices<T>(inputs[0], encoder);
    call.key = matrices<T>(inputs[1], encoder);
    call.value = matrices<T>(inputs[2], encoder);
    call.out = out.data<T>();
    call.B = out.shape(0);
    call.H_q = out.shape(1);
    call.H = inputs[1].shape(1);
    call.L = out.shape(2);
    call.S = inputs[1].shape(2);
    call.D = out.shape(3);
    call.scale = scale_;
    call.kind = kind_;
    if (kind_ == MaskKind::additive) {
      call.additive = inputs[3].data<float>();
    } else if (kind_ == MaskKind::boolean) {
      call.boolean = inputs[3].data<bool>();
    }
    for (size_t axis = 0; inputs.size() > 3 && axis < 4; ++axis) {
      call.mask_strides[axis] = static_cast<size_t>(inputs[3].strides()[axis]);
    }
    call.tiles = tiles.data<int32_t>();
    encoder.dispatch(noted([call, version = version_, size = out.size(), tile_count = tiles.size()]() {
      std::fill_n(call.tiles, tile_count, 0);
      watched("flash_attention", call.out, size, [&](T* room) {
        auto watched_call = call;
        watched_call.out = room;
        version == 1 ? flash_attention_plain(watched_call) : flash_attention_fast(watched_call);
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

std::pair<mx::array, mx::array> flash_attention_op(
    const mx::array& query,
    const mx::array& key,
    const mx::array& value,
    float scale,
    bool causal,
    const std::optional<mx::array>& mask,
    int version) {
  require(query.ndim() == 4 && key.ndim() == 4, "flash_attention: query, key and value have 4 axes");
  require(key.shape() == value.shape(), "flash_attention: key and value must have one shape");
  require(is_supported(query.dtype()), "flash_attention: query must be float32, float16 or bfloat16");
  require(
      key.dtype() == query.dtype() && value.dtype() == query.dtype(),
      "flash_attention: query, key and value must have one dtype");
  const int B = query.shape(0), H_q = query.shape(1), L = query.shape(2), D = query.shape(3);
  const int H = key.shape(1), S = key.shape(2);
  require(key.shape(0) == B && key.shape(3) == D, "flash_attention: key must be (B, H, S, D) for query (B, H_q, L, D)");
  require(H > 0 && H_q % H == 0, "flash_attention: the key heads must divide the query heads");
  require(D > 0 && D % 32 == 0 && D <= 256, "flash_attention: D must be a multiple of 32, and at most 256");
  require(!causal || !mask, "flash_attention: causal or a mask, not both");
  require(!causal || L <= S, "flash_attention: causal needs L <= S");
  require(version == 1 || version == 2, "flash_attention: the versions are 1 and 2");
  auto stream = mx::default_stream(mx::Device::cpu);
  settle(stream);
  std::vector<mx::array> inputs{query, key, value};
  auto kind = causal ? MaskKind::causal : MaskKind::none;
  if (mask) {
    const bool is_boolean = mask->dtype() == mx::bool_;
    kind = is_boolean ? MaskKind::boolean : MaskKind::additive;
    const auto numbers = is_boolean ? *mask : mx::astype(*mask, mx::float32, stream);
    inputs.push_back(mx::broadcast_to(numbers, {B, H_q, L, S}, stream)); // strides of 0: no copy
  }
  const int query_tiles = (L + static_cast<int>(kQueryTile) - 1) / static_cast<int>(kQueryTile);
  auto node = std::make_shared<FlashAttentionNode>(stream, scale, kind, version);
  auto outputs =
      mx::array::make_arrays({query.shape(), {B, H_q, query_tiles}}, {query.dtype(), mx::int32}, node, inputs);
  return {outputs[0], outputs[1]};
}

} // namespace tinyllm
