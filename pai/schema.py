"""The schema of a whole configuration: top-level keys here, each group by its own signature."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from pai.components import STRICT, component_faults, model_faults
from pai.errors import ConfigError
from pai.precision import Precision


class Scoring(BaseModel):
    """What the scorer sees."""

    model_config = STRICT
    samples_per_class: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    warmup_batch_size: int = Field(ge=2)
    save_scores: bool
    precision: Precision
    memory_gib: float | None = Field(gt=0)
    cache_dir: str | None


class Seeds(BaseModel):
    """Seeds of parts of a run that are not the run's own seed (:func:`pai.seeding.seed_of`)."""

    model_config = STRICT
    initialization: int | None = Field(None, ge=0)
    data: int | None = Field(None, ge=0)
    probes: int | None = Field(None, ge=0)


class TopLevel(BaseModel):
    """The keys of ``conf/config.yaml``; the groups are components, checked one by one."""

    model_config = STRICT
    dataset: dict[str, Any]
    model: dict[str, Any]
    scorer: dict[str, Any]
    warmup: dict[str, Any]
    schedule: dict[str, Any]
    baseline: dict[str, Any]
    sanity: dict[str, Any]
    training: dict[str, Any]
    logger: dict[str, Any]
    scoring: Scoring
    sparsity: float = Field(ge=0, lt=1, description="the fraction removed, 0.9 for 90 %")
    sparsity_is: Literal["direct", "effective"]
    scope: str
    include_classifier: bool
    seed: int = Field(ge=0)
    seeds: Seeds | None = None
    device: str = Field(
        pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?)$",
        description="it should be auto, cpu, mps, cuda or, of several GPUs, cuda:0, cuda:1, ...",
    )


GROUPS = (
    "dataset", "model", "scorer", "warmup", "schedule", "baseline", "sanity", "training", "logger",
)  # fmt: skip
SUPPLIED_BY_THE_RUN = {
    "model": (
        "num_classes", "in_channels", "image_size", "vocab_size", "context_length",
        "node_features", "edge_index",
    )
}  # fmt: skip


def check_config(config: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` naming every unknown key, wrong type and value out of range."""
    faults = model_faults("", TopLevel, config)
    if not faults and config["model"].get("_partial_") is not True:
        faults = ["model._partial_: has to be true; the run supplies what the data set says"]
    if not faults:
        for group in GROUPS:
            faults += component_faults(group, config[group], SUPPLIED_BY_THE_RUN.get(group, ()))
    if faults:
        raise ConfigError("; ".join(faults))
