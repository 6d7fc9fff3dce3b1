# SPDX-License-Identifier: Apache-2.0
"""What to do with a model: validated, complete, and written back with every default filled in."""

from collections.abc import Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from lutwise.errors import ConfigError, FormatError
from lutwise.quant import algorithms
from lutwise.quant.formats import (
    FloatFormat,
    Format,
    SpecialCodes,
    parse_element,
    parse_weight,
)
from lutwise.quant.presets import PRESETS, Preset
from lutwise.quant.ranges import RangeMethod, RangeSearch, ScaleKind

__all__ = ["Granularity", "GraphMode", "Override", "Recipe", "build_recipe", "load_recipe"]

_WITH_FORMAT = ("weights", "activations")
"""Settings for which a bare format may stand."""


_FLOAT32_END = 2.0**128


def _element(text: str) -> str:
    try:
        fmt = parse_element(text)
    except FormatError as error:
        raise ValueError(str(error)) from error
    if fmt.max_value >= _FLOAT32_END:
        raise ValueError(f"{text} reaches {fmt.max_value:g}, which no float32 tensor holds")
    return fmt.name


FormatName = Annotated[str, AfterValidator(_element)]


class GraphMode(StrEnum):
    """Which tensors get a format."""

    DATAFLOW = "dataflow"
    """Every tensor between layers, so that the network can be built in hardware."""

    LAYERWISE = "layerwise"
    """Inputs and weights of layers only."""


class Granularity(StrEnum):
    """How many scales the weights of a layer have."""

    TENSOR = "tensor"
    CHANNEL = "channel"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Range(_Model):
    range: RangeMethod = RangeMethod.MSE
    percentile: float = Field(99.99, gt=50, le=100)
    scale: ScaleKind = ScaleKind.FLOAT32

    def search(self) -> RangeSearch:
        """Return the settings in the form that `ranges` takes."""
        return RangeSearch(method=self.range, percentile=self.percentile, scale=self.scale)


class WeightSettings(_Range):
    """Weights: format, range search, scales, and whether signed integers are symmetric."""

    format: FormatName = "int8"
    granularity: Granularity = Granularity.CHANNEL
    narrow: bool = True


class ActivationSettings(_Range):
    """Activations: format and range search.

    The format's unsigned form goes to tensors that are never negative, its signed form to the
    others, for integers and minifloats alike; ``unsigned: false`` keeps the signed form.
    Scales found are multiplied by ``factor``.
    """

    format: FormatName = "uint8"
    unsigned: bool = True
    factor: float = Field(1.0, gt=0, lt=16)

    @model_validator(mode="after")
    def _powers_stay(self) -> Self:
        if self.factor != 1 and self.scale is ScaleKind.POWER_OF_TWO:
            raise ValueError("a factor leaves no powers of two; set scale to float32, or factor 1")
        return self


class Calibration(_Model):
    """How many images are looked at, how many at a time, and the memory for their activations.

    Activations beyond ``memory_gib`` are kept in files.
    """

    images: int = Field(256, ge=1, lt=1 << 31)
    batch: int = Field(64, ge=1, lt=1 << 31)
    memory_gib: float = Field(4.0, ge=0, lt=1 << 20)


class Override(_Model):
    """Other formats for the layers whose name matches a glob."""

    layers: str
    weights: FormatName | None = None
    activations: FormatName | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.weights is None and self.activations is None:
            raise ValueError("an override gives a format for `weights`, `activations`, or both")
        return self


