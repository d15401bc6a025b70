#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/quoted.h"
#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace nibble::text::jinja {

// What a template may nest. Both keep our own recursion, and that of evaluating, far from the end
// of a stack.
inline constexpr int kMaxNesting = 100;  // of brackets and blocks, while parsing
// Of an expression's tree: a long chain is as deep as it is long.
inline constexpr int kMaxHeight = 120;

/// The half of the parser that knows expressions. It takes tokens from where it stands and adds
/// nodes to its Ast; the half that knows statements (parser.cc) derives from it.
class ExpressionParser {
 protected:
  using ExprPtr = const Expr*;

  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // --- Tokens ---
  const Token& current() const { return tokens_[pos_]; }
  const Token& Look() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  void Next() {
    if (pos_ + 1 < tokens_.size()) ++pos_;
  }
  static bool IsOp(const Token& t, std::string_view op) {
    return t.kind == TokenKind::kOperator && t.text == op;
  }
  static bool IsName(const Token& t, std::string_view name) {
    return t.kind == TokenKind::kName && t.text == name;
  }
  bool AtOp(std::string_view op) const { return IsOp(current(), op); }
  bool AtName(std::string_view name) const { return IsName(current(), name); }
  bool SkipOp(std::string_view op) {
    if (!AtOp(op)) return false;
    Next();
    return true;
  }
  bool SkipName(std::string_view name) {
    if (!AtName(name)) return false;
    Next();
    return true;
  }
  Error Fail(ErrorCode code, std::string what) const {
    return Error{code, std::move(what), fmt::format("line {}", current().line), {}};
  }
  Error Unexpected(std::string_view expected) const {
    const Token& t = current();
    const std::string found = t.kind == TokenKind::kEnd           ? "the end"
                              : t.kind == TokenKind::kBlockEnd    ? "\"%}\""
                              : t.kind == TokenKind::kVariableEnd ? "\"}}\""
                                                                  : Quoted(t.text);
    return Fail(ErrorCode::kCorruptFile, fmt::format("found {}, expected {}", found, expected));
  }
  Result<void> ExpectOp(std::string_view op) {
    if (!SkipOp(op)) return Unexpected(fmt::format("\"{}\"", op));
    return {};
  }
  Result<std::string> ExpectName() {
    if (current().kind != TokenKind::kName) return Unexpected("a name");
    std::string name = current().text;
    Next();
    return name;
  }
  Result<void> ExpectBlockEnd() {
    if (current().kind != TokenKind::kBlockEnd) return Unexpected("\"%}\"");
    Next();
    return {};
  }

  // --- Nodes ---
  Result<ExprPtr> Make(Expr expr, int line) {
    expr.line = line;
    for (ExprPtr arg : expr.args) expr.height = std::max(expr.height, arg ? 1 + arg->height : 1);
    for (const auto& [name, arg] : expr.named) expr.height = std::max(expr.height, 1 + arg->height);
    if (expr.height > kMaxHeight) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("an expression nests deeper than {}", kMaxHeight));
    }
    return &ast_.exprs.emplace_back(std::move(expr));
  }
  Result<ExprPtr> Make(ExprKind kind, int line, std::vector<ExprPtr> args, std::string text = {}) {
    Expr expr;
    expr.kind = kind;
    expr.args = std::move(args);
    expr.text = std::move(text);
    return Make(std::move(expr), line);
  }
  Result<ExprPtr> Constant(Value value, int line) {
    Expr expr;
    expr.value = std::move(value);
    return Make(std::move(expr), line);
  }

  /// Counts how deep we are in our own recursion.
  class Nesting {
   public:
    explicit Nesting(int& depth) : depth_(depth) { ++depth_; }
    ~Nesting() { --depth_; }
    bool TooDeep() const { return depth_ > kMaxNesting; }

   private:
    int& depth_;
  };
  Error TooDeep() const {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("brackets or blocks nest deeper than {}", kMaxNesting));
  }

  /// "a, b", or what a pair of brackets holds. errors kCorruptFile, kUnsupported, as all here
  Result<ExprPtr> ParseTuple(bool conditional, bool in_brackets = false);
  Result<ExprPtr> ParseExpression(bool conditional = true);
  /// At the token before a filter's name: node|name(arguments).
  Result<ExprPtr> ParseFilter(ExprPtr node);

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  Ast ast_;
  int depth_ = 0;

 private:
  // Loosest first.
  Result<ExprPtr> ParseOr();
  Result<ExprPtr> ParseAnd();
  Result<ExprPtr> ParseNot();
  Result<ExprPtr> ParseCompare();
  Result<ExprPtr> ParseSum();
  Result<ExprPtr> ParseConcat();
  Result<ExprPtr> ParseProduct();
  Result<ExprPtr> ParsePower();
  Result<ExprPtr> ParseUnary(bool with_filter = true);
  Result<ExprPtr> ParsePrimary();
  Result<ExprPtr> ParseNumber();
  Result<ExprPtr> ParseList();
  Result<ExprPtr> ParseDict();
  Result<ExprPtr> ParsePostfix(ExprPtr node);
  Result<ExprPtr> ParseAttribute(ExprPtr node);
  Result<ExprPtr> ParseSubscript(ExprPtr node);
  Result<ExprPtr> ParseFilters(ExprPtr node);
  Result<ExprPtr> ParseTest(ExprPtr node);
  Result<ExprPtr> ParseCall(ExprPtr node);
  Result<void> ParseArguments(Expr& call);
};

}  // namespace nibble::text::jinja
