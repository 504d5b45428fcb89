"""Settings: where they come from, which wins, and what a mistake is answered with."""

import logging
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import attrs
import pytest

from mflux_api import config
from mflux_api.config import Settings, load_settings
from mflux_api.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parent.parent / "config.toml.example"


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return path


def keys(target: type[Any], prefix: str = "") -> set[str]:
    """Return every dotted key of a settings class; lists of tables by the name of the list."""
    names = set()
    for name, hint in get_type_hints(target).items():
        if attrs.has(hint):
            names |= keys(hint, f"{prefix}{name}.")
        elif any(attrs.has(part) for part in get_args(hint)):
            names |= {f"{prefix}{name}[].{field.name}" for field in attrs.fields(get_args(hint)[0])}
        else:
            names.add(prefix + name)
    return names


def uncommented(text: str) -> str:
    """Return the example with its commented-out settings switched on."""
    return "\n".join(
        line.removeprefix("# ") if line.startswith(("# [[", "# ")) and ("=" in line or "[[" in line) else line
        for line in text.splitlines()
    )


def test_example_shows_every_key_and_no_other(tmp_path: Path) -> None:
    tree = tomllib.loads(uncommented(EXAMPLE.read_text("utf-8")))
    shown = set()
    for section, entries in tree.items():
        for key, value in entries.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                shown |= {f"{section}.{key}[].{name}" for entry in value for name in entry}
            else:
                shown.add(f"{section}.{key}")
    optional = {"models.custom[].repo", "models.custom[].revision"}
    assert shown | optional == keys(Settings)


def test_example_shows_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(EXAMPLE.read_text("utf-8"), "utf-8")
    (tmp_path / "empty.toml").write_text("")
    loaded = load_settings(tmp_path / "config.toml", environ={})
    empty = load_settings(tmp_path / "empty.toml", environ={})
    anchored = attrs.evolve(
        empty,
        models=attrs.evolve(empty.models, cache_dir=tmp_path / "models"),
        generation=attrs.evolve(empty.generation, output_dir=tmp_path / "output"),
        lora=attrs.evolve(empty.lora, dirs=(tmp_path / "loras",)),
    )
    assert loaded == anchored


def test_documented_defaults() -> None:
    settings = Settings()
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 7861)
    assert settings.models.default == "flux2-klein-4b"
    assert (settings.generation.default_steps, settings.generation.max_batch_size) == (4, 4)
    assert (settings.scheduler.max_queue, settings.scheduler.max_attempts) == (100, 2)


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    path = written(tmp_path, '[server]\nhost = "1.1.1.1"\nport = 1\ndrain_timeout_seconds = 5\n')
    environ = {"MFLUX_API_HOST": "2.2.2.2", "MFLUX_API_PORT": "2"}
    settings = load_settings(path, environ=environ, overrides={"server": {"host": None, "port": 3}})
    server = settings.server
    assert (server.drain_timeout_seconds, server.host, server.port) == (5.0, "2.2.2.2", 3)


def test_every_environment_variable(tmp_path: Path) -> None:
    settings = load_settings(
        written(tmp_path, ""),
        environ={
            "MFLUX_API_HOST": "localhost",
            "MFLUX_API_PORT": "9000",
            "MFLUX_DEFAULT_MODEL": "demo",
            "MFLUX_OUTPUT_DIR": "/images",
            "MFLUX_MODELS_DIR": "/weights",
            "MFLUX_API_KEYS": "first-key,second-key",
            "MFLUX_SOMETHING_OF_MFLUX": "ignored",
        },
    )
    assert (settings.server.host, settings.server.port, settings.models.default) == ("localhost", 9000, "demo")
    assert settings.generation.output_dir == settings.state_dir == Path("/images")
    assert settings.models.cache_dir == Path("/weights")
    assert settings.security.api_keys == ("first-key", "second-key")
    assert "first-key" not in repr(settings)


def test_paths_in_the_file_belong_to_its_folder_and_others_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = '[generation]\noutput_dir = "images"\n[[models.custom]]\nname = "mine"\nbase = "demo"\npath = "weights"\n'
    settings = load_settings(written(tmp_path / "there", text), environ={"MFLUX_MODELS_DIR": "cache"})
    assert settings.generation.output_dir == tmp_path / "there" / "images"
    assert settings.models.custom[0].path == tmp_path / "there" / "weights"
    assert settings.models.cache_dir == tmp_path / "here" / "cache"


