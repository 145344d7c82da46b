"""How vocabularies represent bytes: byte-level BPE by characters of its own alphabet, SentencePiece as `<0xE4>`."""

from __future__ import annotations

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = sorted(set(range(256)).difference(PRINTABLE))
# Printable bytes stand for themselves; the others are mapped to the characters from 256 on.
BYTE_LEVEL_ALPHABET = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + number): byte for number, byte in enumerate(OTHERS)}
FALLBACK_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
