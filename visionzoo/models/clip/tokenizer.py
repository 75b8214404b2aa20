"""Texts to token ids: CLIP's byte pairs, or any tokenizer of transformers in a local folder.

What is odd in a text has a meaning: an empty one is a start and an end token; any Unicode is cleaned (broken encodings
mended, HTML entities resolved, white space folded) and cut into bytes, so that nothing is unknown; one that is too long
is cut, keeps its end token, and is counted in ``truncated``.

Legend: B texts, L context length.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import string
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionzoo.files import atomic_folder

#: Printable ASCII without entities and special tokens: the cleaning does nothing to it but fold spaces and lower case.
_PLAIN = re.compile(r"[ -%'-;=?-~]*")
#: What the byte-pair tokenizer cuts plain text into.
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")

#: Tokenizers of transformers keep padding and truncation as state, and refuse to be asked by two threads at a time.
_ONE_AT_A_TIME = threading.Lock()
#: From where to where tokenizers were copied.
_COPIED: set[tuple[str, str]] = set()


class Tokenizer:
    """Texts to ids of one length. ``truncated`` counts the texts that were cut so far, in this process.

    Args:
        context_length: L.
    """

    vocab_size: int
    sot_token_id: int | None  #: of the start token, under open_clip's name; None where there is none
    eot_token_id: int | None  #: of the end token

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self.truncated = 0

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """(B, L) int64.

        Args:
            texts: one text or several; an empty one is allowed.
            context_length: L instead of the tokenizer's own.

        Raises:
            TypeError: for anything but texts.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"a tokenizer takes a text or several, not {type(text).__name__}: {text!r:.60}")
        return self._encode(texts, context_length or self.context_length)

    @property
    def fingerprint(self) -> str:
        """Changes with the ids that a text gets."""
        return f"{type(self).__name__} {self.vocab_size} {self.context_length}"

    def _encode(self, texts: list[str], length: int) -> Tensor:
        raise AssertionError(f"{type(self).__name__} must encode {len(texts)} texts to {length} ids")


class BytePairTokenizer(Tokenizer):
    """CLIP's own tokenizer, from open_clip_torch; padding is 0, the end token has the highest id.

    Plain text, which is most of what people write, takes a shorter way to the same ids.
    """

    vocab_size = 49408
    sot_token_id, eot_token_id = vocab_size - 2, vocab_size - 1
    all_special_ids = (sot_token_id, eot_token_id)

    def __init__(self, context_length: int = 77) -> None:
        super().__init__(context_length)
        self._words: dict[str, tuple[int, ...]] = {}
        self._peer: Any = None

    @property
    def _simple(self) -> Any:
        if self._peer is None:  # a worker process opens its own
            from open_clip.tokenizer import SimpleTokenizer

            self._peer = SimpleTokenizer()
        return self._peer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_peer": None, "_words": {}}

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length, without start and end."""
        if _PLAIN.fullmatch(text) is None:
            return list(self._simple.encode(text))
        return [i for word in _WORDS.findall(text.lower()) for i in self._word(word)]

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of some ids (L,), special tokens included, as open_clip's."""
        return self._simple.decode([int(i) for i in ids])

    def _word(self, word: str) -> tuple[int, ...]:
        ids = self._words.get(word)
        if ids is None:
            if len(self._words) > 2**17:
                self._words.clear()
            ids = self._words[word] = tuple(self._simple.encode(word))
        return ids

    def _encode(self, texts: list[str], length: int) -> Tensor:
        start, end = self.sot_token_id, self.eot_token_id
        out = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            ids = self.encode(text)
            if len(ids) > length - 2:
                ids = ids[: length - 2]
                self.truncated += 1
            row[: len(ids) + 2] = torch.tensor([start, *ids, end])
        return out


