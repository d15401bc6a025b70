#!/usr/bin/env python3
"""cli_test.py NIBBLE SOURCE_DIR: the command as a person and a program use it. Standard library alone.

Expectations come from the committed references (PyTorch's runs) and from what the options promise. With NIBBLE_TEST_DATA set,
the larger checkpoints' perplexities are checked too."""
import json
import math
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import unittest

NIBBLE, SOURCE = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
SAMPLE = os.path.join(SOURCE, "models", "qwen3-moe-mini")
TINY = os.path.join(SOURCE, "tests", "golden", "tiny")
DATA = os.environ.get("NIBBLE_TEST_DATA")


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


def write_file(path, data):
    with open(path, "wb") as file:
        file.write(data)


def read_safetensors(path):
    data = read_file(path)
    length = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, info in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        code = {"F32": "f", "I32": "i"}[info["dtype"]]
        out[name] = struct.unpack(f"<{(end - begin) // 4}{code}", data[8 + length + begin : 8 + length + end])
    return out


def read_npy(path):
    data = read_file(path)
    assert data[:8] == b"\x93NUMPY\x01\x00", data[:8]
    length = struct.unpack("<H", data[8:10])[0]
    assert (10 + length) % 64 == 0
    header = eval(data[10 : 10 + length], {})  # a dict literal, as NumPy reads it
    assert header["descr"] == "<f4" and header["fortran_order"] is False
    (count,) = header["shape"]
    return struct.unpack(f"<{count}f", data[10 + length :])


def relative(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)) / sum(y * y for y in b))


REFERENCE = read_safetensors(
    os.path.join(SOURCE, "tests/golden/references/qwen3-moe-mini-modelopt-W4A16_NVFP4.native.safetensors")
)


