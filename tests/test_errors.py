"""What is printed to be typed means what it says, to a shell and to Hydra."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from research.errors import override

TEXTS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1)


@given(TEXTS.map(lambda text: f"/{text}"))
@example('/it\'s "a\\" = b, \\')
def test_an_override_can_be_pasted_whatever_its_path(path: str) -> None:
    (word,) = shlex.split(shlex.quote(override("key", path)))
    parsed = OverridesParser.create().parse_override(word)
    assert (parsed.key_or_group, str(parsed.value())) == ("key", path)


@pytest.mark.parametrize("path", ["/runs/a-b_1.2", "outputs/td3"])
def test_a_plain_path_stays_plain(path: str) -> None:
    assert shlex.quote(override("key", path)) == f"key={path}"
