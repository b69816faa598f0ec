"""Settings are checked when they are made, and the environment is read in one place."""

from __future__ import annotations

import logging
import math

import msgspec
import pytest

from natsjobs.config import Config, Limits, Retention, Timing
from natsjobs.errors import ConfigError, NatsJobsError


def test_defaults_are_those_of_the_interface():
    """The values that are promised."""
    config = Config()
    assert (config.namespace, config.replicas, config.storage) == ("natsjobs", 1, "file")
    assert (config.fold, config.enc_hook, config.domain, config.allow_loss) == (None, None, None, False)
    assert (config.retention.running, config.retention.finished, config.retention.usage) == (1200.0, 300.0, 604800.0)
    assert config.limits.event_bytes == 8_388_608
    timing = config.timing
    assert (timing.lease, timing.renew, timing.request, timing.abort, timing.give_up) == (10.0, 3.0, 5.0, 2.0, 60.0)
    assert config == Config.from_env({})


def test_settings_cannot_be_changed():
    """They are values; a new Config is checked as a whole."""
    config = Config()
    for part in (config, config.retention, config.limits, config.timing):
        with pytest.raises(AttributeError):
            setattr(part, part.__struct_fields__[0], 1)
    with pytest.raises(ConfigError):
        msgspec.structs.replace(config, replicas=2).__post_init__()


BAD_NUMBERS = [-1, 0, math.nan, math.inf, -math.inf, "5", None, True, [], 5j]
MAY_BE_ZERO = {"retention.running", "timing.linger", "timing.linger_unwatched"}
PARTS = {"retention": Retention, "limits": Limits, "timing": Timing}
NUMBERS = [f"{name}.{field}" for name, kind in PARTS.items() for field in kind.__struct_fields__]


@pytest.mark.parametrize("setting", NUMBERS)
@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
def test_numbers_that_can_never_be_right_are_refused_by_name(setting, value):
    """Each one, also where msgspec itself would take anything."""
    part, field = setting.split(".")
    if value == 0 and not isinstance(value, bool) and setting in MAY_BE_ZERO:
        assert getattr(getattr(Config(**{part: PARTS[part](**{field: 0})}), part), field) == 0
        return
    with pytest.raises(ConfigError) as refused:
        Config(**{part: PARTS[part](**{field: value})})
    assert refused.value.field == setting


@pytest.mark.parametrize("field", Limits.__struct_fields__)
def test_sizes_are_whole_numbers(field):
    """Bytes and events are counted."""
    with pytest.raises(ConfigError, match="whole number") as refused:
        Config(limits=Limits(**{field: 1.5}))
    assert refused.value.field == f"limits.{field}"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"namespace": ""}, "namespace"),
        ({"namespace": "a.b"}, "namespace"),
        ({"namespace": "*"}, "namespace"),
        ({"namespace": ">"}, "namespace"),
        ({"namespace": "$KV"}, "namespace"),
        ({"namespace": "a\n"}, "namespace"),
        ({"namespace": "ü"}, "namespace"),
        ({"namespace": "x" * 65}, "namespace"),
        ({"namespace": None}, "namespace"),
        ({"namespace": 5}, "namespace"),
        ({"replicas": 2}, "replicas"),
        ({"replicas": "3"}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"replicas": 3.0}, "replicas"),
        ({"replicas": []}, "replicas"),
        ({"storage": "disk"}, "storage"),
        ({"storage": None}, "storage"),
        ({"storage": []}, "storage"),
        ({"storage": "memory"}, "storage"),
        ({"domain": ""}, "domain"),
        ({"domain": "a.b"}, "domain"),
        ({"domain": 5}, "domain"),
        ({"fold": "natsjobs.content.fold"}, "fold"),
        ({"enc_hook": {}}, "enc_hook"),
        ({"allow_loss": "false"}, "allow_loss"),
        ({"allow_loss": None}, "allow_loss"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"max_bytes": 1_000_000}, "max_bytes"),
        ({"max_bytes": 1e9}, "max_bytes"),
        ({"max_bytes": True}, "max_bytes"),
        ({"create": "no"}, "create"),
        ({"create": None}, "create"),
        ({"retention": None}, "retention"),
        ({"limits": {}}, "limits"),
        ({"timing": Retention()}, "timing"),
        ({"limits": Limits(id_bytes=257)}, "limits.id_bytes"),
        ({"timing": Timing(lease=5.0)}, "timing.lease"),
        ({"timing": Timing(lease=1.0, renew=0.3)}, "timing.lease"),
        ({"retention": Retention(running=86_400.0)}, "retention.log"),
        ({"retention": Retention(log=1000.0)}, "retention.log"),
    ],
)
def test_wrong_and_contradicting_settings_are_refused_by_name(settings, field):
    """When the object is made, with an error that is a ValueError too."""
    with pytest.raises(ConfigError) as refused:
        Config(**settings)
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: ")
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, NatsJobsError)


