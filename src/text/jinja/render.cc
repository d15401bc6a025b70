#include "text/jinja/render.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/quoted.h"
#include "text/jinja/filters.h"
#include "text/jinja/methods.h"
#include "text/jinja/tests.h"

namespace nibble::text::jinja {
namespace {

struct GlobalName {
  std::string_view name;
  Global global;
};
constexpr std::array<GlobalName, 4> kGlobals = {{{"range", Global::kRange},
                                                 {"namespace", Global::kNamespace},
                                                 {"dict", Global::kDict},
                                                 {"raise_exception", Global::kRaise}}};
constexpr int64_t kMaxRange = 100'000;
constexpr int kMacroLevels = 4;  // a call has so many more frames than an expression

enum class Flow : uint8_t { kNext, kBreak, kContinue };

class Renderer {
 public:
  Renderer(std::vector<std::pair<std::string, Value>> variables, const Limits& limits)
      : runtime_(limits), variables_(std::move(variables)), scopes_(1) {
    for (const auto& [name, value] : variables_) scopes_[0].emplace_back(name, value);
  }

  Result<std::string> Run(const Body& body) {
    NIBBLE_CHECK_OK(Execute(body));
    return std::move(out_);
  }

 private:
  using Scope = std::vector<std::pair<std::string_view, Value>>;

  /// Leaves a scope, and what else a call or a block changed, however we leave.
  class ScopeGuard {
   public:
    explicit ScopeGuard(Renderer& r) : r_(r), size_(r.scopes_.size()) { r_.scopes_.emplace_back(); }
    ~ScopeGuard() { r_.scopes_.resize(size_); }

   private:
    Renderer& r_;
    size_t size_;
  };
  class DepthGuard {
   public:
    explicit DepthGuard(Renderer& r, int levels = 1) : r_(r), levels_(levels) {
      r_.depth_ += levels_;
    }
    ~DepthGuard() { r_.depth_ -= levels_; }
    Result<void> Check() const {
      if (r_.depth_ <= r_.runtime_.limits().depth) return {};
      return Err(ErrorCode::kInvalidArgument, "the template nests or calls itself deeper than {}",
                 r_.runtime_.limits().depth);
    }

   private:
    Renderer& r_;
    int levels_;
  };

  // --- Names ---
  Value Lookup(std::string_view name) const;
  void Set(std::string_view name, Value value);
  Result<void> Assign(const Target& target, Value value);
  Result<void> AssignAll(const Stmt& stmt, const Value& value);

  // --- Statements ---
  Result<Flow> Execute(const Body& body);
  Result<Flow> Execute(const Stmt& stmt);
  Result<Flow> ExecuteIf(const Stmt& stmt);
  Result<Flow> ExecuteFor(const Stmt& stmt);
  Result<void> ExecuteSet(const Stmt& stmt);
  Result<Flow> ExecuteWith(const Stmt& stmt);
  Result<void> Emit(std::string_view text);
  Result<std::string> Capture(const Body& body);
  Result<Value> CaptureThrough(const Stmt& stmt);
  Result<Value::List> Filtered(const Stmt& stmt, Value::List items);

  // --- Expressions ---
  Result<Value> Eval(const Expr& expr);
  Result<Value> EvalKind(const Expr& expr);
  Result<Value> EvalSequence(const Expr& expr);
  Result<Value> EvalDict(const Expr& expr);
  Result<Value> EvalItem(const Expr& expr);
  Result<Value> EvalSlice(const Expr& expr);
  Result<Value> EvalCall(const Expr& expr);
  Result<Value> EvalFilter(const Expr& expr);
  Result<Value> EvalTest(const Expr& expr);
  Result<Value> EvalLogic(const Expr& expr);
  Result<Value> EvalBinary(const Expr& expr);
  Result<Value> EvalConcat(const Expr& expr);
  Result<Value> EvalCompare(const Expr& expr);
  Result<Value> EvalConditional(const Expr& expr);
  Result<Arguments> EvalArguments(const Expr& expr, size_t first);
  Result<Value> CallMacro(const Stmt& macro, const Arguments& arguments);
  Result<Value> CallGlobal(Global global, const Arguments& arguments);
  Result<Value> CallRange(const Arguments& arguments);

