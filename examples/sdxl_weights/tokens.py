"""A CLIP tokenizer small enough to ship: byte-level BPE whose merges spell the captions' own words.

Written as the plain vocabulary files that every transformers release since 4.40 reads alike.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from shapes import vocabulary

MAX_TOKENS = 48  # positions of the text encoders; longer prompts are cut
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in CLIP's order (printable bytes first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable]
    return letters + [chr(256 + offset) for offset in range(256 - len(printable))]


def merges() -> list[tuple[str, str]]:
    """Merge rules under which every known word is one token.

    Each word is spelled with the rules found so far and the pieces that are left are joined from the left. New rules
    rank below all earlier ones, so they cannot break a word that is already whole.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in vocabulary():
        pieces = spell([*word[:-1], word[-1] + "</w>"], ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return list(ranks)


def spell(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: join the pair of lowest rank until no known pair is left."""
    while True:
        found = [pair for pair in pairwise(pieces) if pair in ranks]
        if not found:
            return pieces
        left, right = min(found, key=ranks.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and joined[-1] == left and piece == right:
                joined[-1] = left + right
            else:
                joined.append(piece)
        pieces = joined


def write_tokenizer(folder: Path, pad_token: str = END) -> int:
    """Write the tokenizer's files into `folder` and return the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = merges()
    letters = byte_letters()
    tokens = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    tokens.update(dict.fromkeys(left + right for left, right in rules))
    tokens.update(dict.fromkeys([START, END, pad_token]))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    config = special | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    _write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in rules), encoding="utf-8"
    )
    return len(tokens)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