class Recipe(_Model):
    """Everything that decides the result, apart from model and data.

    Args (all optional): ``weights``, ``activations``, ``mode``, ``input`` (format of the image),
    ``output`` (format of the logits; null keeps the last layer's exact sums), ``first_layer`` and
    ``last_layer`` (weight formats of these layers; null means as all others), ``relu6_to_relu``,
    ``algorithms`` (names, or names with settings), ``search`` (try alternatives to them, see
    `lutwise.quant.search`), ``float_layers`` (globs of layers that stay in float, ``layerwise``
    only), ``overrides``, ``calibration``, ``seed``. ``preset`` (``fast``, ``balanced``, ``best``)
    stands for the algorithms and the search of `lutwise.quant.presets`.
    """

    weights: WeightSettings = WeightSettings()
    activations: ActivationSettings = ActivationSettings()
    mode: GraphMode = GraphMode.DATAFLOW
    input: FormatName = "int8"
    output: FormatName | None = None
    first_layer: FormatName | None = None
    last_layer: FormatName | None = None
    relu6_to_relu: bool = False
    algorithms: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=lambda: PRESETS[Preset.BALANCED]["algorithms"]
    )
    search: bool = False
    float_layers: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    calibration: Calibration = Calibration()
    seed: int = Field(0, ge=0, lt=1 << 32, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _accept_names(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in _WITH_FORMAT:
                if isinstance(data.get(key), str):
                    data = {**data, key: {"format": data[key]}}
            if "preset" in data:
                preset = data["preset"]
                if preset not in list(Preset):
                    raise ValueError(f"preset is one of {', '.join(Preset)}, got {preset!r}")
                rest = {key: value for key, value in data.items() if key != "preset"}
                data = {**PRESETS[Preset(preset)], **rest}
        return data

    @field_validator("algorithms", mode="before")
    @classmethod
    def _accept_algorithm_names(cls, given: Any) -> Any:
        given = _by_name(given)
        if isinstance(given, Mapping):
            settings = {name: {} if value is None else value for name, value in given.items()}
            if all(isinstance(value, Mapping) for value in settings.values()):
                return settings
        raise ValueError(
            "wanted a name, a list of names, each once ([] for none), or a mapping of names to "
            "their settings"
        )

    @model_validator(mode="after")
    def _resolve_algorithms(self) -> Self:
        try:
            resolved = algorithms.resolve(self.algorithms)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        object.__setattr__(self, "algorithms", resolved)
        if "norm_reestimation" in resolved and self.weights.scale is ScaleKind.POWER_OF_TWO:
            raise ValueError(
                "norm_reestimation multiplies the scales of weights, which then are no powers of "
                "two; set weights.scale to float32, or leave norm_reestimation out"
            )
        return self

    def weight_format(self, layer: str, *, first: bool, last: bool) -> Format:
        """Return the format of a layer's weights: override, else first or last layer, else all."""
        text = self.weights.format
        if first and self.first_layer:
            text = self.first_layer
        if last and self.last_layer:
            text = self.last_layer
        for override in self.overrides:
            if override.weights and fnmatchcase(layer, override.layers):
                text = override.weights
        return parse_weight(text, narrow=self.weights.narrow)

    def activation_format(self, layers: tuple[str, ...], *, nonnegative: bool) -> Format:
        """Return the format of a tensor that the named modules make."""
        text = self.activations.format
        for override in self.overrides:
            if override.activations and any(fnmatchcase(n, override.layers) for n in layers):
                text = override.activations
        fmt = parse_element(text)
        if isinstance(fmt, FloatFormat) and fmt.special is not SpecialCodes.NONE:
            return fmt  # the OCP formats have no unsigned form
        if nonnegative and self.activations.unsigned:
            return fmt.as_unsigned()
        return fmt.as_signed()

    def to_yaml(self) -> str:
        """Return the complete recipe as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_recipe(path: Path | None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply changes to it.

    Args:
        path: YAML file; None for the defaults.
        changes: Values by dotted key (``weights.format``, ...); these win over the file.

    Raises:
        ConfigError: The file is missing, no YAML, or not valid.
    """
    data: Any = {}
    if path is not None:
        try:
            data = yaml.safe_load(path.read_text())
            data = {} if data is None else data
        except OSError as error:
            raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: a recipe is a mapping, got {type(data).__name__}")
    return build_recipe(data, changes=changes or {}, where=str(path) if path else "the recipe")


def build_recipe(*parts: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Recipe:
    """Make a recipe of nested settings, later ones over earlier ones.

    Args:
        parts: Settings as a recipe file holds them.
        changes: Values by dotted key; these win over all parts.
        where: For error messages.

    Raises:
        ConfigError: The result is not valid.
    """
    data: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            _set(data, str(key), value)
    for key in sorted(changes, key=lambda key: key.count(".")):  # wholes before their parts
        _set(data, key, changes[key])
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from error


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a value; a mapping is merged into the mapping (or what is short for one) there."""
    head, _, rest = key.partition(".")
    there = data.get(head)
    if head in _WITH_FORMAT:
        there = {"format": there} if isinstance(there, str) else there
        value = {"format": value} if isinstance(value, str) and not rest else value
    if rest:
        if head == "algorithms":
            there = _algorithms(data)
        if there is not None and not isinstance(there, Mapping):
            return  # validation says what is wrong with it
        part = dict(there) if isinstance(there, Mapping) else {}
        _set(part, rest, value)
        data[head] = part
    elif isinstance(there, dict) and isinstance(value, dict) and head != "algorithms":
        data[head] = {**there, **value}
    else:
        data[head] = value


def _algorithms(data: Mapping[str, Any]) -> Any:
    """Return the algorithms of settings that may name them, or a preset, or neither."""
    preset = data.get("preset", Preset.BALANCED)
    default = PRESETS[Preset(preset)]["algorithms"] if preset in list(Preset) else {}
    return _by_name(data.get("algorithms", default))


def _by_name(given: Any) -> Any:
    """Return a name, or names, as a mapping to no settings, and anything else as it is."""
    names = [given] if isinstance(given, str) else given
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        if len(set(names)) < len(names):
            return given  # validation refuses it
        return {name: {} for name in names}
    return given


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "recipe"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key; known are {', '.join(Recipe.model_fields)}"
            if len(item["loc"]) > 1:
                message = "unknown key"
        got = f" (got {item['input']!r})" if item["loc"] else ""  # not the whole recipe
        lines.append(f"{place}: {message}{got}")
    return f"{where} is not valid: " + "; ".join(lines)
