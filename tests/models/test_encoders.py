import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.models import GridCNN, ImpalaCNN, MLPEncoder, NatureCNN

HWC, CHW = spaces.Box(0, 255, (40, 44, 3), np.uint8), spaces.Box(0, 255, (3, 40, 44), np.uint8)
VECTOR = spaces.Box(-1, 1, (3,))


def first_layer_input(encoder, obs):
    """What reaches the first layer."""
    seen = []
    encoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(obs)
    return seen[0]


def pixels(batch=2, shape=(40, 44, 3)):
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)


@pytest.mark.parametrize("cnn", [NatureCNN, ImpalaCNN])
def test_both_image_layouts_give_the_same_features(cnn):
    last, first = cnn(HWC), cnn(CHW)
    first.load_state_dict(last.state_dict())
    images = pixels()
    features = last(images)
    assert features.shape == (2, last.output_dim)
    torch.testing.assert_close(first(images.permute(0, 3, 1, 2).contiguous()), features, rtol=1e-5, atol=1e-5)
    assert features.std() > 0


@pytest.mark.parametrize("cnn", [NatureCNN, ImpalaCNN])
def test_uint8_images_are_scaled_to_one_and_float_images_are_not(cnn):
    unscaled = cnn(spaces.Box(0, 1, (40, 44, 3), np.float32))
    scaled = cnn(HWC)
    scaled.load_state_dict(unscaled.state_dict())
    images = pixels()
    assert torch.equal(scaled(images), unscaled(images.float() / 255))
    assert scaled.image(images).max() <= 1
    assert scaled.image(images).shape == (2, 3, 40, 44)


def test_stacks_of_grey_frames_are_channels_first():
    encoder = NatureCNN(spaces.Box(0, 255, (4, 40, 40), np.uint8))
    assert encoder.image(pixels(shape=(4, 40, 40))).shape == (2, 4, 40, 40)


def test_discrete_observations_enter_one_hot():
    encoder = MLPEncoder(spaces.Discrete(4, start=2))
    assert first_layer_input(encoder, torch.tensor([2, 5, 3])).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


def test_uint8_vectors_are_scaled():
    encoder = MLPEncoder(spaces.Box(0, 255, (2,), np.uint8))
    assert first_layer_input(encoder, torch.tensor([[0, 255]], dtype=torch.uint8)).tolist() == [[0, 1]]


def test_matrices_are_flattened():
    encoder = MLPEncoder(spaces.Box(-1, 1, (2, 2)))
    obs = torch.arange(4.0).view(1, 2, 2)
    assert first_layer_input(encoder, obs).tolist() == [[0, 1, 2, 3]]


def test_scalars_become_a_column():
    encoder = MLPEncoder(spaces.Box(-1, 1, ()))
    assert first_layer_input(encoder, torch.tensor([0.5, 1.0])).tolist() == [[0.5], [1.0]]