def test_file_in_the_working_directory_is_read_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).server.port == 7861
    written(tmp_path, "[server]\nport = 5\n")
    assert load_settings(environ={}).server.port == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nprot = 1", "unknown key 'server.prot'"),
        ("prot = 1", "unknown key 'prot'"),
        ("[sever]\nport = 1", "unknown key 'sever'"),
        ("server = 1", "'server' must be a table"),
        ('[server]\nport = "7861"', "'server.port': Expected `int`, got `str`"),
        ("[server]\nport = 70000", "'server.port'"),
        ("[server]\nport = true", "'server.port'"),
        ("[scheduler]\nmax_queue = 0", "'scheduler.max_queue'"),
        ("[generation]\noutput_dir = 5", "'generation.output_dir'"),
        ("[models]\ncustom = 5", "'models.custom'"),
        ("[[models.custom]]\nname = 'a b'\nbase = 'demo'\npath = 'x'", "custom[0].name"),
        ("[[models.custom]]\nname = 'a'\nbase = 'demo'\npath = 'x'\nwhat = 1", "unknown key 'models.custom.what'"),
        ("[[models.custom]]\nbase = 'demo'\npath = 'x'", "missing required field `name`"),
        ("[[models.custom]]\nname = 'a'\nbase = 'nonsense'\npath = 'x'", "base 'nonsense' is unknown"),
        ("[[models.custom]]\nname = 'a'\nbase = 'flux2-klein-4b-4-bit'\npath = 'x'", "is unknown"),
        ("[[models.custom]]\nname = 'a'\nbase = 'demo'", "either 'path' or 'repo'"),
        ("[[models.custom]]\nname = 'a'\nbase = 'demo'\npath = 'x'\nrepo = 'y/z'", "either 'path' or 'repo'"),
        ("[[models.custom]]\nname='a'\nbase='demo'\npath='x'\n" * 2, "used twice"),
        (
            "[models]\ndefault = 'nonsense'",
            "models.default: no model is called 'nonsense'; expected one of flux2-klein-4b",
        ),
        ("[engine]\ndevices = 'tpu'", "'engine.devices': Expected one of 'auto', 'cpu', 'gpu', got 'tpu'"),
        (
            "[server]\nlog_level = 'loud'",
            "'server.log_level': Expected one of 'debug', 'info', 'warning', 'error', got",
        ),
        ("[server\nport = 1", "not valid TOML"),
    ],
)
def test_mistake_names_file_key_and_what_was_expected(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(written(tmp_path, text), environ={})
    assert says in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_yaml_is_an_error_that_names_toml(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("server:\n  port: 1\n")
    with pytest.raises(ConfigError, match="TOML"):
        load_settings(tmp_path / "config.yaml", environ={})


def test_missing_file_and_bad_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(tmp_path / "nothing.toml", environ={})
    with pytest.raises(ConfigError, match="MFLUX_API_PORT"):
        load_settings(written(tmp_path, ""), environ={"MFLUX_API_PORT": "many"})
    with pytest.raises(ConfigError, match="MFLUX_API_DEVICES: Expected one of 'auto', 'cpu', 'gpu', got 'tpu'"):
        load_settings(written(tmp_path, ""), environ={"MFLUX_API_DEVICES": "tpu"})
    with pytest.raises(ConfigError, match="MFLUX_DEFAULT_MODEL: no model is called 'klein'; expected one of flux2"):
        load_settings(written(tmp_path, ""), environ={"MFLUX_DEFAULT_MODEL": "klein"})


@pytest.mark.parametrize(("text", "keys"), [("secret,", ("secret",)), (" a , ,b ", ("a", "b")), (",x", ("x",))])
def test_trailing_comma_in_the_keys_variable_adds_no_empty_key(
    tmp_path: Path, text: str, keys: tuple[str, ...]
) -> None:
    settings = load_settings(written(tmp_path, ""), environ={"MFLUX_API_KEYS": text})
    assert settings.security.api_keys == keys


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_keys_variable_without_a_key_is_a_mistake_and_admits_no_caller(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="MFLUX_API_KEYS"):
        load_settings(written(tmp_path, ""), environ={"MFLUX_API_KEYS": text})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[security]\napi_keys = ["a", ""]', "'security.api_keys"),
        ('[models]\ncustom = {name = "a", base = "demo", path = "x"}', "'models.custom' must be an array of tables"),
        ('[generation]\noutput_dir = "~no-such-user-of-ours/x"', "'generation.output_dir'"),
        ('[lora]\ndirs = ["~no-such-user-of-ours/x"]', "'lora.dirs"),
        ("[[models.custom]]\nname = 'a'\nbase = 'demo'\npath = '~no-such-user-of-ours/x'", "'models.custom[0].path'"),
        ("[engine]\nstart_timeout_seconds = 0", "'engine.start_timeout_seconds'"),
        ("[engine]\nstep_timeout_seconds = 0.0", "'engine.step_timeout_seconds'"),
    ],
)
def test_value_that_once_crashed_the_start_is_a_mistake_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(written(tmp_path, text), environ={})
    assert says in str(caught.value)


