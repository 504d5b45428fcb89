"""Settings: defaults < config.toml < ``MFLUX_*`` environment < command line. Frozen, and complete once made."""

import logging
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import attrs
import msgspec
from msgspec import Meta

from mflux_api.catalog import BUILT_IN, Catalog, Model
from mflux_api.errors import ConfigError
from mflux_api.ipc.child_home import FOLDER as CHILD_HOME
from mflux_api.machine import DEVICES_VARIABLE, Devices

logger = logging.getLogger(__name__)

RETIRED: dict[str, str] = {}
"""Settings that a release took away → what to set in their place. A file that has one still loads, with a warning."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0.0)]
Timeout = Annotated[float, Meta(gt=0.0)]


@attrs.frozen(kw_only=True)
class ServerSettings:
    """``[server]``: where to listen and how to stop."""

    host: str = "0.0.0.0"
    port: Port = 7861
    drain_timeout_seconds: Seconds = 30.0
    cors_origins: tuple[str, ...] = ("*",)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What ``serve`` reports on standard error, where the command line does not say."""
    max_in_flight_mb: Positive | None = None
    """Memory for bodies and answers of all clients together; by default a thirty-second of the machine's."""
    max_connections: Positive | None = None
    """Connections at one time; by default what the limit of open files allows, up to 4,096."""
    max_connections_per_address: Positive | None = None
    """Connections of one address; by default half of all. A trusted proxy has as many as all."""
    root_path: Annotated[str, Meta(pattern=r"^(/[A-Za-z0-9._~-]{1,64}){0,8}\Z")] = ""
    """What paths begin with behind a proxy that does not say it in X-Forwarded-Prefix; no slash at its end."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies, whose X-Forwarded headers tell who the client is."""


@attrs.frozen(kw_only=True)
class CustomModel:
    """``[[models.custom]]``: a checkpoint of your own under a name of your own."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+$")]
    base: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None


@attrs.frozen(kw_only=True)
class ModelSettings:
    """``[models]``: which models, and where they are kept."""

    default: str = "flux2-klein-4b"
    auto_download: bool = True
    cache_dir: Path = Path("models")
    custom: tuple[CustomModel, ...] = ()


@attrs.frozen(kw_only=True)
class GenerationSettings:
    """``[generation]``: defaults of a job, and where its images go."""

    default_steps: Annotated[int, Meta(ge=1, le=200)] = 4
    max_batch_size: Annotated[int, Meta(ge=1, le=64)] = 4
    output_dir: Path = Path("output")
    metadata: bool = True
    """Whether image files say how they were made: prompt, seed, model."""
    styles_file: Path | None = None
    """Prompt styles in A1111's ``styles.csv``."""


@attrs.frozen(kw_only=True)
class SchedulerSettings:
    """``[scheduler]``: the queue."""

    max_queue: Positive = 100
    max_queue_per_caller: Positive | None = None
    """Of one API key or address; ``None``: a share that depends on who else waits."""
    max_inputs_gb: Annotated[float, Meta(gt=0.0)] = 1.0
    max_attempts: Positive = 2
    max_affinity_skips: Annotated[int, Meta(ge=0)] = 4
    cancel_grace_seconds: Seconds = 10.0
    batch_window_ms: Annotated[int, Meta(ge=0)] = 0


@attrs.frozen(kw_only=True)
class EngineSettings:
    """``[engine]``: the child process that holds the model."""

    start_timeout_seconds: Timeout = 60.0
    step_timeout_seconds: Timeout = 300.0
    silence_seconds: Timeout = 120.0
    heartbeat_seconds: Annotated[float, Meta(ge=2.0)] = 10.0
    preload: bool = False
    devices: Devices = "auto"
    """``auto``: the GPU where MLX has one, else the CPU."""
    fast_path: bool = True
    """Compute in the project's own ways where they are faster; else as mflux does, to the bit."""


@attrs.frozen(kw_only=True)
class JobSettings:
    """``[jobs]``: how long finished jobs are kept; images are the user's, and stay unless told otherwise."""

    keep_completed: Annotated[int, Meta(ge=0)] = 1000
    ttl_hours: Annotated[float, Meta(ge=0.0)] = 168.0
    delete_images: bool = False
    max_images_gb: Annotated[float, Meta(gt=0.0)] | None = None
    state_dir: Path | None = None


