"""Which ids does a text have, which bytes does each cover, which text may become a control token.

files.py        where the files come from, and what they say      vocabulary.py   which bytes each id stands for
added_tokens.py where control tokens stand in a text, as the library finds them
stretches.py    library tokenizers for text between them          positions.py    characters ─▶ bytes; content
tokenizer.py    all of them: a text ─▶ ids and their bytes        nfc.py          what NFC rewrites, in small groups
"""

from maskpipe.tokenizer.positions import NO_CONTENT, NO_INT32, Content, Int32, byte_positions, utf8
from maskpipe.tokenizer.tokenizer import Encoding, Tokenizer

__all__ = ["NO_CONTENT", "NO_INT32", "Content", "Encoding", "Int32", "Tokenizer", "byte_positions", "utf8"]
