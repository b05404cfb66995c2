// A device that is not the CPU, for machines without a GPU: its memory is the CPU's and its numbers
// come from the CPU's kernels, but torch takes it for another device. As on a GPU, an operation on
// tensors of both devices is an error, and so is every wrong guess of where a tensor is.

#include <set>
#include <string>
#include <vector>

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

namespace {

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;
template <typename T>
using Maybe = std::optional<T>;

constexpr auto kSimulated = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kSimulated, 0);

bool is_simulated(const Tensor& t) { return t.defined() && t.device().type() == kSimulated; }

// ---- what torch asks of a device

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &c10::free_cpu, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(kSimulated, &allocator);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kSimulated;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return kSimulated; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  c10::Stream getDefaultStream(c10::Device) const override { return getStream(kDevice); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(kDevice); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
};
[[maybe_unused]] const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

// ---- the same memory seen from the other device

Tensor without_zero_kernel(const Tensor& t) {  // torch's lazy zeros have no memory
  if (!t.defined() || !t._is_zerotensor()) return t;
  return at::zeros(t.sizes(), at::TensorOptions().dtype(t.dtype()).device(at::kCPU));
}

Tensor seen_from(const Tensor& t, c10::Device device, c10::DispatchKeySet keys,
                 c10::Allocator* owner) {
  auto storage = t.storage();
  c10::DataPtr data(storage.mutable_data(), new c10::Storage(storage),
                    [](void* kept) { delete static_cast<c10::Storage*>(kept); }, device);
  c10::Storage same(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), owner, true);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(same), keys, t.dtype());
  auto* impl = out.unsafeGetTensorImpl();
  impl->set_storage_offset(t.storage_offset());
  impl->set_sizes_and_strides(t.sizes(), t.strides());
  if (t.is_conj()) out._set_conj(true);
  if (t.is_neg()) out._set_neg(true);
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return out;
}

Tensor on_cpu(const Tensor& t) {
  if (!is_simulated(t)) return t;
  if (t._is_zerotensor()) return without_zero_kernel(t);
  return seen_from(t, at::kCPU, c10::DispatchKeySet(c10::DispatchKey::CPU), c10::GetCPUAllocator());
}

Tensor on_device(const Tensor& given) {
  auto t = without_zero_kernel(given);
  if (!t.defined()) return t;
  return seen_from(
      t, kDevice,
      c10::DispatchKeySet({c10::DispatchKey::PrivateUse1, c10::DispatchKey::AutogradPrivateUse1}),
      &allocator);
}

// ---- every operation that is not below

const std::set<std::string> kMixed = {  // as on a GPU: an index may be on the CPU, a copy crosses
    "aten::index.Tensor", "aten::index.Tensor_out", "aten::index_put", "aten::index_put_",
    "aten::_index_put_impl_", "aten::_unsafe_index.Tensor", "aten::copy_"};

struct Call {
  bool simulated = false, cpu = false;
  std::vector<std::pair<Tensor, Tensor>> pairs;  // a tensor of the device, and as the CPU sees it

  Tensor enter(const Tensor& t) {
    if (!is_simulated(t)) {
      cpu = cpu || (t.defined() && t.dim() > 0);  // single numbers may be anywhere
      return t;
    }
    simulated = true;
    pairs.emplace_back(t, on_cpu(t));
    return pairs.back().second;
  }

  c10::IValue enter(const c10::IValue& value) {
    if (value.isTensor()) return enter(value.toTensor());
    if (value.isTensorList()) {
      std::vector<Tensor> inside;
      for (const Tensor& t : value.toTensorVector()) inside.push_back(enter(t));
      return inside;
    }
    if (value.isOptionalTensorList()) {
      c10::List<Maybe<Tensor>> inside;
      for (const auto& t : value.toOptionalTensorVector())
        inside.push_back(t ? Maybe<Tensor>(enter(*t)) : std::nullopt);
      return inside;
    }
    if (value.isDevice()) {
      simulated = simulated || value.toDevice().type() == kSimulated;
      return c10::Device(at::kCPU);
    }
    return value;
  }