@attrs.frozen(kw_only=True)
class LoraSettings:
    """``[lora]``: where LoRA files may come from."""

    dirs: tuple[Path, ...] = (Path("loras"),)
    max_upload_mb: Positive = 1024
    follow_links: bool = False
    """Whether a link in one of the folders may lead out of all of them."""


@attrs.frozen(kw_only=True)
class MemorySettings:
    """``[memory]``: how much the models may take."""

    budget_gb: Annotated[float, Meta(gt=0.0)] | None = None
    idle_unload_seconds: Seconds = 0.0


@attrs.frozen(kw_only=True)
class SecuritySettings:
    """``[security]``: who may call."""

    api_keys: tuple[Annotated[str, Meta(min_length=1)], ...] = attrs.field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    """Further host names to answer to; ``.example.com`` with its subdomains, ``*`` is every name."""
    keys_file: Path | None = None
    """Keys with names, scopes and limits, as digests."""
    open: tuple[Literal["/docs", "/metrics", "/openapi.json"], ...] = ()
    """Paths that need no key, although they do otherwise."""
    shared_jobs: bool = False
    """Whether every key sees and cancels the jobs of all."""


@attrs.frozen(kw_only=True)
class OpenAISettings:
    """``[openai]``: OpenAI's API."""

    aliases: bool = True
    """Whether names of OpenAI's models that clients have built in stand for the default model."""


@attrs.frozen(kw_only=True)
class LoggingSettings:
    """``[logging]``: the lines that ``serve`` writes to standard error."""

    format: Literal["text", "json"] = "text"


@attrs.frozen(kw_only=True)
class WebhookSettings:
    """``[webhooks]``: telling the receivers that requests name of the end of their jobs."""

    enabled: bool = False
    secret: str | None = attrs.field(default=None, repr=False)
    """What messages are signed with, after Standard Webhooks: ``whsec_`` and base64."""
    secret_file: Path | None = None
    """A file that holds the secret, in place of ``secret``."""
    public_url: Annotated[str, Meta(pattern=r"^https?://[^\s?#@]+$")] | None = None
    """What receivers call this server, for the URLs of images; by default they get paths."""
    allow_private_addresses: bool = False
    """Whether receivers may be on this machine and in its networks."""
    timeout_seconds: Annotated[float, Meta(gt=0.0, le=300.0)] = 10.0
    """For one attempt as a whole."""
    max_attempts: Positive = 8
    max_age_hours: Annotated[float, Meta(gt=0.0, le=720.0)] = 24.0
    """After the job's end; then it is given up."""
    max_pending_per_caller: Positive = 100
    """Deliveries of one key or address that wait; further requests with a webhook are refused."""


@attrs.frozen(kw_only=True)
class Settings:
    """Everything one service can be told. ``Settings()`` is what an empty config file gives."""

    server: ServerSettings = ServerSettings()
    models: ModelSettings = ModelSettings()
    generation: GenerationSettings = GenerationSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    engine: EngineSettings = EngineSettings()
    jobs: JobSettings = JobSettings()
    lora: LoraSettings = LoraSettings()
    memory: MemorySettings = MemorySettings()
    security: SecuritySettings = SecuritySettings()
    openai: OpenAISettings = OpenAISettings()
    webhooks: WebhookSettings = WebhookSettings()
    logging: LoggingSettings = LoggingSettings()

    @property
    def state_dir(self) -> Path:
        """Where the job store and its lock live."""
        return self.jobs.state_dir or self.generation.output_dir

    @property
    def child_home(self) -> Path:
        """The home of child processes where their user has none; a child that needs it makes it."""
        return self.state_dir / CHILD_HOME

    @property
    def kernels_dir(self) -> Path:
        """The folder of what CUDA compiled."""
        return self.models.cache_dir / "kernels"

    def catalog(self) -> Catalog:
        """Return the model table with the custom entries laid over it.

        Raises:
            ConfigError: a custom entry is incomplete, doubled or names an unknown base.
        """
        bases = {model.alias: model for model in BUILT_IN if model.base == model.alias}
        entries: dict[str, Model] = {}
        for custom in self.models.custom:
            where = f"models.custom '{custom.name}'"
            if custom.base not in bases:
                raise ConfigError(f"{where}: base '{custom.base}' is unknown; choose one of {', '.join(bases)}")
            if (custom.path is None) == (custom.repo is None):
                raise ConfigError(f"{where}: give either 'path' or 'repo'")
            if custom.name in entries:
                raise ConfigError(f"{where}: the name is used twice")
            entries[custom.name] = attrs.evolve(
                bases[custom.base],
                alias=custom.name,
                repo=custom.repo or "",
                revision=custom.revision,
                path=None if custom.path is None else str(custom.path),
                description=f"Custom checkpoint with the rules of {custom.base}",
                embedded=False,
                gated=False,
                size_gb=None,
                size_source=None,
            )
        return Catalog(entries.values())


