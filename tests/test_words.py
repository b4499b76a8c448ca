"""What a typing mistake is answered with."""

import pytest

from kdlab.words import check_known, nearest


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("glyph", " (did you mean 'glyphs'?)"),
        ("CIFAR-10", " (did you mean 'Cifar10'?)"),
        ("xyz", ""),
        (3, ""),
    ],
)
def test_the_nearest_word_is_named_as_it_is_written(word, hint):
    assert nearest(word, iter(["glyphs", "digits", "Cifar10"])) == hint


def test_an_unknown_name_is_refused_with_all_that_there_are():
    assert check_known("option", "lr", {"lr": 1}) is None
    with pytest.raises(
        ValueError, match=r"^unknown option 'lR' of x \(did .* 'lr'\?\); known: lr$"
    ):
        check_known("option", "lR", ["lr"], " of x")
    with pytest.raises(ValueError, match=r"^unknown option 'lr'; known: none$"):
        check_known("option", "lr", [])