  Tensor leave(const Tensor& t) const {
    if (!t.defined() || !simulated) return t;
    for (const auto& [outer, inner] : pairs) {
      if (inner.unsafeGetTensorImpl() != t.unsafeGetTensorImpl()) continue;
      if (outer.sizes() != t.sizes() || outer.storage().data() != t.storage().data()) {
        auto* impl = outer.unsafeGetTensorImpl();  // an output that was given another size
        impl->set_storage_keep_dtype(on_device(t).storage());
        impl->set_storage_offset(t.storage_offset());
        impl->set_sizes_and_strides(t.sizes(), t.strides());
      }
      return outer;
    }
    return on_device(t);
  }

  c10::IValue leave(const c10::IValue& value) const {
    if (value.isTensor()) return leave(value.toTensor());
    if (!value.isTensorList()) return value;
    std::vector<Tensor> inside;
    for (const Tensor& t : value.toTensorVector()) inside.push_back(leave(t));
    return inside;
  }
};

void through_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto name = c10::toString(op.operator_name());
  Call call;
  torch::jit::Stack inner;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size()))
    inner.push_back(call.enter(value));
  TORCH_CHECK(!(call.simulated && call.cpu) || kMixed.count(name),
              "tensors of the CPU and of the simulated device in ", name);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &inner);
  torch::jit::drop(*stack, op.schema().arguments().size());
  for (const auto& value : inner) stack->push_back(call.leave(value));
}

// ---- memory, views, copies, and convolutions, which torch asks of a device by other names

Tensor empty(SymIntArrayRef size, Maybe<at::ScalarType> type, Maybe<at::Layout>,
             Maybe<at::Device>, Maybe<bool>, Maybe<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(type), format);
}

Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride, Maybe<at::ScalarType> type,
                     Maybe<at::Layout>, Maybe<at::Device>, Maybe<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator,
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(type));
}

Tensor as_strided(const Tensor& t, SymIntArrayRef size, SymIntArrayRef stride,
                  Maybe<SymInt> offset) {
  auto start = offset ? Maybe<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt;
  return at::native::as_strided_tensorimpl(t, C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), start);
}

Tensor view(const Tensor& t, SymIntArrayRef size) {
  return at::native::view(t, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor reshape_alias(const Tensor& t, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(t, C10_AS_INTARRAYREF_SLOW(size),
                                    C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) at::native::resize_(to, from.sizes());
  return copy_from(from, to, false);
}

const Tensor& resize(const Tensor& t, SymIntArrayRef size, Maybe<at::MemoryFormat> format) {
  return at::native::resize_(t, C10_AS_INTARRAYREF_SLOW(size), format);
}

Tensor& set_storage(Tensor& t, at::Storage storage, SymInt offset, SymIntArrayRef size,
                    SymIntArrayRef stride) {
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset.guard_int(__FILE__, __LINE__));
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return t;
}

at::Scalar number(const Tensor& t) { return on_cpu(t).item(); }

Maybe<Tensor> bias_on_cpu(const Maybe<Tensor>& bias) {
  return bias && bias->defined() ? Maybe<Tensor>(on_cpu(*bias)) : std::nullopt;
}

Tensor convolution(const Tensor& x, const Tensor& w, const Maybe<Tensor>& bias,
                   SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation,
                   bool transposed, SymIntArrayRef output_padding, SymInt groups) {
  TORCH_CHECK(is_simulated(x) && is_simulated(w), "a convolution on two devices");
  at::AutoDispatchBelowAutograd guard;
  return on_device(at::convolution_symint(on_cpu(x), on_cpu(w), bias_on_cpu(bias), stride, padding,
                                          dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& w, SymIntArrayRef stride,
    SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed,
    SymIntArrayRef output_padding, SymInt groups, std::array<bool, 3> wanted) {
  TORCH_CHECK(is_simulated(gradient) && is_simulated(x) && is_simulated(w),
              "a convolution's derivative on two devices");
  at::AutoDispatchBelowAutograd guard;
  const std::vector<SymInt> biases{transposed ? w.sym_size(1) * groups : w.sym_size(0)};
  auto [at_x, at_w, at_bias] = at::convolution_backward_symint(
      on_cpu(gradient), on_cpu(x), on_cpu(w), c10::OptionalArrayRef<SymInt>(biases), stride,
      padding, dilation, transposed, output_padding, groups, wanted);
  return {on_device(at_x), on_device(at_w), on_device(at_bias)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&through_cpu>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("_local_scalar_dense", number);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

}  // namespace
