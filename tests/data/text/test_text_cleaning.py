"""Cleaning in time that grows with the length only, by patterns that find what the original's find; texts it empties."""

import random
import re
import time

import pytest

from mindspeed_mm.config.sample import LONGEST_TEXT
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.text import cleaning
from mindspeed_mm.data.text.cleaning import clean, preprocess
from mindspeed_mm.data.text.emptied import emptied, is_emptied

PIECES = (
    *(
        "a.",
        ".",
        "-",
        "a",
        "1",
        "1.",
        "1x",
        "a1",
        "a1a",
        "%41",
        "+",
        "_-",
        " .",
        "x . ",
        " ",
        "\n",
        "\\n",
        "'\"",
        "猫",
        "猫。",
        "e\u0301",
    ),
    *(
        "[(",
        "<",
        "<a",
        "<!--",
        "<!",
        "</",
        "<b>",
        "<b></b>",
        "<![cdata[",
        "<?",
        "<a b='",
        "<a b=",
        "<a/",
        "<script>",
        "<p><div>",
    ),
    *(
        "&",
        "&amp;",
        "&#",
        "&#9",
        "&x",
        "&lt;",
        "#",
        "#1",
        "#123456",
        "@",
        "@a",
        "a@b.com ",
        "a.com@",
        "a.com/",
        "http:",
        "http://",
    ),
    *(
        "www:",
        "https://a.b/c",
        "worldwide ",
        "free ",
        "page ",
        "1:23 ",
        ".png",
        "a.png",
        "Ã©",
        "â€œ",
        "\ud83d",
        "\0",
        "a : ",
        "a\n",
    ),
)
ENDS = ("", "x", "é", "@", ">", "\n", ";")


def test_no_text_takes_long():
    slow = {}
    for piece in PIECES:
        text = (piece * LONGEST_TEXT)[: LONGEST_TEXT - 1] + "é"
        started = time.process_time()
        preprocess(text)
        slow[piece] = time.process_time() - started
    # the original takes 2 s for half of "a.a.a. ...", and minutes for some of these
    assert max(slow.values()) < 2, max(slow, key=slow.get)


@pytest.mark.parametrize("piece", ["a.", "a word ", "<b>", "猫"])
def test_a_megabyte_takes_less_than_a_second(piece):
    started = time.process_time()
    preprocess((piece * 2**20)[: 2**20])
    assert time.process_time() - started < 1


def test_a_long_text_is_cleaned_as_its_beginning():
    text = "a cat " * LONGEST_TEXT
    assert clean(text) == clean(text[:LONGEST_TEXT])
    assert preprocess(text, use_clean_caption=False) == text[:LONGEST_TEXT].strip()


def random_texts(pieces, count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choice(pieces) for _ in range(rng.randint(1, 16)))


HOSTS = (
    "a",
    "é",
    "1",
    ".",
    "-",
    "@",
    "/",
    "_",
    " ",
    ":",
    "com",
    ".com",
    ".co",
    "http:",
    "https://",
    "www:",
    "ru",
    "-b",
)


def test_links_are_those_of_the_original_pattern():
    form = r"\b((?:{}(?:\/{{1,3}}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)))"
    patterns = [re.compile(form.format(scheme)) for scheme in ("https?:", "www:")]
    for text in random_texts(HOSTS, 1500, 0):
        for pattern, scheme in zip(patterns, cleaning._SCHEMES, strict=True):
            assert cleaning._without_links(text, scheme) == pattern.sub("", text), text


def test_file_names_are_those_of_the_original_pattern():
    pattern = re.compile(r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)")
    for text in random_texts(("a", ".", ".png", ".jpeg", " ", "\n", "mp4", ".mp4", "é"), 800, 1):
        assert cleaning._WORD.sub(cleaning._without_file_name, text) == pattern.sub("", text), text


