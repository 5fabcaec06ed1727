"""Configurations: strict, and found by name."""

from pathlib import Path

import pytest

from annotator.config import NetworkConfig, config_folder, from_dict, read_config, to_dict
from annotator.errors import UserError
from trainer.config import TrainConfig


def test_dictionaries_round_trip():
    config = NetworkConfig(crop_px=96, variant="amvur")
    assert from_dict(NetworkConfig, to_dict(config), "here") == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bakbone": "resnet50"}, "unknown key 'bakbone'; did you mean 'backbone'?"),
        ({"zzz": 1}, "known keys are backbone"),
        ({"amvur": {"widht": 3}}, "amvur: unknown key 'widht'; did you mean 'width'?"),
        ({"crop_px": "big"}, "crop_px is 'big', must be int"),
        ({"crop_px": True}, "crop_px is True, must be int"),
        ({"variant": "all"}, "variant is 'all', may be prior_net, amvur, both"),
        (
            {"variant": "amvur", "amvur": {"start": "prior_net"}},
            "start is prior_net, which the variant amvur does not have: use mean_hand",
        ),
        ({"landmarks": True, "read_outs": True}, "landmarks and read_outs both predict joint positions"),
        ({"amvur": 3}, "amvur: expected keys and values, found 3"),
        ({"crop_px": 0}, "crop_px is 0, must be at least 32"),
        ({"amvur": {"heads": 3}}, "width 128 with 1 stages and 3 heads must be a multiple of 3"),
        ({"amvur": {"tokens": 2}}, "amvur: tokens is 2, must be at least 5"),
        ([1], "expected keys and values"),
    ],
)
def test_mistakes_name_the_key_and_what_it_may_be(values, words):
    with pytest.raises(UserError) as error:
        from_dict(NetworkConfig, values, "my.yaml")
    assert (
        words in str(error.value) and str(error.value).startswith("my.yaml") and "\n" not in str(error.value)
    )


def test_files_that_are_missing_or_not_yaml_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no configuration 'nope'.*default"):
        read_config(NetworkConfig, "network", "nope")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(UserError, match="not YAML"):
        read_config(NetworkConfig, "network", str(broken))


@pytest.mark.parametrize(
    "name",
    sorted(
        p.relative_to(config_folder() / "network").with_suffix("").as_posix()
        for p in Path(config_folder() / "network").rglob("*.yaml")
    ),
)
def test_every_shipped_network_configuration_reads(name):
    assert isinstance(read_config(NetworkConfig, "network", name), NetworkConfig)


def test_an_empty_value_of_a_text_setting_is_an_empty_text():
    config = read_config(TrainConfig, "train", "supervised", ["backbone_from="])
    assert config.backbone_from == ""


def test_settings_of_files_and_runs_from_before_a_rename_are_read(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("loss: {guess: 3, doubt: 0.5}")
    loss = read_config(TrainConfig, "train", str(path)).loss
    assert (loss.detector_joints3d, loss.label_std_scale) == (3, 0.5)
    assert read_config(TrainConfig, "train", "self", ["loss.doubt=2"]).loss.label_std_scale == 2
    with pytest.raises(UserError, match="unknown key 'was'"):
        from_dict(TrainConfig, {"loss": {"was": 1}}, "settings")
