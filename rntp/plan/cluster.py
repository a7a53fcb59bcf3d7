"""A cluster as a file describes it: GPUs, links, prices, how often something fails."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rntp.config.files import load_yaml
from rntp.errors import ConfigError

Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Part):
    """What computes: tflops (10^12 FLOP/s) of dense products in the type that trains, memory (GB),
    memory_gb_s (GB/s) of its bandwidth, dollars an hour."""

    name: str
    tflops: Amount
    memory_gb: Amount
    memory_gb_s: Amount
    dollars_per_hour: Price = 0.0


class Links(_Part):
    """Bandwidths in GB/s: between the devices of a node and between nodes, each way and device;
    between data centres, each way and all devices of a centre together. hop_us: microseconds that a
    message takes from a device to the next one; between_centres_ms: from a centre to the next."""

    inside_gb_s: Amount
    between_gb_s: Amount
    between_centres_gb_s: Amount = 10.0
    hop_us: Price = 5.0
    between_centres_ms: Price = 30.0
    dollars_per_gb_between_centres: Price = 0.0


class Storage(_Part):
    """gb_s: GB/s that all ranks write together. copy_gb_s: that a rank copies to its host's memory,
    for a save that goes on behind the training. dollars_per_tb_month: of what is kept."""

    gb_s: Amount = 10.0
    copy_gb_s: Amount = 10.0
    dollars_per_tb_month: Price = 0.0


class Failures(_Part):
    """device_hours: hours between two failures of one device, on average (1,024 devices with 50,000
    fail every 49 hours). restart_minutes: from a failure to the first step of the next start."""

    device_hours: Amount = 50_000.0
    restart_minutes: Price = 10.0


class Assumed(_Part):
    """Shares of the data sheet that are reached, where nothing was measured: of tflops in layers,
    head, attention and decoding, of the memory's bandwidth, of a link's. launch_us: microseconds
    that a layer's operations wait for the program, forward and backward; decode_launch_us: in a
    captured graph."""

    layers: Share = 0.5
    head: Share = 0.7
    attention: Share = 0.3
    decoding: Share = 0.3
    memory: Share = 0.6
    link: Share = 0.7
    launch_us: Price = 150.0
    decode_launch_us: Price = 15.0


class Cluster(_Part):
    """devices_per_node, nodes_per_centre, centres: how many there are of each."""

    name: str
    device: Device
    devices_per_node: Number = 1
    nodes_per_centre: Number = 1
    centres: Number = 1
    links: Links = Links(inside_gb_s=400, between_gb_s=50)
    storage: Storage = Storage()
    failures: Failures = Failures()
    assumed: Assumed = Assumed()

    @property
    def devices(self) -> int:
        """All of them."""
        return self.devices_per_node * self.nodes_per_centre * self.centres

    @classmethod
    def load(cls, path: Path) -> "Cluster":
        """Read a cluster file (YAML). Raises ConfigError, which names the field and what is wrong
        with it."""
        return cls.parse(load_yaml(path, "cluster file"), str(path))

    @classmethod
    def parse(cls, raw: Any, where: str = "cluster") -> "Cluster":
        """Check what a file has. Raises as `load`."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(
                f"{where}: {field}: {first['msg']}; the fields are described in docs/scale.md, and "
                "experiments/scale/clusters has examples"
            ) from error


ONE_H200 = Cluster(
    name="one H200",
    device=Device(name="H200", tflops=790, memory_gb=139, memory_gb_s=4300, dollars_per_hour=3.5),
)
"""Where no file is named: rates of products and copies as they were measured on one, see
`Assumed` for what is made of them; the price is an example."""
