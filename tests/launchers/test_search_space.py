"""Hydra's sweeps as Optuna's distributions."""

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution as Categorical
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int

from research.errors import UserError
from research.launchers.search_space import parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=interval(0,1)", Float(0.0, 1.0)),
        ("x=int(interval(1,5))", Int(1, 5)),
        ("x=tag(log,interval(1e-4,1))", Float(1e-4, 1.0, log=True)),
        ("x=tag(log,int(interval(1,64)))", Int(1, 64, log=True)),
        ("x=range(1,9,2)", Int(1, 9, step=2)),
        ("x=range(1,10,2)", Int(1, 9, step=2)),
        ("x=range(-5.5,5.5,step=0.5)", Float(-5.5, 5.5, step=0.5)),
        ("x=1,2.5,true,null,a", Categorical([1, 2.5, True, "null", "a"])),
        ("x=choice([64,64],'a, b')", Categorical(["[64,64]", "a\\,\\ b"])),
        ("x='1','it\\'s'", Categorical(["'1'", "'it\\'s'"])),
        ("x=sort(3,1,2)", Categorical([1, 2, 3])),
    ],
)
def test_sweeps_of_hydra_are_distributions_of_optuna(
    text: str, expected: Any, recwarn: pytest.WarningsRecorder
) -> None:
    assert parse([text]) == ({"x": expected}, {})
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=shuffle(a,b)", "no order to shuffle"),
        ("x=shuffle(range(1,4))", "no order to shuffle"),
        ("x=glob(*)", "needs the values themselves"),
        ("x=tag(lgo,interval(1,2))", "the only tag is log"),
        ("x=tag(log,range(1,3))", "the only tag is log"),
        ("x=interval(2,1)", "low"),
        ("x=tag(log,interval(0,1))", "low"),
        ("x=range(5,1,-1)", "low"),
        ("x=interval(0,inf)", "finite"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_key(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(["y=interval(0,1)", text])
    assert str(error.value).startswith(f"{text}: ")
    assert message in str(error.value)


def test_the_last_override_of_a_key_counts() -> None:
    assert parse(["x=interval(0,1)", "x=0.5", "y=1", "y=1,2"]) == (
        {"y": Categorical([1, 2])},
        {"x": "0.5"},
    )


def test_a_search_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to search"):
        parse(["x=0.5"])