@pytest.mark.parametrize(
    "old, new",
    [
        (r"\s+\.\s+", cleaning._MARKS[-1][0]),
        (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", cleaning._CODES_AND_EDGES[8][0]),
        (r"\b\d+\.?\d*[x\u0445×]\d+\.?\d*\b", cleaning._CODES_AND_EDGES[9][0]),
    ],
)
def test_a_rewritten_pattern_matches_what_the_original_matches(old, new):
    for text in random_texts(("a", "1", "22", ".", " ", "  ", "\n", "x", "×", "é", "b3"), 1000, 2):
        assert new.sub("#", text) == re.sub(old, "#", text), text


@pytest.mark.parametrize(
    "text", [f"a &#{'9' * 5000}; b", f"a &amp;#{'9' * 5000}; b", f"a &#x{'f' * 5000}; b", "&#" + "0" * 5000 + "65;"]
)
def test_numeric_references_of_thousands_of_digits_are_no_error(text):
    assert len(preprocess(text)) < 20


def test_a_text_that_is_mostly_tags_loses_them():
    text = "<!-- no --><p class='x'>a cat</p><script>if (a < b) {}</script> &amp; <br/>" + "<b>dog</b> " * 900
    assert len(text) * text.count("<") > cleaning._MARKUP_WORK
    assert (
        preprocess(text).startswith("a cat dog dog dog")
        and "<" not in preprocess(text)
        and "if" not in preprocess(text)
    )


# --------------------------------------------------------------------------------------------------------------- emptied


@pytest.mark.parametrize(
    "text",
    [
        "一只猫",
        "<br>",
        "https://example.com",
        "  ",
        "",
        "\u4e00" * 50 + " ok",
        "@somebody",
        "photo.png",
        "download",
        "&nbsp;",
    ],
)
def test_what_cleaning_empties(text):
    assert is_emptied(text)


@pytest.mark.parametrize(
    "text", ["a cat", "cat", "A cat 猫", "un chat", "кошка", "kotek", "ネコ", "shipping cranes", "<b>cat</b>"]
)
def test_what_it_does_not(text):
    assert not is_emptied(text)


def test_the_quick_look_agrees_with_cleaning():
    words = (
        "shipping",
        "download",
        "free",
        "page",
        "12",
        "cat",
        "with",
        "click on",
        "images",
        "png",
        "worldwide",
        "@with",
        "with.png",
    )
    words += (" ", ",", ".", "'", "#", "/", "-", "(with)", "with,", "猫", "<b>", "%20")
    for text in random_texts(words, 400, 3):
        text = text[:60]
        assert is_emptied(text) or preprocess(text), text
        if is_emptied(text):
            assert not re.search("[a-z]{5,}", preprocess(text).replace("image", "")), text


def rows_of(*captions):
    return [Row(f"{number}.mp4", (text,), 1, 1, 1, 1.0, 0, None, None) for number, text in enumerate(captions)]


def config_of(**dataset):
    from data_helpers import data_config

    return data_config("data.txt", **dataset).dataset_param


def test_captions_that_cleaning_empties_are_counted_with_examples():
    found = emptied(rows_of("a cat", "一只猫", "<br>", "another cat"), config_of())
    assert (found.looked_at, found.count, found.fraction) == (4, 2, 0.5)
    (line,) = found.lines()
    assert "cleaning empties 2 of 4 captions (50.0%)" in line and "1.mp4: '一只猫'; 2.mp4: '<br>'" in line
    assert "translate the texts to English, or set support_chinese true and train with a multilingual" in line
    assert found.fault(0.5) is None and found.fault(0.4).endswith("more than --max-empty-captions 0.4")
    assert found.report()["examples"][0] == {"path": "1.mp4", "caption": "一只猫"}


def test_chinese_counts_by_what_the_config_makes_of_it():
    rows = rows_of("一只猫", "  ", "<br>")
    assert emptied(rows, config_of(support_chinese=True)).count == 2
    assert emptied(rows, config_of(use_clean_caption=False)).count == 1
    assert emptied(rows_of("a cat"), config_of()).lines() == []
    assert emptied((), config_of()).fraction == 0


def test_a_huge_list_is_judged_by_a_part(monkeypatch):
    monkeypatch.setattr("mindspeed_mm.data.text.emptied._MOST", 10)
    found = emptied(rows_of(*["猫"] * 50, *["a word"] * 50), config_of())
    assert (found.looked_at, found.count, found.fraction) == (100, 50, 0.5)