@pytest.mark.parametrize(
    "settings",
    [
        {"namespace": "a-B_9"},
        {"storage": "memory", "allow_loss": True},
        {"storage": "memory", "replicas": 3},
        {"replicas": 5, "domain": "leaf-1"},
        {"max_bytes": 1_048_576},
        {"timing": Timing(lease=6.0)},
        {"timing": Timing(lease=2, renew=1)},
        {"retention": Retention(running=0)},
        {"timing": Timing(linger=0)},
        {"timing": Timing(linger=0, linger_unwatched=0.001)},
        {"timing": Timing(linger=5, linger_unwatched=0)},
        {"timing": Timing(linger=0.6)},
        {"timing": Timing(linger=0.5, linger_unwatched=0.5)},
        {"fold": list, "enc_hook": str},
    ],
)
def test_settings_that_fit_are_taken(settings):
    """At the limits too; whole numbers are fine for seconds."""
    config = Config(**settings)
    for field, value in settings.items():
        assert getattr(config, field) == value


# -- environment ------------------------------------------------------------------------------------------------


def test_the_environment_can_set_everything_that_is_text():
    """All but the callables; each number by the name of its part."""
    names = {"NATSJOBS_NAMESPACE": "other", "NATSJOBS_REPLICAS": "3", "NATSJOBS_STORAGE": "memory"}
    names |= {"NATSJOBS_DOMAIN": "leaf", "NATSJOBS_ALLOW_LOSS": "yes", "NATSJOBS_MAX_BYTES": "2000000"}
    names |= {"NATSJOBS_CREATE": "off"}
    defaults = {name: getattr(getattr(Config(), name.split(".")[0]), name.split(".")[1]) for name in NUMBERS}
    env = names | {f"NATSJOBS_{name.upper().replace('.', '_')}": str(value) for name, value in defaults.items()}
    config = Config.from_env(env)
    assert (config.namespace, config.replicas, config.storage) == ("other", 3, "memory")
    assert (config.domain, config.allow_loss, config.max_bytes) == ("leaf", True, 2_000_000)
    assert config.create is False
    assert (config.retention, config.limits, config.timing) == (Retention(), Limits(), Timing())
    assert type(config.limits.event_bytes) is int
    assert Config.from_env({"NATSJOBS_TIMING_LEASE": "7.5"}).timing.lease == 7.5
    assert Config.from_env({"NATSJOBS_LIMITS_QUEUE_EVENTS": "9"}).limits.queue_events == 9


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("on", True), ("0", False), ("No", False), ("off", False), ("", False)],
)
def test_truth_in_the_environment(text, value):
    """The usual words, in any case."""
    assert Config.from_env({"NATSJOBS_ALLOW_LOSS": text}).allow_loss is value


@pytest.mark.parametrize(
    ("name", "text", "field"),
    [
        ("NATSJOBS_TIMING_LEASE", "soon", "timing.lease"),
        ("NATSJOBS_TIMING_LEASE", "", "timing.lease"),
        ("NATSJOBS_TIMING_LEASE", "nan", "timing.lease"),
        ("NATSJOBS_TIMING_LEASE", "inf", "timing.lease"),
        ("NATSJOBS_TIMING_LEASE", "1", "timing.lease"),
        ("NATSJOBS_LIMITS_EVENT_BYTES", "1.5", "limits.event_bytes"),
        ("NATSJOBS_RETENTION_FINISHED", "-3", "retention.finished"),
        ("NATSJOBS_REPLICAS", "many", "replicas"),
        ("NATSJOBS_REPLICAS", "4", "replicas"),
        ("NATSJOBS_STORAGE", "disk", "storage"),
        ("NATSJOBS_NAMESPACE", "a.b", "namespace"),
        ("NATSJOBS_ALLOW_LOSS", "maybe", "allow_loss"),
    ],
)
def test_wrong_variables_are_refused_by_the_name_of_their_setting(name, text, field):
    """And a text that cannot be read names its variable."""
    with pytest.raises(ConfigError) as refused:
        Config.from_env({name: text})
    assert refused.value.field == field
    if text in {"soon", "many", "maybe", "1.5"}:
        assert f"{name}='{text}'" in str(refused.value)


def test_the_process_environment_is_the_default(monkeypatch):
    """Read at each call, not at import."""
    monkeypatch.setenv("NATSJOBS_NAMESPACE", "from-the-process")
    assert Config.from_env().namespace == "from-the-process"


def test_variables_of_others_are_left_alone_and_slips_are_logged(caplog):
    """Kubernetes names a service's variables like ours; a name that is nearly a setting is worth a line."""
    others = {"NATSJOBS_PORT": "tcp://10.0.0.1:80", "NATSJOBS_SERVICE_HOST": "10.0.0.1", "NATS_URL": "x", "LEASE": "1"}
    with caplog.at_level(logging.WARNING, "natsjobs"):
        assert Config.from_env(others) == Config()
        assert caplog.records == []
        assert Config.from_env({"NATSJOBS_TIMING_LEES": "1"}) == Config()
    assert "NATSJOBS_TIMING_LEASE" in caplog.text