def test_multi_binary_and_float64_enter_in_the_parameters_dtype():
    assert MLPEncoder(spaces.MultiBinary(3))(torch.ones(2, 3, dtype=torch.int8)).dtype == torch.float32
    assert MLPEncoder(VECTOR)(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(("in_keys", "expected"), [(None, [1, 2, 0, 1]), (["b", "a"], [0, 1, 1, 2]), (["b"], [0, 1])])
def test_dict_parts_are_read_in_the_order_of_in_keys(in_keys, expected):
    space = spaces.Dict(a=spaces.Box(-9, 9, (2,)), b=spaces.Discrete(2))
    encoder = MLPEncoder(space, in_keys=in_keys)
    obs = TensorDict({"b": torch.tensor([1]), "a": torch.tensor([[1.0, 2.0]])}, batch_size=[1])
    assert first_layer_input(encoder, obs).tolist() == [expected]


def test_an_image_encoder_finds_the_one_image():
    space = spaces.Dict(vector=VECTOR, image=HWC)
    encoder = NatureCNN(space)
    assert encoder.in_keys == ["image"]
    obs = TensorDict({"vector": torch.zeros(2, 3), "image": pixels()}, batch_size=[2])
    assert encoder(obs).shape == (2, 512)


def test_hidden_sizes_and_activation_are_used():
    encoder = MLPEncoder(VECTOR, hidden_sizes=[8, 5], activation="ReLU")
    assert [type(layer).__name__ for layer in encoder.layers] == ["Linear", "ReLU", "Linear", "ReLU"]
    features = encoder(torch.randn(50, 3))
    assert features.shape == (50, 5)
    assert features.min() == 0
    assert encoder.output_dim == 5
    assert isinstance(MLPEncoder(VECTOR).layers[1], torch.nn.Tanh)


@pytest.mark.parametrize(("side", "flat"), [(64, 32 * 8 * 8), (20, 32 * 3 * 3), (9, 32 * 2 * 2)])
def test_impala_fits_images_of_any_size(side, flat):
    encoder = ImpalaCNN(spaces.Box(0, 255, (side, side, 3), np.uint8))
    assert encoder.linear.in_features == flat
    assert encoder(pixels(shape=(side, side, 3))).shape == (2, 256)


def test_impala_equals_a_plain_implementation():
    encoder = ImpalaCNN(spaces.Box(0, 255, (16, 16, 3), np.uint8), channels=(4, 6), hidden_dim=5)
    weights, images = encoder.state_dict(), pixels(shape=(16, 16, 3))

    def conv(x, name):
        return torch.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    x = images.permute(0, 3, 1, 2).float() / 255
    for block in (0, 4):
        x = torch.max_pool2d(conv(x, f"blocks.{block}"), 3, stride=2, padding=1)
        for residual in (block + 2, block + 3):
            inner = conv(torch.relu(x), f"blocks.{residual}.conv0")
            x = x + conv(torch.relu(inner), f"blocks.{residual}.conv1")
    features = torch.relu(torch.relu(x).flatten(1) @ weights["linear.weight"].T + weights["linear.bias"])
    torch.testing.assert_close(encoder(images), features, rtol=1e-5, atol=1e-6)


GRID = spaces.Box(0, 255, (7, 7, 3), np.uint8)


def test_grid_cnn_equals_a_plain_implementation():
    encoder = GridCNN(spaces.Box(0, 255, (5, 4, 3), np.uint8), channels=(6, 8), hidden_dim=9)
    weights, grids = encoder.state_dict(), torch.randint(0, 11, (2, 5, 4, 3), dtype=torch.uint8)
    x = grids.permute(0, 3, 1, 2).float() / 10
    for name in ("layers.0", "layers.2"):
        x = torch.relu(torch.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))
    features = torch.relu(x.flatten(1) @ weights["layers.5.weight"].T + weights["layers.5.bias"])
    torch.testing.assert_close(encoder(grids), features, rtol=1e-5, atol=1e-6)
    assert features.shape == (2, encoder.output_dim) == (2, 9)
    assert features.std() > 0


def test_grid_cnn_has_the_sizes_and_gains_that_it_names():
    encoder = GridCNN(GRID)
    first, second, linear = (encoder.layers[number] for number in (0, 2, 5))
    assert [tuple(layer.weight.shape) for layer in (first, second, linear)] == [
        *((32, 3, 3, 3), (64, 32, 3, 3), (128, 64 * 7 * 7))
    ]
    torch.testing.assert_close(linear.weight @ linear.weight.T, 2 * torch.eye(128), rtol=1e-4, atol=1e-4)


def test_grid_categories_are_divided_by_the_scale():
    grids = torch.randint(0, 11, (2, 7, 7, 3), dtype=torch.uint8)
    assert torch.equal(GridCNN(GRID).image(grids), grids.permute(0, 3, 1, 2) / 10)
    assert torch.equal(GridCNN(GRID, scale=4).image(grids), grids.permute(0, 3, 1, 2) / 4)
    wide = GridCNN(spaces.Box(0, 6, (7, 7, 3), np.int64))
    assert torch.equal(wide.image(grids.long()), grids.permute(0, 3, 1, 2) / 10)