def test_tilde_is_the_home_folder_wherever_a_path_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = load_settings(
        written(tmp_path, '[jobs]\nstate_dir = "~/state"\n'),
        environ={"MFLUX_MODELS_DIR": "~/models"},
        overrides={"generation": {"output_dir": Path("~/output")}},
    )
    home = tmp_path / "home"
    assert (settings.models.cache_dir, settings.generation.output_dir) == (home / "models", home / "output")
    assert settings.state_dir == home / "state"
    with pytest.raises(ConfigError, match="MFLUX_MODELS_DIR"):
        load_settings(written(tmp_path, ""), environ={"MFLUX_MODELS_DIR": "~no-such-user-of-ours/x"})


def test_yaml_in_capitals_is_an_error_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TOML"):
        load_settings(tmp_path / "config.YAML", environ={})
    (tmp_path / "config.toml").write_text("[server]\nport = 7\n", "utf-8-sig")
    assert load_settings(tmp_path / "config.toml", environ={}).server.port == 7


def test_secret_of_webhooks_in_a_file_that_others_can_read_is_a_warning_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, '[webhooks]\nsecret = "whsec_hunter2"\n')
    path.chmod(0o644)
    load_settings(path, environ={})
    assert "config.toml: it holds the secret of webhooks, and its mode is 644" in caplog.text
    assert "hunter2" not in caplog.text


def test_secret_of_webhooks_comes_from_the_environment_too() -> None:
    assert load_settings(environ={"MFLUX_WEBHOOK_SECRET": "whsec_x"}).webhooks.secret == "whsec_x"


def test_keys_in_a_file_that_others_can_read_are_a_warning_without_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "a key of nineteen letters"
    path = written(tmp_path, f'[security]\napi_keys = ["{secret}"]\n')
    path.chmod(0o600)
    load_settings(path, environ={})
    assert not caplog.records
    path.chmod(0o640)
    assert load_settings(path, environ={}).security.api_keys == (secret,)
    assert "config.toml: it holds API keys, and its mode is 640" in caplog.text
    assert secret not in caplog.text
    caplog.clear()
    written(tmp_path, "[security]\napi_keys = []\n")
    load_settings(path, environ={"MFLUX_API_KEYS": secret})
    assert not caplog.records


def test_retired_setting_is_a_warning_that_names_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(config.RETIRED, "generation.old_steps", "generation.default_steps")
    file = written(tmp_path, "[generation]\nold_steps = 7\nmax_batch_size = 2\n")
    with caplog.at_level(logging.WARNING):
        settings = load_settings(file, environ={})
    assert (settings.generation.default_steps, settings.generation.max_batch_size) == (4, 2)
    [line] = caplog.messages
    assert "config.toml" in line
    assert "'generation.old_steps'" in line
    assert "'generation.default_steps'" in line


def test_retired_settings_without_a_place_in_the_file_give_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(config.RETIRED, "old_section.key", "generation.default_steps")
    load_settings(written(tmp_path, "[generation]\nmax_batch_size = 2\n"), environ={})
    assert not caplog.messages


def test_section_that_is_empty_without_its_retired_key_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(config.RETIRED, "old_section.key", "generation.default_steps")
    assert load_settings(written(tmp_path, "[old_section]\nkey = 1\n"), environ={}) == load_settings(
        written(tmp_path, ""), environ={}
    )
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("text", ["old_section = 1", "[old_section]\nkey = 1\nother = 2"])
def test_what_is_beside_a_retired_setting_is_still_checked(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(config.RETIRED, "old_section.key", "generation.default_steps")
    with pytest.raises(ConfigError, match="unknown key 'old_section'"):
        load_settings(written(tmp_path, text), environ={})