def run(*arguments, code=0, stdin=b"", env=None):
    done = subprocess.run(
        [NIBBLE, *map(str, arguments)], capture_output=True, input=stdin, env={**os.environ, **(env or {})}, timeout=300
    )
    assert done.returncode == code, (arguments, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.decode(), done.stderr.decode()


def run_json(*arguments, **keywords):
    out, _ = run(*arguments, "--json", **keywords)
    return json.loads(out)


def ids_of(prompt):
    return ",".join(map(str, REFERENCE[f"p{prompt}.ids"]))


class Run(unittest.TestCase):
    def test_reference_logits_and_all_64_tokens(self):
        with tempfile.TemporaryDirectory() as folder:
            logits = os.path.join(folder, "logits.npy")
            got = run_json("run", SAMPLE, "--prompt-ids", ids_of(0), "--max-tokens", 64, "--temperature", 0, "--ignore-eos",
                           "--moe-backend", "reference", "--dump-logits", logits)
            self.assertLessEqual(relative(read_npy(logits), REFERENCE["p0.logits"]), 1e-5)
        self.assertEqual(got["prompt_ids"], list(REFERENCE["p0.ids"]))
        self.assertEqual(got["ids"], list(REFERENCE["p0.greedy"]))
        self.assertEqual(got["finish_reason"], "length")

    def test_decode_one_token_at_a_time_on_the_cpu_backend(self):
        for isa in ("scalar", "avx2", "avx512", "avx512bf16"):
            flags = read_file("/proc/cpuinfo").decode()
            needs = {"scalar": "", "avx2": "avx2", "avx512": "avx512bw", "avx512bf16": "avx512_bf16"}[isa]
            if needs and needs not in flags:
                continue
            # Prompt 0's least margin over 64 steps is far above 16-bit noise.
            got = run_json("run", SAMPLE, "--prompt-ids", ids_of(0), "-n", 64, "--temperature", 0, "--ignore-eos",
                           env={"NIBBLE_ISA": isa})
            self.assertEqual(got["ids"], list(REFERENCE["p0.greedy"]), isa)

    def test_without_repacking_the_numbers_are_the_same(self):
        with tempfile.TemporaryDirectory() as folder:
            for model in (SAMPLE, *(os.path.join(TINY, name) for name in sorted(os.listdir(TINY)))):
                got, logits = [], []
                for flags in ([], ["--no-repack"]):
                    path = os.path.join(folder, f"logits{len(flags)}.npy")
                    got.append(run_json("run", model, "--prompt-ids", "5,3,8,1,2,9,4,7,6,11,12,13", "-n", 12, "--ctx", 32,
                                        "--temperature", 0, "--ignore-eos", "--dump-logits", path, *flags))
                    logits.append(read_file(path))
                self.assertEqual(got[0]["ids"], got[1]["ids"], model)
                self.assertEqual(logits[0], logits[1], model)
                packed, mapped = got[0]["timings"], got[1]["timings"]
                self.assertEqual((packed["repacked"], mapped["repacked"]), (True, False))
                self.assertGreater(packed["packed_bytes"], 0)
                self.assertEqual(packed["mapped_bytes"], 0)
                self.assertGreater(mapped["mapped_bytes"], 0)
                # Nothing but FP8's scales is copied.
                self.assertLess(mapped["packed_bytes"], 0.1 * packed["packed_bytes"])
        _, err = run("run", SAMPLE, "--prompt-ids", "1,2,3", "-n", 3, "--no-repack")
        self.assertRegex(err, r"load [0-9.]+ s, [0-9.]+ GB left in the file \|")
        self.assertIn("GB/s of weights, packed at every use (--no-repack)", err)
        _, err = run("run", SAMPLE, "--prompt-ids", "1,2,3", "-n", 3)
        self.assertRegex(err, r"load [0-9.]+ s, [0-9.]+ GB packed at [0-9.]+ GB/s \|")
        self.assertNotIn("no-repack", err)
        memory = run_json("inspect", SAMPLE, "--no-repack")["memory"]
        self.assertEqual(memory["weights"], 0)
        self.assertGreater(memory["mapped"], 10_000_000)
        self.assertIn("of weights stay in the file", " ".join(run("inspect", SAMPLE, "--no-repack")[0].split()))

    def test_text_prompt_is_tokenized_as_the_reference_does(self):
        got = run_json("run", SAMPLE, "-p", "It was a dark and stormy night, and", "-n", 4, "--temperature", 0)
        self.assertEqual(got["prompt_ids"], list(REFERENCE["p0.ids"]))
        self.assertEqual(got["text"], " the moon was shining"[: len(got["text"])])
        for source in (["-f", "-"], []):
            again = run_json("run", SAMPLE, *source, "-n", 4, "--temperature", 0, stdin=b"It was a dark and stormy night, and")
            self.assertEqual(again["ids"], got["ids"])

    def test_chat_stops_at_the_end_of_the_turn(self):
        got = run_json("run", SAMPLE, "--chat", "-p", "Who are you?", "--temperature", 0)
        self.assertEqual(got["prompt_ids"], list(REFERENCE["p2.ids"]))
        self.assertEqual(got["text"], "I am a small language model, trained on novels of the nineteenth century.")
        self.assertEqual(got["finish_reason"], "stop")
        self.assertEqual(got["ids"][-1], 4095, "the token that stopped is in ids")

    def test_text_is_streamed_and_numbers_follow(self):
        out, err = run("run", SAMPLE, "--chat", "-p", "Who are you?", "--temperature", 0)
        self.assertEqual(out, "I am a small language model, trained on novels of the nineteenth century.\n")
        for word in ("prompt 16 tokens", "TTFT", "decode", "tok/s"):
            self.assertIn(word, err)

    def test_stop_strings_cut_the_text_before_them(self):
        got = run_json("run", SAMPLE, "--chat", "-p", "Who are you?", "--temperature", 0, "--stop", "language mod", "--stop", "zzz")
        self.assertEqual((got["text"], got["finish_reason"]), ("I am a small ", "stop"))

    def test_a_seed_repeats_a_sampled_run(self):
        def sample(seed):
            return run_json("run", SAMPLE, "-p", "The", "-n", 24, "--temperature", 1, "--seed", seed)["ids"]

        self.assertEqual(sample(7), sample(7))
        self.assertNotEqual(sample(7), sample(8))

    def test_greedy_is_the_checkpoints_own_default(self):
        self.assertEqual(run_json("run", SAMPLE, "--prompt-ids", ids_of(1), "-n", 8)["ids"], list(REFERENCE["p1.greedy"])[:8])

    def test_results_do_not_depend_on_threads(self):
        runs = [run_json("run", SAMPLE, "--prompt-ids", ids_of(6), "-n", 16, "--temperature", 0, "-t", t)["ids"] for t in (1, 2, 5)]
        self.assertEqual(runs[0], runs[1])
        self.assertEqual(runs[0], runs[2])

    def test_a_checkpoint_without_tokenizer_runs_with_ids(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "generation_config.json", "hf_quant_config.json", "model.safetensors"):
                os.symlink(os.path.join(SAMPLE, name), os.path.join(folder, name))
            got = run_json("run", folder, "--prompt-ids", ids_of(0), "-n", 8, "--temperature", 0)
            self.assertEqual(got["ids"], list(REFERENCE["p0.greedy"])[:8])
            _, err = run("run", folder, "-p", "text", code=3)
            self.assertIn("--prompt-ids", err)


class Errors(unittest.TestCase):
    def test_exit_codes_by_class_and_one_clear_error(self):
        with tempfile.TemporaryDirectory() as folder:
            write_file(os.path.join(folder, "config.json"), b'{"model_type": "gpt5", "architectures": ["Gpt5"]}')
            write_file(os.path.join(folder, "model.safetensors"), b"\0" * 7)
            cases = [
                (2, ["run"], "DIR"),
                (2, ["run", SAMPLE, "--no-such-flag"], "--no-such-flag"),
                (2, ["run", SAMPLE, "--prompt-ids", "1,x", "-n", "1"], '"x"'),
                (2, ["run", SAMPLE, "--prompt-ids", "4096", "-n", "1"], "4096"),
                (2, ["run", SAMPLE, "-p", "a", "--temperature", "-1"], "temperature"),
                (2, ["run", SAMPLE, "-p", "a", "--moe-backend", "triton"], "Expected one of ["),
                (2, ["run", SAMPLE, "-p", "a", "--activation-precision", "fp4"], "never run"),
                (2, ["run", SAMPLE, "-p", "a", "--pin", "core"], "--pin core: expected auto, none or cores"),
                (2, ["run", SAMPLE, "-p", "a b c d e f g", "--ctx", "2"], "maximum context length is 2"),
                (3, ["run", os.path.join(folder, "nothing"), "-p", "a"], "nothing"),
                (3, ["run", folder, "-p", "a"], "model.safetensors"),
                (5, ["run", SAMPLE, "-p", "a", "--moe-backend", "b12x"], "NvFp4 MoE backend 'B12X' does not support"),
                (5, ["inspect", folder, "--config-only"], "gpt5"),
            ]
            for code, arguments, part in cases:
                out, err = run(*arguments, code=code)
                self.assertIn(part, err, arguments)
                self.assertNotIn("terminate", err)
        bad = run("run", SAMPLE, "-p", "a", code=2, env={"NIBBLE_PIN": "all"})[1]
        self.assertIn("--pin all", bad)
        bad = run("run", SAMPLE, "-p", "a", code=2, env={"NIBBLE_ISA": "mmx"})[1]
        self.assertIn("mmx", bad)

    def test_errors_for_programs_are_json(self):
        got = run_json("run", SAMPLE, "-p", "a", "--moe-backend", "cutlass", code=5)
        self.assertEqual(got["error"]["code"], "Unsupported")

    def test_nothing_half_written(self):
        with tempfile.TemporaryDirectory() as folder:
            run("run", SAMPLE, "-p", "a", "-n", 1, "--dump-logits", os.path.join(folder, "no", "such", "file.npy"), code=3)
            self.assertEqual(os.listdir(folder), [])


class KvCache(unittest.TestCase):
    def test_smaller_caches_run_and_scales_that_are_not_there_are_told(self):
        for dtype, warned in (("bf16", False), ("fp8", True)):
            out, err = run("run", SAMPLE, "--prompt-ids", ids_of(0), "-n", 8, "--temperature", 0, "--ignore-eos",
                           "--kv-cache-dtype", dtype, "--json")
            self.assertEqual(len(json.loads(out)["ids"]), 8, dtype)
            self.assertEqual("kv_cache dtype=fp8 layers_without_scales=6 scale_used=1.0" in err, warned, err)


class Speculation(unittest.TestCase):
    def test_a_model_without_mtp_refuses_and_says_what_to_do(self):
        out, err = run("run", SAMPLE, "-p", "a", "--spec", "mtp:3", "--json", code=5)
        self.assertIn("the model has 0 MTP layers, expected 1", err)
        self.assertIn("leave --spec out", err)
        self.assertEqual(json.loads(out)["error"]["code"], "Unsupported")

    def test_what_is_no_speculation_is_an_argument_error(self):
        for word in ("mtp:9", "mtp:0", "mtp", "mtp:33", "foo"):
            _, err = run("run", SAMPLE, "-p", "a", "--spec", word, code=2)
            self.assertIn(f"'{word}'", err)
            self.assertIn("expected 'none' or 'mtp:K' with K in 1 … 8", err)

    @unittest.skipUnless(DATA, "NIBBLE_TEST_DATA is not set: the hybrid checkpoints are skipped")
    def test_drafts_change_no_token(self):
        for name in ("modelopt-W4A16_NVFP4", "ct-NVFP4A16", "modelopt-mixed"):
            model = os.path.join(DATA, "checkpoints", "qwen3.6-moe-mini-" + name)
            flags = ("-p", "It was a dark and stormy night, and", "-n", 64, "--temperature", 0, "--ignore-eos",
                     "--batch-invariant")
            plain = run_json("run", model, *flags)
            drafted = run_json("run", model, *flags, "--spec", "mtp:3")
            self.assertNotIn("speculation", plain)
            self.assertEqual(drafted["ids"], plain["ids"], name)
            got = drafted["speculation"]
            self.assertEqual(got["draft_tokens"], 3)
            self.assertEqual(len(got["accepted"]), got["rounds"])
            # The first token comes from the prompt; every round gives one and what it accepted.
            self.assertEqual(1 + got["rounds"] + sum(got["accepted"]), 64)
            self.assertGreater(got["mean_acceptance_length"], 1)
            print(f"{name}: mean acceptance length {got['mean_acceptance_length']:.2f} of 4")


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def tokens(text):
    return run_json("tokenize", SAMPLE, text)["ids"]


def chat(text, *arguments, model=SAMPLE, code=0):
    """What a conversation through a pipe answers: one object a turn, and what people see beside it."""
    greedy = () if "--temperature" in arguments else ("--temperature", 0)
    out, err = run("chat", model, "--json", *greedy, *arguments, stdin=text.encode(), code=code)
    return [json.loads(line) for line in out.splitlines()], err


class Terminal:
    """A program in a terminal of its own, as a person has it."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(NIBBLE, [NIBBLE, *map(str, arguments)])
        self.seen = ""

    def wait_for(self, text):
        """Reads until `text` was shown since the last call; gives what was."""
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], 120)
            assert ready, ("the program is silent", self.seen)
            try:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(("the program ended", self.seen)) from None
        end = self.seen.index(text) + len(text)
        shown, self.seen = self.seen[:end], self.seen[end:]
        return shown

    def write(self, text):
        os.write(self.fd, text.encode())

    def exit_code(self):
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass  # the terminal is gone with its last program
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Chat(unittest.TestCase):
    WHO = "I am a small language model, trained on novels of the nineteenth century."

    def test_answers_go_to_stdout_and_numbers_to_stderr(self):
        out, err = run("chat", SAMPLE, "--temperature", 0, stdin=b"Who are you?\n")
        self.assertEqual(out, self.WHO + "\n")
        self.assertRegex(err, r"^prompt 16 tokens, \d+ tok/s, TTFT [\d.]+ ms \| answer \d+ tokens, \d+ tok/s\n$")
        self.assertEqual(run("chat", SAMPLE, stdin=b"")[0], "")
        self.assertEqual(run("chat", SAMPLE, stdin=b"\n  \n")[0], "")

    def test_every_turn_sees_what_was_said_before(self):
        got, _ = chat("Who are you?\nAnd your name?")  # the last line needs no end
        self.assertEqual(len(got), 2)
        self.assertEqual(got[0]["prompt_ids"], list(REFERENCE["p2.ids"]))
        self.assertEqual((got[0]["text"], got[0]["finish_reason"]), (self.WHO, "stop"))
        self.assertEqual(
            got[1]["prompt_ids"],
            tokens(turn("user", "Who are you?") + turn("assistant", self.WHO) + turn("user", "And your name?")
                   + "<|im_start|>assistant\n"),
        )

    def test_a_line_goes_on_after_a_backslash(self):
        got, _ = chat("one\\\n\\\nthree\n", "-n", 1)
        self.assertEqual([g["prompt_ids"] for g in got], [tokens(turn("user", "one\n\nthree") + "<|im_start|>assistant\n")])

    def test_commands(self):
        got, err = chat("/system Be brief.\nWho are you?\n/reset\nTwo\n/drop\nThree\n/drop x\n/system\n/stats\n/help\n"
                        "/etc\n /etc\n/exit\nNot answered\n", "-n", 2, "--system", "Shown nowhere.")
        ask = lambda system, *texts: tokens(system + "".join(texts) + "<|im_start|>assistant\n")
        brief = turn("system", "Be brief.")
        self.assertEqual(len(got), 4)
        self.assertEqual(got[0]["prompt_ids"], ask(brief, turn("user", "Who are you?")))
        self.assertEqual(got[1]["prompt_ids"], ask(brief, turn("user", "Two")))
        self.assertEqual(got[2]["prompt_ids"], ask(brief, turn("user", "Three")))
        three = turn("user", "Three") + turn("assistant", got[2]["text"])
        self.assertEqual(got[3]["prompt_ids"], ask("", three, turn("user", " /etc")))
        n_prompt = sum(len(g["prompt_ids"]) for g in got[:3])
        in_context = len(got[2]["prompt_ids"]) + 2
        for part in ("1 turn forgotten, 0 left", '"x" is no number of turns', f"3 turns | {in_context} of ",
                     f"prompts {n_prompt} tokens", "answers 6 tokens", "/reset  ", "no command /etc;"):
            self.assertIn(part, err)

    def test_a_conversation_that_is_too_long_says_what_to_drop(self):
        first, second = chat("Who are you?\nAnd your name?\n", "-n", 8)[0]
        n_first, n_all = len(first["prompt_ids"]), len(second["prompt_ids"])
        n_message = len(tokens(turn("user", "And your name?") + "<|im_start|>assistant\n"))
        got, err = chat("Who are you?\nAnd your name?\n", "-n", 8, "--ctx", n_all - 1, code=2)
        self.assertEqual(got[0]["ids"], first["ids"])
        self.assertEqual(got[1]["error"]["code"], "InvalidArgument")
        self.assertIn(f"the conversation has {n_all} tokens with this message, {n_all - 1} fit", err)
        self.assertIn(f"the oldest turn has {n_all - n_message} tokens, and {n_message} remain without: /drop 1, or /reset", err)
        got, _ = chat("Who are you?\n/drop 1\nAnd your name?\n", "-n", 8, "--ctx", n_all - 1)
        self.assertEqual(len(got[1]["prompt_ids"]), n_message)
        _, err = chat("Who are you?\n", "--ctx", n_first - 1, code=2)
        self.assertIn(f"this message has {n_first} tokens by itself", err)

    def test_an_answer_that_fills_the_context_says_so(self):
        out, err = run("chat", SAMPLE, "--ctx", 20, "--temperature", 0, stdin=b"Who are you?\n")
        self.assertTrue(self.WHO.startswith(out.strip()))
        self.assertIn("answer 5 tokens", err)
        self.assertIn("cut: the context is full (/drop, /reset)", err)
        self.assertIn("cut at --max-tokens", run("chat", SAMPLE, "-n", 2, stdin=b"Who are you?\n")[1])

    def test_a_seed_repeats_a_session_and_its_turns_draw_anew(self):
        said = "Once upon a time\n/reset\nOnce upon a time\n"
        flags = ("-n", 24, "--temperature", 1, "--seed", 7)
        one, two = chat(said, *flags)[0], chat(said, *flags)[0]
        self.assertEqual([g["ids"] for g in one], [g["ids"] for g in two])
        self.assertNotEqual(one[0]["ids"], one[1]["ids"])
        self.assertEqual([g["seed"] for g in one], [7, 8])

    def test_options_of_run_hold(self):
        got, err = chat("Who are you?\n", "--stop", "language mod", "--kv-cache-dtype", "fp8")
        self.assertTrue("language mod" not in got[0]["text"])
        self.assertIn("scale_used=1.0", err)
        _, err = chat("Who are you?\n", "--spec", "mtp:3", code=5)
        self.assertIn("leave --spec out", err)

    def test_a_checkpoint_without_tokenizer_or_template_cannot_talk(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "generation_config.json", "hf_quant_config.json", "model.safetensors"):
                os.symlink(os.path.join(SAMPLE, name), os.path.join(folder, name))
            self.assertIn("--prompt-ids", run("chat", folder, code=3)[1])
            os.symlink(os.path.join(SAMPLE, "tokenizer.json"), os.path.join(folder, "tokenizer.json"))
            self.assertIn("template", run("chat", folder, code=3)[1])

    def test_ctrl_c_stops_the_answer_and_not_the_program(self):
        terminal = Terminal("chat", SAMPLE, "--temperature", 1, "--seed", 1, "--ignore-eos")
        self.assertIn("/help", terminal.wait_for("> "))
        terminal.write("Tell me of the sea\\\n")
        terminal.wait_for("… ")
        terminal.write("and its ships\n")
        terminal.wait_for("ships\r\n")
        terminal.wait_for(" ")  # the answer has begun
        terminal.write("\x03")
        self.assertIn("\x1b[90m", terminal.wait_for(" | stopped"))
        terminal.wait_for("> ")
        terminal.write("\x03")
        terminal.wait_for("Ctrl-D or /exit ends")
        terminal.wait_for("> ")
        terminal.write("/stats\n")
        terminal.wait_for("1 turn | ")
        terminal.wait_for("> ")
        terminal.write("\x04")
        self.assertEqual(terminal.exit_code(), 0)

    def test_in_a_terminal_an_error_ends_the_turn_only(self):
        terminal = Terminal("chat", SAMPLE, "--ctx", 20, "--temperature", 0)
        terminal.wait_for("> ")
        terminal.write("A question that is far too long for a context of no more than twenty tokens\n")
        terminal.wait_for("shorten it")
        terminal.wait_for("> ")
        terminal.write("Who are you?\n")
        terminal.wait_for("I am a")
        terminal.wait_for("> ")
        terminal.write("/exit\n")
        self.assertEqual(terminal.exit_code(), 0)

    @unittest.skipUnless(DATA, "NIBBLE_TEST_DATA is not set: the hybrid checkpoints are skipped")
    def test_with_speculation(self):
        model = os.path.join(DATA, "checkpoints", "qwen3.6-moe-mini-modelopt-W4A16_NVFP4")
        said, flags = "Who are you?\nTell me of the sea.\n", ("-n", 24, "--batch-invariant", "--ignore-eos")
        plain, _ = chat(said, *flags, model=model)
        drafted, _ = chat(said, *flags, "--spec", "mtp:3", model=model)
        self.assertEqual([g["ids"] for g in plain], [g["ids"] for g in drafted])
        self.assertTrue(all(g["speculation"]["rounds"] > 0 for g in drafted))
        _, err = run("chat", model, *flags, "--spec", "mtp:3", stdin=(said + "/stats\n").encode())
        self.assertRegex(err, r"\| mtp:3, \d\.\d\d tokens a round, \d+ % of drafts accepted")
        rounds = sum(g["speculation"]["rounds"] for g in drafted)
        self.assertIn(f"mtp:3 | {rounds} rounds | mean acceptance length", err)


class Inspect(unittest.TestCase):
    def test_json_says_what_runs_and_why(self):
        got = run_json("inspect", SAMPLE)
        self.assertEqual(got["checkpoint"]["architecture"], "Qwen3MoeForCausalLM")
        self.assertEqual(got["checkpoint"]["source_format"], "modelopt")
        self.assertEqual(got["checkpoint"]["layers"], 6)
        experts = [m for m in got["modules"] if m["kind"] == "experts"]
        self.assertEqual([m["name"] for m in experts], ["model.layers.*.mlp.experts"])
        one = experts[0]
        self.assertEqual(one["count"], 6)
        self.assertEqual(one["scheme"], "W4A16")
        self.assertEqual(
            one["weight_key"],
            "QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, col=16)),scale2(f32,static,per_tensor),symmetric)",
        )
        self.assertIsNone(one["activation_key"])
        self.assertEqual(one["evidence"], "config.json: quantization_config.quant_algo")
        self.assertEqual((one["backend"], one["activation_precision"]), ("CPU", "bf16"))
        self.assertEqual(got["ignored_tensors"], [])
        self.assertGreater(got["memory"]["weights"], 10_000_000)

    def test_config_only_needs_no_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "hf_quant_config.json"):
                os.symlink(os.path.join(SAMPLE, name), os.path.join(folder, name))
            got = run_json("inspect", folder, "--config-only")
            self.assertEqual({m["scheme"] for m in got["modules"]}, {"W4A16", "BF16"})

    def test_text_fits_a_terminal(self):
        for name in (SAMPLE, *(os.path.join(TINY, name) for name in os.listdir(TINY))):
            for flags in ((), ("--device", "sm_90"), ("--device", "sm_121"), ("--activation-precision", "bf16"),
                          ("--moe-backend", "reference"), ("--device", "sm_90", "--tensor-parallel-size", 2)):
                if "2" in map(str, flags) and name != SAMPLE:
                    continue  # too small to be shared
                out, _ = run("inspect", name, *flags)
                self.assertLessEqual(max(map(len, out.splitlines())), 100, out)

    def test_a_mixed_checkpoint_reads_layer_by_layer(self):
        out, _ = run("inspect", os.path.join(TINY, "modelopt-mixed"))
        rows = [line.split() for line in out.splitlines()]
        self.assertIn(["0", "mlp.experts", "FP8", "W8A8", "fp8"], [row[:5] for row in rows])
        self.assertIn(["1", "mlp.experts", "NVFP4", "W4A4", "fp4"], [row[:5] for row in rows])
        self.assertIn(["0-1", "self_attn.{q,k,v,o}_proj", "FP8", "W8A8", "fp8"], [row[:5] for row in rows])
        self.assertIn("experts in layers: 1 FP8 W8A8, 1 NVFP4 W4A4", out)
        self.assertRegex(out, r"kv cache    \S+  \(.+\)")
        self.assertRegex(out, r"memory      [0-9.]+ MiB of [0-9.]+ [GM]iB: weights [0-9.]+ MiB, kv cache ")
        got = run_json("inspect", os.path.join(TINY, "modelopt-mixed"))
        self.assertEqual(set(got["memory"]), {"weights", "mapped", "kv", "state", "workspace"})
        self.assertEqual(set(got["kv_cache"]), {"dtype", "evidence"})

    def test_a_backend_that_binds_nothing_is_warned_of(self):
        with tempfile.TemporaryDirectory() as folder:
            config = json.loads(read_file(os.path.join(SAMPLE, "config.json")))
            del config["quantization_config"]
            write_file(os.path.join(folder, "config.json"), json.dumps(config).encode())
            ask = lambda *flags: run_json("inspect", folder, "--config-only", *flags)["warnings"]
            self.assertEqual(ask("--device", "sm_121"), [])
            for flags in (("--device", "sm_121", "--moe-backend", "b12x"), ("--moe-backend", "flashinfer_cutlass")):
                (warning,) = ask(*flags)
                self.assertIn("binds nothing: moe_backend=", warning)
                self.assertIn("is not supported for unquantized MoE", warning)
            self.assertEqual(ask("--device", "sm_121", "--moe-backend", "marlin"), [])

    def test_ranks_share_the_memory(self):
        memory = lambda *flags: run_json("inspect", SAMPLE, "--device", "sm_90", *flags)["memory"]
        whole, half = memory(), memory("--tensor-parallel-size", 2)
        on_each = 2 * (4096 + 6 * 32) * 256  # the embedding and the routers, in 16 bits
        self.assertEqual((half["weights"] - on_each) * 2, whole["weights"] - on_each)
        self.assertLess(memory("--expert-parallel-size", 4)["weights"], whole["weights"])
        _, err = run("inspect", SAMPLE, "--device", "sm_90", "--expert-parallel-size", 5, code=5)
        self.assertIn("32 experts over 5 ranks is not supported: needs a multiple of 5", err)

    def test_w4a4_raised_only_when_asked(self):
        tiny = os.path.join(SOURCE, "tests/golden/tiny/modelopt-nvfp4")
        precision = lambda *flags: {
            m["activation_precision"] for m in run_json("inspect", tiny, *flags)["modules"] if m["kind"] == "experts"
        }
        self.assertEqual(precision(), {"fp4"})
        self.assertEqual(precision("--activation-precision", "bf16"), {"bf16"})
        out, err = run("inspect", tiny, "--activation-precision", "bf16")
        self.assertIn("raised", out)

    def test_every_layers_experts_are_logged(self):
        _, err = run("run", SAMPLE, "-p", "a", "-n", 1, env={"NIBBLE_LOGLEVEL": "3"})
        lines = [l for l in err.splitlines() if "experts layer=" in l]
        self.assertEqual(len(lines), 6)
        for l in lines:
            self.assertIn("activation_precision=bf16 source_format=modelopt", l)


class Verify(unittest.TestCase):
    def test_every_layer_is_proven(self):
        for where, precision in ((SAMPLE, "bf16"), (os.path.join(SOURCE, "tests/golden/tiny/ct-nvfp4"), "fp4")):
            got = run_json("verify", where)
            self.assertTrue(got["agrees"])
            for layer in got["layers"]:
                self.assertEqual((layer["declared"], layer["measured"]), (precision, precision))
                self.assertGreaterEqual(layer["margin"], 10)
        self.assertIn("6 of 6 layers", run("verify", SAMPLE, "--moe-backend", "reference")[0])

    def test_a_device_that_is_here_is_probed(self):
        mixed = os.path.join(TINY, "modelopt-mixed")
        flags = read_file("/proc/cpuinfo").decode()
        for isa, needs in (("scalar", ""), ("avx2", "avx2"), ("avx512", "avx512bw")):
            if needs not in flags:
                continue
            got = run_json("verify", mixed, "--device", "cpu-" + isa, "--moe-backend", "nvfp4=cpu,fp8=cpu")["layers"]
            self.assertEqual([l["kernel"] for l in got], [isa + "_fp8_experts", isa + "_nvfp4_nvfp4_experts"])
            self.assertEqual([l["measured"] for l in got], ["fp8", "fp4"])
            self.assertTrue(all(l["agrees"] and l["margin"] >= 10 for l in got))
        out, _ = run("verify", mixed, "--moe-backend", "fp8=reference")
        for word in ("layer", "declared", "measured", "margin", "reference_fp8_experts", "2 of 2 layers"):
            self.assertIn(word, out)
        self.assertLessEqual(max(map(len, out.splitlines())), 100, out)

    def test_a_device_that_is_not_here_is_refused_and_says_why(self):
        _, err = run("verify", SAMPLE, "--device", "sm_121", code=7)
        self.assertIn("device 'sm_121' (Blackwell: GB10 (DGX Spark)) is not in this machine, which has cpu", err)
        self.assertIn("nothing can run there", err)
        _, err = run("verify", SAMPLE, "--device", "sm_1", code=2)
        self.assertIn("Expected one of [cpu, ", err)


class Plans(unittest.TestCase):
    def test_a_plan_for_a_device_that_is_not_here(self):
        got = run_json("inspect", SAMPLE, "--device", "sm_121", "--config-only")
        self.assertEqual(got["device"], {"name": "sm_121", "present": False})
        experts = [m for m in got["modules"] if m["kind"] == "experts"][0]
        self.assertEqual((experts["backend"], experts["kernel"]), ("B12X", "sm120_nvfp4_bf16_experts"))
        self.assertFalse(experts["in_this_build"])
        self.assertEqual(experts["activation_precision"], "bf16")
        self.assertIn("HOPPER", {r["backend"] for r in experts["refused"]})

    def test_a_refusal_carries_every_candidate(self):
        got = run_json("inspect", SAMPLE, "--device", "sm_75", code=5)["error"]
        self.assertEqual(got["code"], "Unsupported")
        self.assertEqual({c["backend"] for c in got["candidates"]}, {"CUTLASS", "B12X", "HOPPER", "MARLIN", "CPU", "REFERENCE"})
        for candidate in got["candidates"]:
            self.assertTrue(candidate["reasons"])

    def test_devices(self):
        self.assertIn("sm_121", {d["name"] for d in run_json("devices")["known"]})
        self.assertIn("cpu", run("devices")[0])


class Text(unittest.TestCase):
    def test_tokenize_and_back(self):
        text = "In the year 1812, the château — naïve 🙂\n"
        ids = run("tokenize", SAMPLE, text)[0].strip()
        self.assertEqual(run("detokenize", SAMPLE, ids)[0], text + "\n")
        self.assertEqual(run_json("tokenize", SAMPLE, text)["ids"], [int(i) for i in ids.split(",")])
        self.assertEqual(run("tokenize", SAMPLE, stdin=text.encode())[0].strip(), ids)

    def test_special_tokens_can_be_taken_as_text(self):
        self.assertEqual(run("tokenize", SAMPLE, "<|im_end|>")[0].strip(), "4095")
        self.assertGreater(len(run("tokenize", SAMPLE, "<|im_end|>", "--no-special")[0].split(",")), 3)


@unittest.skipUnless(DATA, "NIBBLE_TEST_DATA is not set: the held-out perplexities are skipped")
class Perplexity(unittest.TestCase):
    # native and a16 as the references' makers measured them: 12 windows of 512 held-out tokens.
    KNOWN = {
        "qwen3-moe-mini-modelopt-W4A16_NVFP4": (27.551, None),
        "qwen3-moe-mini-ct-NVFP4A16": (27.553, None),
        "qwen3-moe-mini-modelopt-NVFP4": (28.029, 27.551),
        "qwen3-moe-mini-ct-NVFP4": (27.970, 27.553),
        "qwen3.6-moe-mini-modelopt-W4A16_NVFP4": (26.644, None),
        "qwen3.6-moe-mini-ct-NVFP4A16": (26.606, None),
        "qwen3.6-moe-mini-modelopt-mixed": (26.495, None),
    }

    def test_within_a_few_tenths_of_a_percent_and_nearer_to_its_own_label(self):
        for name, (native, a16) in self.KNOWN.items():
            got = run_json("eval", os.path.join(DATA, "checkpoints", name), "--ppl",
                           os.path.join(DATA, "heldout", "heldout_tokens.npy"), "--windows", 12, "--window-length", 512)["ppl"]
            print(f"{name}: perplexity {got:.3f}, reference {native}")
            # Nearly every product of the mixed one quantizes its input: more codes on a boundary.
            self.assertLessEqual(abs(got - native) / native, 0.005 if "mixed" in name else 0.003, name)
            if a16:
                self.assertLess(abs(got - native), abs(got - a16), name)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]], verbosity=1)