class FolderTokenizer(Tokenizer):
    """A tokenizer of transformers, padded to the full length with its own padding token.

    Args:
        folder: where ``AutoTokenizer.save_pretrained`` wrote it.
        context_length: L.
        clean: what is done to a text first; :func:`canonical` for SigLIP.

    Raises:
        ValueError: without transformers, or where there is no tokenizer.
    """

    def __init__(self, folder: str | Path, context_length: int, clean: Callable[[str], str] | None = None) -> None:
        super().__init__(context_length)
        self._peer = _of_transformers(folder)
        if self._peer.pad_token_id is None:
            raise ValueError(f"the tokenizer in {folder} has no padding token; set its pad_token and save it again")
        self._peer.padding_side = "right"  # where padding is the end token, the first one is the end of the text
        self.vocab_size = len(self._peer)
        first, last = self._peer.bos_token_id, self._peer.eos_token_id
        self.sot_token_id = self._peer.cls_token_id if first is None else first
        self.eot_token_id = self._peer.sep_token_id if last is None else last
        self.all_special_ids = tuple(self._peer.all_special_ids)
        self.clean = clean

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, under open_clip's name."""
        return self._peer

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of some ids (L,), special tokens included."""
        return self._peer.decode(ids)

    @property
    def fingerprint(self) -> str:
        """A hash of its vocabulary and rules, 32 hex digits."""
        # What lies in a folder may be another tokenizer than last time.
        backend = getattr(self._peer, "backend_tokenizer", None)
        rules: Any = sorted(self._peer.get_vocab().items())
        if backend is not None:  # lengths that it was last called with are no rule
            rules = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
        digest = hashlib.blake2b(f"{type(self._peer).__name__} {rules}".encode(), digest_size=16).hexdigest()
        cleaned = None if self.clean is None else self.clean.__qualname__
        return f"{super().fingerprint} {digest} {self._peer.special_tokens_map} {cleaned}"

    def _encode(self, texts: list[str], length: int) -> Tensor:
        if not texts:
            return torch.zeros(0, length, dtype=torch.long)
        if self.clean is not None:
            texts = [self.clean(t) for t in texts]
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
        with _ONE_AT_A_TIME:
            self.truncated += sum(len(ids) > length for ids in self._peer(texts)["input_ids"])
            return self._peer(texts, return_tensors="pt", **options)["input_ids"]


def _of_transformers(folder: str | Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(
            f"the tokenizer in {folder} needs transformers: pip install 'visionzoo[transformers]'"
        ) from error
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise ValueError(f"{folder} holds no tokenizer that transformers can open: {first}") from error


def vocabulary(folder: str | Path) -> dict[str, int]:
    """What a text tower must know of the tokenizer in a folder: ``vocab_size``, and the ``end_id`` it reads a text at.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_tokenizer`; for one that puts no token at the end of a text.
    """
    found = open_tokenizer(str(folder), 1)
    assert isinstance(found, FolderTokenizer)
    # what it does, not what it is said to do: GPT-2's has an end token and adds none, Llama's adds a first token alone
    nothing, some = (found.tokenizer(text)["input_ids"] for text in ("", "a photo"))
    if not nothing or len(some) == len(nothing) or nothing[-1] != some[-1]:
        raise ValueError(
            f"the tokenizer in {folder} puts no token at the end of a text, which is where the text tower reads it; "
            "take one that does, or give vocab_size and end_id"
        )
    return {"vocab_size": found.vocab_size, "end_id": int(some[-1])}


def copy_tokenizer(source: str, target: Path) -> bool:
    """Copy the tokenizer in a folder, and nothing else that lies there, to ``target``; once in a process.

    Args:
        source: as :func:`open_tokenizer` takes it.
        target: a folder; another tokenizer in it is replaced.

    Returns:
        whether ``target`` holds it now: not for CLIP's own, and for none that can be opened.

    Raises:
        OSError: for a full disk or a folder that cannot be written.
    """
    if source in ("", "clip") or not os.path.isdir(source):
        return False
    pair = os.path.realpath(source), os.path.realpath(target)
    if pair[0] == pair[1] or (pair in _COPIED and target.is_dir()):
        return True
    try:
        peer = _of_transformers(source)
    except ValueError:
        return False  # whoever asks for it is told why
    with atomic_folder(target) as temporary:
        peer.save_pretrained(temporary)
    _COPIED.add(pair)
    return True


def canonical(text: str) -> str:
    """Lower case, without punctuation, single spaces: what SigLIP was trained on."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


def open_tokenizer(
    source: str, context_length: int, vocab_size: int | None = None, *, siglip: bool = False
) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        source: ``clip``, a folder with a tokenizer of transformers, or empty where there is none.
        context_length: L.
        vocab_size: ids that the text tower knows; None for one that is yet to be built.
        siglip: whether a folder's tokenizer reads texts as :func:`canonical` gives them.

    Raises:
        FileNotFoundError: for a folder that is not there.
        ValueError: where there is no tokenizer, or one with more ids than the text tower knows.
    """
    if not source:
        raise ValueError(
            f"this model's vocabulary of {vocab_size} is not CLIP's, and its tokenizer is not part of visionzoo; give "
            "tokenizer= a folder that AutoTokenizer.save_pretrained wrote (SigLIP: from the hub's timm/ViT-B-16-SigLIP)"
        )
    tokenizer: Tokenizer
    if source == "clip":
        tokenizer = BytePairTokenizer(context_length)
    elif not os.path.isdir(source):
        raise FileNotFoundError(f"tokenizer={source!r} is neither 'clip' nor a folder with a tokenizer of transformers")
    else:
        tokenizer = FolderTokenizer(source, context_length, canonical if siglip else None)
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer {source!r} has {tokenizer.vocab_size} ids, this text tower {vocab_size}; they do not "
            f"belong together: build the model with vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer
