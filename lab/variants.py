"""Variants of a comparison: a core or model with settings of its own, such as ``rim_lstm+k=6``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_type_hints

from lab.settings import ConfigError, Settings
from lab.words import did_you_mean

AnySettings = TypeVar("AnySettings", bound=Settings)

_WORDS = {"true": True, "false": False}
#: What joins settings; the plus sign of a number such as 1e+3 does not.
_JOINT = re.compile(r"(?<![0-9.][eE])\+")

#: Bytes that a variant's name may have: it is part of the name of a folder.
_LONGEST = 200

_COMMON = ("seed", "core", "model")
_COMMON_GROUPS = ("Data", "Task", "Machine")


def base_of(variant: str) -> str:
    """The core or model of a variant.

    Example:
        >>> base_of("rim_lstm+k=6"), base_of("lstm")
        ('rim_lstm', 'lstm')
    """
    return variant.partition("+")[0]


def check_variant(check: Callable[[str], None]) -> Callable[[str], None]:
    """A check of a variant's form, and by ``check`` of its core or model."""

    def check_all(variant: str) -> None:
        if len(variant.encode(errors="replace")) > _LONGEST:
            rule = f"is longer than the {_LONGEST} bytes that a name of a variant may have"
            raise ValueError(f"{variant[:40]!r}... {rule}.")
        own_settings(variant)
        check(base_of(variant))

    return check_all


def own_settings(variant: str) -> dict[str, str]:
    """The settings in a variant's name, as they are written.

    Example:
        >>> own_settings("rim_lstm+k=6+init-from-unit-size=true")
        {'k': '6', 'init_from_unit_size': 'true'}

    Raises:
        ValueError: in one line, for another form.
    """
    found: dict[str, str] = {}
    for part in _JOINT.split(variant)[1:]:
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and equals and value.strip()) or name in found:
            raise ValueError(
                f"{variant!r} must have the form NAME+SETTING=VALUE+SETTING=VALUE, with each "
                "setting once."
            )
        found[name] = value.strip()
    return found


def with_variant(settings: AnySettings, variant: str, varied: str) -> AnySettings:
    """The settings of a variant.

    Args:
        settings: those that all variants share.
        variant: a core or model, and settings of its own.
        varied: the name of the setting that the core or model is.

    Raises:
        ConfigError: in one line, for a setting that cannot be, or that does nothing here.
    """
    given = own_settings(variant)
    own = {name: _value(settings, variant, name, text) for name, text in given.items()}
    try:
        found = replace(settings, **{varied: base_of(variant)}, **own)
    except ConfigError as error:
        if error.field not in own:
            raise
        raise ConfigError(error.field, f"of {variant!r} {error.rule}") from None
    for name in own.keys() & found.unused.keys():
        raise ConfigError(name, f"of {variant!r} {found.unused[name]}.")
    return found


def each_variant(
    settings: AnySettings, variants: Sequence[str], varied: str
) -> dict[str, AnySettings]:
    """The settings of every variant by its name; see :func:`with_variant`.

    Raises:
        ConfigError: for a setting that cannot be.
        ValueError: in one line, for two names of the same settings.
    """
    found: dict[str, AnySettings] = {}
    for variant in variants:
        own = with_variant(settings, variant, varied)
        for name, other in found.items():
            if own == other:
                raise ValueError(f"{name!r} and {variant!r} are the same settings; name one.")
        found[variant] = own
    return found


def with_equal_sizes(
    variants: Mapping[str, AnySettings], match: Callable[[AnySettings, AnySettings], AnySettings]
) -> dict[str, AnySettings]:
    """The settings of every variant with the hidden size that makes it as large as the first.

    Args:
        variants: settings by name.
        match: gives the first settings the size that makes them as large as the second.

    Raises:
        ValueError: in one line, for a variant that names its own size, or has none that fits.
    """
    (first, reference), *others = variants.items()
    found = {first: reference}
    for name, own in others:
        if "hidden_size" in own_settings(name):
            raise ValueError(f"{name!r}: its hidden_size is what --match-params chooses.")
        try:
            found[name] = match(own, reference)
        except ValueError as error:
            raise ValueError(f"{name!r} beside {first!r}: {error}") from None
    return found


def _value(settings: Settings, variant: str, name: str, text: str) -> Any:
    """A setting's value, read as its type says."""
    possible = _possible(settings)
    if name not in possible:
        hint = did_you_mean(name, list(possible))
        raise ConfigError(name, f"of {variant!r} is no setting in which variants may differ{hint}")
    kind = possible[name]
    try:
        if kind is bool:
            return _WORDS[text.lower()]
        return text if get_args(kind) else kind(text)
    except (ValueError, KeyError):
        wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
        raise ConfigError(name, f"of {variant!r} must be {wanted}; got {text!r}.") from None


def _possible(settings: Settings) -> Mapping[str, Any]:
    """The types of what variants may differ in: numbers, words and switches of the network."""
    hints = get_type_hints(type(settings))
    return {
        field.name: hints[field.name]
        for field in settings.fields_in_order()
        if field.metadata["has_effect"]
        and field.metadata["group"] not in _COMMON_GROUPS
        and field.name not in _COMMON
        and hints[field.name] is not str
    }
