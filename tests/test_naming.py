"""Folder names made from overrides."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pai.naming import folder_name

overrides = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=400)


@given(overrides)
@settings(max_examples=300, deadline=None)
def test_a_name_is_one_path_component_that_every_file_system_takes(text: str) -> None:
    name = folder_name(text)
    assert name
    assert "/" not in name
    assert "\\" not in name
    assert len(name.encode()) <= 255


@given(overrides, overrides)
@settings(max_examples=300, deadline=None)
def test_different_overrides_have_different_names(first: str, second: str) -> None:
    assert (folder_name(first) == folder_name(second)) == (first == second)


def test_names_that_differ_only_in_slashes_or_late_differ() -> None:
    alike = ["a=b/c", "a=b_c", "a=b\\c", "a=b/c/", "x" * 300, "x" * 299 + "y", "x" * 180]
    assert len({folder_name(text) for text in alike}) == len(alike)


def test_short_plain_overrides_are_their_own_name() -> None:
    assert folder_name("scorer=snip,seed=0") == "scorer=snip,seed=0"


def test_no_override_is_called_default() -> None:
    assert folder_name("") == "default"


def test_long_names_outside_ascii_fit_as_well() -> None:
    assert len(folder_name("dataset.root=" + "画像" * 80).encode()) <= 255
