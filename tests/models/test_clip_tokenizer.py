import pickle
import shutil
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, canonicalize_text
from words import word_tokenizer

import visionzoo as vz
from visionzoo.models.clip.tokenizer import BytePairTokenizer, FolderTokenizer, canonical, open_tokenizer

TOKENIZER, PEER = BytePairTokenizer(), SimpleTokenizer()
START, END = 49406, 49407


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a cat.",
        "",
        "   ",
        "Two   DOGS, one\tball\nand  3 more!!",
        "it's we'll I'd they're 'sabre",
        "50% off @ shop_4u (new) #1 ~ {x} [y] \\ / | ^ `",
        "naïve café, 東京 Привет 🦓",
        "&lt;b&gt; bread &amp; butter <b>",
        "<end_of_text> then more",
        "a" * 200,
        "donâ€™t",
        "\x00\x07 bell",
    ],
)
def test_ids_are_open_clips(text):
    assert torch.equal(TOKENIZER(text), PEER(text))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=string.printable, max_size=60))
def test_ids_of_ascii_are_open_clips(text):
    assert torch.equal(TOKENIZER([text]), PEER([text]))


def test_a_long_text_keeps_its_end_and_is_counted():
    tokenizer = BytePairTokenizer(8)
    ids = tokenizer(["cat " * 6, "cat " * 7, ""])
    assert ids.shape == (3, 8)
    assert ids[:, 0].tolist() == [START] * 3
    assert ids[:2, -1].tolist() == [END] * 2
    assert ids[2].tolist() == [START, END, *[0] * 6]
    assert tokenizer.truncated == 1
    assert torch.equal(ids, PEER(["cat " * 6, "cat " * 7, ""], context_length=8))
    assert tokenizer("cat", context_length=5).shape == (1, 5)


def test_only_texts_are_taken():
    for wrong in ([1], [None], [["cat"]]):
        with pytest.raises(TypeError, match="takes a text or several, not"):
            TOKENIZER(wrong)
    assert TOKENIZER([]).shape == (0, 77)


def test_it_travels_to_a_worker():
    tokenizer = pickle.loads(pickle.dumps(TOKENIZER))
    assert len(pickle.dumps(TOKENIZER)) < 1000
    assert torch.equal(tokenizer("a cat"), TOKENIZER("a cat"))


@pytest.mark.parametrize("text", ["A_photo, of {a} cat!", "  two   spaces ", "naïve CAFÉ… 東京"])
def test_canonical_text(text):
    assert canonical(text) == canonicalize_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    word_tokenizer(path)
    return path


def test_a_tokenizer_of_transformers(folder):
    model = vz.create_clip(
        backbone="vit_nano_patch4_32", text="nano", context_length=6, vocab_size=8, end_id=2, tokenizer=folder
    )
    ids = model.tokenizer(["a red square", "", "a red red blue blue square"])
    assert ids.tolist() == [[1, 4, 5, 7, 2, 0], [1, 2, 0, 0, 0, 0], [1, 4, 5, 5, 6, 2]]
    assert model.tokenizer.truncated == 1
    assert model.tokenizer([]).shape == (0, 6)
    # the end token is read, though others have higher ids, and what follows it is of no consequence
    other = ids.clone()
    other[0, 5] = 7
    assert torch.equal(model.encode_text(ids), model.encode_text(other))
    with pytest.raises(ValueError, match=r"no end token \(id 2\)"):
        model.encode_text(torch.tensor([[1, 4, 5, 7, 0, 0]]))


def test_the_fingerprint_is_of_what_a_folder_holds(folder, tmp_path):
    first = FolderTokenizer(folder, 6)
    key = first.fingerprint
    first("a red square")  # the lengths of a call are no part of it
    assert FolderTokenizer(folder, 6).fingerprint == key == first.fingerprint
    shutil.copytree(folder, tmp_path / "t")
    assert FolderTokenizer(tmp_path / "t", 6).fingerprint == key
    file = tmp_path / "t" / "tokenizer.json"
    file.write_text(file.read_text().replace("blue", "green"))
    keys = {key, FolderTokenizer(tmp_path / "t", 6).fingerprint, FolderTokenizer(folder, 7).fingerprint}
    keys |= {FolderTokenizer(folder, 6, canonical).fingerprint, BytePairTokenizer().fingerprint}
    assert len(keys) == 5


def test_which_tokenizer(folder, tmp_path):
    with pytest.raises(ValueError, match="build the model with vocab_size=8"):
        open_tokenizer(str(folder), 6, 7)
    with pytest.raises(FileNotFoundError, match="neither 'clip' nor a folder"):
        open_tokenizer("bert", 6, 8)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        open_tokenizer(str(tmp_path), 6, 8)
    siglip = open_tokenizer(str(folder), 6, 8, siglip=True)
    assert isinstance(siglip, FolderTokenizer)
    assert siglip("A Red, SQUARE!").tolist() == [[1, 4, 5, 7, 2, 0]]
    with torch.device("meta"):
        model = vz.create_clip("ViT-B-16-SigLIP")
    with pytest.raises(ValueError, match=r"give tokenizer= a folder .*timm/ViT-B-16-SigLIP"):
        model.tokenizer  # noqa: B018


def test_attributes_that_open_clips_clients_read(folder):
    for name in ("context_length", "vocab_size", "sot_token_id", "eot_token_id"):
        assert getattr(TOKENIZER, name) == getattr(PEER, name)
    assert list(TOKENIZER.all_special_ids) == list(PEER.all_special_ids)
    ids = TOKENIZER("two dogs", context_length=4)[0]
    assert TOKENIZER.decode(ids) == PEER.decode(ids.tolist())
    words = FolderTokenizer(folder, 6)
    assert words.tokenizer.padding_side == "right"
    assert words.vocab_size == 8
    assert words.tokenizer.pad_token == "[PAD]"
    assert words.decode([5, 7]) == "red square"
