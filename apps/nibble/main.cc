// The nibble command: one file a verb, this one only lists them.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "command.h"

namespace nibble::app {
namespace {

constexpr std::string_view kLevels[] = {"error", "warning", "info", "debug"};

/// --log-level or NIBBLE_LOGLEVEL: a name or its number, 0 error … 3 debug.
Result<LogLevel> ParseLogLevel(const std::string& text) {
  for (int i = 0; i < 4; ++i) {
    if (text == kLevels[i] || text == std::to_string(i)) return static_cast<LogLevel>(i);
  }
  return Err(ErrorCode::kInvalidArgument,
             "log level '{}'; expected error, warning, info, debug or 0 … 3", text.substr(0, 32));
}

void StartLog(LogLevel level) {
  SetLogSink(
      [](LogLevel of, std::string_view line) {
        std::string clean(line);
        for (char& c : clean) {
          if (static_cast<unsigned char>(c) < 0x20)
            c = ' ';  // a name from a file must not forge a line
        }
        fmt::print(stderr, "nibble: {}: {}\n", kLevels[static_cast<int>(of)], clean);
      },
      level);
}

int Main(int argc, char** argv) {
  CLI::App app("Nibble runs NVFP4 Mixture-of-Experts models in the precision on their label.");
  app.name("nibble");
  app.set_version_flag("--version", std::string("nibble ") + NIBBLE_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  std::string log_level = "warning";
  app.add_option("--log-level", log_level, "error, warning, info or debug")
      ->envname("NIBBLE_LOGLEVEL");

  std::vector<std::pair<CLI::App*, Verb>> verbs;
  const auto add = [&](const char* name, const char* what, Verb (*make)(CLI::App&)) {
    CLI::App* sub = app.add_subcommand(name, what);
    verbs.emplace_back(sub, make(*sub));
  };
  add("run", "generate text from a prompt", AddRun);
  add("chat", "talk to a model in the terminal, or through a pipe", AddChat);
  add("inspect", "show what is in a checkpoint, and what would run each part of it", AddInspect);
  add("verify", "prove, from the outputs of its kernels, which precision a checkpoint runs in",
      AddVerify);
  add("devices", "list the devices here, and those that a plan can be made for", AddDevices);
  add("eval", "measure a model's perplexity on tokens", AddEval);
  add("bench", "measure prompt and decode speed, on a checkpoint or on random weights", AddBench);
  add("synth", "write a checkpoint of random weights at a given shape", AddSynth);
  add("tokenize", "turn text into token ids", AddTokenize);
  add("detokenize", "turn token ids into text", AddDetokenize);

  // llama-bench's spelling, which people bring along; a name of one dash has one letter here.
  std::vector<const char*> arguments(argv, argv + argc);
  for (const char*& argument : arguments) {
    if (std::string_view(argument) == "-pg") argument = "--pg";
  }
  try {
    app.parse(argc, arguments.data());
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : ExitCodeOf(ErrorCode::kInvalidArgument);
  }
  auto level = ParseLogLevel(log_level);
  if (!level) return Fail(level.error(), false);
  StartLog(*level);
  for (const auto& [sub, verb] : verbs) {
    if (sub->parsed()) return verb();
  }
  return ExitCodeOf(ErrorCode::kInternal);
}

}  // namespace
}  // namespace nibble::app

int main(int argc, char** argv) {
  try {
    return nibble::app::Main(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("nibble: error: out of memory\n", stderr);
    return nibble::ExitCodeOf(nibble::ErrorCode::kOutOfMemory);
  }
}