def test_grids_of_more_categories_than_cells_are_channels_last():
    encoder = GridCNN(spaces.Box(0, 255, (7, 5, 20), np.uint8), scale=1)
    assert encoder.image(torch.zeros(2, 7, 5, 20, dtype=torch.uint8)).shape == (2, 20, 7, 5)
    assert encoder(torch.zeros(2, 7, 5, 20, dtype=torch.uint8)).shape == (2, 128)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPEncoder(VECTOR, activation="Relu"), r"activation=Relu is not known.*Did you mean ReLU"),
        (lambda: MLPEncoder(VECTOR, hidden_sizes=[]), "hidden_sizes="),
        (lambda: MLPEncoder(VECTOR, hidden_sizes=[4, 0]), "hidden_sizes="),
        (lambda: MLPEncoder(HWC), "NatureCNN or ImpalaCNN"),
        (lambda: MLPEncoder(VECTOR, in_keys=["a"]), r"in_keys=\['a'\] needs a Dict observation"),
        (lambda: MLPEncoder(spaces.Dict(goal=VECTOR), in_keys=["gaol"]), "no key 'gaol'.*Did you mean goal"),
        (lambda: NatureCNN(VECTOR), "NatureCNN needs exactly one image.*MLPEncoder"),
        (lambda: ImpalaCNN(spaces.Dict(a=HWC, b=HWC)), "ImpalaCNN needs exactly one image.*in_keys"),
        (lambda: ImpalaCNN(spaces.Dict(a=VECTOR)), "ImpalaCNN needs exactly one image"),
        (lambda: MLPEncoder(GRID), "for small grids of categories to GridCNN"),
        (lambda: NatureCNN(GRID), "at least 36×36 pixels, not 7×7: .* GridCNN for grids of categories"),
        (lambda: GridCNN(VECTOR), "GridCNN needs exactly one image.*MLPEncoder"),
        (lambda: GridCNN(GRID, channels=[]), r"channels=\[\] must be one or more numbers of at least 1"),
        (lambda: GridCNN(GRID, channels=[8, 0]), r"channels=\[8, 0\] must be"),
        (lambda: GridCNN(GRID, hidden_dim=0), "hidden_dim=0 must be at least 1"),
        (lambda: GridCNN(GRID, scale=0), "scale=0 must be a number above 0"),
        (lambda: GridCNN(GRID, scale=float("nan")), "scale=nan must be a number above 0"),
        (lambda: NatureCNN(spaces.Box(0, 255, (35, 64, 3), np.uint8)), "at least 36×36 pixels, not 35×64"),
        (lambda: NatureCNN(HWC, channels=[32, 64]), r"channels=\[32, 64\] must be three numbers of at least 1"),
        (lambda: NatureCNN(HWC, channels=[32, 64, 0]), r"channels=\[32, 64, 0\] must be three"),
        (lambda: ImpalaCNN(spaces.Box(0, 255, (3, 64, 7), np.uint8)), "at least 8×8 pixels, not 64×7"),
    ],
)
def test_a_wrong_configuration_is_refused_in_words(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_narrower_convolutions():
    encoder = NatureCNN(spaces.Box(0, 255, (64, 64, 3), np.uint8), hidden_dim=256, channels=[16, 32, 48])
    weights = [part.weight.shape for part in encoder.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert weights == [(16, 3, 8, 8), (32, 16, 4, 4), (48, 32, 3, 3), (256, 48 * 4 * 4)]


def test_the_smallest_images_fit():
    assert NatureCNN(spaces.Box(0, 255, (36, 36, 1), np.uint8))(pixels(shape=(36, 36, 1))).shape == (2, 512)
    assert ImpalaCNN(spaces.Box(0, 255, (8, 8, 1), np.uint8))(pixels(shape=(8, 8, 1))).shape == (2, 256)
    assert GridCNN(spaces.Box(0, 255, (1, 1, 3), np.uint8))(pixels(shape=(1, 1, 3))).shape == (2, 128)
