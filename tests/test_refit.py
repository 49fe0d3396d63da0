import pytest
from lightning.pytorch import Callback

from ppo_lightning import ConfigurationError, Evaluation
from tests.runs import make_data, make_ppo, make_trainer


class Broken(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        raise RuntimeError("boom")


def test_a_new_trainer_counts_anew():
    ppo, data = make_ppo(anneal_lr=True), make_data(iterations=3)
    for _ in range(2):
        make_trainer().fit(ppo, data)
        assert data.env_steps == data.total_timesteps
        assert ppo.iteration_metrics["train/learning_rate"] > 0


def test_a_used_trainer_goes_on_where_there_is_more_to_train():
    trainer, ppo, data = make_trainer(), make_ppo(), make_data(iterations=3)
    trainer.fit(ppo, data)
    assert trainer.max_epochs == -1
    data.total_timesteps *= 2
    trainer.fit(ppo, data)
    assert data.env_steps == data.total_timesteps


def test_a_used_trainer_refuses_other_data():
    trainer = make_trainer()
    trainer.fit(make_ppo(), make_data())
    with pytest.raises(ConfigurationError, match="make a new Trainer"):
        trainer.fit(make_ppo(), make_data())


def test_after_an_error_the_trainer_validates():
    evaluation = Evaluation(num_episodes=1)
    trainer, ppo, data = make_trainer(callbacks=[evaluation, Broken()]), make_ppo(), make_data()
    with pytest.raises(RuntimeError, match="boom"):
        trainer.fit(ppo, data)
    trainer.validate(ppo, data, verbose=False)
    assert evaluation.metrics["eval/episodes"] == 1
