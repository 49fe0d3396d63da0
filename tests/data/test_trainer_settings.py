"""Settings of the Trainer that are told of; those that are refused are in tests/test_lightning_parts.py."""

from unittest import mock

import pytest

from ppo_lightning.data.trainer_settings import warn_of_emulated_precision
from tests.runs import make_trainer


@pytest.mark.parametrize(
    ("precision", "has_bfloat16", "warned"),
    [("bf16-mixed", False, 1), ("bf16-mixed", True, 0), ("32-true", False, 0)],
)
def test_bfloat16_on_a_cpu_without_it_is_told(recwarn, precision, has_bfloat16, warned):
    trainer = make_trainer(precision=precision)
    recwarn.clear()
    with mock.patch("torch.ops.mkldnn._is_mkldnn_bf16_supported", return_value=has_bfloat16):
        warn_of_emulated_precision(trainer)
    said = [str(warning.message) for warning in recwarn if "bfloat16" in str(warning.message)]
    assert len(said) == warned
    assert all("--trainer.precision=32-true is faster here" in sentence for sentence in said)