_DEFAULT_MODEL = "MFLUX_DEFAULT_MODEL"
_ENVIRONMENT: dict[str, tuple[str, str]] = {
    "MFLUX_API_HOST": ("server", "host"),
    "MFLUX_API_PORT": ("server", "port"),
    _DEFAULT_MODEL: ("models", "default"),
    "MFLUX_OUTPUT_DIR": ("generation", "output_dir"),
    "MFLUX_MODELS_DIR": ("models", "cache_dir"),
    "MFLUX_API_KEYS": ("security", "api_keys"),
    "MFLUX_WEBHOOK_SECRET": ("webhooks", "secret"),
    DEVICES_VARIABLE: ("engine", "devices"),
}


def load_settings(
    config: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Read the settings.

    Args:
        config: the TOML file; ``None`` takes ``./config.toml`` if there is one.
        environ: the environment; ``os.environ`` by default.
        overrides: section → key → value from the command line; ``None`` values are ignored.

    Raises:
        ConfigError: the file cannot be read, has an unknown key, or a value of the wrong type.
    """
    environ = os.environ if environ is None else environ
    tree: dict[str, Any] = {}
    if config is None and Path("config.toml").is_file():
        config = Path("config.toml")
    if config is not None:
        tree = _read(config)
        _drop_retired(tree, config.name)
        _check(tree, Settings, config.name)
        _anchor_paths(tree, config.resolve().parent)
        _warn_of_readers(tree, config)
    settings = _convert(tree, str(config.name) if config is not None else "defaults")
    for name, (section, key) in _ENVIRONMENT.items():
        value = environ.get(name)
        if key == "api_keys" and value is not None:
            settings = _override(settings, section, key, _keys(value, name), name)
        elif value:
            settings = _override(settings, section, key, value, name)
    for section, keys in (overrides or {}).items():
        for key, value in keys.items():
            if value is not None:
                settings = _override(settings, section, key, value, f"--{key.replace('_', '-')}")
    settings = _absolute(settings)
    _check_default(settings, _DEFAULT_MODEL if environ.get(_DEFAULT_MODEL) else "models.default")
    return settings


def _check_default(settings: Settings, source: str) -> None:
    """Raise where the default model is not in the catalog; no command can list it then, so the error does."""
    catalog, name = settings.catalog(), settings.models.default
    if catalog.get(name) is None:
        raise ConfigError(f"{source}: no model is called '{name}'; expected one of {', '.join(catalog.aliases())}")


def _keys(text: str, source: str) -> list[str]:
    """Split the variable's keys; a variable without a key is a mistake, not a wish for a service without keys."""
    keys = [key for part in text.split(",") if (key := part.strip())]
    if not keys:
        raise ConfigError(f"{source}: it is set but holds no key; unset it to serve without keys")
    return keys


def _read(path: Path) -> dict[str, Any]:
    if path.suffix.lower() in {".yaml", ".yml"}:
        raise ConfigError(f"{path.name}: the configuration is TOML; write it as config.toml")
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))  # editors on Windows write a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"{path.name}: no such file; copy config.toml.example") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read: {error.strerror}") from None


def _drop_retired(tree: dict[str, Any], where: str) -> None:
    """Take retired keys out of the file's content, and say what replaces each."""
    for name, successor in RETIRED.items():
        *sections, key = name.split(".")
        table: Any = tree
        for section in sections:
            table = table.get(section, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict) and key in table:
            del table[key]
            # A section may have been retired with its last key.
            if not table and sections and sections[0] not in get_type_hints(Settings):
                del tree[sections[0]]
            logger.warning(
                "%s: '%s' is a retired setting and is ignored; set '%s' in its place", where, name, successor
            )


