"""Settings: strict, closed, and the same after a trip through a file."""

from datetime import date

import pytest

from storyrec.config import Config, config_from_json, load_config, parse_day, save_config
from storyrec.errors import ConfigError


def test_settings_survive_a_file_and_json(tmp_path):
    config = Config.model_validate_json('{"dual": {"margin": 2.5}, "windows": {"history_days": 3}}')
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config
    assert config_from_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[dual]\nbath_size = 3\n", "unknown key 'dual.bath_size'"),
        ("[deal]\nx = 1\n", "unknown key 'deal'"),
        ('[aden]\nbatch_size = "12"\n', "'aden.batch_size' = '12'"),
        ("[aden]\nbatch_size = 1\n", "'aden.batch_size' = 1"),
        ("[windows]\nhistory_days = 'sometimes'\n", "windows.history_days"),
        ("this is no toml", "is not TOML"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path, text, named):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert named in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_settings_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")


def test_a_day_is_a_date():
    assert parse_day("2026-03-09") == date(2026, 3, 9)
    with pytest.raises(ConfigError, match="yesterday"):
        parse_day("yesterday")


def test_every_default_can_be_written_as_toml(tmp_path):
    save_config(Config(), tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == Config()
