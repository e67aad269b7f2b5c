"""The texts of the golden files. All of them were written for this purpose."""

HARD_STRINGS = {
    "empty": "",
    "space": " ",
    "spaces": "   ",
    "spaces_around": "  two  words   ",
    "newline": "\n",
    "blank_lines": "a\n\n\nb\n\n \n\tc",
    "crlf": "first line\r\nsecond line\r\n\r\nthird\rold mac",
    "tabs": "\tindented\t\ttwice",
    "nul": "before\0after \0\0 end",
    "controls": "bell\x07 escape\x1b[31m delete\x7f",
    "byte_order_mark": "\ufeffmark first, \ufeffmark inside",
    "plain": "The quick brown fox jumps over the lazy dog.",
    "casing": "HTTPServer iPhone McDONALD ÉCOLE straße İstanbul",
    "contractions": "I'm sure they'll say it's what we've done; DON'T, you'd see he's 'quoted'.",
    "digits": "0 12 345 6789 1234567890 3.14159 1,000,000 0x1F 1e-9",
    "digits_after_spaces": "row   7\n\n  42 x  9",
    "other_digits": "٠١٢٣ ४२ ²³ ½ Ⅷ ① ７",
    "punctuation": "Wait... what?! (yes) [no] {maybe} <ok> — “curly” ‘single’ «angle» …",
    "url": "See https://example.org/a/b_c?d=e&f=%20#g or mail a.b+c@example.org",
    "code": "fn main() {\n    let x: Vec<u8> = vec![0; 16];\n\tprintln!(\"{x:?}\"); // => [0, 0]\n}",
    "json_text": '{"key": [1, 2.5, null], "text": "a\\nb\\u00e9"}',
    "math": "∑_{i=0}^{n} αᵢ·xᵢ ≤ ‖x‖₂ ⇒ ∃ε>0 ∀δ: √2≈1.414",
    "accents_composed": "café naïve Ångström Zürich",
    "accents_combining": "cafe\u0301 nai\u0308ve A\u030angstro\u0308m Z\u0300\u0301\u0302a\u0336lgo",
    "emoji": "ok 👍🏽 flag 🇩🇪 heart ❤️",
    "emoji_zwj": "family 👩‍👩‍👧‍👦, technologist 👩🏾‍💻, pirate 🏴‍☠️",
    "rtl_hebrew": "שלום עולם, זה מבחן קצר.",
    "rtl_arabic": "مرحبا بالعالم، هذا اختبار قصير ١٢٣.",
    "cjk": "这是一个简单的测试。日本語のテキストも、한국어 문장도 있다。",
    "cjk_mixed": "东京tower的高さは333mです",
    "thai": "สวัสดีชาวโลก",
    "devanagari": "नमस्ते दुनिया",
    "cyrillic_greek": "Привет, мир! Καλημέρα κόσμε.",
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𒀀",
    "unusual_spaces": "a\u00a0b\u2003c\u3000d\u200be\u2028f",
    "soft_hyphen": "soft\u00adhyphen and \u200dlonely joiner",
    "replacement": "broken \ufffd byte",
    "private_use": "\ue000\uf8ff",
    "long_word": "pneumono" * 60,
    "long_word_101": "x" * 101,
    "long_run_of_spaces": "a" + " " * 130 + "b",
    "long_run_of_newlines": "a" + "\n" * 70 + "b",
    "repeated_punctuation": "=" * 40 + "\n" + "-" * 33 + "!!!!",
    "special_decoder": "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "special_decoder_broken": "<|im_start| > <|im_ start|> <|IM_END|> x<|im_end|>y",
    "special_encoder": "[CLS] not [MASK] a [SEP] marker [PAD] [UNK] [cls]",
    "special_code": "<repo_name>e2llm<file_sep>src <filename>a.py<gh_stars>",
    "mixed": "Fig. 3 — Größe 12µm²\r\n\t• naïve 方法: 42 % 👍  (s. <|im_start|>)\0 end",
}

ENCODER_TEXTS = [
    "lighthouse",
    "A soft prompt stands for a document.",
    "The ferry leaves at seven, and the last one returns a little before midnight.",
    "Create-only writes let many writers agree without a lock: the first one to put a name owns it, "
    "and everybody else reads what is there. That is the whole protocol.",
    "Größe, naïveté und 東京: a sentence in several scripts, with 42 digits and “quotes”.",
    "def area(r):\n    return 3.14159 * r ** 2\n\nprint(area(2))  # 12.566",
    " ".join(
        f"On day {n} the keeper wrote that the wind came from the {side} and that {n * 3} birds passed the lamp."
        for n, side in enumerate(["north", "east", "south", "west"] * 2, start=1)
    ),
    " ".join(
        f"Shelf {n} of the archive holds the letters of year {1700 + 7 * n}; the box is {colour}, "
        f"its key hangs on hook {n * n % 17}, and nobody has opened it since the {n}th inventory."
        for n, colour in enumerate(["red", "blue", "green", "grey", "white"] * 2, start=1)
    ),
]

PROMPTS = {
    "one_token": "The",
    "short": "The capital of France is",
    "list": "Monday, Tuesday, Wednesday,",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "paragraph": "A lighthouse keeper counts ships. On the first night he counts three, on the second night five, "
    "and on the third night a storm hides them all. In the morning he writes in his book that",
    "ledger": "\n".join(
        f"Entry {n}: crate {n * 37 % 101} went from the {a} store to the {b} store and weighed {n * 13 % 89} kilograms."
        for n, (a, b) in enumerate([("north", "east"), ("east", "south"), ("south", "west"), ("west", "north")] * 8, start=1)
    )
    + "\nEntry 33: crate",
}

CHATS = {
    "plain_question": [{"role": "user", "content": "What is the capital of Italy?"}],
    "with_system": [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
    "several_turns": [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada."},
        {"role": "user", "content": "What is my name?"},
    ],
    "document": [
        {"role": "system", "content": "You are a careful reader."},
        {
            "role": "user",
            "content": "Read this note.\n\nThe ferry to Hallen leaves from pier 4 at 7:15. Tickets cost 12 crowns; "
            "children under six travel free. Bicycles need their own ticket.\n\nFrom which pier does the ferry leave?",
        },
    ],
}

TEMPLATE_CHATS = {
    **CHATS,
    "empty_content": [{"role": "user", "content": ""}],
    "spaces_kept": [{"role": "user", "content": "  two leading spaces\n\n"}],
    "markup_not_escaped": [{"role": "user", "content": "a < b && c > d \"q\" 'r' <|im_end|> {{ x }} {% if %}"}],
    "unicode": [{"role": "system", "content": "Réponds."}, {"role": "user", "content": "東京 👩‍💻 שלום"}],
}
