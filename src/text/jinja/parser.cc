#include "text/jinja/parser.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "text/jinja/expression_parser.h"

namespace nibble::text::jinja {
namespace {

constexpr size_t kMaxSourceBytes = 1 << 20;

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  Result<Ast> Run() {
    NIBBLE_TRY(ast_.body, ParseBody({}));
    return std::move(ast_);
  }

 private:
  Result<Body> ParseBody(std::initializer_list<std::string_view> ends);
  Result<void> ParseStatement(Body& body);
  Result<void> ParseIf(Body& body);
  Result<void> ParseFor(Body& body);
  Result<void> ParseSet(Body& body);
  Result<void> ParseMacro(Body& body);
  Result<void> ParseWith(Body& body);
  Result<void> ParseFilterBlock(Body& body);
  Result<void> ParseGeneration(Body& body);
  Result<Body> ParseBlockBody(std::string_view end);
  Result<void> ParseTargets(Stmt& stmt, bool attributes, bool in_for);
  Stmt Begin(StmtKind kind) const {
    Stmt stmt;
    stmt.kind = kind;
    stmt.line = current().line;
    return stmt;
  }
  void Add(Body& body, Stmt stmt) { body.push_back(&ast_.stmts.emplace_back(std::move(stmt))); }

  int for_depth_ = 0;
  bool in_macro_ = false;
};

Result<Body> Parser::ParseBody(std::initializer_list<std::string_view> ends) {
  const Nesting nesting(depth_);
  if (nesting.TooDeep()) return TooDeep();
  Body body;
  while (true) {
    switch (current().kind) {
      case TokenKind::kData: {
        Stmt stmt = Begin(StmtKind::kText);
        stmt.text = current().text;
        Add(body, std::move(stmt));
        Next();
        break;
      }
      case TokenKind::kVariableBegin: {
        Stmt stmt = Begin(StmtKind::kOutput);
        Next();
        NIBBLE_TRY(const ExprPtr expr, ParseTuple(true));
        stmt.exprs = {expr};
        if (current().kind != TokenKind::kVariableEnd) return Unexpected("\"}}\"");
        Next();
        Add(body, std::move(stmt));
        break;
      }
      case TokenKind::kBlockBegin:
        Next();
        if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return AtName(end); }))
          return body;
        NIBBLE_CHECK_OK(ParseStatement(body));
        break;
      case TokenKind::kEnd:
        if (ends.size() != 0) return Unexpected(fmt::format("\"{}\"", *std::prev(ends.end())));
        return body;
      default:
        return Unexpected("text or a tag");
    }
  }
}

/// The body up to "{% end %}", all of which is taken.
Result<Body> Parser::ParseBlockBody(std::string_view end) {
  NIBBLE_CHECK_OK(ExpectBlockEnd());
  NIBBLE_TRY(Body body, ParseBody({end}));
  Next();
  NIBBLE_CHECK_OK(ExpectBlockEnd());
  return body;
}

Result<void> Parser::ParseStatement(Body& body) {
  const std::string name = current().kind == TokenKind::kName ? current().text : "";
  if (name == "if") return ParseIf(body);
  if (name == "for") return ParseFor(body);
  if (name == "set") return ParseSet(body);
  if (name == "macro") return ParseMacro(body);
  if (name == "with") return ParseWith(body);
  if (name == "filter") return ParseFilterBlock(body);
  if (name == "generation") return ParseGeneration(body);
  if (name == "break" || name == "continue") {
    if (for_depth_ == 0)
      return Fail(ErrorCode::kCorruptFile, fmt::format("\"{}\" outside of a for", name));
    Stmt stmt = Begin(name == "break" ? StmtKind::kBreak : StmtKind::kContinue);
    Next();
    Add(body, std::move(stmt));
    return ExpectBlockEnd();
  }
  constexpr std::array<std::string_view, 11> kKnownElsewhere = {
      "call",       "include", "import", "from",  "extends", "block",
      "autoescape", "do",      "trans",  "debug", "print"};
  if (std::find(kKnownElsewhere.begin(), kKnownElsewhere.end(), name) != kKnownElsewhere.end()) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("the statement \"{}\" is not known here", name));
  }
  return Unexpected("a statement");
}

Result<void> Parser::ParseIf(Body& body) {
  Stmt stmt = Begin(StmtKind::kIf);
  while (true) {
    Next();  // "if" or "elif"
    NIBBLE_TRY(const ExprPtr condition, ParseTuple(false));
    stmt.exprs.push_back(condition);
    NIBBLE_CHECK_OK(ExpectBlockEnd());
    NIBBLE_TRY(Body branch, ParseBody({"elif", "else", "endif"}));
    stmt.bodies.push_back(std::move(branch));
    if (!AtName("elif")) break;
  }
  if (SkipName("else")) {
    NIBBLE_TRY(Body branch, ParseBlockBody("endif"));
    stmt.bodies.push_back(std::move(branch));
  } else {
    Next();
    NIBBLE_CHECK_OK(ExpectBlockEnd());
  }
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseTargets(Stmt& stmt, bool attributes, bool in_for) {
  const bool brackets = SkipOp("(");
  while (true) {
    Target target;
    NIBBLE_TRY(target.name, ExpectName());
    if (attributes && SkipOp(".")) {
      NIBBLE_TRY(target.attribute, ExpectName());
    }
    constexpr std::array<std::string_view, 6> kReserved = {"true", "false", "none",
                                                           "True", "False", "None"};
    if (std::find(kReserved.begin(), kReserved.end(), target.name) != kReserved.end()) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("\"{}\" cannot be set", target.name));
    }
    stmt.targets.push_back(std::move(target));
    if (!SkipOp(",")) break;
    stmt.is_tuple = true;
    if (AtOp(")") || AtOp("=") || (in_for && AtName("in"))) break;
  }
  if (brackets) NIBBLE_CHECK_OK(ExpectOp(")"));
  return {};
}

