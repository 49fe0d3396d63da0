import pytest
import torch

from ppo_lightning.functional.shapes import check_same_shape


def test_equal_shapes_pass():
    check_same_shape(a=torch.zeros(3, 2), b=torch.ones(3, 2), c=torch.zeros(3, 2, dtype=torch.bool))


def test_unequal_shapes_are_refused_by_both_names_and_shapes():
    with pytest.raises(ValueError, match=r"^c has shape \(3, 1\) and a \(3,\): they must be equal; squeeze"):
        check_same_shape(a=torch.zeros(3), b=torch.zeros(3), c=torch.zeros(3, 1))
