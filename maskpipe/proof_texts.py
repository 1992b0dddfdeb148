"""Texts on which two tokenizers that are not the same are likely to differ: what a backend is proved on.

Each kind stands alone, beside ASCII, and the kinds together; control tokens stand alone, in words, halved, doubled and
between whitespace. All are made here: a few hundred texts of mostly one line, in the same order every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

LANGUAGES = (
    "The quick brown fox jumps over the lazy dog; it's 3.14 o'clock, and they've got $1,234.56!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Straße, STRASSE, ẞ.",
    "Dès Noël, où un zéphyr haï me vêt de glaçons würmiens, l'été s'en va.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia; ¿añoraba? ¡Sí!",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ёлка — «ёж».",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ὀδυσσεύς.",
    "いろはにほへと ちりぬるを。カタカナとﾊﾝｶｸ、全角ＡＢＣ１２３。",
    "我能吞下玻璃而不伤身体。繁體字，標點「符號」……㐀𠀀𪚥",
    "다람쥐 헌 쳇바퀴에 타고파. ᄒᆞᆫ글 각",
    "אני יכול לאכול זכוכית וזה לא מזיק לי. שָׁלוֹם",
    "أنا قادر على أكل الزجاج و هذا لا يؤلمني. السَّلَامُ عَلَيْكُمْ ١٢٣٤٥",
    "मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती। १२३ क्षत्रिय",
    "ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ ๑๒๓",
    "நான் கண்ணாடி சாப்பிடுவேன். আমি কাঁচ খেতে পারি। ನಾನು ಗಾಜನ್ನು ತಿನ್ನಬಲ್ಲೆ",
    "Tôi có thể ăn thủy tinh mà không hại gì. Pchnąć w tę łódź jeża lub ośm skrzyń fig.",
    "İstanbul'da ıspanak yiyen pijamalı hasta yağız şoföre çabucak güvendi. ǅ ǆ ŉ ﬁ ﬀ",
    "ᚠᛇᚻ᛫ᛒᛦᚦ ⠓⠑⠇⠇⠕ ꙮ ᏣᎳᎩ ⴰⵣⵓⵍ አማርኛ ភាសាខ្មែរ ལྷ་ས",
)
ODD = (
    *("", " ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", " \n", "\n ", "\t\t \n\n  ", "\x0b\x0c", "\x85", "\xa0"),
    *("\u2028", "\u2029", "\u3000", "\u200b", "\u200d", "\u2060", "\ufeff", "\u180e", "\u00ad", "\u202e", "\u1680"),
    *("\x00", "\x01\x02\x1b[31m", "\x7f", "\x80\x9f", "\ufffd", "\ufffe\uffff", "\ue000\uf8ff", "\U000f0000\U0010ffff"),
    *(
        "e\u0301",
        "\u0301",
        "a\u0323\u0307",
        "a\u0307\u0323",
        "Å\u212b",
        "\u1100\u1161\u11a8",
        "각",
        "\u0958",
        "ﷺ",
        "①½²",
    ),
    *("🎉", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "👍🏽", "❤️", "1️⃣", "☃", "\U0001f9ff" * 5, "e" + "\u0300" * 40),
    *("don't", "DON'T", "we'LL", "'s 's", "’s", "I'm'd've", "ſ's", "'", "''", "'tis", "K\u2019s", "'ſ", "\u212a"),
    *("0", "00", "1234567890" * 3, "1,234", "12 345", "3.14e-10", "0x7F", "١٢٣", "Ⅷ", "௧௨", "1st2nd", "a1b2", "½¼"),
    *(
        "...",
        "!!!???",
        "--->",
        "===",
        "#!/bin/sh",
        "http://a.b/c?d=e&f#g",
        "a@b.c",
        "C:\\x\\y",
        "$$$",
        "«»",
        "—–-",
        "§¶",
    ),
    *("CamelCaseWord", "snake_case_word", "SCREAMING", "aB", "Ab", "ABc", "iPhone", "x86_64", "___", "a_", "_a", "ÀÉî"),
    *(
        "<0x0A>",
        "<0xFF>",
        "▁",
        "▁▁a",
        "Ġhello",
        "Ċ",
        "##ing",
        "</w>",
        "<unk>",
        "[UNK]",
        "<s>",
        "</s>",
        "<pad>",
        "[INST]",
    ),
    *(
        "{}",
        "[]",
        '{"a": [1, 2, {"b": null}]}',
        "def f(x):\n    return x  # \t!\n\n\n",
        "\tif (a&&b) {\r\n\t}\r\n",
        "a\\nb",
    ),
    *(
        "'; DROP TABLE t; --",
        "<script>alert(1)</script>",
        "${jndi:x}",
        "%s%n",
        "../../etc",
        "| --- |",
        "$\\frac{a}{b}$",
    ),
)
LONG = (
    "a" * 3000,
    " " * 700,
    "\n" * 500,
    "ab" * 900,
    "é" * 600,
    "漢" * 500,
    "🎉" * 200,
    "0123456789" * 100,
    "-" * 600,
    " a" * 400,
    "  b" * 300,
    "\n \t" * 200,
    "a\u0301" * 300,
    "x" * 255 + " " + "y" * 256 + " " + "z" * 257,
    "supercalifragilisticexpialidocious" * 20,
)
MOST_TOKENS = 400
"""Added tokens that are tried; of more, some from every part of the list."""


def proof_texts(added: Sequence[str] = ()) -> list[str]:
    """The texts, with these added tokens of the tokenizer among them."""
    texts = [*LANGUAGES, *ODD, *LONG]
    texts += [
        form for odd in ODD for form in (f"a{odd}", f"{odd}a", f"a {odd} a", f"{odd} {odd}", f"\n{odd}\n", f".{odd}1")
    ]
    texts += [first + second for first, second in pairwise(ODD)]
    texts += [f"{first} {second}" for first, second in pairwise(LANGUAGES)]
    texts += [language.swapcase() for language in LANGUAGES]
    texts += [
        "".join(ODD),
        " ".join(ODD),
        "".join(reversed(ODD)),
        "\n".join(LANGUAGES),
        "".join(LANGUAGES).replace(" ", ""),
    ]
    step = max(1, -(-len(added) // MOST_TOKENS))
    tried = [token for token in added[::step] if token]
    texts += [form for token in tried for form in (token, f"a{token}b", f" {token} ", f"{token}\n{token}{token}")]
    texts += [
        form for token in tried for form in (token[:-1], token[1:], token[: len(token) // 2] + "é", token.upper())
    ]
    texts += [
        f"{first}user\n{odd}{second}\n"
        for (first, second), odd in zip(product(tried[:6], tried[-6:]), ODD, strict=False)
    ]
    texts += ["".join(tried), "x".join(tried), " ".join(tried)]
    return texts
