"""Settings of the trackers that a run's metrics are mirrored to, a section each."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from rntp.config.section import Section


class TensorBoard(Section):
    dir: Path | None = None
    """Folder of the event files; null is tensorboard/ in the run folder."""


class Trackio(Section):
    project: str = "rntp"
    """Project of trackio, a database under TRACKIO_DIR on this machine."""


class MLflow(Section):
    uri: str = ""
    """Tracking server or store; with "" what MLFLOW_TRACKING_URI or MLflow's default says. Give
    user and password as MLflow's environment variables, not here."""
    experiment: str = "rntp"
    """Experiment of MLflow, made where there is none."""


class Wandb(Section):
    project: str = "rntp"
    """Project in wandb."""
    mode: Literal["online", "offline"] = "online"
    """online without WANDB_API_KEY falls back to offline, and says so."""


def _defaults_for_null(value: object) -> object:
    # `tensorboard:` with nothing behind it asks for the mirror as it is.
    return {} if value is None else value


class Mirrors(Section):
    """Trackers by name; one that is not named is off."""

    tensorboard: Annotated[TensorBoard | None, BeforeValidator(_defaults_for_null)] = None
    """Event files for TensorBoard."""
    trackio: Annotated[Trackio | None, BeforeValidator(_defaults_for_null)] = None
    """A local trackio database."""
    mlflow: Annotated[MLflow | None, BeforeValidator(_defaults_for_null)] = None
    """An MLflow server or store."""
    wandb: Annotated[Wandb | None, BeforeValidator(_defaults_for_null)] = None
    """Weights & Biases."""

    @model_serializer(mode="wrap")
    def _only_what_is_on(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A null that is read back would turn the mirror on.
        return {name: value for name, value in handler(self).items() if value is not None}

    def chosen(self) -> dict[str, Section]:
        """Return the settings of the trackers that are on, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: settings for name, settings in found.items() if settings is not None}