def _check(tree: Mapping[str, Any], target: type[Any], where: str, prefix: str = "") -> None:
    """Raise on a key that no settings class has."""
    hints = get_type_hints(target)
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'; known keys here: {', '.join(hints)}")
        hint = hints[key]
        if attrs.has(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: '{prefix}{key}' must be a table")
            _check(value, hint, where, f"{prefix}{key}.")
        elif get_origin(hint) is tuple and attrs.has(get_args(hint)[0]):
            if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
                raise ConfigError(f"{where}: '{prefix}{key}' must be an array of tables: [[{prefix}{key}]]")
            for entry in value:
                _check(entry, get_args(hint)[0], where, f"{prefix}{key}.")


def _warn_of_readers(tree: Mapping[str, Any], path: Path) -> None:
    """Say when keys are kept in a file that other users can read; older configurations do, so it is not an error."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return
    for held, what, instead in (
        (tree.get("security", {}).get("api_keys"), "API keys", "security.keys_file"),
        (tree.get("webhooks", {}).get("secret"), "the secret of webhooks", "webhooks.secret_file"),
    ):
        if held:
            logger.warning(
                "%s: it holds %s, and its mode is %o, so other users can read it; run `chmod 600` on it, or use %s",
                path.name,
                what,
                mode,
                instead,
            )


_PATHS = (
    ("models", "cache_dir"),
    ("generation", "output_dir"),
    ("generation", "styles_file"),
    ("jobs", "state_dir"),
    ("security", "keys_file"),
    ("webhooks", "secret_file"),
)


def _anchor_paths(tree: dict[str, Any], folder: Path) -> None:
    """Make the file's relative paths relative to the file's folder."""

    def anchor(value: Any) -> Any:
        # What begins with a home folder belongs to no other; `_decode` finds out which one it is.
        return str(folder / value) if isinstance(value, str) and not value.startswith("~") else value

    for section, key in _PATHS:
        if key in tree.get(section, {}):
            tree[section][key] = anchor(tree[section][key])
    if isinstance(dirs := tree.get("lora", {}).get("dirs"), list):
        tree["lora"]["dirs"] = [anchor(value) for value in dirs]
    for custom in tree.get("models", {}).get("custom", []):
        if "path" in custom:
            custom["path"] = anchor(custom["path"])


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise ValueError("the home folder that '~' stands for is unknown; write the whole path") from None
    raise TypeError(f"expected a path as a string, got {type(value).__name__}")


def _convert(tree: Mapping[str, Any], where: str) -> Settings:
    try:
        return msgspec.convert(tree, Settings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        key = path.strip("`").removeprefix("$.")
        hint: Any = Settings
        for name in key.split("."):
            hint = get_type_hints(hint).get(name) if attrs.has(hint) else None
        raise ConfigError(f"{where}: '{key}': {_with_choices(message, hint)}") from None


def _with_choices(message: str, hint: Any) -> str:
    """Return the message with what was expected, which it lacks where a value is not among those of a ``Literal``."""
    before, _, value = message.partition("Invalid enum value ")
    if before or not value or get_origin(hint) is not Literal:
        return message
    return f"Expected one of {', '.join(map(repr, get_args(hint)))}, got {value}"


def _override(settings: Settings, section: str, key: str, value: Any, source: str) -> Settings:
    part = getattr(settings, section)
    hint = get_type_hints(type(part), include_extras=True)[key]
    try:
        plain = str(value) if isinstance(value, Path) else value
        converted = msgspec.convert(plain, hint, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_with_choices(str(error), hint)}") from None
    return attrs.evolve(settings, **{section: attrs.evolve(part, **{key: converted})})


def _absolute(settings: Settings) -> Settings:
    """Bind what is still relative to the working directory of this moment."""
    return attrs.evolve(
        settings,
        models=attrs.evolve(settings.models, cache_dir=settings.models.cache_dir.absolute()),
        generation=attrs.evolve(settings.generation, output_dir=settings.generation.output_dir.absolute()),
        lora=attrs.evolve(settings.lora, dirs=tuple(path.absolute() for path in settings.lora.dirs)),
    )
