"""Strings that a tokenizer gets wrong first. Shared by the differential test and by tools/make_tokenizer_golden.py."""
import random

PATTERNS = {
    # Qwen2, 2.5, 3
    "qwen3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
             r"|\s+(?!\S)|\s+",
    # Qwen3.5, 3.6: combining marks go with their letters
    "qwen3.6": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}

SCRIPTS = [
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x591, 0x5F4),
    (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE5B), (0xF00, 0xFBC), (0x1000, 0x109F),
    (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218B), (0x2190, 0x23FF), (0x2600, 0x27BF),
    (0x3000, 0x30FF), (0x4E00, 0x4EFF), (0xAC00, 0xACFF), (0xF900, 0xFAD9), (0xFB00, 0xFB4F), (0xFE00, 0xFE2F),
    (0xFF00, 0xFFEF), (0x10000, 0x100FA), (0x10400, 0x1044F), (0x11000, 0x11075), (0x11930, 0x11938), (0x1D100, 0x1D1EA),
    (0x1D400, 0x1D7FF), (0x1E900, 0x1E959), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x20000, 0x20010),
    # newer than the libraries, or than the reference's NFC
    (0x897, 0x89F), (0x8CA, 0x8D3), (0x1AB0, 0x1ACE), (0x105C0, 0x105F3), (0x10D40, 0x10D8F), (0x11380, 0x113E2),
    (0x11F00, 0x11F59), (0x16100, 0x16139), (0x16D40, 0x16D79), (0x1E030, 0x1E08F), (0x1E4D0, 0x1E4F9),
    (0x2EBF0, 0x2EC10), (0x31350, 0x31360),
]
SPACES = " \t\n\r\v\f\x1c\x1d\x85\xa0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
WORDS = ("the don't I'M WE'LL it's he'd they've 'ſ 'S' ''re x'Ve naïve café Ångström Straße ﬁne नमस्ते दुनिया สวัสดี "
         "こんにちは 世界 안녕하세요 привет Ελλάδα שָׁלוֹם مَرْحَبًا 👩‍👩‍👧‍👦 🇫🇷🇯🇵 👍🏽 1234567 3.14159 ١٢٣ Ⅻ ½ x² "
         "foo_bar(baz)[0] // --> != a+b=c https://example.org/?q=1&r=2 \"quoted\" {'a': 1} Å Å Å 가 각").split(" ")


def one_string(rng, added):
    parts = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.randrange(10)
        if kind == 0:
            parts.append(rng.choice(SPACES) * rng.randint(1, 4))
        elif kind == 1:
            parts.append("".join(rng.choice(SPACES) for _ in range(rng.randint(1, 6))))
        elif kind == 2:
            parts.append(rng.choice(added)[: rng.choice([99, 99, 3])])
        elif kind == 3:
            parts.append("".join(chr(rng.randint(0x300, 0x345)) for _ in range(rng.randint(1, 5))))
        elif kind == 4:
            parts.append(str(rng.randrange(10 ** rng.randint(1, 12))))
        elif kind in (5, 6):
            low, high = rng.choice(SCRIPTS)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8))))
        elif kind == 7:
            parts.append("".join(chr(rng.randint(*rng.choice(SCRIPTS))) for _ in range(rng.randint(1, 8))))
        else:
            parts.append(rng.choice(WORDS) + rng.choice(["", " ", "  ", "\n", "'"]))
    return "".join(parts)


def strings(count, added, seed=1):
    """`count` byte strings; one in eight is not UTF-8."""
    rng = random.Random(seed)
    for i in range(count):
        data = one_string(rng, added).encode("utf-8")
        if i % 8 == 7 and data:
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(damaged))
                choice = rng.randrange(3)
                if choice == 0:
                    damaged[at] = rng.choice([0x80, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF])
                elif choice == 1:
                    del damaged[at]
                else:
                    damaged[at:at] = bytes([rng.randint(0x80, 0xFF)])
                if not damaged:
                    break
            data = bytes(damaged)
        yield data


def train_without_split(sample, texts, vocab_size):
    """The sample's tokenizer.json with a vocabulary that was trained on whole texts: its merges reach over every border."""
    import copy
    import json

    import tokenizers

    blank = tokenizers.Tokenizer(tokenizers.models.BPE())
    blank.normalizer = tokenizers.normalizers.NFC()
    blank.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
                                             max_token_length=8, show_progress=False)
    blank.train_from_iterator(texts, trainer)
    trained = json.loads(blank.to_str())["model"]
    spec = copy.deepcopy(sample)
    spec["model"]["vocab"], spec["model"]["merges"] = trained["vocab"], trained["merges"]
    for i, token in enumerate(spec["added_tokens"]):
        token["id"] = len(trained["vocab"]) + i
    return spec
