"""What algorithms share."""

import pytest
import torch

from tests.training.test_objectives import Line


def test_an_algorithm_without_validation_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Line has no validation on batches"):
        Line().validate(torch.zeros(1))