  Runtime runtime_;
  std::vector<std::pair<std::string, Value>> variables_;
  std::vector<Scope> scopes_;  // the first is the template's own
  size_t frame_ = 1;           // the scopes below it, but the first, belong to callers
  std::string out_;
  Value block_text_;
  int depth_ = 0;
};

// --- Names ---

Value Renderer::Lookup(std::string_view name) const {
  const auto in = [&](const Scope& scope) -> const Value* {
    for (const auto& [key, value] : scope) {
      if (key == name) return &value;
    }
    return nullptr;
  };
  for (size_t i = scopes_.size(); i > frame_; --i) {
    if (const Value* found = in(scopes_[i - 1])) return *found;
  }
  if (const Value* found = in(scopes_[0])) return *found;
  for (const GlobalName& global : kGlobals) {
    if (global.name == name) return Value(global.global);
  }
  return Value(Undefined{name});
}

void Renderer::Set(std::string_view name, Value value) {
  for (auto& [key, old] : scopes_.back()) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  scopes_.back().emplace_back(name, std::move(value));
}

Result<void> Renderer::Assign(const Target& target, Value value) {
  if (target.attribute.empty()) {
    Set(target.name, std::move(value));
    return {};
  }
  const Value object = Lookup(target.name);
  if (!object.Is<Namespace*>()) {
    return Err(ErrorCode::kInvalidArgument,
               "cannot set an attribute of {}, which is {}, expected a namespace",
               Quoted(target.name), object.TypeName());
  }
  auto& attributes = object.As<Namespace*>()->attributes;
  for (auto& [name, old] : attributes) {
    if (name == target.attribute) {
      old = std::move(value);
      return {};
    }
  }
  attributes.emplace_back(target.attribute, std::move(value));
  return {};
}

Result<void> Renderer::AssignAll(const Stmt& stmt, const Value& value) {
  if (!stmt.is_tuple) return Assign(stmt.targets[0], value);
  NIBBLE_TRY(const auto items, Iterate(runtime_, value));
  if (items->items.size() != stmt.targets.size()) {
    return Err(ErrorCode::kInvalidArgument, "{} values for {} names", items->items.size(),
               stmt.targets.size());
  }
  for (size_t i = 0; i < stmt.targets.size(); ++i)
    NIBBLE_CHECK_OK(Assign(stmt.targets[i], items->items[i]));
  return {};
}

// --- Statements ---

Result<Flow> Renderer::Execute(const Body& body) {
  const DepthGuard depth(*this);
  NIBBLE_CHECK_OK(depth.Check());
  for (const Stmt* stmt : body) {
    NIBBLE_CHECK_OK(runtime_.Step());
    auto flow = Execute(*stmt);
    if (!flow) {
      Error error = std::move(flow).error();
      // The innermost statement knows the line best.
      return error.where.empty() ? std::move(error).At(fmt::format("line {}", stmt->line)) : error;
    }
    if (*flow != Flow::kNext) return *flow;
  }
  return Flow::kNext;
}

Result<Flow> Renderer::Execute(const Stmt& stmt) {
  switch (stmt.kind) {
    case StmtKind::kText:
      NIBBLE_CHECK_OK(Emit(stmt.text));
      break;
    case StmtKind::kOutput: {
      NIBBLE_TRY(const Value value, Eval(*stmt.exprs[0]));
      if (value.is_string()) {
        NIBBLE_CHECK_OK(Emit(value.string()));
      } else {
        NIBBLE_TRY(const std::string text, runtime_.Str(value));
        NIBBLE_CHECK_OK(Emit(text));
      }
      break;
    }
    case StmtKind::kIf:
      return ExecuteIf(stmt);
    case StmtKind::kFor:
      return ExecuteFor(stmt);
    case StmtKind::kSet:
    case StmtKind::kSetBlock:
      NIBBLE_CHECK_OK(ExecuteSet(stmt));
      break;
    case StmtKind::kMacro:
      Set(stmt.text, Value(&stmt));
      break;
    case StmtKind::kWith:
      return ExecuteWith(stmt);
    case StmtKind::kFilterBlock: {
      NIBBLE_TRY(const Value value, CaptureThrough(stmt));
      NIBBLE_TRY(const std::string text, runtime_.Str(value));
      NIBBLE_CHECK_OK(Emit(text));
      break;
    }
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Result<void> Renderer::Emit(std::string_view text) {
  NIBBLE_CHECK_OK(runtime_.Spend(text.size()));
  if (out_.size() + text.size() > runtime_.limits().output_bytes) {
    return Err(ErrorCode::kInvalidArgument, "the rendered text is longer than {} bytes",
               runtime_.limits().output_bytes);
  }
  out_ += text;
  return {};
}

Result<std::string> Renderer::Capture(const Body& body) {
  std::string outer = std::exchange(out_, {});
  auto flow = Execute(body);
  std::string captured = std::exchange(out_, std::move(outer));
  if (!flow) return std::move(flow).error();
  return captured;
}

/// The text of a block, passed through the filters that stand at its head.
Result<Value> Renderer::CaptureThrough(const Stmt& stmt) {
  const ScopeGuard scope(*this);
  NIBBLE_TRY(std::string text, Capture(stmt.bodies[0]));
  block_text_ = Value(std::move(text));
  return Eval(*stmt.exprs[0]);
}

Result<void> Renderer::ExecuteSet(const Stmt& stmt) {
  if (stmt.kind == StmtKind::kSetBlock) {
    NIBBLE_TRY(Value value, CaptureThrough(stmt));
    return Assign(stmt.targets[0], std::move(value));
  }
  NIBBLE_TRY(const Value value, Eval(*stmt.exprs[0]));
  return AssignAll(stmt, value);
}

Result<Flow> Renderer::ExecuteWith(const Stmt& stmt) {
  std::vector<Value> values;
  for (const Expr* expr : stmt.exprs) {
    NIBBLE_TRY(Value value, Eval(*expr));
    values.push_back(std::move(value));
  }
  const ScopeGuard scope(*this);
  for (size_t i = 0; i < values.size(); ++i) Set(stmt.targets[i].name, std::move(values[i]));
  return Execute(stmt.bodies[0]);
}

Result<Flow> Renderer::ExecuteIf(const Stmt& stmt) {
  for (size_t i = 0; i < stmt.exprs.size(); ++i) {
    NIBBLE_TRY(const Value condition, Eval(*stmt.exprs[i]));
    if (condition.Truthy()) return Execute(stmt.bodies[i]);
  }
  return stmt.bodies.size() > stmt.exprs.size() ? Execute(stmt.bodies.back()) : Flow::kNext;
}

Result<Value::List> Renderer::Filtered(const Stmt& stmt, Value::List items) {
  if (!stmt.exprs[1]) return items;
  std::vector<Value> kept;
  for (const Value& item : items->items) {
    NIBBLE_CHECK_OK(runtime_.Step());
    const ScopeGuard scope(*this);
    NIBBLE_CHECK_OK(AssignAll(stmt, item));
    NIBBLE_TRY(const Value keep, Eval(*stmt.exprs[1]));
    if (keep.Truthy()) kept.push_back(item);
  }
  NIBBLE_TRY(const Value list, runtime_.NewList(std::move(kept)));
  return list.As<Value::List>();
}

Result<Flow> Renderer::ExecuteFor(const Stmt& stmt) {
  NIBBLE_TRY(const Value iterable, Eval(*stmt.exprs[0]));
  NIBBLE_TRY(Value::List items, Iterate(runtime_, iterable));
  NIBBLE_TRY(items, Filtered(stmt, std::move(items)));
  if (items->items.empty()) {
    if (stmt.bodies.size() < 2) return Flow::kNext;
    const ScopeGuard scope(*this);
    return Execute(stmt.bodies[1]);
  }
  const auto loop = std::make_shared<LoopState>(LoopState{items, 0});
  Result<Flow> flow = Flow::kNext;
  for (; loop->index < items->items.size(); ++loop->index) {
    const ScopeGuard scope(*this);
    Set("loop", Value(loop));
    if (auto assigned = AssignAll(stmt, items->items[loop->index]); !assigned) {
      flow = std::move(assigned).error();
      break;
    }
    if (auto step = runtime_.Step(); !step) {
      flow = std::move(step).error();
      break;
    }
    flow = Execute(stmt.bodies[0]);
    if (!flow || *flow == Flow::kBreak) break;
  }
  if (!flow) return flow;
  return Flow::kNext;
}

// --- Expressions ---

Result<Value> Renderer::Eval(const Expr& expr) {
  const DepthGuard depth(*this);
  NIBBLE_CHECK_OK(depth.Check());
  NIBBLE_CHECK_OK(runtime_.Spend(1));
  return EvalKind(expr);
}

Result<Value> Renderer::EvalKind(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kConst:
      return expr.value;
    case ExprKind::kName:
      return Lookup(expr.text);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return EvalSequence(expr);
    case ExprKind::kDict:
      return EvalDict(expr);
    case ExprKind::kAttribute:
    case ExprKind::kItem:
      return EvalItem(expr);
    case ExprKind::kSlice:
      return EvalSlice(expr);
    case ExprKind::kCall:
      return EvalCall(expr);
    case ExprKind::kFilter:
      return EvalFilter(expr);
    case ExprKind::kTest:
      return EvalTest(expr);
    case ExprKind::kNot:
    case ExprKind::kAnd:
    case ExprKind::kOr:
      return EvalLogic(expr);
    case ExprKind::kNegative:
    case ExprKind::kPositive:
    case ExprKind::kBinary:
      return EvalBinary(expr);
    case ExprKind::kConcat:
      return EvalConcat(expr);
    case ExprKind::kCompare:
      return EvalCompare(expr);
    case ExprKind::kConditional:
      return EvalConditional(expr);
    case ExprKind::kBlockText:
      return block_text_;
  }
  return Value();
}

Result<Value> Renderer::EvalSequence(const Expr& expr) {
  std::vector<Value> items;
  for (const Expr* arg : expr.args) {
    NIBBLE_TRY(Value item, Eval(*arg));
    items.push_back(std::move(item));
  }
  return runtime_.NewList(std::move(items), expr.kind == ExprKind::kTuple);
}

Result<Value> Renderer::EvalDict(const Expr& expr) {
  std::vector<std::pair<std::string, Value>> items;
  for (size_t i = 0; i < expr.args.size(); i += 2) {
    NIBBLE_TRY(const Value key, Eval(*expr.args[i]));
    NIBBLE_TRY(Value value, Eval(*expr.args[i + 1]));
    if (!key.is_string())
      return Err(ErrorCode::kUnsupported, "a mapping's key is {}, expected a string",
                 key.TypeName());
    const auto known = std::find_if(items.begin(), items.end(),
                                    [&](const auto& p) { return p.first == key.string(); });
    NIBBLE_CHECK_OK(runtime_.Spend(1 + key.string().size() + items.size() / 8));
    if (known == items.end()) {
      items.emplace_back(key.string(), std::move(value));
    } else {
      known->second = std::move(value);
    }
  }
  return MakeDict(std::move(items));
}

Result<Value> Renderer::EvalItem(const Expr& expr) {
  NIBBLE_TRY(const Value object, Eval(*expr.args[0]));
  if (expr.kind == ExprKind::kAttribute) return GetAttribute(runtime_, object, expr.text);
  NIBBLE_TRY(const Value key, Eval(*expr.args[1]));
  NIBBLE_TRY(Value item, GetItem(runtime_, object, key));
  // An item asked for by a constant has a name to be complained about.
  if (item.is_undefined() && expr.args[1]->kind == ExprKind::kConst && key.is_string()) {
    return Value(Undefined{expr.args[1]->value.string()});
  }
  return item;
}

Result<Value> Renderer::EvalSlice(const Expr& expr) {
  NIBBLE_TRY(const Value object, Eval(*expr.args[0]));
  std::array<Value, 3> bounds = {Value(None{}), Value(None{}), Value(None{})};
  for (size_t i = 0; i < 3; ++i) {
    if (!expr.args[i + 1]) continue;
    NIBBLE_TRY(bounds[i], Eval(*expr.args[i + 1]));
  }
  return GetSlice(runtime_, object, bounds[0], bounds[1], bounds[2]);
}

Result<Arguments> Renderer::EvalArguments(const Expr& expr, size_t first) {
  Arguments arguments;
  for (size_t i = first; i < expr.args.size(); ++i) {
    NIBBLE_TRY(Value value, Eval(*expr.args[i]));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& [name, arg] : expr.named) {
    NIBBLE_TRY(Value value, Eval(*arg));
    arguments.named.emplace_back(name, std::move(value));
  }
  return arguments;
}

Result<Value> Renderer::EvalCall(const Expr& expr) {
  NIBBLE_CHECK_OK(runtime_.Step());
  const Expr& callee = *expr.args[0];
  if (callee.kind == ExprKind::kAttribute) {  // a method is called where it is looked up
    NIBBLE_TRY(const Value object, Eval(*callee.args[0]));
    NIBBLE_TRY(const Value found, GetAttribute(runtime_, object, callee.text));
    if (found.Is<Method>()) {
      NIBBLE_TRY(const Arguments arguments, EvalArguments(expr, 1));
      return CallMethod(runtime_, object, callee.text, arguments);
    }
    if (found.is_undefined()) {
      return Err(ErrorCode::kInvalidArgument, "a {} has no method {}", object.TypeName(),
                 Quoted(callee.text));
    }
  }
  NIBBLE_TRY(const Value function, Eval(callee));
  NIBBLE_TRY(const Arguments arguments, EvalArguments(expr, 1));
  if (function.Is<const Stmt*>()) return CallMacro(*function.As<const Stmt*>(), arguments);
  if (function.Is<Global>()) return CallGlobal(function.As<Global>(), arguments);
  if (function.is_undefined()) return UndefinedError(function);
  return Err(ErrorCode::kInvalidArgument, "a {} cannot be called", function.TypeName());
}

Result<Value> Renderer::EvalFilter(const Expr& expr) {
  const FilterFunction filter = FindFilter(expr.text);
  NIBBLE_TRY(const Arguments arguments, EvalArguments(expr, 0));
  return filter(runtime_, arguments);
}

Result<Value> Renderer::EvalTest(const Expr& expr) {
  const TestFunction test = FindTest(expr.text);
  NIBBLE_TRY(const Arguments arguments, EvalArguments(expr, 0));
  NIBBLE_TRY(const bool result, test(runtime_, arguments));
  return Value(result);
}

Result<Value> Renderer::EvalLogic(const Expr& expr) {
  NIBBLE_TRY(Value left, Eval(*expr.args[0]));
  if (expr.kind == ExprKind::kNot) return Value(!left.Truthy());
  if (left.Truthy() == (expr.kind == ExprKind::kOr)) return left;
  return Eval(*expr.args[1]);
}

Result<Value> Renderer::EvalBinary(const Expr& expr) {
  NIBBLE_TRY(const Value left, Eval(*expr.args[0]));
  if (expr.kind == ExprKind::kNegative) return Negate(left);
  if (expr.kind == ExprKind::kPositive) {
    if (left.is_undefined()) return UndefinedError(left);
    if (!left.is_number())
      return Err(ErrorCode::kInvalidArgument, "+{} makes no sense", left.TypeName());
    return left.Is<bool>() ? Value(left.integer()) : left;
  }
  NIBBLE_TRY(const Value right, Eval(*expr.args[1]));
  return Binary(runtime_, expr.text, left, right);
}

Result<Value> Renderer::EvalConcat(const Expr& expr) {
  std::string text;
  for (const Expr* arg : expr.args) {
    NIBBLE_TRY(const Value part, Eval(*arg));
    NIBBLE_CHECK_OK(runtime_.Spend(part.Weight()));
    NIBBLE_CHECK_OK(AppendStr(text, part));
  }
  return Value(std::move(text));
}

Result<Value> Renderer::EvalCompare(const Expr& expr) {
  NIBBLE_TRY(Value left, Eval(*expr.args[0]));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    NIBBLE_TRY(Value right, Eval(*expr.args[i + 1]));
    NIBBLE_TRY(const bool holds, Compare(runtime_, expr.operators[i], left, right));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Result<Value> Renderer::EvalConditional(const Expr& expr) {
  NIBBLE_TRY(const Value condition, Eval(*expr.args[1]));
  if (condition.Truthy()) return Eval(*expr.args[0]);
  return expr.args[2] ? Eval(*expr.args[2]) : Value(Undefined{});
}

// --- Calls ---

Result<Value> Renderer::CallMacro(const Stmt& macro, const Arguments& arguments) {
  const DepthGuard depth(*this, kMacroLevels);
  NIBBLE_CHECK_OK(depth.Check());
  if (arguments.positional.size() > macro.targets.size()) {
    return Err(ErrorCode::kInvalidArgument, "macro {} takes at most {} arguments, found {}",
               Quoted(macro.text), macro.targets.size(), arguments.positional.size());
  }
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find_if(macro.targets.begin(), macro.targets.end(),
                                    [&, n = name](const Target& t) { return t.name == n; });
    if (found == macro.targets.end() ||
        static_cast<size_t>(found - macro.targets.begin()) < arguments.positional.size()) {
      return Err(ErrorCode::kInvalidArgument, "macro {}: the argument {} is unknown or given twice",
                 Quoted(macro.text), Quoted(name));
    }
  }
  const size_t caller_frame = std::exchange(frame_, scopes_.size());
  const auto run = [&]() -> Result<std::string> {
    const ScopeGuard scope(*this);
    const size_t first_default = macro.targets.size() - macro.exprs.size();
    for (size_t i = 0; i < macro.targets.size(); ++i) {
      const std::string& name = macro.targets[i].name;
      const auto named = std::find_if(arguments.named.begin(), arguments.named.end(),
                                      [&](const auto& p) { return p.first == name; });
      if (i < arguments.positional.size()) {
        Set(name, arguments.positional[i]);
      } else if (named != arguments.named.end()) {
        Set(name, named->second);
      } else if (i >= first_default) {
        NIBBLE_TRY(Value value, Eval(*macro.exprs[i - first_default]));
        Set(name, std::move(value));
      } else {
        Set(name, Value(Undefined{name}));
      }
    }
    return Capture(macro.bodies[0]);
  };
  auto text = run();
  frame_ = caller_frame;
  if (!text) return std::move(text).error();
  return Value(*std::move(text));
}

Result<Value> Renderer::CallRange(const Arguments& arguments) {
  const auto& args = arguments.positional;
  if (args.empty() || args.size() > 3 || !arguments.named.empty() ||
      !std::all_of(args.begin(), args.end(), [](const Value& v) { return v.is_int(); })) {
    return Err(ErrorCode::kInvalidArgument, "range takes one to three integers");
  }
  const int64_t start = args.size() > 1 ? args[0].integer() : 0;
  const int64_t stop = args.size() > 1 ? args[1].integer() : args[0].integer();
  const int64_t step = args.size() > 2 ? args[2].integer() : 1;
  if (step == 0) return Err(ErrorCode::kInvalidArgument, "range with a step of 0");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) == kMaxRange) {
      return Err(ErrorCode::kInvalidArgument, "range of more than {} numbers", kMaxRange);
    }
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return runtime_.NewList(std::move(items));
}

Result<Value> Renderer::CallGlobal(Global global, const Arguments& arguments) {
  switch (global) {
    case Global::kRange:
      return CallRange(arguments);
    case Global::kRaise: {
      NIBBLE_TRY(const auto args, arguments.Bind({"message"}, 1));
      NIBBLE_TRY(const std::string message, runtime_.Str(args[0]));
      return Err(ErrorCode::kInvalidArgument, "the template refuses: {}", Quoted(message, 1024));
    }
    case Global::kDict:
    case Global::kNamespace:
      break;
  }
  std::vector<std::pair<std::string, Value>> items;
  if (arguments.positional.size() > 1 ||
      (!arguments.positional.empty() && !arguments.positional[0].is_dict())) {
    return Err(ErrorCode::kUnsupported,
               "a namespace or dict of something else than a mapping is not known here");
  }
  if (!arguments.positional.empty()) items = arguments.positional[0].dict().items;
  NIBBLE_CHECK_OK(runtime_.Spend(items.size() * (1 + arguments.named.size())));
  for (const auto& [name, value] : arguments.named) {
    const auto known = std::find_if(items.begin(), items.end(),
                                    [&, n = name](const auto& p) { return p.first == n; });
    if (known == items.end()) {
      items.emplace_back(name, value);
    } else {
      known->second = value;
    }
  }
  if (global == Global::kDict) return MakeDict(std::move(items));
  Namespace* made = runtime_.NewNamespace();
  made->attributes = std::move(items);
  return Value(made);
}

}  // namespace

bool IsGlobal(std::string_view name) {
  return std::any_of(kGlobals.begin(), kGlobals.end(),
                     [&](const GlobalName& g) { return g.name == name; });
}

Result<std::string> Render(const Ast& ast, std::vector<std::pair<std::string, Value>> variables,
                           const Limits& limits) {
  return Renderer(std::move(variables), limits).Run(ast.body);
}

}  // namespace nibble::text::jinja
