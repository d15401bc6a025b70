#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "command.h"
#include "npy.h"

namespace nibble::app {
namespace {

struct EvalOptions {
  ModelOptions model;
  std::string tokens;
  int64_t windows = 12, length = 512;
};

Result<void> Eval(const EvalOptions& o) {
  NIBBLE_TRY(const std::vector<int32_t> tokens, ReadTokensNpy(o.tokens));
  NIBBLE_TRY(const std::unique_ptr<engine::Engine> engine, OpenEngine(o.model));
  ProgressBar bar("perplexity");
  NIBBLE_TRY(const double loss,
             engine->NegativeLogLikelihood(tokens, o.windows, o.length, [&](int64_t done) {
               bar.Update(static_cast<uint64_t>(done), static_cast<uint64_t>(o.windows), "windows");
             }));
  if (o.model.json) {
    PrintJson(Json::Object{{"ppl", Json(std::exp(loss))},
                           {"loss", Json(loss)},
                           {"windows", Json(o.windows)},
                           {"window_length", Json(o.length)}});
  } else {
    fmt::print("perplexity {:.4f} (loss {:.5f}) over {} windows of {} tokens\n", std::exp(loss),
               loss, o.windows, o.length);
  }
  return {};
}

}  // namespace

Verb AddEval(CLI::App& app) {
  auto o = std::make_shared<EvalOptions>();
  o->model.AddTo(app);
  app.add_option("--ppl", o->tokens, "perplexity on the token ids of a .npy file")->required();
  app.add_option("--windows", o->windows, "windows, spread evenly over the tokens")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--window-length", o->length, "predicted tokens a window")
      ->check(CLI::Range(1, 1 << 20));
  return [o] {
    auto done = Eval(*o);
    return done ? 0 : Fail(done.error(), o->model.json);
  };
}

}  // namespace nibble::app
