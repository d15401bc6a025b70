#include <algorithm>
#include <optional>

#include "base/quoted.h"
#include "text/jinja/methods.h"
#include "text/jinja/runtime.h"
#include "text/utf8.h"

namespace nibble::text::jinja {
namespace {

Value LoopAttribute(const LoopState& loop, std::string_view name) {
  const auto size = static_cast<int64_t>(loop.items->items.size());
  const auto index = static_cast<int64_t>(loop.index);
  if (name == "index") return Value(index + 1);
  if (name == "index0") return Value(index);
  if (name == "revindex") return Value(size - index);
  if (name == "revindex0") return Value(size - index - 1);
  if (name == "first") return Value(index == 0);
  if (name == "last") return Value(index + 1 == size);
  if (name == "length") return Value(size);
  if (name == "depth") return Value(int64_t{1});  // of recursion, which there is none of
  if (name == "depth0") return Value(int64_t{0});
  if (name == "previtem" && index > 0) return loop.items->items[index - 1];
  if (name == "nextitem" && index + 1 < size) return loop.items->items[index + 1];
  return Value(Undefined{name});
}

/// Byte offset of the n-th character; n may be the number of characters.
size_t OffsetOf(std::string_view text, int64_t n) {
  size_t pos = 0;
  for (; n > 0; --n) pos += DecodeUtf8(text, pos).length;
  return pos;
}

std::optional<int64_t> NormalIndex(int64_t index, int64_t size) {
  if (index < 0) index += size;
  if (index < 0 || index >= size) return std::nullopt;
  return index;
}

/// The indices that Python's slice(start, stop, step).indices(size) yields.
Result<std::vector<int64_t>> SliceIndices(const Value& start, const Value& stop, const Value& step,
                                          int64_t size) {
  int64_t stride = 1;
  if (!step.is_none()) {
    if (!step.is_int() || step.integer() == 0) {
      return Err(ErrorCode::kInvalidArgument, "a slice step is {}",
                 step.is_int() ? "0" : step.TypeName());
    }
    stride = std::clamp<int64_t>(step.integer(), -(size + 1), size + 1);
  }
  const bool forward = stride > 0;
  const int64_t low = forward ? 0 : -1;
  const int64_t high = forward ? size : size - 1;
  const auto bound = [&](const Value& v, int64_t otherwise) -> Result<int64_t> {
    if (v.is_none()) return otherwise;
    if (!v.is_int()) return Err(ErrorCode::kInvalidArgument, "a slice bound is {}", v.TypeName());
    const int64_t i = v.integer() < 0 ? std::max(v.integer(), -size - 1) + size : v.integer();
    return std::clamp(i, low, high);
  };
  NIBBLE_TRY(const int64_t first, bound(start, forward ? low : high));
  NIBBLE_TRY(const int64_t end, bound(stop, forward ? high : low));
  std::vector<int64_t> indices;
  for (int64_t i = first; forward ? i < end : i > end; i += stride) indices.push_back(i);
  return indices;
}

std::vector<Value> Characters(std::string_view text) {
  std::vector<Value> items;
  for (size_t pos = 0; pos < text.size();) {
    const size_t n = DecodeUtf8(text, pos).length;
    items.emplace_back(text.substr(pos, n));
    pos += n;
  }
  return items;
}

}  // namespace

Result<Value> GetAttribute(Runtime& runtime, const Value& object, std::string_view name) {
  if (object.is_undefined()) return UndefinedError(object);
  switch (FindMethod(object, name)) {
    case MethodStatus::kKnown:
      return Value(Method{});
    case MethodStatus::kRefused:
      return Err(ErrorCode::kUnsupported, "the method {} of a {} is not known here", Quoted(name),
                 object.TypeName());
    case MethodStatus::kNone:
      break;
  }
  const Value* found = nullptr;
  if (object.is_dict()) {
    NIBBLE_CHECK_OK(runtime.Spend(1 + object.dict().items.size() / 8));
    found = object.dict().Find(name);
  } else if (object.Is<Namespace*>()) {
    NIBBLE_CHECK_OK(runtime.Spend(1 + object.As<Namespace*>()->attributes.size() / 8));
    found = object.As<Namespace*>()->Find(name);
  } else if (object.Is<std::shared_ptr<LoopState>>()) {
    return LoopAttribute(*object.As<std::shared_ptr<LoopState>>(), name);
  }
  return found ? *found : Value(Undefined{name});
}

Result<Value> GetItem(Runtime& runtime, const Value& object, const Value& key) {
  if (object.is_undefined()) return UndefinedError(object);
  if (object.is_dict() && key.is_string()) {
    NIBBLE_CHECK_OK(runtime.Spend(1 + object.dict().items.size() / 8));
    if (const Value* found = object.dict().Find(key.string())) return *found;
  }
  if (object.is_list() && key.is_int()) {
    const auto& items = object.items();
    const auto index = NormalIndex(key.integer(), static_cast<int64_t>(items.size()));
    return index ? items[*index] : Value(Undefined{});
  }
  if (object.is_string() && key.is_int()) {
    const std::string& text = object.string();
    NIBBLE_CHECK_OK(runtime.Spend(text.size()));
    const auto index = NormalIndex(key.integer(), static_cast<int64_t>(CountCodePoints(text)));
    if (!index) return Value(Undefined{});
    const size_t pos = OffsetOf(text, *index);
    return Value(text.substr(pos, DecodeUtf8(text, pos).length));
  }
  if (!key.is_string()) return Value(Undefined{});
  // As in Jinja, what has no such item is asked for the attribute.
  NIBBLE_TRY(const Value found, GetAttribute(runtime, object, key.string()));
  return found.is_undefined() ? Value(Undefined{}) : found;
}

Result<Value> GetSlice(Runtime& runtime, const Value& object, const Value& start, const Value& stop,
                       const Value& step) {
  if (object.is_undefined()) return UndefinedError(object);
  if (object.is_list()) {
    const auto& items = object.items();
    NIBBLE_TRY(const auto indices,
               SliceIndices(start, stop, step, static_cast<int64_t>(items.size())));
    std::vector<Value> picked;
    for (int64_t i : indices) picked.push_back(items[i]);
    return runtime.NewList(std::move(picked), object.As<Value::List>()->is_tuple);
  }
  if (!object.is_string()) return Value(Undefined{});
  const std::string& text = object.string();
  NIBBLE_CHECK_OK(runtime.Spend(8 * text.size()));
  std::vector<size_t> offsets;  // of every character
  for (size_t pos = 0; pos < text.size(); pos += DecodeUtf8(text, pos).length)
    offsets.push_back(pos);
  NIBBLE_TRY(const auto indices,
             SliceIndices(start, stop, step, static_cast<int64_t>(offsets.size())));
  std::string picked;
  for (int64_t i : indices) picked.append(text, offsets[i], DecodeUtf8(text, offsets[i]).length);
  return runtime.NewText(std::move(picked));
}

Result<Value::List> Iterate(Runtime& runtime, const Value& value) {
  if (value.is_list()) return value.As<Value::List>();
  std::vector<Value> items;
  if (value.is_dict()) {
    for (const auto& [key, item] : value.dict().items) items.emplace_back(key);
  } else if (value.is_string()) {
    NIBBLE_CHECK_OK(runtime.Spend(64 * value.string().size()));
    items = Characters(value.string());
  } else if (!value.is_undefined()) {
    return Err(ErrorCode::kInvalidArgument, "a {} cannot be iterated over", value.TypeName());
  }
  NIBBLE_TRY(const Value list, runtime.NewList(std::move(items)));
  return list.As<Value::List>();
}

Result<int64_t> LengthOf(const Value& value) {
  if (value.is_undefined()) return int64_t{0};
  if (value.is_string()) return static_cast<int64_t>(CountCodePoints(value.string()));
  if (value.is_list()) return static_cast<int64_t>(value.items().size());
  if (value.is_dict()) return static_cast<int64_t>(value.dict().items.size());
  if (value.Is<std::shared_ptr<LoopState>>()) {
    return static_cast<int64_t>(value.As<std::shared_ptr<LoopState>>()->items->items.size());
  }
  return Err(ErrorCode::kInvalidArgument, "a {} has no length", value.TypeName());
}

}  // namespace nibble::text::jinja