Result<void> Parser::ParseFor(Body& body) {
  Stmt stmt = Begin(StmtKind::kFor);
  Next();
  NIBBLE_CHECK_OK(ParseTargets(stmt, false, true));
  if (!SkipName("in")) return Unexpected("\"in\"");
  NIBBLE_TRY(const ExprPtr iterable, ParseTuple(false));
  ExprPtr filter = nullptr;
  if (SkipName("if")) {
    NIBBLE_TRY(filter, ParseExpression());
  }
  stmt.exprs = {iterable, filter};
  if (AtName("recursive"))
    return Fail(ErrorCode::kUnsupported, "a recursive for is not known here");
  NIBBLE_CHECK_OK(ExpectBlockEnd());
  ++for_depth_;
  NIBBLE_TRY(Body loop, ParseBody({"else", "endfor"}));
  --for_depth_;
  stmt.bodies.push_back(std::move(loop));
  if (SkipName("else")) {
    NIBBLE_TRY(Body otherwise, ParseBlockBody("endfor"));
    stmt.bodies.push_back(std::move(otherwise));
  } else {
    Next();
    NIBBLE_CHECK_OK(ExpectBlockEnd());
  }
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseSet(Body& body) {
  Stmt stmt = Begin(StmtKind::kSet);
  Next();
  NIBBLE_CHECK_OK(ParseTargets(stmt, true, false));
  if (SkipOp("=")) {
    NIBBLE_TRY(const ExprPtr value, ParseTuple(true));
    stmt.exprs = {value};
    NIBBLE_CHECK_OK(ExpectBlockEnd());
  } else {
    if (stmt.is_tuple) return Unexpected("\"=\"");
    stmt.kind = StmtKind::kSetBlock;
    NIBBLE_TRY(ExprPtr value, Make(ExprKind::kBlockText, stmt.line, {}));
    while (AtOp("|")) {
      NIBBLE_TRY(value, ParseFilter(value));
    }
    stmt.exprs = {value};
    NIBBLE_TRY(Body inner, ParseBlockBody("endset"));
    stmt.bodies.push_back(std::move(inner));
  }
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseMacro(Body& body) {
  Stmt stmt = Begin(StmtKind::kMacro);
  Next();
  // A macro sees the names around it for as long as it lives; here that is the whole template's, so
  // it must stand there.
  if (for_depth_ > 0 || in_macro_)
    return Fail(ErrorCode::kUnsupported, "a macro inside a for or a macro is not known here");
  NIBBLE_TRY(stmt.text, ExpectName());
  NIBBLE_CHECK_OK(ExpectOp("("));
  while (!AtOp(")")) {
    if (!stmt.targets.empty()) NIBBLE_CHECK_OK(ExpectOp(","));
    if (AtOp(")")) break;
    NIBBLE_TRY(std::string parameter, ExpectName());
    stmt.targets.push_back({std::move(parameter), {}});
    if (SkipOp("=")) {
      NIBBLE_TRY(const ExprPtr value, ParseExpression());
      stmt.exprs.push_back(value);
    } else if (!stmt.exprs.empty()) {
      return Fail(ErrorCode::kCorruptFile, "a parameter without default follows one with");
    }
  }
  Next();
  in_macro_ = true;
  NIBBLE_TRY(Body inner, ParseBlockBody("endmacro"));
  in_macro_ = false;
  stmt.bodies.push_back(std::move(inner));
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseWith(Body& body) {
  Stmt stmt = Begin(StmtKind::kWith);
  Next();
  while (current().kind != TokenKind::kBlockEnd) {
    if (!stmt.targets.empty()) NIBBLE_CHECK_OK(ExpectOp(","));
    NIBBLE_TRY(std::string name, ExpectName());
    stmt.targets.push_back({std::move(name), {}});
    NIBBLE_CHECK_OK(ExpectOp("="));
    NIBBLE_TRY(const ExprPtr value, ParseExpression());
    stmt.exprs.push_back(value);
  }
  // Its names are of a scope that a macro's call would not see.
  ++for_depth_;
  NIBBLE_TRY(Body inner, ParseBlockBody("endwith"));
  --for_depth_;
  stmt.bodies.push_back(std::move(inner));
  Add(body, std::move(stmt));
  return {};
}

Result<void> Parser::ParseFilterBlock(Body& body) {
  Stmt stmt = Begin(StmtKind::kFilterBlock);
  NIBBLE_TRY(ExprPtr value, Make(ExprKind::kBlockText, stmt.line, {}));
  do {
    NIBBLE_TRY(value, ParseFilter(value));  // takes "filter" or "|" first
  } while (AtOp("|"));
  stmt.exprs = {value};
  NIBBLE_TRY(Body inner, ParseBlockBody("endfilter"));
  stmt.bodies.push_back(std::move(inner));
  Add(body, std::move(stmt));
  return {};
}

/// {% generation %}: marks the assistant's text for training; renders as its body.
Result<void> Parser::ParseGeneration(Body& body) {
  Next();
  NIBBLE_TRY(const Body inner, ParseBlockBody("endgeneration"));
  body.insert(body.end(), inner.begin(), inner.end());
  return {};
}

}  // namespace

Result<Ast> Parse(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return Err(ErrorCode::kUnsupported, "a template of {} bytes, expected at most {}",
               source.size(), kMaxSourceBytes);
  }
  NIBBLE_TRY(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace nibble::text::jinja
